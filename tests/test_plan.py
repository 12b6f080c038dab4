"""Plans cover every tensor, fill the device, and keep 16-byte accesses."""

import random
from collections.abc import Iterator

import pytest

from tritonbn_kernels import clear_cache
from tritonbn_kernels.layout import CHANNELS_FIRST, ChannelView, view_of
from tritonbn_kernels.plan import (
    INTERPRETER,
    DeviceProfile,
    LaunchPlan,
    division_by,
    pinned_plan,
    pins_from,
    plan_pointwise,
    plan_reduction,
    vectors_of,
)

H200, A100, MIG_SLICE = DeviceProfile(132), DeviceProfile(108), DeviceProfile(16)
# (N, C, H*W): ResNet's, few channels with large planes, narrow planes, 2-D, extremes
SHAPES = [
    (256, 64, 12544),
    (32, 64, 3136),
    (256, 256, 3136),
    (32, 512, 784),
    (128, 256, 196),
    (32, 2048, 49),
    (1, 2048, 49),
    (16, 3, 50176),
    (8, 16, 262144),
    (2, 32, 262144),
    (4096, 1024, 1),
    (65536, 64, 1),
    (880802, 32, 1),
    (2, 65536, 1),
    (2, 65536, 4),
    (2, 1, 1),
    (3, 1, 7),
    (2, 35, 9),
    (70000, 65, 3),
    (512, 256, 50176),
]


def _view(n: int, c: int, s: int, channels_last: bool) -> ChannelView:
    strides = (c * s, 1, c) if channels_last else (c * s, s, 1)
    view = view_of((n, c, s), strides)
    assert view is not None
    return view


def _cases() -> list[object]:
    return [
        pytest.param(_view(*shape, last), itemsize, id=f"{shape}-{'last' if last else 'first'}-{b}")
        for shape in SHAPES
        for last in (False, True)
        for itemsize, b in ((2, "bf16"), (4, "fp32"), (8, "fp64"))
    ]


@pytest.mark.parametrize("device", [H200, A100, MIG_SLICE, INTERPRETER], ids=str)
@pytest.mark.parametrize(("view", "itemsize"), _cases())
def test_programs_cover_every_vector_once(
    view: ChannelView, itemsize: int, device: DeviceProfile
) -> None:
    vector = view.vector(16 // itemsize)
    for make in (plan_reduction, plan_pointwise):
        plan = make(view, itemsize, device, vector)
        vectors = vectors_of(view, vector)
        assert (plan.splits - 1) * plan.vectors_per_split < vectors
        assert plan.splits * plan.vectors_per_split >= vectors
        assert plan.vectors_per_split % plan.block_v == 0
        assert plan.grid(view.n_channels) == plan.splits * -(-view.n_channels // plan.block_c)
        assert plan.fused is False or plan.splits == 1
        for size in (plan.block_c, plan.block_v, plan.vector, plan.num_warps):
            assert size & (size - 1) == 0
        assert plan.grid(view.n_channels) < 2**31
        # a tile beyond Triton's limit of elements cannot be compiled
        assert plan.block_c * plan.block_v * vector <= 2**20


@pytest.mark.parametrize("device", [H200, A100, MIG_SLICE], ids=str)
@pytest.mark.parametrize(("view", "itemsize"), _cases())
def test_large_tensors_fill_the_device(
    view: ChannelView, itemsize: int, device: DeviceProfile
) -> None:
    bytes_per_sm = view.count * view.n_channels * itemsize / device.sm_count
    plan = plan_reduction(view, itemsize, device, view.vector(16 // itemsize))
    # a program that has four tiles of 8 KB to itself is worth starting
    if bytes_per_sm >= 2 * 4 * 8192:
        assert plan.grid(view.n_channels) >= device.sm_count


@pytest.mark.parametrize(("view", "itemsize"), _cases())
def test_whole_runs_are_read_sixteen_bytes_at_a_time(view: ChannelView, itemsize: int) -> None:
    run = view.n_inner if view.family == CHANNELS_FIRST else view.n_channels
    plan = plan_reduction(view, itemsize, H200, view.vector(16 // itemsize))
    if run * itemsize % 16 == 0:
        assert plan.vector * itemsize == 16
        contiguous = plan.vector if view.family == CHANNELS_FIRST else plan.block_c
        assert contiguous * itemsize >= 16


def test_few_channels_with_large_planes_are_split() -> None:
    for c in (3, 16, 64):
        plan = plan_reduction(_view(16, c, 50176, False), 2, H200, 8)
        assert not plan.fused
        assert plan.splits > 1
        assert plan.grid(c) >= H200.sm_count


def test_small_tensors_are_one_launch() -> None:
    assert plan_reduction(_view(2, 2, 1, True), 4, H200, 2).fused
    assert plan_reduction(_view(8, 64, 49, False), 2, H200, 1).fused


def test_same_input_same_plan() -> None:
    view = _view(32, 64, 3136, False)
    assert plan_reduction(view, 2, H200, 8) == plan_reduction(view, 2, H200, 8)


def test_pins_replace_fields_and_end_with_the_block() -> None:
    view = _view(4, 6, 64, False)
    free = plan_reduction(view, 4, INTERPRETER, 4)
    with pinned_plan(block_c=2, block_v=16, splits=3, fused=False, num_warps=2):
        pinned = plan_reduction(view, 4, INTERPRETER, 4)
    assert pinned == LaunchPlan(False, 2, 16, 4, 2, 32, 2)
    assert plan_reduction(view, 4, INTERPRETER, 4) == free


def test_unknown_pin_is_named() -> None:
    with (
        pytest.raises(ValueError, match=r"expected fields of .*got \['block_k'\]"),
        pinned_plan(block_k=3),
    ):
        pass


@pytest.mark.parametrize(
    ("text", "pins"),
    [
        ("", {}),
        ("two_read", {"resident": 0}),
        ("one_read", {"resident": 1}),
        ("hybrid", {"resident": 1, "stream": 2}),
        ("one_read,stream=0", {"resident": 1, "stream": 0}),
        ("fused", {"resident": 0, "fused": 1}),
        ("split", {"resident": 0, "fused": 0}),
        ("block_c=64, pieces=4", {"block_c": 64, "pieces": 4}),
        ("split,splits=3", {"resident": 0, "fused": 0, "splits": 3}),
    ],
)
def test_text_names_plans_and_fields(text: str, pins: dict[str, int]) -> None:
    assert pins_from(text) == pins


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("three_read", r"expected plans of two_read.*got 'three_read'", id="name"),
        pytest.param("block_k=3", r"with fields of block_c.*got 'block_k=3'", id="field"),
        pytest.param("pieces=many", r"got 'pieces=many'", id="no-number"),
        pytest.param("pieces=-1", r"got 'pieces=-1'", id="negative"),
        pytest.param("pieces=0", r"expected pieces to be positive, got 0", id="zero"),
        pytest.param("resident=2", r"expected resident to be 0 or 1, got 2", id="switch"),
        pytest.param("programs=9", r"got 'programs=9'", id="may-hang"),
        pytest.param("num_warps=3", r"expected num_warps to be a power of two, got 3", id="warps"),
        pytest.param("num_warps=64", r"expected num_warps to be at most 32", id="many-warps"),
        pytest.param("block_c=40", r"expected block_c to be a power of two, got 40", id="block"),
    ],
)
def test_text_that_names_no_plan_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pins_from(text)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """TRITONBN_PLAN may be set; it is read anew, before and after."""
    monkeypatch.delenv("TRITONBN_PLAN", raising=False)
    clear_cache()
    yield monkeypatch
    monkeypatch.undo()
    clear_cache()


def test_environment_pins_a_plan_until_a_block_pins_another(
    environment: pytest.MonkeyPatch,
) -> None:
    view = _view(16, 3, 50176, False)
    environment.setenv("TRITONBN_PLAN", "fused,block_c=2")
    plan = plan_reduction(view, 2, H200, 8)
    assert (plan.fused, plan.block_c) == (True, 2)
    with pinned_plan(fused=0):
        plan = plan_reduction(view, 2, H200, 8)
    assert (plan.fused, plan.block_c) == (False, 2)


def test_environment_is_read_once(environment: pytest.MonkeyPatch) -> None:
    view = _view(16, 3, 50176, False)
    free = plan_reduction(view, 2, H200, 8)
    environment.setenv("TRITONBN_PLAN", "fused")
    assert plan_reduction(view, 2, H200, 8) == free
    clear_cache()
    assert plan_reduction(view, 2, H200, 8).fused


def test_bad_environment_says_which_variable(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("TRITONBN_PLAN", "warp_drive")
    with pytest.raises(ValueError, match=r"TRITONBN_PLAN: expected plans of .*'warp_drive'"):
        plan_reduction(_view(2, 2, 1, True), 4, H200, 2)


def test_division_by_multiplication_is_exact() -> None:
    generator = random.Random(0)
    divisors = [*range(1, 70), 196, 784, 3136, 12544, 2**20 - 1, 2**20, 2**30 - 1, 2**31 - 1]
    for divisor in divisors:
        magic, shift = division_by(divisor)
        # a 64-bit product of a vector number and the magic number does not overflow
        assert 2**31 <= magic <= 2**32
        multiples = [divisor * generator.randrange(1, 2**31 // divisor + 1) for _ in range(50)]
        for n in [0, 1, 2**31 - 1, *multiples, *(m - 1 for m in multiples)]:
            if n < 2**31:
                assert n * magic >> shift == n // divisor
