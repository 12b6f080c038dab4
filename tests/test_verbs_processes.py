"""What each verb does in a process of its own: success, a user's error, interruption.

Here is what the tests of the single verbs leave out.
"""

import json
from pathlib import Path

import pytest

from tests.gating_repository import HARMLESS, case_file, make_repository
from tests.processes import ENVIRONMENT, Process, bench, until
from tritonbn_bench.results import Results

FEW = ("--device", "cpu", "--rounds", "3", "--margin", "0.9")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HEAD~1 and HEAD compute the same from other sources; cases.json has one small case."""
    folder = make_repository(tmp_path_factory.mktemp("gated"), HARMLESS)
    case_file(folder / "cases.json")
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(("model", "no_such_module:f"), "expected a module", id="model"),
        pytest.param(("plan", "vgg"), "expected a network of resnet18", id="plan"),
        pytest.param(("check",), "expected --static", id="check"),
        pytest.param(("check", "--static"), "no TRITON_INTERPRET", id="check-interpreted"),
        pytest.param(("baseline", "--show", "b.json"), "No such file", id="baseline"),
        pytest.param(("selfcheck", "--runs", "0"), "--runs of at least 1, got 0", id="selfcheck"),
        pytest.param(("env", "--tea"), "unrecognized arguments: --tea", id="env"),
    ],
)
def test_a_users_error_is_explained_with_exit_code_2(
    words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = bench(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout, message in done.stderr) == (2, "", True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_plan_is_printed() -> None:
    done = bench("plan", "mlp", "--device", "h200")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("MLP") and "\nforward, modelled, not measured\n" in done.stdout


def test_an_interrupted_baseline_keeps_the_runs_that_were_whole(
    repository: Path, tmp_path: Path
) -> None:
    path = tmp_path / "b.json"
    words = ("baseline", "--accept", str(path), "--runs", "50", *FEW, "--cases", "cases.json")
    with Process(*words, cwd=repository) as process:
        process.interrupt(lambda: "run 1 of 50 accepted\n" in process.errors)
        done = process.end()
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.endswith(f"written: {path}\n")
    accepted = done.stderr.count(" of 50 accepted\n")
    assert 1 <= accepted < 50
    (case,) = json.loads(path.read_text())["cases"].values()
    assert len(case["log_ratios"]) == accepted


def test_an_interrupted_self_check_writes_what_it_knows(repository: Path, tmp_path: Path) -> None:
    words = ("selfcheck", "--runs", "50", "--planted", "0", "--out", str(tmp_path))
    with Process(*words, *FEW, "--cases", "cases.json", cwd=repository) as process:
        process.interrupt(lambda: "run 2 of 50\n" in process.errors)
        done = process.end()
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.endswith(f"written: {tmp_path}\n")
    written = json.loads((tmp_path / "selfcheck.json").read_text())
    (case,) = written["cases"]
    assert written["exit_code"] == 130 and 2 <= case["runs"] < 50
    assert json.loads((tmp_path / "margins.json").read_text())["margins"].keys() == {case["case"]}


# a user's module; the second case that is measured takes for ever
MODEL = """
import time
from pathlib import Path

import torch
from torch import nn
from tritonbn_bench import sweep

cases, make_inputs = [], sweep.make_inputs

def endless(*arguments):
    cases.append(arguments)
    if len(cases) == 2:
        Path("second").touch()
        while True:
            time.sleep(0.01)
    return make_inputs(*arguments)

sweep.make_inputs = endless

def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.randn(2, 3, 8, 8)
"""


def test_an_interrupted_model_keeps_the_layers_it_has_timed(tmp_path: Path) -> None:
    (tmp_path / "users_net.py").write_text(MODEL)
    words = ("model", "users_net:make", "--device", "cpu", "--rounds", "3")
    with Process(*words, cwd=tmp_path) as process:
        process.interrupt((tmp_path / "second").exists)
        done = process.end()
    assert done.returncode == 130, done.stderr
    assert "interrupted; what was measured is kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.endswith("results: out/model/results.json\n")
    rows = Results.load(tmp_path / "out" / "model").rows
    assert {row.case for row in rows} == {"forward_train/fp32/nchw/N2C4S36"}
    assert any(row.quantity == "time" and row.value for row in rows)


# the third case takes for ever to be measured, and so does the page of the report to be drawn
ENDLESS = """
import sys, time
from pathlib import Path
from tritonbn_bench import accuracy, cli, report

def wait(name):
    Path(name).touch()
    while True:
        time.sleep(0.01)

cases, make_inputs = [], accuracy.make_inputs

def made(*arguments):
    cases.append(arguments)
    return wait("third") if len(cases) == 3 else make_inputs(*arguments)

accuracy.make_inputs = made
report.write_report = lambda *_: wait("drawing")
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_second_interruption_while_the_report_is_drawn_loses_no_figures(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    words = ("run", "--quick", "--only", "accuracy", "--out", "out")
    with Process(*words, python=("-c", ENDLESS), cwd=tmp_path) as process:
        process.interrupt((tmp_path / "third").exists)
        process.interrupt((tmp_path / "drawing").exists)
        done = process.end()
    assert done.returncode == 130, done.stderr
    assert "interrupted; go on with --resume" in done.stderr
    assert "Traceback" not in done.stderr
    # that of the second case too, which was too soon after the first to be saved with it
    assert len({row.case for row in Results.load(tmp_path / "out").rows}) == 2


def _environments() -> list[str]:
    """Those of all processes that may be looked at."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            found.append(path.read_bytes().decode(errors="replace"))
        except OSError:
            # it ended, or is somebody else's
            continue
    return found


def test_an_interrupted_check_ends_its_processes_and_writes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("greenlet")
    cache = tmp_path / "cache"
    environment = {name: value for name, value in ENVIRONMENT.items() if "TRITON" not in name}
    environment["TRITON_CACHE_DIR"] = str(cache)
    words = ("check", "--static", "--update", "--jobs", "2", "--budgets", str(tmp_path / "budgets"))
    with Process(*words, environment=environment) as process:
        # it compiles, which takes minutes with a fresh cache
        process.interrupt(lambda: cache.exists() and any(cache.iterdir()))
        done = process.end(within=20)
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert done.stderr == "tritonbn-bench: interrupted\n"
    assert not (tmp_path / "budgets").exists()
    # what a killed process has started may finish its piece
    assert until(lambda: not any(str(cache) in text for text in _environments()))
