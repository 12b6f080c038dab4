"""The bytes of the traffic tables."""

from collections.abc import Callable
from typing import Any

import pytest

from tritonbn_kernels.activation_names import TWO_SLOPES
from tritonbn_kernels.traffic import (
    MODES,
    floor_bytes,
    mask_bytes,
    two_read_bytes,
    unfused_bytes,
)

NUMEL, CHANNELS, ITEMSIZE = 256 * 64 * 112 * 112, 64, 2
TENSOR = NUMEL * ITEMSIZE
MASK = TENSOR / 16
SIZES = (NUMEL, CHANNELS, ITEMSIZE)
ADD: dict[str, Any] = {"residual": True}
RELU: dict[str, Any] = {"activation": "relu"}
ADD_RELU: dict[str, Any] = {"residual": True, "activation": "relu"}
SILU: dict[str, Any] = {"activation": "silu"}
ADD_SILU: dict[str, Any] = {"residual": True, "activation": "silu"}


@pytest.mark.parametrize(
    ("mode", "floor", "two_read"),
    [
        ("forward_train", 2, 3),
        ("forward_eval", 2, 2),
        ("backward_train", 3, 5),
        ("backward_eval", 3, 3),
    ],
)
def test_tensors_moved(mode: str, floor: int, two_read: int) -> None:
    vectors = 9 * CHANNELS * 4
    assert floor * TENSOR < floor_bytes(mode, *SIZES) <= floor * TENSOR + vectors
    assert two_read_bytes(mode, *SIZES) - floor_bytes(mode, *SIZES) == (two_read - floor) * TENSOR


@pytest.mark.parametrize(
    ("fusion", "forward", "backward", "two_read_backward"),
    [
        pytest.param(RELU, 2, 3, 5, id="relu"),
        pytest.param(SILU, 2, 3, 5, id="silu"),
        pytest.param(ADD, 3, 3, 5, id="add"),
        pytest.param(ADD_RELU, 3 + 1 / 16, 4 + 1 / 16, 6 + 2 / 16, id="add-relu"),
        pytest.param(ADD_SILU, 3, 5, 8, id="add-silu"),
    ],
)
def test_tensors_moved_by_fused_calls(
    fusion: dict[str, Any], forward: float, backward: float, two_read_backward: float
) -> None:
    def tensors(function: Callable[..., int], mode: str) -> float:
        moved = function(mode, *SIZES, **fusion)
        # what is left are vectors of 64 channels
        assert 0 < moved % MASK <= 10 * CHANNELS * 4
        return float(moved // MASK / 16)

    assert tensors(floor_bytes, "forward_train") == forward
    assert tensors(two_read_bytes, "forward_train") == forward + 1
    for mode in ("backward_train", "backward_eval"):
        assert tensors(floor_bytes, mode) == backward
    assert tensors(two_read_bytes, "backward_train") == two_read_backward
    assert tensors(two_read_bytes, "backward_eval") == backward
    # nothing is kept for a backward pass in eval
    assert tensors(floor_bytes, "forward_eval") == forward // 1


@pytest.mark.parametrize(
    ("fusion", "forward", "backward"),
    [
        pytest.param({}, 3, 5, id="none"),
        pytest.param(RELU, 3 + 2, 5 + 3, id="relu"),
        pytest.param(ADD, 3 + 3, 5, id="add"),
        # issue 5: 5R + 3W forward, 6R + 2W backward
        pytest.param(ADD_RELU, 5 + 3, 6 + 2, id="add-relu"),
        pytest.param(ADD_SILU, 5 + 3, 6 + 2, id="add-silu"),
    ],
)
def test_operators_of_their_own_move_whole_tensors_again(
    fusion: dict[str, Any], forward: int, backward: int
) -> None:
    for mode, count in (("forward_train", forward), ("backward_train", backward)):
        moved = unfused_bytes(mode, *SIZES, **fusion)
        assert moved // TENSOR == count
        one_read = unfused_bytes(mode, *SIZES, **fusion, one_read=True)
        assert moved - one_read == two_read_bytes(mode, *SIZES) - floor_bytes(mode, *SIZES)


@pytest.mark.parametrize("mode", MODES)
def test_one_launch_never_moves_more_than_operators_of_their_own(mode: str) -> None:
    for fusion in (RELU, SILU, ADD, ADD_RELU, ADD_SILU):
        floor = floor_bytes(mode, *SIZES, **fusion)
        unfused = unfused_bytes(mode, *SIZES, **fusion, one_read=True)
        # but for beta, which the way back reads for the derivative
        assert floor <= unfused + 4 * CHANNELS


@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_a_mask_is_a_sixteenth_of_its_tensor_rounded_up(itemsize: int) -> None:
    assert mask_bytes(64, itemsize) == 64 * itemsize // 16
    assert mask_bytes(65, itemsize) == 64 * itemsize // 16 + 1


def test_activations_of_two_slopes_keep_masks_behind_a_residual_alone() -> None:
    assert set(TWO_SLOPES) == {"relu", "relu6", "leaky_relu"}
    for name in TWO_SLOPES:
        alone = floor_bytes("forward_train", *SIZES, activation=name)
        assert alone == floor_bytes("forward_train", *SIZES)
        behind = floor_bytes("forward_train", *SIZES, residual=True, activation=name)
        assert behind - alone == TENSOR + MASK


@pytest.mark.parametrize("mode", MODES)
def test_vectors_are_counted(mode: str) -> None:
    one = floor_bytes(mode, NUMEL, 1, ITEMSIZE)
    assert floor_bytes(mode, NUMEL, 2, ITEMSIZE) - one == one - floor_bytes(mode, NUMEL, 0, 2)


@pytest.mark.parametrize("function", [floor_bytes, two_read_bytes, unfused_bytes])
def test_unknown_mode_is_named(function: Callable[..., int]) -> None:
    with pytest.raises(ValueError, match=r"expected a mode of forward_train.*got 'train'"):
        function("train", 1, 1, 4)
