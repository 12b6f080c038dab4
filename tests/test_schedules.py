"""The one-read kernels under more than 1,000 random schedules: every one gives the same bits, and
one of them is judged against the float64 oracle.

Each seed is two schedules, one of the forward and one of the backward launch, and is run in fp32
and in bf16: 4 x 254 = 1,016 schedules.

    kernels         group of  programs  groups  seeds
    resident        2         4         2       0 to 63
    resident        3         4         2       100 to 135
    resident        8         8         1       200 to 215
    rows, images    2         4         2       300 to 315
    rows, images    3         4         2       400 to 423
    rows, images    8         8         1       500 to 511
    channels_last   3         4         2       600 to 635
    channels_last   8         8         1       700 to 715
    hybrid          2         4         2       800 to 813
    hybrid          3         4         2       900 to 919

Not covered here: that a cooperative launch puts the programs on the GPU at once, and the hardware's
memory model beyond stores that become visible late.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tritonbn_kernels
from tests import planted_barriers
from tests.checks import Operands, check_backward, check_forward, operands
from tests.inputs import INTERPRETED, lay_out, values
from tritonbn_bench.emulated import DeadlockError, cooperative
from tritonbn_kernels import group as group_module
from tritonbn_kernels import launch, pinned_plan, record_launches

pytest.importorskip("greenlet", reason="cooperative schedules need greenlet")
pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels run on the GPU here")

# batches counted before this one: momentum None, so that every group reads the count and the last
# to come adds to it
TRACKED = 3


@dataclass(frozen=True)
class Group:
    """A shape and pins that give groups of `size` programs, and the seeds of its schedules."""

    kernels: str
    size: int
    shape: tuple[int, ...]
    block_c: int
    programs: int
    seeds: range
    why: str
    layout: str = "contiguous"
    pins: dict[str, int] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Name of the case: `rows-hybrid-groups-of-3`."""
        kind = "hybrid" if self.pins else self.layout
        return f"{self.kernels}-{kind}-groups-of-{self.size}"

    def values(self, dtype: torch.dtype, ratio: float = 0.0) -> Tensor:
        """Random values of this shape in this layout; `ratio` as for `tests.inputs.values`."""
        return lay_out(values(self.shape, dtype, ratio), self.layout)

    @contextmanager
    def plan(self, **pins: int) -> Iterator[None]:
        """Plans of this group, with other pins where given."""
        fields = {
            "resident": 1,
            "splits": self.size,
            "block_c": self.block_c,
            "programs": self.programs,
            **self.pins,
            **pins,
        }
        with pinned_plan(**fields):
            yield


_LAST = "channels_last"
_HYBRID = {"block_n": 8, "pieces": 2, "stream": 1}
GROUPS = [
    Group("resident", 2, (3, 2, 8, 4), 1, 4, range(0, 64), "two groups at once; ragged tiles"),
    Group("resident", 3, (5, 3, 4, 6), 2, 4, range(100, 136), "two items for some; odd channels"),
    Group("resident", 8, (8, 2, 4, 4), 2, 8, range(200, 216), "one group in flight"),
    Group("rows", 2, (4, 16, 5, 3), 8, 4, range(300, 316), "two groups at once"),
    Group("rows", 3, (7, 16, 5, 3), 8, 4, range(400, 424), "two items for some; ragged images"),
    Group("rows", 8, (15, 8, 5, 3), 8, 8, range(500, 512), "one group in flight"),
    Group("rows", 3, (7, 16, 5, 3), 8, 4, range(600, 636), "two items for some", _LAST),
    Group("rows", 8, (9, 8, 5, 3), 8, 8, range(700, 716), "one group in flight", _LAST),
    Group("rows", 2, (6, 16, 3, 5), 8, 4, range(800, 814), "two groups at once", _LAST, _HYBRID),
    Group("rows", 3, (7, 16, 5, 3), 8, 4, range(900, 920), "two items for some", _LAST, _HYBRID),
]
DTYPES = [
    pytest.param(torch.float32, id="fp32"),
    # two values a word
    pytest.param(torch.bfloat16, id="bf16"),
]
THREES = [group for group in GROUPS if group.size == 3]
MUTANT_SEEDS = range(1000, 1012)
# wrong results out of these seeds that convict a mutant
ENOUGH_WRONG = 3
of_every_group = pytest.mark.parametrize("group", [pytest.param(g, id=g.id) for g in GROUPS])
of_every_three = pytest.mark.parametrize("group", [pytest.param(g, id=g.id) for g in THREES])
of_both_dtypes = pytest.mark.parametrize("dtype", DTYPES)


def _operands(group: Group, dtype: torch.dtype) -> tuple[Operands, Tensor]:
    """A call whose mean is 100 standard deviations off, and its dy."""
    call = replace(operands(group.values(dtype, ratio=100.0)), momentum=None)
    return call, group.values(dtype)


def _results(call: Operands, dy: Tensor) -> dict[str, Tensor]:
    """Everything that a forward and a backward launch write."""
    ours, count = call.copy(), torch.tensor(TRACKED)
    y, saved = tritonbn_kernels.batch_norm_forward(
        ours.x,
        ours.gamma,
        ours.beta,
        ours.running_mean,
        ours.running_var,
        count,
        True,
        None,
        ours.eps,
    )
    dx, dgamma, dbeta = tritonbn_kernels.batch_norm_backward(
        dy, ours.x, ours.gamma, saved, True, True, True, True
    )
    named = {
        "y": y,
        "saved": saved,
        "running_mean": ours.running_mean,
        "running_var": ours.running_var,
        "num_batches_tracked": count,
        "dx": dx,
        "dgamma": dgamma,
        "dbeta": dbeta,
    }
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def _differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Names of the results that are not the same to the bit."""
    assert found.keys() == expected.keys()
    return [name for name, value in found.items() if not torch.equal(value, expected[name])]


@of_both_dtypes
@of_every_group
def test_every_schedule_gives_the_same_bits(group: Group, dtype: torch.dtype) -> None:
    call, dy = _operands(group, dtype)
    with group.plan():
        with cooperative(group.seeds[0]), record_launches() as records:
            first = _results(call, dy)
        assert len(first) == 8
        kernels = [f"{group.kernels}_forward_kernel", f"{group.kernels}_backward_kernel"]
        assert [record.kernel for record in records] == kernels
        assert all(record.constants["GROUPED"] for record in records)
        assert all(record.grid == (group.programs, 1, 1) for record in records)
        for seed in group.seeds[1:]:
            with cooperative(seed):
                assert _differences(_results(call, dy), first) == [], seed


@of_both_dtypes
@of_every_group
def test_schedule_is_right(group: Group, dtype: torch.dtype) -> None:
    call, dy = _operands(group, dtype)
    with group.plan(), cooperative(group.seeds[0]):
        check_forward(call, training=True, tracked=TRACKED)
        check_backward(replace(call, momentum=0.1), dy, training=True)


@pytest.fixture
def own_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters for this test alone: a launch that is given up leaves them in no state."""
    monkeypatch.setattr(launch, "_counters", {})


@pytest.mark.parametrize("barrier", [
    pytest.param(planted_barriers.removed, id="removed"),
    pytest.param(planted_barriers.waits_for_anyone, id="counter-compared-whole"),
    pytest.param(planted_barriers.no_block_barrier, id="no-block-barrier-before-release"),
    pytest.param(planted_barriers.relaxed_arrival, id="relaxed-arrival"),
])  # fmt: skip
@of_every_three
@pytest.mark.usefixtures("own_counters")
def test_mutant_of_the_barrier_gives_wrong_results(
    group: Group, barrier: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, dy = _operands(group, torch.float32)
    wrong = 0
    with group.plan(programs=6):
        with cooperative(MUTANT_SEEDS[0]):
            right = _results(call, dy)
        monkeypatch.setattr(group_module, "group_barrier", barrier)
        for seed in MUTANT_SEEDS:
            with cooperative(seed):
                wrong += _differences(_results(call, dy), right) != []
            if wrong == ENOUGH_WRONG:
                break
    assert wrong == ENOUGH_WRONG


@pytest.mark.parametrize("barrier", [
    pytest.param(planted_barriers.flips_one_early, id="counter-flips-one-early"),
    pytest.param(planted_barriers.flips_one_late, id="counter-flips-one-late"),
])  # fmt: skip
@of_every_three
@pytest.mark.usefixtures("own_counters")
def test_mutant_that_miscounts_is_a_deadlock(
    group: Group, barrier: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, dy = _operands(group, torch.float32)
    monkeypatch.setattr(group_module, "group_barrier", barrier)
    with group.plan(), cooperative(0), pytest.raises(DeadlockError, match=r"planted_barriers\.py"):
        _results(call, dy)


@of_every_three
@pytest.mark.usefixtures("own_counters")
def test_group_larger_than_the_grid_is_a_deadlock(group: Group) -> None:
    call, dy = _operands(group, torch.float32)
    with group.plan(programs=2), cooperative(0), pytest.raises(DeadlockError) as caught:
        _results(call, dy)
    assert [waiting.program for waiting in caught.value.waiting] == [(0, 0, 0), (1, 0, 0)]
    assert all("in group_barrier" in waiting.line for waiting in caught.value.waiting)
    assert caught.value.not_started == ()


@of_every_three
@pytest.mark.usefixtures("own_counters")
def test_group_larger_than_what_runs_at_once_is_a_deadlock(group: Group) -> None:
    call, dy = _operands(group, torch.float32)
    with (
        group.plan(programs=3),
        cooperative(0, resident=2),
        pytest.raises(DeadlockError, match=r"not started: programs \[\(\d, 0, 0\)\]"),
    ):
        _results(call, dy)


@of_every_three
def test_grid_of_one_group_is_enough(group: Group) -> None:
    call, dy = _operands(group, torch.float32)
    with group.plan():
        with cooperative(0):
            right = _results(call, dy)
        with group.plan(programs=group.size):
            for seed in range(950, 960):
                with cooperative(seed):
                    assert _differences(_results(call, dy), right) == [], seed
