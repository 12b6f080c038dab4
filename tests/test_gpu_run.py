"""Claims about the run on a GPU machine: resumable steps, one summary, one archive."""

import importlib.util
import json
import sys
import tarfile
import time
from pathlib import Path
from types import ModuleType

import pytest

from tritonbn_bench import cli

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


def load_script(name: str) -> ModuleType:
    """A script as a module; it finds its neighbours, such as `environment`, as when it is run."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPTS))
    return module


gpu = load_script("gpu")
COUNTING_TEST = """
import os
from pathlib import Path

def test_runs_without_the_interpreter():
    with (Path(__file__).parent / "runs").open("a") as stream:
        stream.write("x")
    assert "TRITON_INTERPRET" not in os.environ
"""
# passes only while the other file runs
MEETING_TEST = """
import time
from pathlib import Path

def test_meets_the_other():
    folder = Path(__file__).parent
    (folder / "met").mkdir(exist_ok=True)
    (folder / "met" / Path(__file__).stem).touch()
    deadline = time.monotonic() + 30
    while len(list((folder / "met").iterdir())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
"""
FAILING_TEST = "def test_fails():\n    assert False\n"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one passing and one failing test file."""
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_first.py").write_text(COUNTING_TEST)
    (tests / "test_second.py").write_text(FAILING_TEST)
    for module in (gpu, sys.modules["steps"]):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return tmp_path


def test_each_test_file_gets_its_verdict(checkout: Path) -> None:
    outcomes = gpu.run_tests(checkout / "state", time.monotonic() + 60)
    assert [(outcome.name, outcome.code) for outcome in outcomes] == [
        ("test_first", 0),
        ("test_second", 1),
    ]
    assert outcomes[1].note == "1 tests, 1 failures, 0 errors, 0 skipped"


def test_repeated_step_runs_no_test_file_twice(checkout: Path) -> None:
    first = gpu.run_tests(checkout / "state", time.monotonic() + 60)
    assert gpu.run_tests(checkout / "state", time.monotonic() + 60) == first
    assert (checkout / "tests" / "runs").read_text() == "x"


def test_files_run_side_by_side(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.os, "cpu_count", lambda: 4)
    for name in ("test_first.py", "test_second.py"):
        (checkout / "tests" / name).write_text(MEETING_TEST)
    outcomes = gpu.run_tests(checkout / "state", time.monotonic() + 60)
    assert [outcome.code for outcome in outcomes] == [0, 0]


def test_file_without_time_is_left_for_the_next_call(checkout: Path) -> None:
    outcomes = gpu.run_tests(checkout / "state", time.monotonic())
    assert {outcome.code for outcome in outcomes} == {gpu.UNFINISHED}
    again = gpu.run_tests(checkout / "state", time.monotonic() + 60)
    assert [outcome.code for outcome in again] == [0, 1]


def test_command_beyond_its_time_is_ended(checkout: Path) -> None:
    arguments = ["-c", "import time; time.sleep(60)"]
    start = time.monotonic()
    outcome = gpu.run("slow", arguments, checkout / "log", start + 0.5)
    assert outcome.code == gpu.UNFINISHED
    assert time.monotonic() - start < 30


def test_every_step_is_a_command_of_the_bench(tmp_path: Path) -> None:
    known = gpu.commands(tmp_path)
    # the others are programs of their own
    assert {"tests", "sanitize", "profile", *known} == set(gpu.STEPS)
    for step in known:
        options = cli._parser().parse_args(known[step])
        assert getattr(options, "resume", True)
        # a case may be under way when time is over
        assert 60 * getattr(options, "minutes", 0.0) < gpu.STEP_SECONDS - 30


def test_archive_leaves_out_what_is_too_large_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "ARCHIVE_BYTES", 1000)
    state, out = tmp_path / "state", tmp_path / "out"
    state.mkdir()
    (state / "small.json").write_text(json.dumps({"ms": 1.0}))
    (state / "large.bin").write_bytes(bytes(2000))
    gpu.deliver(out, state, ["gpu: none"])
    with tarfile.open(out / "tritonbn-gpu.tar.gz") as archive:
        assert archive.getnames() == ["small.json"]
    assert sorted(path.name for path in out.iterdir()) == ["summary.txt", "tritonbn-gpu.tar.gz"]
    summary = (out / "summary.txt").read_text()
    assert summary == "gpu: none\nnot in the archive (too large): large.bin\n"
