"""`tritonbn-bench model` as a user meets it."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.inputs import DEVICE
from tests.processes import ENVIRONMENT, bench
from tritonbn_bench import cli, model_speed
from tritonbn_bench.cases import Case
from tritonbn_bench.measure import Meter
from tritonbn_bench.model_layers import cases_of, layers_of
from tritonbn_bench.model_speed import speed_lines, speed_rows
from tritonbn_bench.providers import PROVIDERS
from tritonbn_bench.results import Results, Row
from tritonbn_bench.stopwatch import FakeStopwatch

MODULE = """
import torch
from torch import nn
import tritonbn

def make():
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)]
    layers += [tritonbn.BatchNorm2d(4, activation=name) for name in ("relu", "elu")]
    return nn.Sequential(*layers), torch.randn(2, 3, 8, 8)

def without():
    return nn.Linear(2, 2), torch.randn(2, 2)
"""


def _bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "users_net.py").write_text(MODULE)
    # a machine with a GPU is to behave like one without
    environment = {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}
    del environment["TRITON_INTERPRET"]
    return bench("model", *arguments, cwd=folder, environment=environment)


def test_without_a_gpu_layers_and_plans_are_shown_and_why_there_is_no_speed(
    tmp_path: Path,
) -> None:
    done = _bench(tmp_path, "users_net:make")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "users_net:make: 3 calls of BatchNorm layers in a training step"
    assert lines[2].split() == [
        *("1", "(BatchNorm2d)", "2x4x6x6", "fp32", "nchw", "nothing", "the", "batch", "yes"),
    ]
    assert lines[4].endswith("no: followed by elu(1)")
    assert "Plans for H200, modelled, not measured:" in lines
    assert any(line.startswith("backward_train/fp32/nchw/N2C4S36/relu ") for line in lines)
    assert lines[-1].startswith("No speed was measured: no GPU is visible")
    assert not (tmp_path / "out").exists()


def test_on_a_cpu_torchs_own_layers_are_timed_and_called_so(tmp_path: Path) -> None:
    done = _bench(tmp_path, "users_net:make", "--device", "cpu", "--rounds", "3")
    assert done.returncode == 0, done.stderr
    assert "CPU, torch's own kernels (tritonbn's run on a GPU only): wall time" in done.stdout
    results = Results.load(tmp_path / "out" / "model")
    assert {row.provider for row in results.rows} == {"torch"}
    times = [row for row in results.rows if row.quantity == "time"]
    assert len(times) == 4 and {row.backend for row in times} == {"torch CPU"}
    assert all(row.value and row.job == "model" and row.samples == 3 for row in times)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["no_such_module:f"], "expected a module no_such_module", id="module"),
        pytest.param(["users_net:f"], "expected f in users_net", id="function"),
        pytest.param(["users_net:make", "--device", "cuda"], "no CUDA device is visible", id="gpu"),
        pytest.param(
            ["users_net:make", "--device", "cpu", "--cache", "cold"], "got cold", id="cache"
        ),
        pytest.param(["users_net:make", "--rounds", "2"], "--rounds of 3 or more", id="rounds"),
    ],
)
def test_a_users_error_is_explained(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "users_net.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "users_net", raising=False)
    # what a machine without a GPU says
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["model", *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == ""


def test_a_model_without_layers_is_no_error(tmp_path: Path) -> None:
    done = _bench(tmp_path, "users_net:without")
    assert (done.returncode, "no BatchNorm layer was called" in done.stdout) == (0, True)


def _cases() -> tuple[Case, ...]:
    import torch
    from torch import nn

    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    return cases_of(layers_of(model, [torch.randn(2, 4, 3, 3)]), "a net")


def test_the_table_has_times_ratios_and_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    every = [PROVIDERS[name] for name in ("tritonbn", "torch", "torch channels_last", "copy")]
    monkeypatch.setattr(model_speed, "providers_for", lambda device, compiled: every)
    rows: list[Row] = []
    seen: list[int] = []

    def keep(new: list[Row]) -> None:
        seen.append(len(new))
        rows.extend(new)

    speed_rows(_cases(), Meter(DEVICE.type, FakeStopwatch(0)), False, keep)
    assert len(seen) == 2 and {row.job for row in rows} == {"model"}
    head, forward, backward, total = speed_lines(rows)
    assert head.split("  ")[0] == "case"
    assert [name in head for name in ("tritonbn / torch", "share of copy")] == [True, True]
    assert forward.split()[:2] == ["forward_train/fp32/nchw/N2C4S9", "2"]
    time = next(row for row in rows if row.quantity == "time")
    assert time.value is not None and f"{1e3 * time.value:.1f}" in forward
    ratio = next(row for row in rows if row.quantity == "ratio to torch")
    assert f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})" in forward
    # each shape stands for two layers
    times = [row for row in rows if row.quantity == "time" and row.provider == "tritonbn"]
    assert f"{2e3 * sum(row.value or 0.0 for row in times):.1f}" in total
    assert backward.startswith("backward_train")


def test_a_provider_that_lacks_a_case_has_no_sum() -> None:
    rows: list[Row] = []
    speed_rows(_cases(), Meter("cpu", FakeStopwatch(0)), False, rows.extend)
    assert "-" not in speed_lines(rows)[-1].split()
    part = [row for row in rows if row.mode == "forward_train"]
    other = [replace(row, provider="torch.compile") for row in part]
    assert speed_lines([*rows, *other])[-1].split()[-1] == "-"


def test_a_failure_is_printed_with_its_reason() -> None:
    rows: list[Row] = []
    speed_rows(_cases()[:1], Meter("cpu", FakeStopwatch(0)), False, rows.extend)
    red = replace(rows[0], provider="tritonbn", status="failed", value=None, reason="y: error 5")
    text = "\n".join(speed_lines([*rows, red]))
    assert "Without a figure:" in text and "y: error 5" in text
