"""Claims about counting: what ncu is asked, what is profiled, what is written, what stops it."""

import json
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.inputs import DEVICE
from tests.standins import (
    CASE,
    FIRST,
    READ,
    SECOND,
    TWO_KERNELS,
    Calls,
    install_ncu,
    ncu_csv,
    put_on_path,
    sweep_rows,
)
from tritonbn_bench.cases import Case
from tritonbn_bench.counters import __main__ as command
from tritonbn_bench.counters.child import profile_once
from tritonbn_bench.counters.choice import FIXED
from tritonbn_bench.counters.ncu import NotPossibleError, count
from tritonbn_bench.counters.record import load
from tritonbn_bench.inputs import make_inputs
from tritonbn_bench.providers import PROVIDERS
from tritonbn_bench.results import Results
from tritonbn_bench.timer import Work
from tritonbn_kernels import record_launches
from tritonbn_kernels.outlook import H200

Install = Callable[..., Calls]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """`install(text, said, code)`: an ncu that writes this, and what lists its arguments."""
    return partial(install_ncu, tmp_path, monkeypatch)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says it has an H200."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command, "device_of", lambda name: (H200, ""))
    monkeypatch.setattr(command, "collect", lambda *_: {"gpu": "Imaginary GPU", "date": "never"})


def test_one_call_is_counted(install: Install) -> None:
    calls = install(TWO_KERNELS)
    counted = count(CASE, "torch")
    assert counted.backend == "ATen native"
    assert [kernel.name for kernel in counted.kernels] == ["statistics_kernel", "normalize_kernel"]
    (arguments,) = calls()
    assert arguments[-4:] == ["-m", "tritonbn_bench.counters.child", CASE, "torch"]
    options = dict(pairwise(arguments))
    assert options["--profile-from-start"] == "off"
    assert options["--clock-control"] == "none"
    assert options["--cache-control"] == "all"
    assert options["--print-units"] == "base"


@pytest.mark.parametrize(
    "line",
    [
        "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU "
        "Performance Counters on the target device 0.",
        "==ERROR== Failed to initialize the profiler: LibraryNotLoaded",
    ],
)
def test_machine_that_forbids_counters_is_told_from_a_call_that_fails(
    install: Install, line: str
) -> None:
    install(f"==PROF== Connected to process 1\n{line}\n", code=1)
    with pytest.raises(NotPossibleError, match=r"ncu: (ERR_NVGPUCTRPERM|Failed to initialize)"):
        count(CASE, "torch")


def test_call_that_fails_says_what_it_said_last(install: Install) -> None:
    said = "backend: cuDNN\nTraceback ...\nOutOfMemoryError: of memory"
    install("==ERROR== The application returned an error code (1).\n", said, code=1)
    with pytest.raises(RuntimeError, match=r"^OutOfMemoryError: of memory$"):
        count(CASE, "torch")


def test_call_without_a_kernel_is_an_error(install: Install) -> None:
    install("==WARNING== No kernels were profiled.\n", said="")
    with pytest.raises(RuntimeError, match="No kernels were profiled"):
        count(CASE, "torch")


def test_call_that_takes_too_long_ends_with_its_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats = tmp_path / "beats"
    program = f"while :; do echo x >> {beats}; sleep 0.05; done"
    body = f"import subprocess\nsubprocess.run(['sh', '-c', {program!r}])\n"
    put_on_path(tmp_path / "bin", "ncu", body, monkeypatch)
    with pytest.raises(RuntimeError, match="took longer than 2 s"):
        count(CASE, "torch", 2.0)
    before = beats.stat().st_size
    assert before > 0
    time.sleep(0.5)
    assert beats.stat().st_size == before


def test_csv_without_a_figure_is_an_error(install: Install) -> None:
    install(ncu_csv(("statistics_kernel", {})))
    with pytest.raises(RuntimeError, match="has none of gpu__time_duration"):
        count(CASE, "torch")


def _page(folder: Path) -> str:
    return (folder / "counters.md").read_text()


@pytest.mark.usefixtures("gpu")
def test_both_providers_of_a_case_are_counted_and_told(install: Install, tmp_path: Path) -> None:
    calls, out = install(TWO_KERNELS), tmp_path / "out"
    assert command.main([CASE, "--out", str(out)]) == 0
    assert [call[-2:] for call in calls()] == [[CASE, "tritonbn"], [CASE, "torch"]]
    _, records = load(out)
    assert [record.provider for record in records] == ["tritonbn", "torch"]
    sums = json.loads((out / "counters.json").read_text())["calls"][0]["sums"]
    assert sums["kernels"] == 2
    assert sums["of_plan"] == pytest.approx(1.0, abs=1e-3)
    page = _page(out)
    assert "# Hardware counters on Imaginary GPU" in page
    assert "None of 1 calls of tritonbn deviates from its plan by more than 10%." in page
    assert f"| {CASE} | tritonbn | 2 | 40 | 103 | 60 | 103 | 1 | 1 | 30 |" in page
    assert "long scoreboard 8.0, barrier 3.0, wait 1.5" in page
    assert "modelled, not" in page


@pytest.mark.usefixtures("gpu")
def test_call_that_moves_more_than_its_plan_is_named(install: Install, tmp_path: Path) -> None:
    more = {**FIRST, "dram__bytes_read.sum": f"{2 * READ:,}"}
    install(ncu_csv(("statistics_kernel", more), ("normalize_kernel", SECOND)))
    assert command.main([CASE, "--out", str(tmp_path)]) == 0
    assert f"1 of 1 calls of tritonbn deviate from their plan by more than 10%:\n\n- {CASE}: " in (
        _page(tmp_path)
    )
    assert "1.50 x the plan's bytes" in _page(tmp_path)


@pytest.mark.usefixtures("gpu")
def test_channels_last_is_counted_beside_torch_s_own(install: Install, tmp_path: Path) -> None:
    calls = install(TWO_KERNELS)
    assert command.main(["forward_train/bf16/nhwc/N256C64S3136", "--out", str(tmp_path)]) == 0
    assert [call[-1] for call in calls()] == ["tritonbn", "torch channels_last"]


@pytest.mark.usefixtures("gpu")
def test_call_that_failed_is_listed_and_tried_again(install: Install, tmp_path: Path) -> None:
    install("==ERROR== The application returned an error code (1).\n", "no memory", code=1)
    assert command.main([CASE, "--out", str(tmp_path)]) == 1
    assert f"- {CASE}, tritonbn: no memory" in _page(tmp_path)
    assert "Nothing was counted." in _page(tmp_path)
    install(TWO_KERNELS)
    assert command.main([CASE, "--out", str(tmp_path), "--resume"]) == 0
    assert "no memory" not in _page(tmp_path)


@pytest.mark.usefixtures("gpu")
def test_what_was_counted_is_kept(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = install(TWO_KERNELS)
    assert command.main([CASE, "--out", str(tmp_path)]) == 0
    assert len(calls()) == 2
    assert command.main([CASE, "--out", str(tmp_path), "--resume"]) == 0
    assert len(calls()) == 2
    assert "go on with --resume" not in capsys.readouterr().out


@pytest.mark.usefixtures("gpu")
def test_call_without_time_is_left_for_the_next_run(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = install(TWO_KERNELS)
    assert command.main([CASE, "--out", str(tmp_path), "--minutes", "1e-9"]) == 0
    assert calls() == []
    assert "go on with --resume" in capsys.readouterr().out


@pytest.mark.usefixtures("gpu")
def test_call_that_time_cut_short_is_left_for_the_next_run(
    install: Install,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def cut(case: str, provider: str, seconds: float) -> None:
        time.sleep(0.1)
        raise RuntimeError(f"took longer than {seconds:.0f} s")

    install(TWO_KERNELS)
    monkeypatch.setattr(command, "count", cut)
    assert command.main([CASE, "--out", str(tmp_path), "--minutes", "0.001"]) == 0
    assert "go on with --resume" in capsys.readouterr().out
    assert load(tmp_path)[1] == []


@pytest.mark.usefixtures("gpu")
def test_results_choose_the_cases(install: Install, tmp_path: Path) -> None:
    calls = install(TWO_KERNELS)
    Results({}, sweep_rows(CASE, 0.5, {"torch": 0.5})).save(tmp_path / "report")
    from_results = ["--worst", "6", "--from", str(tmp_path / "report")]
    assert command.main([*from_results, "--out", str(tmp_path)]) == 0
    assert [call[-2] for call in calls()] == [CASE, CASE]


@pytest.mark.usefixtures("gpu")
def test_without_results_a_fixed_few_are_counted(install: Install, tmp_path: Path) -> None:
    calls = install(TWO_KERNELS)
    assert command.main(["--worst", "6", "--out", str(tmp_path)]) == 0
    assert [call[-2] for call in calls()][::2] == list(FIXED)


def _said(code: int, capsys: pytest.CaptureFixture[str]) -> str:
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_missing_gpu_is_one_line(
    install: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(TWO_KERNELS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no GPU is seen" in _said(command.main([CASE]), capsys)


@pytest.mark.usefixtures("gpu")
def test_missing_ncu_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "ncu (Nsight Compute) is missing" in _said(command.main([CASE]), capsys)


@pytest.mark.usefixtures("gpu")
def test_forbidden_counters_are_one_line(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = install("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n", code=1)
    line = _said(command.main([CASE, "--out", str(tmp_path / "out")]), capsys)
    assert line == "counters: ncu: ERR_NVGPUCTRPERM - The user does not have permission"
    # the next call would say the same
    assert len(calls()) == 1


def test_wrong_id_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected an id such as" in _said(command.main(["resnet50"]), capsys)


class _Profiler:
    """Stands in for torch.cuda.profiler: what happened, in order."""

    def __init__(self) -> None:
        self.happened: list[str] = []

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.happened.append(name)


@pytest.fixture
def profiler(monkeypatch: pytest.MonkeyPatch) -> _Profiler:
    stand_in = _Profiler()
    monkeypatch.setattr(torch.cuda, "profiler", stand_in)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: stand_in.happened.append("wait"))
    return stand_in


def test_one_warm_call_after_a_flush_is_profiled(profiler: _Profiler) -> None:
    noted = profiler.happened
    work = Work(lambda _: noted.append("call"), lambda: noted.append("setup"))
    profile_once(work, lambda: noted.append("flush"))
    last = len(noted) - 1 - noted[::-1].index("setup")
    assert noted[:last].count("call") >= 1
    assert "start" not in noted[:last]
    assert noted[last:] == ["setup", "flush", "wait", "start", "call", "wait", "stop"]


def test_call_that_raises_leaves_the_profiler_off(profiler: _Profiler) -> None:
    calls = iter([None, None, None])

    def call(_: object) -> None:
        if next(calls, "last") == "last":
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        profile_once(Work(call), lambda: None)
    assert profiler.happened[-1] == "stop"


@pytest.mark.parametrize(
    ("mode", "kernels"),
    [
        ("forward_train", {"statistics_kernel", "resident_forward_kernel"}),
        ("backward_train", {"gradients_kernel", "resident_backward_kernel"}),
    ],
)
def test_pass_of_the_case_alone_is_profiled(
    mode: str, kernels: set[str], profiler: _Profiler
) -> None:
    case = Case(mode, "fp32", "nchw", 4, 3, (2, 4), "counters", "a test")
    work = PROVIDERS["tritonbn"].prepare(case, make_inputs(case, DEVICE.type)).work
    with record_launches() as launches:

        def flush() -> None:
            launches.clear()

        profile_once(work, flush)
    assert len(launches) == 1
    assert launches[0].kernel in kernels
