"""The bytes of the traffic table."""

import pytest

from tritonbn_kernels.plan import DeviceProfile
from tritonbn_kernels.traffic import MODES, floor_bytes, planned_bytes, two_read_bytes

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


@pytest.mark.parametrize(
    ("mode", "strides", "one_read"),
    [
        pytest.param("forward_train", (64 * 3136, 3136, 1), True, id="forward-nchw"),
        pytest.param("backward_train", (64 * 3136, 3136, 1), True, id="backward-nchw"),
        pytest.param("forward_train", (64 * 3136, 1, 64), True, id="forward-channels-last"),
        pytest.param("forward_train", (64 * 3136, 2, 128), False, id="forward-no-plan"),
        pytest.param("forward_eval", (64 * 3136, 1, 64), True, id="eval-reads-once-anyway"),
    ],
)
def test_planned_bytes_are_those_of_the_plan(
    mode: str, strides: tuple[int, ...], one_read: bool
) -> None:
    shape = (32, 64, 3136)
    numel = 32 * 64 * 3136
    planned = planned_bytes(mode, shape, strides, 2, DeviceProfile(132))
    expected = floor_bytes if one_read else two_read_bytes
    assert planned == expected(mode, numel, 64, 2)


def test_planned_bytes_of_a_hybrid_plan_lie_between() -> None:
    shape, strides = (256, 64, 3136), (64 * 3136, 1, 64)
    numbers = ("backward_train", 256 * 64 * 3136, 64, 2)
    planned = planned_bytes("backward_train", shape, strides, 2, DeviceProfile(132))
    assert floor_bytes(*numbers) < planned < two_read_bytes(*numbers)
