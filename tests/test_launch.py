"""The launcher's two paths: Triton's dispatcher, and the compiled kernel's own `run`."""

from contextvars import copy_context
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from triton.runtime import driver as triton_driver

from tritonbn_kernels import batch_norm_backward, batch_norm_forward, clear_cache, launch
from tritonbn_kernels.launch import Launch, compile_only, record_launches
from tritonbn_kernels.plan import REGISTER_CAP, DeviceProfile

# what every kernel is compiled with
OPTIONS = {"enable_fp_fusion": True, "maxnreg": REGISTER_CAP}


class _Compiled:
    """Stands for Triton's compiled kernel: notes the arguments of its direct launches."""

    function, packed_metadata = "function", "metadata"

    def __init__(self) -> None:
        self.runs: list[tuple[Any, ...]] = []

    def run(self, *arguments: Any) -> None:
        self.runs.append(arguments)


class _Kernel:
    """Stands for a jitted kernel: notes the calls that go through the dispatcher."""

    def __init__(self) -> None:
        self.compiled = _Compiled()
        self.dispatched: list[tuple[Any, ...]] = []
        self.warmed: list[tuple[Any, ...]] = []
        self.fn = SimpleNamespace(__name__="some_kernel")
        self.arg_names = ["x_ptr", "y_ptr", "n", "eps", "BLOCK", "FLAG"]

    def warmup(self, *arguments: Any, grid: tuple[int, ...], **constants: Any) -> _Compiled:
        self.warmed.append((grid, arguments, constants))
        return self.compiled

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def call(*arguments: Any, **constants: Any) -> _Compiled:
            self.dispatched.append((grid, arguments, constants))
            return self.compiled

        return call


class _Driver:
    """Stands for the active driver, on stream 77."""

    class active:
        @staticmethod
        def get_current_stream(device: int) -> int:
            assert device == 5
            return 77


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> _Kernel:
    monkeypatch.setattr(launch, "interpreted", lambda kernel: False)
    monkeypatch.setattr(launch, "triton_driver", _Driver)
    monkeypatch.setattr(launch, "device_profile", lambda kernel, device: DeviceProfile(1))
    return _Kernel()


def _launch(kernel: _Kernel) -> Launch:
    return Launch(kernel, 5, 12, (3,), {"BLOCK": 64, "FLAG": True}, 4)


def test_constants_come_in_the_order_of_the_signature_and_no_others(kernel: _Kernel) -> None:
    constants: dict[str, object] = {"FLAG": True, "UNKNOWN": 1, "BLOCK": 64}
    launched = Launch(kernel, 5, 12, (3,), constants, 4)
    assert list(launched.constants.items()) == [("BLOCK", 64), ("FLAG", True)]


def test_second_call_runs_the_compiled_kernel_with_raw_pointers(kernel: _Kernel) -> None:
    launched, x = _launch(kernel), torch.zeros(64)
    launched((x, None), 0.5)
    launched((x, None), 0.25)
    assert kernel.dispatched == [
        ((12, 1, 1), (x, None, 3, 0.5), {"BLOCK": 64, "FLAG": True, "num_warps": 4, **OPTIONS})
    ]
    [run] = kernel.compiled.runs
    assert run == (
        *(12, 1, 1, 77, "function", "metadata", None, None, None),
        *(x.data_ptr(), None, 3, 0.25),
        *(64, True),
    )


def test_changed_alignment_is_noticed(kernel: _Kernel) -> None:
    launched, x = _launch(kernel), torch.zeros(64)
    launched((x,))
    launched((x[1:],))
    assert len(kernel.dispatched) == 2
    assert kernel.compiled.runs == []
    launched((x[4:],))
    assert len(kernel.dispatched) == 2
    assert len(kernel.compiled.runs) == 1


def test_a_kernel_compiled_for_unaligned_pointers_is_never_run_directly(kernel: _Kernel) -> None:
    launched, x = _launch(kernel), torch.zeros(64)
    launched((x[1:],))
    launched((x,))
    assert len(kernel.dispatched) == 2
    assert kernel.compiled.runs == []
    launched((x,))
    assert len(kernel.compiled.runs) == 1


def test_the_environment_forces_the_dispatcher(
    kernel: _Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITONBN_PLAIN_LAUNCH", "1")
    launched, x = _launch(kernel), torch.zeros(64)
    launched((x,))
    launched((x,))
    assert len(kernel.dispatched) == 2
    assert kernel.compiled.runs == []


def test_every_recorder_sees_every_launch_until_it_ends(kernel: _Kernel) -> None:
    launched, x = _launch(kernel), torch.zeros(64)
    with record_launches() as outer:
        launched((x,))
        with record_launches() as inner:
            launched((x,))
        launched((x,))
    launched((x,))
    assert [len(outer), len(inner)] == [3, 1]
    [record] = inner
    assert (record.kernel, record.grid, record.num_warps) == ("some_kernel", (12, 1, 1), 4)
    assert record.constants == {"BLOCK": 64, "FLAG": True}
    assert record.compiled is kernel.compiled


def test_first_call_can_compile_what_it_would_launch(kernel: _Kernel) -> None:
    launched, x = _launch(kernel), torch.zeros(64)
    with record_launches() as records, compile_only() as kernels:
        launched((x,), 0.5)
    assert kernels == [kernel.compiled]
    assert (kernel.dispatched, kernel.compiled.runs, records) == ([], [], [])
    launched((x,), 0.5)
    # with the same arguments, or another kernel was compiled
    assert kernel.dispatched == kernel.warmed


def test_a_ready_launch_takes_the_arguments_of_a_call(kernel: _Kernel) -> None:
    launched, x, still = _launch(kernel), torch.zeros(64), torch.ones(4)
    assert launched.ready((still, None), 0.5) is None
    for _ in range(2):
        launched((x, still, None), 0.5)
    ready = launched.ready((still, None), 0.5)
    assert ready is not None
    start, rest = ready
    with record_launches() as launches:
        start((x.data_ptr(), *rest))
    by_call, at_once = kernel.compiled.runs
    assert at_once == by_call
    [record] = launches
    assert (record.kernel, record.grid) == ("some_kernel", (12, 1, 1))
    assert record.compiled is kernel.compiled


@pytest.mark.parametrize(
    ("first", "still", "options"),
    [
        pytest.param(1, 0, {}, id="compiled-for-unaligned"),
        pytest.param(0, 1, {}, id="unaligned"),
        pytest.param(0, 0, {"launch_cooperative_grid": True}, id="may-be-refused"),
    ],
)
def test_other_launches_are_not_ready(
    first: int, still: int, options: dict[str, object], kernel: _Kernel
) -> None:
    x = torch.zeros(64)
    launched = Launch(kernel, 5, 12, (3,), {}, 4, options)
    launched((x[first:], x))
    assert launched.ready((x[still:],)) is None


@pytest.mark.parametrize("scratch", [0, 64], ids=["without-scratch", "with-scratch"])
def test_the_launcher_gets_what_tritons_own_way_gives_it(
    scratch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = pytest.importorskip("triton.backends.nvidia.driver")
    launcher = driver.CudaLauncher.__new__(driver.CudaLauncher)
    given: list[tuple[Any, ...]] = []
    # what its methods read, in any version
    vars(launcher).update(
        launch=lambda *arguments: given.append(arguments),
        arg_annotations=["annotations"],
        kernel_signature=b"signature",
        gsan_enabled=False,
        num_ctas=1,
        launch_cooperative_grid=True,
        launch_pdl=False,
        **dict.fromkeys(("global_scratch_size", "profile_scratch_size"), 0),
        **dict.fromkeys(("global_scratch_align", "profile_scratch_align"), 1),
    )
    launcher.global_scratch_size = scratch
    compiled = SimpleNamespace(run=launcher, function=99, packed_metadata=(4, 1, 0))
    allocated: list[int] = []

    def allocate(size: int, alignment: int, stream: int) -> str:
        allocated.append(size)
        return "scratch"

    arguments = (1024, None, 3, 0.5, 64, True)

    def both() -> None:
        triton.set_allocator(allocate)
        launcher(12, 1, 1, 77, 99, (4, 1, 0), None, None, None, *arguments)
        launch._starter(compiled, 12, _Driver.active.get_current_stream, 5)(arguments)

    monkeypatch.setattr(type(triton_driver), "active", _Driver.active)
    # the allocator is a variable of the context
    copy_context().run(both)
    own, ours = given
    assert ours == own
    assert len(allocated) == (2 if scratch else 0)


@pytest.mark.gpu
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "unaligned"])
def test_both_paths_give_the_same_bits(offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = torch.randn(4 * 6 * 64 + 1, device="cuda")
    x = storage[offset : offset + 4 * 6 * 64].view(4, 6, 8, 8)
    dy = torch.randn_like(x)
    gamma, beta = torch.randn(2, 6, device="cuda").unbind()

    def step() -> list[torch.Tensor | None]:
        y, saved = batch_norm_forward(x, gamma, beta, None, None, None, True, 0.1, 1e-5)
        return [y, saved, *batch_norm_backward(dy, x, gamma, saved, True, True, True, True)]

    clear_cache()
    step()
    direct = step()
    monkeypatch.setenv("TRITONBN_PLAIN_LAUNCH", "1")
    clear_cache()
    plain = step()
    clear_cache()
    for a, b in zip(direct, plain, strict=True):
        assert a is not None and b is not None
        assert torch.equal(a, b)
