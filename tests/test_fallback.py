"""When a one-read plan cannot run, or must not, two reads do the work; and what is kept between
launches: counters by stream, the devices' profiles."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

import tritonbn_kernels
from tests.checks import check_backward, check_forward, operands
from tests.held import gradient_of
from tests.inputs import INTERPRETED, values
from tritonbn_bench.emulated import cooperative
from tritonbn_kernels import clear_cache, launch, pinned_plan, record_launches
from tritonbn_kernels.launch import (
    arrival_counters,
    barrier_counters,
    device_profile,
)
from tritonbn_kernels.plan import pinned

interpreted_only = pytest.mark.skipif(not INTERPRETED, reason="replaces the interpreter's launches")
# by the kernels: shape and pins of groups of two
GROUPS = [
    pytest.param((4, 3, 8, 4), {"block_c": 1, "programs": 2}, id="resident"),
    pytest.param((4, 16, 5, 3), {"block_c": 8, "programs": 2}, id="rows"),
]
REFUSAL = "Triton Error [CUDA]: too many blocks in cooperative launch"
TWO_READS = {
    1: ["statistics_kernel", "gradients_kernel"],
    0: ["statistics_kernel", "normalize_kernel", "gradients_kernel", "input_gradient_kernel"],
}


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels of the cooperative launches that a driver refused: all of them."""
    kernels: list[str] = []
    run: Callable[..., None] = interpreter.GridExecutor.__call__

    def refuse(executor: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("launch_cooperative_grid"):
            kernels.append(executor.fn.__name__)
            raise RuntimeError(REFUSAL)
        run(executor, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", refuse)
    monkeypatch.setattr(launch, "_fallbacks", [])
    return kernels


@interpreted_only
@pytest.mark.parametrize("fused", [0, 1], ids=["split", "fused"])
@pytest.mark.parametrize(("shape", "pins"), GROUPS)
def test_refused_launch_is_told_once_and_read_twice_ever_after(
    shape: tuple[int, ...], pins: dict[str, int], fused: int, refused: list[str]
) -> None:
    call = operands(values(shape, torch.float32))
    dy = gradient_of(call.x)
    pins = {"resident": 1, "splits": 2, "fused": fused, **pins}
    with pinned_plan(**pins), record_launches() as launches:
        with pytest.warns(RuntimeWarning, match="too many blocks.*two-read kernels run instead"):
            saved = check_forward(call, training=True, tracked=3)
        with pytest.warns(RuntimeWarning, match="too many blocks.*two-read kernels run instead"):
            check_backward(call, dy, training=True, saved=saved)
        assert len(refused) == 2
        # the same plans, forward and backward in turn: warnings are errors here
        for _ in range(2):
            saved = check_forward(call, training=True, tracked=3)
            check_backward(call, dy, training=True, saved=saved)
    assert len(refused) == 2
    assert [record.kernel for record in launches] == 3 * TWO_READS[fused]
    forward, backward = tritonbn_kernels.fallbacks()
    assert forward.startswith(("ResidentPlan", "RowsPlan")) and REFUSAL in forward
    assert backward.startswith(("ResidentPlan", "RowsPlan")) and REFUSAL in backward


@interpreted_only
def test_two_refused_layers_do_not_make_each_other_try_again(refused: list[str]) -> None:
    layers = [operands(values(shape, torch.float32)) for shape in ((4, 3, 8, 4), (6, 2, 4, 4))]
    with pinned_plan(resident=1, splits=2, block_c=1, programs=2):
        with pytest.warns(RuntimeWarning, match="two-read kernels run instead"):
            for call in layers:
                check_forward(call, training=True)
        for call in 2 * layers:
            check_forward(call, training=True)
    assert refused == 2 * ["resident_forward_kernel"]
    assert len(tritonbn_kernels.fallbacks()) == 2


@interpreted_only
def test_refusal_changes_no_other_plan(refused: list[str]) -> None:
    alone, shared = (
        operands(values(shape, torch.float32)) for shape in ((2, 3, 4, 4), (4, 3, 8, 4))
    )
    with pinned_plan(resident=1, block_c=1), record_launches() as launches:
        check_forward(alone, training=True)
        with pytest.warns(RuntimeWarning), pinned_plan(splits=2, programs=2):
            check_forward(shared, training=True)
        check_forward(alone, training=True)
    assert launches[0].kernel == launches[-1].kernel == "resident_forward_kernel"
    assert refused == ["resident_forward_kernel"]


@interpreted_only
@pytest.mark.parametrize(
    ("error", "message"),
    [
        pytest.param(RuntimeError, "Triton Error [CUDA]: an illegal memory access", id="other"),
        pytest.param(ValueError, REFUSAL, id="no-driver-error"),
    ],
)
def test_other_errors_are_not_hidden(
    error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(executor: Any, *args: Any, **kwargs: Any) -> None:
        raise error(message)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", fail)
    monkeypatch.setattr(launch, "_fallbacks", [])
    x = values((4, 3, 8, 4), torch.float32)
    with (
        pinned_plan(resident=1, splits=2, block_c=1, programs=2),
        pytest.raises(error) as caught,
    ):
        tritonbn_kernels.batch_norm_forward(x, None, None, None, None, None, True, 0.1, 1e-5)
    assert str(caught.value) == message
    assert tritonbn_kernels.fallbacks() == []


class _Stub:
    """Stands for the driver of an H200, on the stream that a test chooses."""

    backend, arch, warp_size, stream = "cuda", 90, 32, 77

    def __init__(self) -> None:
        self.active = self
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"multiprocessor_count": 132}
        )

    def get_current_device(self) -> int:
        return 0

    def get_current_target(self) -> "_Stub":
        return self

    def get_current_stream(self, device: int) -> int:
        return self.stream


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Stub]:
    """A stub driver for kernels that are not interpreted; nothing is kept from before or after."""
    for name in ("TRITONBN_PLAN", "TRITONBN_RESERVE_SMS"):
        monkeypatch.delenv(name, raising=False)
    stub = _Stub()
    clear_cache()
    monkeypatch.setattr(launch, "interpreted", lambda kernel: False)
    monkeypatch.setattr(launch, "triton_driver", stub)
    yield stub
    monkeypatch.undo()
    clear_cache()


KERNEL = object()


def test_profile_says_what_the_driver_says(driver: _Stub) -> None:
    profile = device_profile(KERNEL, 0)
    assert (profile.sm_count, profile.cooperative, profile.assembly) == (132, True, True)
    assert profile.reserved_sms == 0


@pytest.mark.parametrize(
    ("backend", "arch", "cooperative", "assembly"),
    [
        pytest.param("cuda", 75, False, False, id="before-ampere"),
        pytest.param("hip", "gfx942", False, False, id="amd"),
    ],
)
def test_other_devices_wait_or_inline_only_what_they_can(
    backend: str, arch: Any, cooperative: bool, assembly: bool, driver: _Stub
) -> None:
    driver.backend, driver.arch = backend, arch
    profile = device_profile(KERNEL, 0)
    assert (profile.cooperative, profile.assembly) == (cooperative, assembly)


def test_environment_is_read_again_after_clear_cache(
    driver: _Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (device_profile(KERNEL, 0).reserved_sms, pinned("resident", 1)) == (0, 1)
    monkeypatch.setenv("TRITONBN_PLAN", "two_read")
    monkeypatch.setenv("TRITONBN_RESERVE_SMS", "12")
    # kept: a plan must not change amid a training
    assert (device_profile(KERNEL, 0).reserved_sms, pinned("resident", 1)) == (0, 1)
    clear_cache()
    profile = device_profile(KERNEL, 0)
    assert (profile.reserved_sms, pinned("resident", 1)) == (12, 0)
    assert profile.programs(128, 4) == 480


Counters = Callable[[Any, Tensor, int], Tensor]
KINDS = [
    pytest.param(arrival_counters, id="arrivals"),
    pytest.param(barrier_counters, id="barriers"),
]


@pytest.mark.parametrize("counters", KINDS)
def test_each_stream_has_counters_of_its_own(counters: Counters, driver: _Stub) -> None:
    x = torch.zeros(1)
    first = counters(KERNEL, x, 5)
    assert first.dtype == torch.int32 and first.numel() >= 5 and not first.any()
    assert counters(KERNEL, x, 7) is first
    driver.stream = 78
    second = counters(KERNEL, x, 5)
    assert second.data_ptr() != first.data_ptr()
    driver.stream = 77
    assert counters(KERNEL, x, 5) is first


@pytest.mark.parametrize("counters", KINDS)
def test_more_counters_are_made_where_they_are_needed(counters: Counters, driver: _Stub) -> None:
    x = torch.zeros(1)
    few = counters(KERNEL, x, 5)
    many = counters(KERNEL, x, few.numel() + 1)
    assert many.numel() > few.numel() and not many.any()
    assert counters(KERNEL, x, 5) is many


def test_arrivals_and_barriers_share_no_counter(driver: _Stub) -> None:
    x = torch.zeros(1)
    assert arrival_counters(KERNEL, x, 5).data_ptr() != barrier_counters(KERNEL, x, 5).data_ptr()


@pytest.mark.parametrize("counters", KINDS)
def test_graph_capture_gets_new_counters(
    counters: Counters, driver: _Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    # all that is asked of x
    x: Any = SimpleNamespace(is_cuda=True, device=torch.device("cpu"), get_device=lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    eager = counters(KERNEL, x, 5)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    captured = [counters(KERNEL, x, 5) for _ in range(2)]
    assert all(not each.any() and each.numel() >= 5 for each in captured)
    assert len({each.data_ptr() for each in (eager, *captured)}) == 3
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert counters(KERNEL, x, 5) is eager


@interpreted_only
def test_barrier_counters_end_every_launch_ready_for_any_group() -> None:
    pytest.importorskip("greenlet", reason="cooperative schedules need greenlet")
    x = values((8, 3, 4, 4), torch.float32)
    signs = set()
    clear_cache()
    for members in (2, 3, 5, 8):
        with (
            pinned_plan(resident=1, splits=members, block_c=1, programs=members),
            cooperative(members),
        ):
            tritonbn_kernels.batch_norm_forward(x, None, None, None, None, None, True, 0.1, 1e-5)
        counters = barrier_counters(tritonbn_kernels.resident.resident_forward_kernel, x, 3)
        assert not (counters & 0x7FFFFFFF).any()
        signs.add(tuple((counters[:3] < 0).tolist()))
    assert signs == {(True, True, True), (False, False, False)}
