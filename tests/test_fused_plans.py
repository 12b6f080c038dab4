"""Fused calls on plans that cannot have what they ask for: blocks of channels shorter than a byte
of the mask, planes read by single values, launches that a driver refuses."""

import pytest
import torch

import tritonbn_kernels
from tests.checks import EPS, Operands, check_backward, check_forward_and_mask
from tests.fused import fused_call, in_turn, judge
from tests.held import gradient_of
from tests.inputs import lay_out, values
from tests.test_fallback import GROUPS, interpreted_only, refused
from tritonbn_kernels import pinned_plan, record_launches
from tritonbn_kernels.activation_names import activation_of

__all__ = ["refused"]

HALVES = (torch.float16, torch.bfloat16)


def _of_bytes(mask: torch.Tensor | None, x: torch.Tensor) -> bool:
    assert mask is not None
    return mask.numel() * 16 == x.numel() * x.element_size()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@in_turn(
    "dtype block_c fused",
    [(dtype, block_c) for dtype in (*HALVES, torch.float32) for block_c in (1, 2, 4)],
    [0, 1],
)
def test_block_of_channels_below_a_byte_of_the_mask(
    dtype: torch.dtype, block_c: int, fused: int, training: bool
) -> None:
    x = lay_out(values((3, 16, 2, 3), dtype), "channels_last")
    call = fused_call(x, "relu", gradient_of(x), training)
    with pinned_plan(resident=0, fused=fused, block_c=block_c):
        saved, mask = check_forward_and_mask(call, training)
        check_backward(call, gradient_of(x), training, saved=saved, mask=mask)
    assert _of_bytes(mask, x)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_planes_read_by_single_values_keep_a_bit_an_element_in_eval(
    activation: str, dtype: torch.dtype
) -> None:
    # planes of 49 are no multiple of 16 bytes, images of 8 such planes are
    x = values((3, 8, 7, 7), dtype)
    call = fused_call(x, activation, 4 * values((3, 8, 7, 7), dtype) + 2, training=False)
    with record_launches() as launches:
        saved, mask = check_forward_and_mask(call, training=False)
        check_backward(call, gradient_of(x), training=False, saved=saved, mask=mask)
    # the kernel wrote bytes, which were packed
    assert launches[0].constants["RUN"] == 1 and launches[1].constants["RUN"] == 8
    assert mask is not None and mask.numel() == x.numel() // 8
    exact = call.gradients(torch.ones_like(x), training=False).dresidual
    assert exact is not None
    bits = mask.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=mask.device) & 1
    assert torch.equal(bits.flatten().view(x.shape) != 0, exact == 1)


@interpreted_only
@pytest.mark.parametrize(
    ("after", "refusals"), [("forward", 2), ("backward", 1)], ids=["forward", "backward"]
)
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize(("shape", "pins"), GROUPS)
def test_refused_launch_leaves_the_gradients_right(
    shape: tuple[int, ...],
    pins: dict[str, int],
    activation: str,
    after: str,
    refusals: int,
    refused: list[str],
) -> None:
    x = values(shape, torch.float32)
    call = fused_call(x, activation, values(shape, torch.float32))
    dy, told = gradient_of(x), "two-read kernels run instead"
    # a mask of one read, of which the driver lets only the forward pass do
    alone = {"resident": 1, "splits": 1} if after == "backward" else {}
    together = {"resident": 1, "splits": 2, **pins}
    if alone:
        with pinned_plan(**alone):
            saved, mask = check_forward_and_mask(call, training=True)
    else:
        with pinned_plan(**together), pytest.warns(RuntimeWarning, match=told):
            saved, mask = check_forward_and_mask(call, training=True)
    with pinned_plan(**together):
        with pytest.warns(RuntimeWarning, match=told):
            check_backward(call, dy, training=True, saved=saved, mask=mask)
        # and ever after, without a word
        check_backward(call, dy, training=True, saved=saved, mask=mask)
    assert len(refused) == refusals
    assert (mask is not None) == (activation == "relu")


@interpreted_only
def test_refused_launch_of_images_packs_its_mask(refused: list[str]) -> None:
    # the mask that one read would have written, byte for byte
    x = values((4, 16, 7, 7), torch.bfloat16)
    call = fused_call(x, "relu", values((4, 16, 7, 7), torch.bfloat16))
    with pinned_plan(resident=1, splits=1):
        expected = _mask(call)
    with pinned_plan(resident=1, splits=2, block_c=8, programs=2):
        with pytest.warns(RuntimeWarning, match="two-read kernels run instead"):
            found = _mask(call)
        again = _mask(call)
        with pytest.warns(RuntimeWarning, match="two-read kernels run instead"):
            judge(call, gradient_of(x))
    assert torch.equal(found, expected) and torch.equal(again, expected)
    # the last call keeps running statistics, and is of a kind of its own
    kinds = ["rows_forward_kernel", "rows_forward_kernel", "rows_backward_kernel"]
    assert refused == kinds


def _mask(call: Operands) -> torch.Tensor:
    """The mask of a forward pass in training."""
    mask = tritonbn_kernels.fused_forward(
        call.x, call.gamma, call.beta, None, None, None, True, 0.1, EPS,
        activation=activation_of(call.activation), residual=call.residual, keeps_mask=True,
    )[2]  # fmt: skip
    assert mask is not None
    return mask
