"""The cooperative schedule: a barrier kernel that is right under every seed, and mutants of the
barrier that are found.

Every kernel adds integers, so that a right result is exact and a wrong one is a schedule that went
wrong. Not covered here, nor by any test without a GPU: that the programs of a launch really are on
the device at once, and the hardware's memory model beyond stores that become visible late.
"""

# jit bodies are untyped by nature
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False

import itertools
import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import InterpreterError

from tests import planted_barriers
from tests.inputs import INTERPRETED
from tritonbn_bench.emulated import DeadlockError, cooperative, random_program_order
from tritonbn_kernels.barrier import group_barrier

pytest.importorskip("greenlet", reason="cooperative schedules need greenlet")
pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels run on the GPU here")

BLOCK = 4
SIGN = -(2**31)
# seeds of the mutants' runs: few, because each mutant falls to most of them
MUTANT_SEEDS = range(1000, 1020)


@triton.jit
def _center_kernel(
    x_ptr, y_ptr, partials_ptr, counters_ptr, n_groups, group_size,
    BARRIER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = group_size * BLOCK * x - sum of x over its group; items dealt as in our kernels."""
    offs = tl.arange(0, BLOCK)
    for item in range(tl.program_id(0), n_groups * group_size, tl.num_programs(0)):
        group = item // group_size
        member = item - group * group_size
        x_tile = tl.load(x_ptr + item * BLOCK + offs)
        tl.store(partials_ptr + item * BLOCK + offs, x_tile)
        BARRIER(counters_ptr + group, member, group_size)
        total = tl.zeros((BLOCK,), tl.int32)
        for other in range(group_size):
            total += tl.load(partials_ptr + (group * group_size + other) * BLOCK + offs)
        y_tile = x_tile * (group_size * BLOCK) - tl.sum(total)
        tl.store(y_ptr + item * BLOCK + offs, y_tile)


@triton.jit
def _publish_late_kernel(
    x_ptr, y_ptr, partials_ptr, counters_ptr, n_groups, group_size,
    BARRIER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`_center_kernel`, but a program stores its partial result when it has arrived."""
    offs = tl.arange(0, BLOCK)
    for item in range(tl.program_id(0), n_groups * group_size, tl.num_programs(0)):
        group = item // group_size
        member = item - group * group_size
        x_tile = tl.load(x_ptr + item * BLOCK + offs)
        step = tl.where(member == 0, 2147483647 - (group_size - 2), 1)
        before = tl.atomic_add(counters_ptr + group, step, sem="release", scope="gpu")
        tl.store(partials_ptr + item * BLOCK + offs, x_tile)
        while (tl.atomic_add(counters_ptr + group, 0, sem="acquire", scope="gpu") ^ before) >= 0:
            pass
        total = tl.zeros((BLOCK,), tl.int32)
        for other in range(group_size):
            total += tl.load(partials_ptr + (group * group_size + other) * BLOCK + offs)
        y_tile = x_tile * (group_size * BLOCK) - tl.sum(total)
        tl.store(y_ptr + item * BLOCK + offs, y_tile)


@triton.jit
def _ticket_kernel(counter_ptr, ticket_ptr, n):
    program = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(2)
    program += tl.program_id(2)
    for step in range(n):
        place = program * n + step
        tl.store(ticket_ptr + place, tl.atomic_add(counter_ptr, 1))


@triton.jit
def _claim_kernel(claimed_ptr, winner_ptr):
    if tl.atomic_cas(claimed_ptr, 0, 1) == 0:
        tl.store(winner_ptr, tl.program_id(0))


@triton.jit
def _own_stores_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + offs, offs)
    tl.store(x_ptr + offs, tl.load(x_ptr + offs) + 1)
    tl.store(x_ptr + offs, tl.load(x_ptr + offs) * 2)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs))


@triton.jit
def _invert_kernel(x_ptr, y_ptr):
    program = tl.program_id(0)
    tl.store(y_ptr + program, 1.0 / tl.load(x_ptr + program))


@triton.jit
def _faulty_kernel(x_ptr):
    tl.load(x_ptr + tl.program_id(0))
    if tl.program_id(0) == 1:
        # no power of two
        tl.arange(0, 3)


@triton.jit
def _endless_kernel(counter_ptr):
    while tl.atomic_add(counter_ptr, 1) >= 0:
        pass


def _center(
    groups: int,
    group_size: int,
    programs: int,
    *,
    barrier: Any = group_barrier,
    kernel: Any = _center_kernel,
    counters: Tensor | None = None,
) -> bool:
    """Whether one launch gives the right result."""
    x = torch.randint(1, 1000, (groups, group_size, BLOCK), dtype=torch.int32)
    y, partials = torch.empty_like(x), torch.zeros_like(x)
    if counters is None:
        counters = torch.zeros(groups, dtype=torch.int32)
    kernel[(programs,)](
        x, y, partials, counters, groups, group_size, BARRIER=barrier, BLOCK=BLOCK
    )  # fmt: skip
    return torch.equal(y, group_size * BLOCK * x - x.sum(dim=(1, 2), keepdim=True))


@pytest.mark.parametrize("groups, group_size, programs, first", [
    pytest.param(1, 2, 2, 0, id="pair"),
    pytest.param(2, 3, 6, 100, id="two-groups-of-3"),
    pytest.param(3, 3, 5, 200, id="persistent-9-items-5-programs"),
    pytest.param(1, 8, 8, 300, id="group-of-8"),
])  # fmt: skip
def test_barrier_is_right_under_seeds(
    groups: int, group_size: int, programs: int, first: int
) -> None:
    for seed in range(first, first + 60):
        with cooperative(seed):
            assert _center(groups, group_size, programs), seed


def test_counters_serve_groups_of_any_size_one_after_another() -> None:
    counters = torch.zeros(2, dtype=torch.int32)
    for seed in range(30):
        with cooperative(seed):
            assert _center(2, 2 + seed % 3, 4, counters=counters), seed
        assert all(counter in (0, SIGN) for counter in counters.tolist())


def _failures(run: Callable[[], bool]) -> tuple[int, int]:
    """(runs with a wrong result, deadlocks) under the seeds of the mutants."""
    wrong = stuck = 0
    for seed in MUTANT_SEEDS:
        with cooperative(seed):
            try:
                wrong += not run()
            except DeadlockError:
                stuck += 1
    return wrong, stuck


@pytest.mark.parametrize("barrier", [
    pytest.param(planted_barriers.removed, id="removed"),
    pytest.param(planted_barriers.first_member_flips, id="first-member-flips-alone"),
    pytest.param(planted_barriers.waits_for_anyone, id="counter-compared-whole"),
    pytest.param(planted_barriers.no_block_barrier, id="no-block-barrier-before-release"),
    pytest.param(planted_barriers.relaxed_arrival, id="relaxed-arrival"),
])  # fmt: skip
def test_mutant_that_lets_a_member_through_gives_wrong_results(barrier: Any) -> None:
    wrong, stuck = _failures(lambda: _center(1, 3, 3, barrier=barrier))
    assert wrong >= 5
    assert stuck == 0


@pytest.mark.parametrize("barrier", [
    pytest.param(planted_barriers.flips_one_early, id="counter-flips-one-early"),
    pytest.param(planted_barriers.flips_one_late, id="counter-flips-one-late"),
])  # fmt: skip
def test_mutant_that_miscounts_is_a_deadlock(barrier: Any) -> None:
    _, stuck = _failures(lambda: _center(1, 3, 3, barrier=barrier))
    assert stuck >= 5


def test_partial_published_after_arrival_gives_wrong_results() -> None:
    wrong, _ = _failures(lambda: _center(1, 3, 3, kernel=_publish_late_kernel))
    assert wrong >= 5


@pytest.mark.parametrize("seed", range(5))
def test_group_larger_than_what_runs_at_once_is_a_deadlock_that_says_who_waits(seed: int) -> None:
    with cooperative(seed, resident=2), pytest.raises(DeadlockError) as caught:
        _center(1, 3, 3)
    waiting = caught.value.waiting
    absent = caught.value.not_started
    assert len(waiting) == 2 and len(absent) == 1
    assert {*(each.program for each in waiting), *absent} == {(0, 0, 0), (1, 0, 0), (2, 0, 0)}
    for each in waiting:
        assert each.operation == "atomic"
        assert each.times > 100
        assert each.line.startswith("barrier.py:") and each.line.endswith("in group_barrier")
        assert str(each.program) in str(caught.value)
    assert f"not started: programs {list(absent)}" in str(caught.value)


def test_group_that_fits_into_what_runs_at_once_is_none() -> None:
    for seed in range(20):
        with cooperative(seed, resident=3):
            assert _center(2, 3, 3), seed


def test_loop_that_changes_memory_for_ever_is_a_deadlock_too() -> None:
    with cooperative(0), pytest.raises(DeadlockError, match="in _endless_kernel: atomic"):
        _endless_kernel[(2,)](torch.zeros(1, dtype=torch.int32))


def _tickets(grid: tuple[int, ...], steps: int = 4) -> list[list[int]]:
    """For each program of `grid`, the tickets that it drew one after another."""
    size = torch.Size(grid).numel()
    tickets = torch.full((size, steps), -1, dtype=torch.int32)
    _ticket_kernel[grid](torch.zeros(1, dtype=torch.int32), tickets, steps)
    rows: list[list[int]] = tickets.tolist()
    return rows


def _drawn(rows: list[list[int]]) -> list[int]:
    return sorted(itertools.chain.from_iterable(rows))


@pytest.mark.parametrize("grid", [(6,), (2, 3), (2, 2, 3)], ids=["1d", "2d", "3d"])
def test_every_program_runs_once_under_its_own_index(grid: tuple[int, ...]) -> None:
    with cooperative(3):
        rows = _tickets(grid)
    assert _drawn(rows) == list(range(4 * len(rows)))
    assert all(row == sorted(row) for row in rows)


def test_seed_is_a_schedule() -> None:
    def two_launches(seed: int) -> list[list[list[int]]]:
        with cooperative(seed):
            return [_tickets((4,)), _tickets((4,))]

    first = two_launches(1)
    assert first == two_launches(1)
    assert first != two_launches(2)
    assert first[0] != first[1]


def test_seeds_reach_fine_interleavings_and_programs_that_run_far_ahead() -> None:
    changes = []
    for seed in range(40):
        with cooperative(seed):
            rows = _tickets((2,), 8)
        owners = sorted((ticket, owner) for owner, row in enumerate(rows) for ticket in row)
        changes.append(sum(a[1] != b[1] for a, b in itertools.pairwise(owners)))
    assert min(changes) == 1
    assert max(changes) >= 8


@pytest.mark.parametrize("resident", [1, 2])
def test_no_more_programs_run_at_once_than_resident(resident: int) -> None:
    with cooperative(5, resident=resident):
        rows = _tickets((6,))
    starts, ends = sorted(row[0] for row in rows), sorted(row[-1] for row in rows)
    at_once = [sum(s <= t for s in starts) - sum(e < t for e in ends) for t in range(24)]
    assert max(at_once) == resident


def test_compare_and_swap_has_one_winner() -> None:
    winners = set()
    for seed in range(20):
        claimed, winner = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        with cooperative(seed):
            _claim_kernel[(3,)](claimed, winner)
        assert claimed.item() == 1
        winners.add(winner.item())
    assert winners == {0, 1, 2}


def test_program_sees_its_own_stores_at_once_and_leaves_none_behind() -> None:
    expected = 2 * torch.arange(12, dtype=torch.int32) + 2
    for seed in range(20):
        x, y = torch.full((2, 12), -1, dtype=torch.int32)
        with cooperative(seed):
            _own_stores_kernel[(3,)](x, y, BLOCK=4)
        assert torch.equal(x, expected) and torch.equal(y, expected), seed


def test_programs_divide_by_zero_in_silence() -> None:
    x, y = torch.tensor([0.0, 2.0, -0.0]), torch.empty(3)
    with cooperative(0):
        _invert_kernel[(3,)](x, y)
    assert y.tolist() == [math.inf, 0.5, -math.inf]


def test_fault_of_one_program_reaches_the_caller_and_leaves_the_interpreter_as_it_was() -> None:
    before = _tickets((3,))
    with cooperative(0):
        with pytest.raises(InterpreterError, match="power of 2"):
            _faulty_kernel[(3,)](torch.zeros(3))
        # and the next launch inside is a fresh one
        assert _drawn(_tickets((3,))) == list(range(12))
    assert _tickets((3,)) == before


def test_schedule_and_random_order_go_together() -> None:
    for order in (0, 1):
        with random_program_order(order), cooperative(2):
            assert _center(1, 3, 3)
        with cooperative(2), random_program_order(order):
            assert _center(1, 3, 3)


def test_missing_greenlet_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "greenlet", None)
    with pytest.raises(ImportError, match="expected greenlet"), cooperative(0):
        pass


@pytest.mark.parametrize("limits", [{"hand_overs": 0}, {"resident": 0}], ids=str)
def test_limit_below_one_is_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected at least 1"), cooperative(0, **limits):
        pass
