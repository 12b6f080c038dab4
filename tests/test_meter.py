"""The traffic meter on kernels whose traffic is known, with and without planted faults.

The meter counts what a kernel asks for. What caches serve, and how a compiler cuts block operations
into instructions, only a GPU and the compiled code show.
"""

# jit bodies are untyped by nature
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False

from contextlib import ExitStack

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.inputs import INTERPRETED
from tritonbn_bench.emulated import cooperative, traffic_meter
from tritonbn_kernels.barrier import group_barrier

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels run on the GPU here")

BLOCK = 64


@triton.jit
def _copy_kernel(
    x_ptr, y_ptr, n, stride, SHIFT: tl.constexpr, SHORT: tl.constexpr, BLOCK: tl.constexpr
):
    """y[i] = x[i * stride + SHIFT] for i < n, y for i < n - SHORT only."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x_tile = tl.load(x_ptr + offs * stride + SHIFT, mask=offs < n, other=0.0)
    tl.store(y_ptr + offs, x_tile, mask=offs < n - SHORT)


@triton.jit
def _words_kernel(x_ptr, y_ptr, n_words, BLOCK: tl.constexpr):
    """A copy of 16-bit values by 32-bit words, one program."""
    offs = tl.arange(0, BLOCK)
    words = tl.load(x_ptr.to(tl.pointer_type(tl.int32)) + offs, mask=offs < n_words, other=0)
    tl.store(y_ptr.to(tl.pointer_type(tl.int32)) + offs, words, mask=offs < n_words)


@triton.jit
def _center_kernel(x_ptr, y_ptr, n, READS: tl.constexpr, BLOCK: tl.constexpr):
    """y = x - mean(x), one program."""
    offs = tl.arange(0, BLOCK)
    x_tile = tl.load(x_ptr + offs, mask=offs < n, other=0.0)
    mean = tl.sum(x_tile) / n
    if READS == 2:
        x_tile = tl.load(x_ptr + offs, mask=offs < n, other=0.0)
    tl.store(y_ptr + offs, x_tile - mean, mask=offs < n)


@triton.jit
def _group_center_kernel(x_ptr, y_ptr, partials_ptr, barriers_ptr, BLOCK: tl.constexpr):
    """y = x - mean(x), one group, each program its block."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x_tile = tl.load(x_ptr + offs)
    tl.store(partials_ptr + tl.program_id(0), tl.sum(x_tile))
    group_barrier(barriers_ptr, tl.program_id(0), tl.num_programs(0))
    total = 0.0
    for member in range(tl.num_programs(0)):
        total += tl.load(partials_ptr + member)
    tl.store(y_ptr + offs, x_tile - total / (tl.num_programs(0) * BLOCK))


@triton.jit
def _count_kernel(counter_ptr, mask):
    tl.atomic_add(counter_ptr + tl.arange(0, 4), 1, mask=tl.arange(0, 4) < mask)


@triton.jit
def _swap_kernel(counter_ptr, offset):
    tl.atomic_cas(counter_ptr + offset, 0, 1)


def _copy(x: Tensor, y: Tensor, n: int, stride: int = 1, shift: int = 0, short: int = 0) -> None:
    _copy_kernel[(triton.cdiv(n, BLOCK),)](x, y, n, stride, SHIFT=shift, SHORT=short, BLOCK=BLOCK)


@pytest.mark.parametrize("n", [64, 128, 200, 1], ids=str)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.float64], ids=["fp32", "fp16", "fp64"]
)
def test_copy_reads_once_and_writes_once(n: int, dtype: torch.dtype) -> None:
    x = torch.randn(n).to(dtype)
    y = torch.full_like(x, -1.0)
    with traffic_meter({"x": x, "y": y}) as traffic:
        _copy(x, y, n)
    assert torch.equal(y, x)
    n_bytes = x.element_size() * n
    assert (traffic.bytes_read("x"), traffic.bytes_written("x")) == (n_bytes, 0)
    assert (traffic.bytes_read("y"), traffic.bytes_written("y")) == (0, n_bytes)
    # torch aligns to 64 bytes, and a block is whole sectors
    sectors = -(-n_bytes // 32)
    assert (traffic.sectors_read("x"), traffic.sectors_written("x")) == (sectors, 0)
    assert (traffic.sectors_read("y"), traffic.sectors_written("y")) == (0, sectors)
    assert traffic.passes("x") == traffic.passes_written("y") == 1.0
    assert traffic.unread("x") == traffic.unwritten("y") == 0
    assert traffic.out_of_bounds == []


def test_kernel_arguments_name_what_has_no_name() -> None:
    x = torch.randn(100)
    with traffic_meter() as traffic:
        _copy(x, torch.empty(100), 100)
    assert traffic.names == ["x", "y"]
    assert traffic.passes("x") == traffic.passes_written("y") == 1.0


def test_given_name_comes_before_that_of_the_argument() -> None:
    x, y = torch.randn(64), torch.empty(64)
    with traffic_meter({"images": x}) as traffic:
        _copy(x, y, 64)
    assert traffic.names == ["images", "y"]
    assert traffic.passes("images") == 1.0
    with pytest.raises(KeyError):
        traffic.passes("x")


def test_tensors_of_one_name_add_up_over_launches() -> None:
    x = torch.randn(64)
    with traffic_meter() as traffic:
        _copy(x, torch.empty(64), 64)
        _copy(torch.randn(192), torch.empty(192), 192)
        _copy(x, torch.empty(64), 64)
    assert traffic.bytes_read("x") == 4 * (64 + 192 + 64)
    # x read twice, the other once
    assert traffic.passes("x") == pytest.approx((2 * 64 + 192) / 256)
    assert traffic.passes_written("y") == 1.0


def test_memory_of_an_output_that_was_dropped_is_not_taken_for_a_new_one() -> None:
    x = torch.randn(64)
    with traffic_meter() as traffic:
        for _ in range(3):
            _copy(x, torch.empty(64), 64, short=1)
    assert traffic.unwritten("y") == 3


@pytest.mark.parametrize("reads", [1, 2], ids=["one-read", "planted-second-read"])
def test_second_read_shows_as_a_second_pass(reads: int) -> None:
    x, y = torch.randn(100), torch.empty(100)
    with traffic_meter() as traffic:
        _center_kernel[(1,)](x, y, 100, READS=reads, BLOCK=128)
    assert traffic.passes("x") == reads
    assert traffic.sectors("x") == reads * 13
    assert traffic.moved("x") == pytest.approx(reads * 13 * 32 / 400)
    assert traffic.passes_written("y") == 1.0


def test_half_read_twice_is_no_whole_pass() -> None:
    x, y = torch.randn(128), torch.empty(64)
    with traffic_meter() as traffic:
        _copy(x, y, 64)
        _copy(x, y, 64)
    assert traffic.passes("x") == 1.0
    assert traffic.unread("x") == 64


@pytest.mark.parametrize("shift, place", [
    pytest.param(4, "0 bytes past the end of x", id="past-the-end"),
    pytest.param(-3, "12 bytes before x", id="before-the-start"),
])  # fmt: skip
def test_planted_read_out_of_bounds_is_reported_and_not_performed(shift: int, place: str) -> None:
    n = 2 * BLOCK
    memory = torch.full((n + 16,), 7.0)
    x, y = memory[8 : 8 + n], torch.empty(n)
    x.zero_()
    with traffic_meter({"x": x}) as traffic:
        _copy(x, y, n, shift=shift)
    (fault,) = traffic.out_of_bounds
    assert (fault.kernel, fault.operation) == ("_copy_kernel", "load")
    assert fault.program == ((1, 0, 0) if shift > 0 else (0, 0, 0))
    assert fault.lanes == abs(shift)
    assert fault.place == place
    assert torch.equal(y, torch.zeros(n))
    assert traffic.unread("x") == abs(shift)


def test_planted_write_out_of_bounds_is_reported_and_not_performed() -> None:
    memory = torch.zeros(BLOCK)
    with traffic_meter() as traffic:
        _copy(torch.ones(BLOCK), memory[: BLOCK - 2], BLOCK)
    (fault,) = traffic.out_of_bounds
    assert (fault.operation, fault.lanes) == ("store", 2)
    assert fault.place == "0 bytes past the end of y"
    assert torch.equal(memory, torch.cat([torch.ones(BLOCK - 2), torch.zeros(2)]))


def test_element_partly_out_of_bounds_is_out_of_bounds() -> None:
    x, y = torch.randn(7).half(), torch.zeros(7).half()
    with traffic_meter() as traffic:
        _words_kernel[(1,)](x, y, 4, BLOCK=4)
    assert [fault.lanes for fault in traffic.out_of_bounds] == [1, 1]
    assert torch.equal(y, torch.cat([x[:6], torch.zeros(1).half()]))
    assert traffic.unwritten("y") == 1


def test_atomic_out_of_bounds_is_reported_and_not_performed() -> None:
    counters = torch.zeros(4, dtype=torch.int32)
    with traffic_meter() as traffic:
        _count_kernel[(2,)](counters[:3], 4)
    assert counters.tolist() == [2, 2, 2, 0]
    assert [fault.operation for fault in traffic.out_of_bounds] == ["atomic", "atomic"]


def test_compare_and_swap_out_of_bounds_stops_the_kernel() -> None:
    counters = torch.zeros(4, dtype=torch.int32)
    with traffic_meter() as traffic, pytest.raises(Exception, match="outside every tensor"):
        _swap_kernel[(1,)](counters[:3], 3)
    assert counters.tolist() == [0, 0, 0, 0]
    assert len(traffic.out_of_bounds) == 1


@pytest.mark.parametrize("short", [0, 5], ids=["whole", "planted-gap"])
def test_unwritten_outputs_are_counted(short: int) -> None:
    x, y = torch.randn(200), torch.empty(200)
    with traffic_meter({"y": y}) as traffic:
        _copy(x, y, 200, short=short)
    assert traffic.unwritten("y") == short


def test_output_of_no_launch_is_unwritten() -> None:
    with traffic_meter({"y": torch.empty(3, 5)}) as traffic:
        pass
    assert traffic.unwritten("y") == 15


@pytest.mark.parametrize("dtype, factor", [
    pytest.param(torch.float32, 8, id="fp32"),
    pytest.param(torch.float16, 16, id="fp16"),
])  # fmt: skip
def test_stride_of_one_channel_in_many_moves_a_sector_for_each_element(
    dtype: torch.dtype, factor: int
) -> None:
    # one channel of 32 in channels_last
    x, y = torch.randn(128, 32).to(dtype), torch.empty(128, dtype=dtype)
    with traffic_meter() as traffic:
        _copy(x, y, 128, stride=32)
    assert torch.equal(y, x[:, 0])
    assert traffic.bytes_read("x") == 128 * x.element_size()
    assert 32 * traffic.sectors("x") == factor * traffic.bytes_read("x")
    assert 32 * traffic.sectors("y") == traffic.bytes_written("y")


def test_sectors_of_lanes_in_any_order_are_distinct_ones() -> None:
    x, y = torch.randn(64), torch.empty(64)
    with traffic_meter() as traffic:
        _copy(x, y, 64, stride=-1, shift=63)
    assert torch.equal(y, x.flip(0))
    assert traffic.sectors("x") == 8


def test_words_cover_16_bit_elements() -> None:
    x, y = torch.randn(64).bfloat16(), torch.empty(64).bfloat16()
    with traffic_meter() as traffic:
        _words_kernel[(1,)](x, y, 32, BLOCK=32)
    assert traffic.passes("x") == traffic.passes_written("y") == 1.0
    assert traffic.unread("x") == traffic.unwritten("y") == 0


def test_view_with_gaps_is_measured_by_its_own_elements() -> None:
    memory = torch.randn(8, 4)
    x, y = memory[:, 1], torch.empty(8)
    with traffic_meter() as traffic:
        _copy(x, y, 8, stride=4)
    assert traffic.passes("x") == 1.0
    assert traffic.unread("x") == 0
    assert traffic.out_of_bounds == []


def test_masked_lanes_move_nothing() -> None:
    x, y = torch.randn(64), torch.empty(64)
    with traffic_meter() as traffic:
        _copy(x, y, 1, stride=10**6)
        _copy_kernel[(1,)](x, y, 0, 1, SHIFT=0, SHORT=0, BLOCK=BLOCK)
    assert traffic.bytes_read("x") == traffic.bytes_written("y") == 4
    assert traffic.sectors("x") == traffic.sectors("y") == 1


def test_atomics_read_and_write() -> None:
    counters = torch.zeros(4, dtype=torch.int32)
    with traffic_meter() as traffic:
        _count_kernel[(3,)](counters, 2)
    assert counters.tolist() == [3, 3, 0, 0]
    assert traffic.bytes_read("counter") == traffic.bytes_written("counter") == 3 * 8
    assert traffic.sectors("counter") == 6
    assert traffic.unwritten("counter") == 2


@pytest.mark.parametrize("outer", ["meter", "schedule"])
def test_meter_and_schedule_go_together(outer: str) -> None:
    x, y = torch.arange(4.0 * 16).view(4, 16), torch.empty(4, 16)
    partials, barriers = torch.empty(4), torch.zeros(1, dtype=torch.int32)
    pytest.importorskip("greenlet", reason="cooperative schedules need greenlet")
    with ExitStack() as stack:
        if outer == "schedule":
            stack.enter_context(cooperative(11))
        traffic = stack.enter_context(traffic_meter())
        if outer == "meter":
            stack.enter_context(cooperative(11))
        _group_center_kernel[(4,)](x, y, partials, barriers, BLOCK=16)
    assert torch.equal(y, x - x.mean())
    assert traffic.passes("x") == traffic.passes_written("y") == 1.0
    # every program reads every partial
    assert (traffic.passes("partials"), traffic.passes_written("partials")) == (4.0, 1.0)
    assert traffic.bytes_written("barriers") >= 4 * 4
    assert traffic.out_of_bounds == []


def test_nothing_is_counted_after_the_context() -> None:
    x, y = torch.randn(64), torch.empty(64)
    with traffic_meter({"x": x}) as traffic:
        pass
    _copy(x, y, 64)
    assert traffic.bytes_read("x") == 0


@pytest.mark.parametrize("tensor", [
    pytest.param(torch.empty(0), id="empty"),
    pytest.param(torch.empty(1, device="meta"), id="elsewhere"),
])  # fmt: skip
def test_tensor_that_cannot_be_measured_is_refused(tensor: Tensor) -> None:
    with pytest.raises(ValueError, match="expected x on the CPU"), traffic_meter({"x": tensor}):
        pass
