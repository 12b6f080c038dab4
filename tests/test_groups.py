"""Groups of programs that share a channel: accuracy whatever the member, bits whatever the order.

A handful of schedules; `test_schedules.py` runs a thousand.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import tritonbn
import tritonbn_kernels
from tests.checks import EPS, Operands, check_backward, check_forward, operands
from tests.held import gradient_of, judge, of_every_dtype, pieces_of, with_dtypes
from tests.inputs import DEVICE, lay_out, values
from tritonbn_bench.emulated import cooperative
from tritonbn_kernels import LaunchRecord, pinned_plan, record_launches

pytest.importorskip("greenlet", reason="cooperative schedules need greenlet")


@dataclass(frozen=True)
class Group:
    """A shape and pins of a plan in which `size` members share every block of channels."""

    kernels: str
    size: int
    shape: tuple[int, ...]
    pins: dict[str, int]
    why: str
    layout: str = "contiguous"

    @property
    def id(self) -> str:
        """Name of the case: `resident-groups-of-3`."""
        kind = "hybrid" if "stream" in self.pins else self.layout
        return f"{self.kernels}-{kind}-groups-of-{self.size}"

    def values(self, dtype: torch.dtype, ratio: float = 0.0) -> Tensor:
        """Random values of this shape in this layout; `ratio` as for `tests.inputs.values`."""
        return lay_out(values(self.shape, dtype, ratio), self.layout)

    @contextmanager
    def plan(self, seed: int = 1) -> Iterator[list[LaunchRecord]]:
        """Groups of this size under a schedule; afterwards every launch must have been one."""
        pins = {"resident": 1, "splits": self.size, **self.pins}
        with pinned_plan(**pins), cooperative(seed), record_launches() as launches:
            yield launches
        for launch in launches:
            assert launch.kernel.startswith(f"{self.kernels}_")
            assert launch.constants["GROUPED"]
            assert launch.grid == (self.pins["programs"], 1, 1)


GROUPS = [
    Group("resident", 2, (5, 3, 8, 4), {"block_c": 1, "programs": 4}, "a shorter last member"),
    Group(
        "resident",
        3,
        (7, 3, 4, 8),
        {"block_c": 2, "block_v": 8, "programs": 4},
        "pieces, the last ragged; channels no multiple of the block; some own two items",
    ),
    Group("resident", 8, (4, 2, 8, 8), {"block_c": 2, "programs": 8}, "one group in flight"),
    Group("rows", 2, (5, 16, 5, 3), {"block_c": 8, "programs": 3}, "a shorter last member"),
    Group(
        "rows",
        3,
        (25, 24, 3),
        {"block_c": 16, "block_n": 8, "programs": 5},
        "pieces; a smaller block",
    ),
    Group("rows", 8, (15, 8, 5, 3), {"block_c": 8, "programs": 8}, "one group in flight"),
    Group(
        "rows",
        3,
        (7, 16, 3, 4),
        {"block_c": 8, "block_n": 16, "programs": 5},
        "pieces; ragged tiles; some own two items",
        "channels_last",
    ),
    Group("rows", 8, (61, 16), {"programs": 8, "block_n": 4}, "(N, C): one group in flight"),
    Group(
        "rows",
        3,
        (5, 16, 4, 4),
        {"block_c": 8, "block_n": 8, "pieces": 2, "stream": 1, "programs": 5},
        "a part is read twice; ragged steps; some own two items",
        "channels_last",
    ),
]
of_every_group = pytest.mark.parametrize("group", [pytest.param(g, id=g.id) for g in GROUPS])
# three members: the one whose values are out of the ordinary can be first, amid or last
of_every_kernel = pytest.mark.parametrize(
    "group", [pytest.param(g, id=g.id) for g in GROUPS if g.size == 3]
)
# the first image, one amid, the last
PLACES = (0, 0.5, -1)


def _image(x: Tensor, place: float) -> Tensor:
    """The image of `x` at this place of the batch, a share of it or -1."""
    return x[int(place * x.shape[0]) if place >= 0 else -1]


# 100 is in test_schedules.py
@with_dtypes("ratio", fp32=(1e4, 1e6), fp16=(1e4,), bf16=(1e6,))
@of_every_group
def test_groups_keep_the_budget(group: Group, dtype: torch.dtype, ratio: float) -> None:
    call = operands(group.values(dtype, ratio))
    with group.plan() as launches:
        judge(call, gradient_of(call.x))
    assert [launch.kernel for launch in launches] == [
        f"{group.kernels}_forward_kernel",
        f"{group.kernels}_backward_kernel",
    ]


def test_cases_reach_one_and_several_pieces() -> None:
    reached = set()
    for group in GROUPS:
        with group.plan():
            reached |= pieces_of(group.values(torch.float32))
    assert {name for name, several in reached if several} == {
        f"{kernels}_{which}_kernel"
        for kernels in ("resident", "rows")
        for which in ("forward", "backward")
    }
    assert len(reached) == 8


@of_every_kernel
@with_dtypes("place", fp32=PLACES, fp16=(0.5,), bf16=(-1,))
def test_value_far_from_the_rest_keeps_the_budget(
    group: Group, dtype: torch.dtype, place: float
) -> None:
    x = group.values(dtype)
    _image(x, place).flatten(1)[:, 0] = -3e4
    call = operands(x)
    with group.plan():
        judge(call, gradient_of(x))


@of_every_kernel
@of_every_dtype
def test_members_of_different_means_keep_the_budget(group: Group, dtype: torch.dtype) -> None:
    # what each member deviates from is far from what the channel deviates from
    x = group.values(dtype)
    x += torch.linspace(-50, 50, x.shape[0]).view(-1, *[1] * (x.dim() - 1)).to(x)
    call = operands(x)
    with group.plan():
        judge(call, gradient_of(x))


@of_every_kernel
@with_dtypes("constant", fp32=(0.1, 3000.0), fp16=(3000.0,), bf16=(0.1,))
def test_constant_channel_is_beta(group: Group, dtype: torch.dtype, constant: float) -> None:
    x = group.values(dtype)
    x[:, 1::2] = constant
    call = operands(x)
    with group.plan():
        saved = judge(call, gradient_of(x))
        y, _ = tritonbn_kernels.batch_norm_forward(
            x, call.gamma, call.beta, None, None, None, True, 0.1, EPS
        )
    assert torch.equal(saved[0, 1::2] + saved[1, 1::2], x[0, 1::2].flatten(1)[:, 0].float())
    assert call.beta is not None
    beta = call.beta.to(dtype)[1::2].view(1, -1, *[1] * (x.dim() - 2))
    assert torch.equal(y[:, 1::2], beta.expand_as(y[:, 1::2]))


@of_every_kernel
@pytest.mark.parametrize(
    ("value", "place"),
    [*((math.nan, place) for place in PLACES), (math.inf, 0.5)],
    ids=["nan-first", "nan-amid", "nan-last", "inf-amid"],
)
def test_nan_and_infinity_reach_every_member(group: Group, value: float, place: float) -> None:
    x = group.values(torch.float32)
    _image(x, place)[2].flatten()[-1] = value
    call = operands(group.values(torch.float32))
    ours = call.copy()
    dy = gradient_of(x)
    with group.plan():
        y, saved = tritonbn_kernels.batch_norm_forward(
            x, call.gamma, call.beta, ours.running_mean, ours.running_var, None, True, 0.1, EPS
        )
        dx, dgamma, dbeta = tritonbn_kernels.batch_norm_backward(
            dy, x, call.gamma, saved, True, True, True, True
        )
    leaf = x.clone().requires_grad_()
    torch_y = functional.batch_norm(leaf, None, None, call.gamma, call.beta, True)
    (torch_dx,) = torch.autograd.grad(torch_y, leaf, dy)
    assert dx is not None and dgamma is not None and dbeta is not None
    others = torch.arange(x.shape[1], device=DEVICE) != 2
    assert torch.equal(y.isfinite(), torch_y.isfinite())
    assert torch.equal(dx.isfinite(), torch_dx.isfinite())
    assert not dgamma[2].isfinite() and dgamma[others].isfinite().all()
    assert ours.running_mean is not None and ours.running_var is not None
    assert not ours.running_mean[2].isfinite() and ours.running_mean[others].isfinite().all()
    assert ours.running_var[2].isnan() and ours.running_var[others].isfinite().all()


@of_every_kernel
def test_half_statistics_and_missing_parameters_keep_the_budget(group: Group) -> None:
    half = operands(group.values(torch.float16), torch.float16, torch.float16)
    with group.plan():
        judge(half, gradient_of(half.x))
        bare = Operands(half.x, None, None, None, None)
        judge(bare, gradient_of(half.x))


@of_every_kernel
@pytest.mark.parametrize(
    "need",
    [(True, False, False), (True, True, False), (True, False, True)],
    ids=["dx", "dx-dgamma", "dx-dbeta"],
)
def test_only_the_gradients_asked_for_are_made(group: Group, need: tuple[bool, ...]) -> None:
    call = operands(group.values(torch.float32))
    need_dx, need_dgamma, need_dbeta = need
    with group.plan():
        check_backward(
            call,
            gradient_of(call.x),
            training=True,
            need_dx=need_dx,
            need_dgamma=need_dgamma,
            need_dbeta=need_dbeta,
        )


@of_every_kernel
@pytest.mark.parametrize("seed", range(2))
def test_every_group_reads_the_count_before_it_is_written(group: Group, seed: int) -> None:
    call = replace(operands(group.values(torch.float32)), momentum=None)
    with group.plan(seed):
        check_forward(call, training=True, tracked=2)


@of_every_group
def test_schedule_and_repetition_change_no_bit(group: Group) -> None:
    x, dy = (group.values(torch.bfloat16) for _ in range(2))
    expected = None
    # the counters of the barrier go on from where the launch before left them
    for seed in (0, 1, 1):
        mean, var = torch.zeros(x.shape[1], device=DEVICE), torch.ones(x.shape[1], device=DEVICE)
        with group.plan(seed):
            y, saved = tritonbn_kernels.batch_norm_forward(
                x, None, None, mean, var, None, True, 0.1, EPS
            )
            gradients = tritonbn_kernels.batch_norm_backward(
                dy, x, None, saved, True, True, True, True
            )
        results = [y, saved, mean, var, *gradients]
        expected = results if expected is None else expected
        for result, other in zip(results, expected, strict=True):
            assert result is not None and other is not None
            assert torch.equal(result, other), seed


@of_every_kernel
def test_training_step_of_a_layer_is_two_launches(group: Group) -> None:
    layers = {2: tritonbn.BatchNorm1d, 3: tritonbn.BatchNorm1d, 4: tritonbn.BatchNorm2d}
    layer = layers[len(group.shape)](group.shape[1]).to(DEVICE)
    with group.plan() as launches:
        for step in range(1, 3):
            x = group.values(torch.float32).requires_grad_()
            layer(x).backward(group.values(torch.float32))
            assert len(launches) == 2 * step
    assert x.grad is not None and x.grad.isfinite().all()
