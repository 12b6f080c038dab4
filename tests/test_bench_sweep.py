"""Correctness before speed: who gets a figure, who gets a reason."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional

import tritonbn
from tests.inputs import DEVICE
from tritonbn_bench.cases import MODES, Case
from tritonbn_bench.fusions import FUSIONS
from tritonbn_bench.inputs import Inputs, make_inputs
from tritonbn_bench.measure import SWEEP_RULE, Meter
from tritonbn_bench.providers import (
    PROVIDERS,
    BatchNorm,
    Prepared,
    Provider,
    composed,
    poisoned_memory,
    results_of,
    torch_backend,
)
from tritonbn_bench.results import Row
from tritonbn_bench.stopwatch import CudaStopwatch, FakeStopwatch
from tritonbn_bench.sweep import measure, planned
from tritonbn_kernels.traffic import floor_bytes

CASE = Case("forward_train", "fp32", "nchw", 4, 3, (2, 2), "sweep", "a test")


def _measure(case: Case, *providers: Provider) -> list[Row]:
    rows: list[Row] = []
    meter = Meter(DEVICE.type, FakeStopwatch(0))
    measure("sweep", planned([case], providers), meter, rows.extend)
    return rows


def _provider(name: str, function: BatchNorm) -> Provider:
    """A provider that computes what `function` does."""

    def prepare(case: Case, inputs: Inputs) -> Prepared:
        return Prepared(
            "planted",
            lambda _: None,
            lambda: None,
            lambda: results_of(function, inputs, case.mode),
            1000,
        )

    return Provider(name, lambda _: True, prepare)


def _forgets_the_output(x: Tensor, *others: object) -> Tensor:
    functional.batch_norm(x, *others)  # type: ignore[arg-type]
    return torch.empty_like(x) + 0 * x.detach()


def _forgets_the_running_stats(x: Tensor, mean: Tensor, var: Tensor, *others: object) -> Tensor:
    return functional.batch_norm(x, mean.clone(), var.clone(), *others)  # type: ignore[arg-type]


def _normalises_with_the_unbiased_variance(x: Tensor, *others: object) -> Tensor:
    y = functional.batch_norm(x, *others)  # type: ignore[arg-type]
    return y * 0.99


def _cannot_run(x: Tensor, *others: object) -> Tensor:
    raise NotImplementedError("no compiler here")


def _forgets_the_residual(*arguments: object, residual: Tensor, activation: str) -> Tensor:
    return composed(functional.batch_norm)(*arguments, residual=0 * residual, activation=activation)


def _forgets_the_activation(*arguments: object, residual: Tensor, activation: str) -> Tensor:
    return composed(functional.batch_norm)(*arguments, residual=residual)


def _keeps_the_gradient_whole(*arguments: object, residual: Tensor, activation: str) -> Tensor:
    z = composed(functional.batch_norm)(*arguments, residual=residual)
    return z + (z.relu() - z).detach()


@pytest.mark.parametrize(
    ("function", "mode", "reason"),
    [
        pytest.param(_forgets_the_residual, "forward_train", "y: error", id="residual"),
        pytest.param(_forgets_the_residual, "backward_train", "dresidual: error", id="gradient"),
        pytest.param(_forgets_the_activation, "forward_train", "y: error", id="activation"),
        pytest.param(_keeps_the_gradient_whole, "backward_train", "dx: error", id="derivative"),
    ],
)
def test_what_is_lost_of_a_fusion_is_found(function: BatchNorm, mode: str, reason: str) -> None:
    case = replace(CASE, mode=mode, fusion="add_relu")
    (row,) = _measure(case, _provider("planted", function))
    assert (row.status, row.value, row.fusion) == ("failed", None, "add_relu")
    assert reason in row.reason


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        pytest.param(_forgets_the_output, "y: error inf", id="unwritten-output"),
        pytest.param(_forgets_the_running_stats, "running_mean: error", id="stats-not-updated"),
        pytest.param(_normalises_with_the_unbiased_variance, "y: error", id="wrong-scale"),
        pytest.param(_cannot_run, "NotImplementedError: no compiler here", id="raises"),
    ],
)
def test_a_wrong_provider_gets_a_reason_and_no_figure(function: BatchNorm, reason: str) -> None:
    (row,) = _measure(CASE, _provider("planted", function))
    assert (row.status, row.value) == ("failed", None)
    assert reason in row.reason


def test_a_right_provider_gets_time_throughput_and_wall_time() -> None:
    rows = _measure(CASE, _provider("right", functional.batch_norm))
    assert [(row.quantity, row.unit, row.status) for row in rows] == [
        ("time", "ms", "ok"),
        ("throughput", "GB/s", "ok"),
        ("wall time", "ms", "ok"),
        ("dropped rounds", "1", "ok"),
    ]
    time, throughput, wall, dropped = rows
    assert wall.host_bound and time.host_bound is None
    assert (dropped.value, dropped.samples) == (0, 12)
    assert throughput.value == pytest.approx(time.floor_bytes / time.value / 1e6)  # type: ignore[operator]
    assert time.samples == 12


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("layout", "plane"),
    [
        pytest.param("nchw", (2, 3), id="channels-first"),
        pytest.param("nhwc", (2, 3), id="channels-last"),
        pytest.param("nc", (), id="vectors"),
        pytest.param("ncdhw", (2, 1, 3), id="volumes"),
    ],
)
def test_providers_pass_the_gate_in_every_mode_and_layout(
    mode: str, layout: str, plane: tuple[int, ...]
) -> None:
    case = replace(CASE, mode=mode, layout=layout, plane=plane)
    providers = [PROVIDERS[name] for name in ("tritonbn", "torch", "torch channels_last", "copy")]
    rows = [row for row in _measure(case, *providers) if row.quantity == "time"]
    assert [row.reason for row in rows] == [""] * len(rows)
    rival = "torch channels_last" if layout == "nhwc" else "torch"
    assert [row.provider for row in rows] == ["tritonbn", rival, "copy"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fusion", [name for name in FUSIONS if name != "none"])
def test_fused_cases_have_ours_unfused_for_a_rival_too(mode: str, fusion: str) -> None:
    case = replace(CASE, mode=mode, fusion=fusion, dtype="bf16")
    providers = [provider for provider in PROVIDERS.values() if not provider.slow]
    rows = [row for row in _measure(case, *providers) if row.quantity == "time"]
    assert [row.reason for row in rows] == [""] * len(rows)
    assert [row.provider for row in rows] == ["tritonbn", "tritonbn unfused", "torch", "copy"]
    plain = replace(case, fusion="none").moved(floor_bytes)
    more = case.moved(floor_bytes)
    assert {row.floor_bytes for row in rows} == {more} and more >= plain


def test_torch_adds_and_rectifies_in_place() -> None:
    inputs = make_inputs(replace(CASE, fusion="add_relu"), "cpu")
    made: list[Tensor] = []

    def batch_norm(*arguments: Any) -> Tensor:
        made.append(functional.batch_norm(*arguments))
        return made[-1]

    y = results_of(composed(batch_norm), inputs, "forward_train")["y"]
    assert y.data_ptr() == made[0].data_ptr()


def test_tritonbn_gets_no_figure_where_torch_would_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tritonbn, "backend", lambda _: "torch")
    (row,) = _measure(CASE, PROVIDERS["tritonbn"])
    assert row.status == "failed"
    assert "hand this input to torch" in row.reason


def test_a_failure_does_not_end_the_sweep() -> None:
    rows = _measure(CASE, _provider("bad", _cannot_run), _provider("good", functional.batch_norm))
    assert [row.provider for row in rows if row.quantity == "time"] == ["bad", "good"]


@pytest.fixture
def fake_cuda() -> Iterator[Callable[[torch.dtype], Inputs]]:
    """Inputs that say they are CUDA tensors, without a device behind them."""
    with FakeTensorMode():

        def inputs(dtype: torch.dtype) -> Inputs:
            x = torch.empty(4, 3, 2, 2, dtype=dtype, device="cuda")
            channel = torch.empty(3, device="cuda")
            return Inputs(x, x, channel, channel, channel, channel)

        yield inputs


def test_torch_is_labelled_by_the_backend_that_torch_itself_chooses(
    fake_cuda: Callable[[torch.dtype], Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    # torch's type stubs know it by another name
    backends: Any = vars(torch._C)["_BatchNormBackend"]

    def choose(x: Tensor, *others: object) -> object:
        asked.append((x.dtype, others[-2]))
        return backends.Native if x.dtype == torch.bfloat16 else backends.Cudnn

    monkeypatch.setattr(torch._C, "_select_batch_norm_backend", choose)
    assert torch_backend(fake_cuda(torch.float32), True) == "cuDNN"
    assert torch_backend(fake_cuda(torch.bfloat16), False) == "ATen native"
    assert asked == [(torch.float32, True), (torch.bfloat16, False)]


@pytest.mark.parametrize(
    ("layout", "plane"), [pytest.param("nchw", (2, 2)), pytest.param("nhwc", (2, 2))]
)
def test_inputs_have_the_layout_of_their_case_and_a_mean_away_from_zero(
    layout: str, plane: tuple[int, ...]
) -> None:
    case = replace(CASE, layout=layout, batch=64, plane=plane)
    x = make_inputs(case, "cpu").x.detach()
    contiguous = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    assert x.is_contiguous(memory_format=contiguous)
    assert (x.mean((0, 2, 3)).abs() > 0.2).all()


def test_inputs_repeat_themselves_from_their_seed() -> None:
    first, again, other = (make_inputs(CASE, "cpu", seed).x for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("ratio", ["0", "100", "1e4", "1e6"])
def test_ill_conditioned_inputs_have_their_ratio(ratio: str) -> None:
    case = replace(CASE, dtype="fp64", batch=512, data=f"mean/std={ratio}")
    x = make_inputs(case, "cpu").x.detach()
    found = (x.mean((0, 2, 3)) / x.std((0, 2, 3))).abs()
    torch.testing.assert_close(found, torch.full_like(found, float(ratio)), rtol=0.1, atol=0.1)


def test_poison_is_gone_after_its_block() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with poisoned_memory():
        assert torch.empty(3).isnan().all()
    assert torch.are_deterministic_algorithms_enabled() == before


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [*MODES[:2], "both_train"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("fusion", ["none", "add_relu"])
def test_every_provider_is_measured_on_the_gpu(mode: str, dtype: str, fusion: str) -> None:
    case = Case(mode, dtype, "nchw", 8, 64, (28, 28), "sweep", "a test", fusion=fusion)
    rows: list[Row] = []
    units = planned([case], list(PROVIDERS.values()))
    rule = replace(SWEEP_RULE, rounds=3, fewest=3)
    measure("sweep", units, Meter("cuda", CudaStopwatch(), rule=rule), rows.extend)
    times = {row.provider: row for row in rows if row.quantity == "time"}
    more = ["tritonbn unfused"] if fusion != "none" else []
    assert {name: row.reason for name, row in times.items()} == {
        name: "" for name in ("tritonbn", "torch", "copy", "torch.compile", *more)
    }
    assert times["torch"].backend == ("cuDNN" if dtype == "fp32" else "ATen native")
    graphs = [row for row in rows if row.quantity == "graph time"]
    assert [(row.provider, row.reason) for row in graphs] == [(name, "") for name in times]
    peaks = {row.provider: row.value for row in rows if row.quantity.startswith("peak memory")}
    assert all(value and value > 0 for name, value in peaks.items() if name != "copy")
    shares = {row.provider: row.value for row in rows if row.quantity == "share of copy"}
    assert all(value and 0 < value < 3 for value in shares.values())
