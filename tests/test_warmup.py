"""Claims about `warmup`: what it sees, what it leaves alone, and what it leaves to compile."""

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import triton
from torch import Tensor, nn

import tritonbn
from tritonbn import _progress
from tritonbn_kernels import LaunchRecord

from .agreement import DEVICE
from .test_static import run_outside_interpreter

OPERATIONS = ["training forward", "evaluation forward", "training backward"]


class Net(nn.Module):
    """Everything that a call may change: parameter, buffer, attributes, input, random states."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.left = nn.BatchNorm2d(4)
        self.register_buffer("total", torch.zeros(()))
        self.calls = 0
        self.seen: list[Tensor] = []
        self.fails = False

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        # 0.0 and -0.0 are equal
        self.zero.data.neg_()
        x = self.first(x.mul_(2.0))
        y = self.norm(x) * scale
        self.total += y.detach().sum() + random.random() + float(numpy.random.rand())
        self.calls += 1
        self.seen.append(y)
        y = self.left(nn.functional.dropout(nn.functional.max_pool2d(y, 2)))
        if self.fails:
            raise RuntimeError("this model fails")
        z: Tensor = self.norm(y)
        return z


def net() -> Net:
    model = Net()
    tritonbn.convert(model.norm)
    return model.to(DEVICE)


def images(size: int = 8, **options: Any) -> Tensor:
    return torch.randn(2, 3, size, size, device=DEVICE).to(**options)


def visible(model: Net, x: Tensor) -> dict[str, object]:
    """All of a model and of the generators that anybody can look at; tensors by their bytes."""

    def content(tensor: Tensor) -> object:
        return tensor.detach().cpu().numpy().tobytes()

    return {
        "tensors": {name: content(one) for name, one in model.state_dict().items()},
        "objects": [id(one) for one in (*model.parameters(), *model.buffers())],
        "gradients": [one.grad for one in model.parameters()],
        "flags": [(one.training, len(one._forward_hooks)) for one in model.modules()],
        "attributes": (model.calls, list(model.seen)),
        "versions": [one._version for one in (*model.norm.buffers(), *model.parameters())],
        "random": (
            random.getstate(),
            str(numpy.random.get_state()),
            content(torch.get_rng_state()),
        ),
        "input": content(x),
        "cache": torch.is_autocast_cache_enabled(),
    }


@pytest.mark.parametrize("fails", [False, True], ids=["runs", "raises"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_nothing_visible_changes(training: bool, fails: bool) -> None:
    model, x = net().train(training), images()
    model.fails = fails
    model.norm.register_forward_hook(lambda *_: None)
    before = visible(model, x)
    if fails:
        with pytest.raises(RuntimeError, match="this model fails"):
            tritonbn.warmup(model, x)
    else:
        tritonbn.warmup(model, x)
    assert visible(model, x) == before


def test_no_kernel_runs(launches: list[LaunchRecord]) -> None:
    tritonbn.warmup(net(), images())
    assert launches == []


def test_every_kind_of_call_is_found_once() -> None:
    report = tritonbn.warmup(net(), images())
    found = [(call.operation, call.shape) for call in report.calls]
    shapes = ((2, 4, 8, 8), (2, 4, 4, 4))
    assert found == [(operation, shape) for shape in shapes for operation in OPERATIONS]
    assert (report.layers, report.others) == (1, 1)


def test_layout_of_the_input_is_seen() -> None:
    model = net()
    model.first.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    report = tritonbn.warmup(model, images(memory_format=torch.channels_last))
    assert {call.stride for call in report.calls} == {(256, 1, 32, 4), (64, 1, 16, 4)}


def test_autocast_of_the_caller_is_seen() -> None:
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        report = tritonbn.warmup(net(), images())
    assert {call.dtype for call in report.calls} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "training", "grad", "operations"),
    [
        ({}, True, True, OPERATIONS),
        ({"backward": False}, True, True, OPERATIONS[:2]),
        ({"evaluation": False}, True, True, [OPERATIONS[0], OPERATIONS[2]]),
        ({}, True, False, OPERATIONS[:2]),
        ({}, False, True, ["evaluation forward", "evaluation backward"]),
        ({}, False, False, ["evaluation forward"]),
    ],
    ids=["all", "no-backward", "no-evaluation", "no-grad", "frozen", "inference"],
)
def test_flags_and_keywords_choose_the_calls(
    options: dict[str, bool], training: bool, grad: bool, operations: list[str]
) -> None:
    with torch.set_grad_enabled(grad):
        report = tritonbn.warmup(net().train(training), images(), **options)
    assert [call.operation for call in report.calls] == operations * 2


def test_functions_count_as_layers_do() -> None:
    class Functional(Net):
        def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
            return tritonbn.batch_norm(self.norm(self.first(x))[:, :3], None, None, training=True)

    model = Functional().to(DEVICE)
    tritonbn.convert(model)
    assert {call.shape[1] for call in tritonbn.warmup(model, images()).calls} == {4, 3}


class Fused(nn.Module):
    """Layers of one shape that are followed by different things, two of them by the same."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(
            tritonbn.BatchNorm2d(3, activation=one) for one in (None, "relu", "relu", "silu")
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for norm in self.norms:
            y = norm(y)
        z: Tensor = self.norms[1](y, x)
        return z


def test_fused_layers_are_warmed_as_fused() -> None:
    model, x = Fused().to(DEVICE), images()
    operations = [call.operation for call in tritonbn.warmup(model, x).calls]
    # without activation, relu, silu, and relu with a residual
    assert operations.count("training forward") == 4
    # the last with a mask for a backward pass and without
    assert operations.count("evaluation forward") == 5
    # once more where the input of the model needs no gradient
    assert operations.count("training backward") == 5


def test_warming_hands_on_what_follows_the_normalisation() -> None:
    seen: list[Tensor] = []
    model, x = Fused().to(DEVICE), images()
    model.norms[3].register_forward_hook(lambda module, args, y: seen.append(y))
    tritonbn.warmup(model, x)
    model(x)
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["tensor", "tuple", "mapping"])
def test_sample_is_what_the_model_is_called_with(kind: str) -> None:
    x = images()
    sample = {"tensor": x, "tuple": (x,), "mapping": {"x": x, "scale": 2.0}}[kind]
    assert len(tritonbn.warmup(net(), sample).calls) == 6


def test_parallel_wrapper_is_looked_into() -> None:
    assert len(tritonbn.warmup(nn.DataParallel(net()), images()).calls) == 6


def test_compiled_model_is_called_eagerly() -> None:
    compiled: Any = torch.compile(net(), backend="eager")
    assert len(tritonbn.warmup(compiled, images()).calls) == 6


@pytest.mark.parametrize(
    ("model", "options", "error", "words"),
    [
        (nn.Sequential(nn.BatchNorm2d(3)), {}, ValueError, r"1 of other classes: call .*convert"),
        (nn.Sequential(tritonbn.LazyBatchNorm2d()), {}, ValueError, "lazy layers .* 0.weight"),
        (nn.Sequential(tritonbn.BatchNorm2d(3)), {"workers": 0}, ValueError, "1 worker, got 0"),
        (len, {}, TypeError, "expected a module, got builtin"),
    ],
    ids=["unconverted", "lazy", "workers", "no-module"],
)
def test_wrong_call_is_told_what_was_expected(
    model: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        tritonbn.warmup(model, torch.ones(2, 3, 4, 4), **options)


def test_interpreter_has_nothing_to_compile() -> None:
    if DEVICE.type != "cpu":
        pytest.skip("the kernels are compiled here")
    report = tritonbn.warmup(net(), images())
    assert (report.engine, report.kernels, report.compiled) == ("interpreter", 0, 0)
    assert "nothing to compile: Triton's interpreter" in str(report)


@pytest.mark.parametrize("rich", [True, False], ids=["rich", "plain"])
def test_bar_is_shown_when_asked_for(
    rich: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.progress", None)
    for progress in (None, False, True):
        with _progress.shown("compiling", progress, 2) as advance:
            advance()
            advance()
        # not on a terminal unless asked for
        assert bool(capsys.readouterr().err) is bool(progress)


@pytest.mark.gpu
def test_first_step_compiles_nothing_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = net(), images()
    report = tritonbn.warmup(model, x)
    assert (report.engine, len(report.calls)) == ("triton", 6)
    asked: list[str] = []
    monkeypatch.setattr(
        triton.knobs.compilation, "listener", lambda **event: asked.append(event["src"].name)
    )
    model(x).sum().backward()
    with torch.no_grad():
        model.eval()(x)
    assert asked == []


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `tests/warmed.py` says: several workers, one worker, and the first one's cache again."""
    folders = {name: str(tmp_path_factory.mktemp(name)) for name in ("parallel", "serial")}
    found: dict[str, Any] = {}
    for name, cache, workers in (
        ("parallel", "parallel", "3"),
        ("serial", "serial", "1"),
        ("full cache", "parallel", "3"),
    ):
        done = run_outside_interpreter("tests/warmed.py", workers, TRITON_CACHE_DIR=folders[cache])
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_first_step_and_evaluation_compile_nothing(runs: dict[str, Any]) -> None:
    run = runs["parallel"]
    assert run["asked"] == []
    assert run["launched_then"] == 3


@pytest.mark.slow
def test_first_step_of_fused_layers_compiles_nothing(tmp_path: Path) -> None:
    done = run_outside_interpreter("tests/warmed.py", "2", "fused", TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout.splitlines()[-1])
    assert run["asked"] == []
    # two layers forward and backward, and evaluated twice
    assert run["launched"] == 8
    assert run["compiled"] == run["kernels"] == 7


@pytest.mark.slow
@pytest.mark.parametrize("name", ["parallel", "serial", "full cache"])
def test_nothing_is_launched_before_or_after_the_first_step(
    name: str, runs: dict[str, Any]
) -> None:
    run = runs[name]
    assert (run["launched"], run["recorded"]) == (0, 0)
    assert run["launched_at_last"] == run["launched_then"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "which", "compiled", "on_disk"),
    [
        ("parallel", "first", 3, 0),
        ("serial", "first", 3, 0),
        ("full cache", "first", 0, 3),
        ("parallel", "again", 0, 0),
    ],
)
def test_report_says_where_kernels_came_from(
    name: str, which: str, compiled: int, on_disk: int, runs: dict[str, Any]
) -> None:
    figures = runs[name][which]
    assert figures["engine"] == "triton"
    assert (figures["kernels"], figures["compiled"], figures["on_disk"]) == (3, compiled, on_disk)
    assert re.search(rf"3 kernels: {compiled} compiled, {on_disk} found", figures["text"])


@pytest.mark.slow
def test_report_measures_time_and_cache(runs: dict[str, Any]) -> None:
    first, folder = runs["parallel"]["first"], Path(runs["parallel"]["first"]["cache_folder"])
    assert 0 < first["longest"] < first["seconds"]
    assert first["cache_bytes"] == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    assert first["text"].splitlines()[-1].startswith(f"cache: {folder}, ")


@pytest.mark.slow
def test_progress_counts_the_kernels(runs: dict[str, Any]) -> None:
    assert runs["parallel"]["progress"] == [[1, 3], [2, 3], [3, 3]]


@pytest.mark.slow
def test_listener_of_the_caller_still_hears(runs: dict[str, Any]) -> None:
    assert len(runs["parallel"]["listener"]) == 3


@pytest.mark.slow
def test_parallel_compilation_gives_the_bytes_of_the_serial_one(runs: dict[str, Any]) -> None:
    binaries = [
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.cubin")}
        for folder in (Path(runs[name]["first"]["cache_folder"]) for name in ("parallel", "serial"))
    ]
    assert len(binaries[0]) == 3
    assert binaries[0] == binaries[1]


@pytest.mark.slow
def test_cpu_model_without_the_interpreter_has_nothing_to_compile(runs: dict[str, Any]) -> None:
    figures = runs["serial"]["cpu"]
    assert (figures["engine"], figures["kernels"]) == ("torch", 0)
    assert "the layers run torch's own BatchNorm" in figures["text"]
