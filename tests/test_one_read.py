"""The one-read kernels keep the budget of the two-read kernels on the same inputs.

Groups, which need their programs at the same time, are in `test_groups.py`.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

import tritonbn_kernels
from tests.checks import EPS, check_backward, operands, torch_gradients
from tests.held import (
    HELD,
    Held,
    gradient_of,
    judge,
    of_every_dtype,
    of_every_kernel,
    pieces_of,
    with_dtypes,
)
from tests.inputs import DEVICE, INTERPRETED, RATIOS, values
from tests.tolerances import assert_within, sum_budget, value_budget
from tritonbn import reference
from tritonbn_kernels import launch, pinned_plan, record_launches
from tritonbn_kernels.plan import DeviceProfile

CASES = [
    pytest.param(held, dtype, id=f"{held.id}-{str(dtype).removeprefix('torch.')}")
    for held in HELD
    for dtype in held.dtypes
]


@pytest.mark.parametrize(("held", "dtype"), CASES)
def test_every_shape_and_dtype_is_within_the_budget(held: Held, dtype: torch.dtype) -> None:
    call = operands(held.values(dtype, ratio=1e4))
    with held.plan() as launches:
        judge(call, gradient_of(call.x))
    assert [launch.kernel for launch in launches] == held.names


@with_dtypes("ratio", fp32=(0.0, 1e2, 1e4, 1e6), fp16=(1e4,), bf16=(0.0, 1e6))
@of_every_kernel
def test_one_read_and_two_reads_keep_the_same_budget(
    held: Held, dtype: torch.dtype, ratio: float
) -> None:
    call = operands(held.values(dtype, ratio))
    dy = gradient_of(call.x)
    with held.plan():
        judge(call, dy)
    with pinned_plan(resident=0), record_launches() as launches:
        judge(call, dy)
    assert [launch.kernel for launch in launches] == ["statistics_kernel", "gradients_kernel"]


@pytest.mark.parametrize("ratio", RATIOS)
@of_every_kernel
def test_large_mean_costs_no_precision(held: Held, ratio: float) -> None:
    # the budget is torch's on the same deviations about zero: a large mean buys nothing
    call = operands(held.values(torch.float32, ratio))
    dy = gradient_of(call.x)
    with held.plan():
        y, saved = tritonbn_kernels.batch_norm_forward(
            call.x, call.gamma, call.beta, None, None, None, True, 0.1, EPS
        )
        dx, dgamma, _ = tritonbn_kernels.batch_norm_backward(
            dy, call.x, call.gamma, saved, True, True, True, True
        )
    shape = (1, -1, *[1] * (call.x.dim() - 2))
    exact = call.oracle(True)
    oracle = reference.backward(dy, call.x, call.gamma, exact.mean, exact.inv_std, True)
    centred = replace(call, x=(call.x.double() - exact.mean.view(shape)).float())
    torch_y = functional.batch_norm(centred.x, None, None, call.gamma, call.beta, True)
    torchs = torch_gradients(centred, dy, True)
    about_zero = centred.oracle(True)
    theirs = reference.backward(
        dy, centred.x, call.gamma, about_zero.mean, about_zero.inv_std, True
    )
    assert dx is not None and dgamma is not None
    assert_within("y", y, exact.y, value_budget(about_zero.y, torch_y, y.dtype))
    assert_within("dx", dx, oracle.dx, value_budget(theirs.dx, torchs.dx, dx.dtype))
    terms = dy.double() * (call.x.double() - exact.mean.view(shape)) * exact.inv_std.view(shape)
    budget = sum_budget(theirs.dgamma, torchs.dgamma, dgamma.dtype, terms, dy.dtype)
    assert_within("dgamma", dgamma, oracle.dgamma, budget)


def test_cases_reach_one_and_several_pieces_in_both_passes() -> None:
    reached = set()
    for held in HELD:
        with pinned_plan(resident=1, splits=1, **held.pins):
            reached |= pieces_of(held.values(held.dtypes[0]))
    assert len(reached) == 8


@pytest.fixture
def gpu_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiles as small as on a GPU, in the interpreter too."""
    profile = DeviceProfile(sm_count=1, cooperative=False, assembly=False)
    monkeypatch.setattr(launch, "INTERPRETER", profile)
    tritonbn_kernels.clear_cache()
    yield
    monkeypatch.undo()
    tritonbn_kernels.clear_cache()


@pytest.mark.skipif(not INTERPRETED, reason="replaces the interpreter's tiles")
@pytest.mark.usefixtures("gpu_tiles")
@of_every_dtype
@pytest.mark.parametrize(
    ("images", "pieces"), [pytest.param(6, (2, 3), id="n6"), pytest.param(12, (3, 6), id="n12")]
)
@pytest.mark.parametrize("outliers", [(1e4,), (1e4, -3e4)], ids=["one", "two"])
def test_narrow_columns_survive_first_values_far_from_the_rest(
    outliers: tuple[float, ...], images: int, pieces: tuple[int, int], dtype: torch.dtype
) -> None:
    x = values((images, 24, 5, 3), dtype)
    for image, outlier in enumerate(outliers):
        x[image].flatten(1)[:, 0] = outlier
    call, dy = operands(x), gradient_of(x)
    with record_launches() as launches:
        judge(call, dy)
    assert launches[0].kernel == "rows_forward_kernel"
    # four images a tile in half precision, two in fp32
    tile = (4, pieces[0]) if dtype.itemsize == 2 else (2, pieces[1])
    assert (launches[0].constants["BLOCK_N"], launches[0].constants["PIECES"]) == tile


@of_every_kernel
@with_dtypes("outlier", fp32=(100.0, 1e4, -3e4), fp16=(-3e4,), bf16=(1e4,))
def test_first_value_far_from_the_rest_keeps_the_budget(
    held: Held, dtype: torch.dtype, outlier: float
) -> None:
    x = held.values(dtype)
    x[0].flatten(1)[:, 0] = outlier
    call = operands(x)
    with held.plan():
        judge(call, gradient_of(x))


@of_every_kernel
@with_dtypes("outlier", fp32=(1e4, -3e4), fp16=(1e4,), bf16=(-3e4,))
def test_first_image_far_from_the_rest_keeps_the_budget(
    held: Held, dtype: torch.dtype, outlier: float
) -> None:
    # every column of a narrow tile begins with it
    x = held.values(dtype)
    x[0] = outlier
    call = operands(x)
    with held.plan():
        judge(call, gradient_of(x))


@of_every_kernel
@with_dtypes("constant", fp32=(0.0, 0.1, -7.3, 3000.0), fp16=(-7.3,), bf16=(0.1, 3000.0))
def test_constant_channel_is_beta(held: Held, dtype: torch.dtype, constant: float) -> None:
    x = held.values(dtype)
    x[:, 1::2] = constant
    call = operands(x)
    with held.plan():
        saved = judge(call, gradient_of(x))
        y, _ = tritonbn_kernels.batch_norm_forward(
            x, call.gamma, call.beta, None, None, None, True, 0.1, EPS
        )
    # nothing is left of the deviation, and so nothing for inv_std = 316 to magnify
    assert torch.equal(saved[0, 1::2] + saved[1, 1::2], x[0, 1::2].flatten(1)[:, 0].float())
    assert call.beta is not None
    beta = call.beta.to(dtype)[1::2].view(1, -1, *[1] * (x.dim() - 2))
    assert torch.equal(y[:, 1::2], beta.expand_as(y[:, 1::2]))


@of_every_kernel
@with_dtypes("value", fp32=(math.nan, math.inf, -math.inf), fp16=(), bf16=(math.nan,))
@pytest.mark.parametrize("place", ["first", "last"])
def test_nan_and_infinity_stay_in_their_channel(
    held: Held, dtype: torch.dtype, value: float, place: str
) -> None:
    x = held.values(dtype)
    x[0 if place == "first" else -1, 2].flatten()[0 if place == "first" else -1] = value
    call = operands(held.values(dtype))
    ours, torchs = call.copy(), call.wide()
    dy = gradient_of(x)
    with held.plan():
        y, saved = tritonbn_kernels.batch_norm_forward(
            x, call.gamma, call.beta, ours.running_mean, ours.running_var, None, True, 0.1, EPS
        )
        dx, dgamma, dbeta = tritonbn_kernels.batch_norm_backward(
            dy, x, call.gamma, saved, True, True, True, True
        )
    leaf = x.clone().requires_grad_()
    torch_y = functional.batch_norm(
        leaf, torchs.running_mean, torchs.running_var, torchs.gamma, torchs.beta, True, 0.1, EPS
    )
    (torch_dx,) = torch.autograd.grad(torch_y, leaf, dy)
    assert dx is not None and dgamma is not None and dbeta is not None
    others = torch.arange(x.shape[1], device=DEVICE) != 2
    assert torch.equal(y.isfinite(), torch_y.isfinite())
    assert torch.equal(dx.isfinite(), torch_dx.isfinite())
    assert not dgamma[2].isfinite() and dgamma[others].isfinite().all()
    assert dbeta.isfinite().all()
    assert ours.running_mean is not None and ours.running_var is not None
    assert not ours.running_mean[2].isfinite() and ours.running_mean[others].isfinite().all()
    # a maximum with 0 would have made it 0
    assert ours.running_var[2].isnan() and ours.running_var[others].isfinite().all()


@of_every_kernel
def test_nan_in_dy_stays_in_its_channel(held: Held) -> None:
    call = operands(held.values(torch.float32))
    dy = gradient_of(call.x)
    dy[-1, 3].flatten()[-1] = float("nan")
    with held.plan():
        _, saved = tritonbn_kernels.batch_norm_forward(
            call.x, call.gamma, call.beta, None, None, None, True, 0.1, EPS
        )
        gradients = tritonbn_kernels.batch_norm_backward(
            dy, call.x, call.gamma, saved, True, True, True, True
        )
    for gradient in gradients:
        assert gradient is not None
        by_channel = gradient.transpose(0, 1) if gradient.dim() > 1 else gradient
        assert by_channel[3].isnan().all()
        others = torch.arange(call.x.shape[1], device=DEVICE) != 3
        assert by_channel[others].isfinite().all()


@of_every_kernel
@pytest.mark.parametrize("given", ["neither", "gamma", "beta"])
def test_any_of_gamma_and_beta_may_be_missing(held: Held, given: str) -> None:
    call = operands(held.values(torch.float32))
    if given != "gamma":
        call = replace(call, gamma=None)
    if given != "beta":
        call = replace(call, beta=None)
    with held.plan():
        judge(call, gradient_of(call.x))


@of_every_kernel
@pytest.mark.parametrize(
    ("x_dtype", "parameters", "statistics"),
    [
        pytest.param(torch.bfloat16, torch.bfloat16, torch.bfloat16, id="bf16-all"),
        pytest.param(torch.float16, torch.float16, torch.float16, id="fp16-all"),
        pytest.param(torch.bfloat16, torch.bfloat16, torch.float32, id="bf16-statistics-fp32"),
        pytest.param(torch.float16, torch.float32, torch.float16, id="fp16-parameters-fp32"),
    ],
)
def test_parameters_and_statistics_have_dtypes_of_their_own(
    held: Held, x_dtype: torch.dtype, parameters: torch.dtype, statistics: torch.dtype
) -> None:
    call = operands(held.values(x_dtype), parameters, statistics)
    with held.plan():
        judge(call, gradient_of(call.x))


@of_every_kernel
@pytest.mark.parametrize(
    "need",
    [(True, False, False), (True, True, False), (True, False, True)],
    ids=["dx", "dx-dgamma", "dx-dbeta"],
)
def test_only_the_gradients_asked_for_are_made(held: Held, need: tuple[bool, ...]) -> None:
    call = operands(held.values(torch.float32))
    need_dx, need_dgamma, need_dbeta = need
    with held.plan():
        check_backward(
            call,
            gradient_of(call.x),
            training=True,
            need_dx=need_dx,
            need_dgamma=need_dgamma,
            need_dbeta=need_dbeta,
        )
