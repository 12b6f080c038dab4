"""The bytes of the traffic table."""

import pytest

from tritonbn_kernels.traffic import MODES, floor_bytes, two_read_bytes

NUMEL, CHANNELS, ITEMSIZE = 256 * 64 * 112 * 112, 64, 2
TENSOR = NUMEL * ITEMSIZE


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
    assert floor * TENSOR < floor_bytes(mode, NUMEL, CHANNELS, ITEMSIZE) <= floor * TENSOR + vectors
    assert (
        two_read_bytes(mode, NUMEL, CHANNELS, ITEMSIZE)
        - floor_bytes(mode, NUMEL, CHANNELS, ITEMSIZE)
        == (two_read - floor) * TENSOR
    )


@pytest.mark.parametrize("mode", MODES)
def test_vectors_are_counted(mode: str) -> None:
    one = floor_bytes(mode, NUMEL, 1, ITEMSIZE)
    assert floor_bytes(mode, NUMEL, 2, ITEMSIZE) - one == one - floor_bytes(mode, NUMEL, 0, 2)


def test_unknown_mode_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected a mode of forward_train.*got 'train'"):
        floor_bytes("train", 1, 1, 4)
