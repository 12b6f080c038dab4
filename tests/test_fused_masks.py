"""The mask that a residual and a piecewise linear activation keep: its size, its bits, its use.

What the bits must be is the oracle's to say: no element is so near to a kink that rounding decides,
see `tests/fused.py`.
"""

import pytest
import torch
from torch import Tensor

import tritonbn_kernels
from tests.checks import EPS, Operands
from tests.fused import GROUPS, ONE_READ, TWO_READ, Family, families, fused_call, in_turn, judge
from tests.held import gradient_of
from tests.inputs import Case, lay_out, parameters, values
from tritonbn._following import Activation
from tritonbn_kernels import pinned_plan
from tritonbn_kernels.activation_names import activation_of

# planes or rows of whole 16 bytes in every dtype but fp64, and of none
WHOLE = parameters(
    [
        Case((3, 5, 8, 8), "contiguous", "planes"),
        Case((7, 16, 3, 5), "channels_last", "rows"),
        Case((9, 24), "contiguous", "features"),
    ]
)
RAGGED = parameters(
    [
        Case((3, 3, 7, 7), "contiguous", "neither planes nor images"),
        Case((5, 1, 1), "contiguous", "five elements in all"),
        Case((3, 3, 7, 7), "channels_last", "rows of three"),
        Case((5, 7), "contiguous", "features"),
        Case((3, 5, 3), "contiguous", "lines of three"),
    ]
)
DTYPES = [
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.float16, id="fp16"),
    pytest.param(torch.bfloat16, id="bf16"),
    pytest.param(torch.float64, id="fp64"),
]


def _forward(call: Operands, training: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """y, what is saved, and the mask."""
    mean, var = (None, None) if training else (call.running_mean, call.running_var)
    y, saved, mask = tritonbn_kernels.fused_forward(
        call.x, call.gamma, call.beta, mean, var, None, training, 0.1, EPS,
        activation=activation_of(call.activation), residual=call.residual, keeps_mask=True,
    )  # fmt: skip
    assert mask is not None and mask.dtype == torch.uint8 and mask.dim() == 1
    return y, saved, mask


def _on(call: Operands, training: bool = True) -> Tensor:
    """Where the exact derivative is 1."""
    slope = call.gradients(torch.ones_like(call.x), training).dresidual
    assert slope is not None
    on = slope == 1
    # both kinds of bits, or a mask of one of them would do
    assert call.x.numel() < 8 or (on.any() and not on.all())
    return on


def _bits(mask: Tensor, y: Tensor) -> Tensor:
    """The mask as booleans in the shape of `y`: bytes or bits in the order of y's memory."""
    order = sorted(range(y.dim()), key=y.stride, reverse=True)
    lanes = y.numel() // mask.numel()
    assert mask.numel() * lanes == y.numel() and lanes in (1, 16 // y.element_size())
    bits = mask.unsqueeze(1) >> torch.arange(lanes, dtype=torch.uint8, device=mask.device) & 1
    if lanes == 1:
        assert mask.max() <= 1
    in_memory = bits.flatten().bool().view([y.shape[dim] for dim in order])
    return in_memory.permute([order.index(dim) for dim in range(y.dim())])


def _call(
    case: Case, dtype: torch.dtype, activation: Activation | None, training: bool = True
) -> Operands:
    # spread over both kinks of relu6
    residual = lay_out(4 * values(case.shape, dtype) + 2, case.layout)
    return fused_call(case.tensor(dtype), activation, residual, training)


# five kinds of calls: every shape and every dtype meets several
@in_turn(
    "case dtype activation training",
    [(case.values[0], dtype.values[0]) for case in WHOLE for dtype in DTYPES],
    [("relu", True), ("relu", False), ("relu6", True), ("leaky_relu", False), ("relu", True)],
)
def test_whole_vectors_keep_a_bit_an_element(
    case: Case, dtype: torch.dtype, activation: str, training: bool
) -> None:
    call = _call(case, dtype, activation, training)
    y, _, mask = _forward(call, training)
    assert mask.numel() == call.x.numel() * dtype.itemsize // 16
    assert torch.equal(_bits(mask, y), _on(call, training))


@in_turn(
    "case dtype activation",
    [(case.values[0], dtype.values[0]) for case in RAGGED for dtype in DTYPES],
    ["relu", "relu6", "relu"],
)
def test_ragged_shapes_keep_a_byte_an_element(
    case: Case, dtype: torch.dtype, activation: str
) -> None:
    call = _call(case, dtype, activation)
    y, _, mask = _forward(call)
    assert mask.numel() == call.x.numel()
    assert torch.equal(_bits(mask, y), _on(call))


@in_turn("family activation", [*TWO_READ, *ONE_READ, *GROUPS], ["relu", "relu6"])
def test_mask_says_where_the_derivative_is_one(family: Family, activation: str) -> None:
    x = family.values(torch.bfloat16)
    call = fused_call(x, activation, 4 * family.values(torch.bfloat16) + 2)
    with family.plan():
        y, _, mask = _forward(call)
    assert torch.equal(_bits(mask, y), _on(call))


@in_turn(
    "family activation",
    [*TWO_READ, *ONE_READ, GROUPS[3]],
    ["relu6", (("leaky_relu", -0.3),)],
)
def test_backward_takes_the_bits_that_forward_wrote(
    family: Family, activation: Activation | None
) -> None:
    # to the bit, and whatever their order: with dy 1, dresidual is the derivative
    x = family.values(torch.float32)
    call = fused_call(x, activation, 4 * family.values(torch.float32) + 2)
    ones = torch.ones_like(x)
    with family.plan():
        _, saved, mask = _forward(call)
        dresidual = _dresidual(call, ones, saved, mask)
    expected = call.gradients(ones, True).dresidual
    assert expected is not None
    assert torch.equal(dresidual, expected.float())


@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("case", RAGGED)
def test_ragged_shapes_keep_the_budget(case: Case, dtype: torch.dtype) -> None:
    call = _call(case, dtype, ("leaky_relu", -0.3))
    judge(call, gradient_of(call.x))


@pytest.mark.parametrize("written_by", ["one-read", "two-read"])
@families(ONE_READ)
def test_mask_of_one_plan_serves_another(family: Family, written_by: str) -> None:
    # as when a cooperative launch is refused between forward and backward
    x = family.values(torch.bfloat16)
    call = fused_call(x, "relu", family.values(torch.bfloat16))
    dy = gradient_of(x)
    plans = [family.pins, {"resident": 0}]
    if written_by == "two-read":
        plans.reverse()
    with pinned_plan(**plans[0]):
        _, saved, mask = _forward(call)
    with pinned_plan(**plans[1]):
        assert torch.equal(_forward(call)[2], mask)
        dresidual = _dresidual(call, dy, saved, mask)
    assert torch.equal(dresidual, dy.masked_fill(~_on(call), 0.0))


def _dresidual(call: Operands, dy: Tensor, saved: Tensor, mask: Tensor) -> Tensor:
    """dresidual of a backward pass that makes every gradient."""
    *_, dresidual = tritonbn_kernels.fused_backward(
        dy, call.x, call.gamma, saved, True, True, True, True,
        activation=activation_of(call.activation), mask=mask, need_dresidual=True,
    )  # fmt: skip
    assert dresidual is not None
    return dresidual


@pytest.mark.parametrize("case", [*WHOLE, RAGGED[0]])
def test_two_launches_write_the_same_bits(case: Case) -> None:
    call = _call(case, torch.bfloat16, "relu")
    first, second = (_forward(call)[2] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("activation", "residual"),
    [("silu", True), ("identity", True), ("relu", False)],
    ids=["silu", "identity", "relu-alone"],
)
def test_no_mask_is_kept_where_none_is_asked_for(activation: str, residual: bool) -> None:
    x = values((3, 5, 8, 8), torch.float32)
    results = tritonbn_kernels.fused_forward(
        x, None, None, None, None, None, True, 0.1, EPS,
        activation=(activation, 0.0), residual=values((3, 5, 8, 8), x.dtype) if residual else None,
    )  # fmt: skip
    assert len(results) == 3 and results[2] is None
