"""Claims about the steps of a GPU run that need NVIDIA's tools: compute-sanitizer and ncu."""

import sys
import time
from pathlib import Path

import pytest

from tests.standins import put_on_path
from tests.test_gpu_run import gpu
from tritonbn_bench.counters import __main__ as counters
from tritonbn_bench.exercise import PASSED_WORDS

sanitize = sys.modules["sanitize"]
RIGHT = f"""
import os, sys
print("caching", os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING"), *sys.argv[1:])
print("22 exercises on cuda: {PASSED_WORDS}")
"""
WITHOUT_GPU = """
import sys
print("no CUDA device is visible", file=sys.stderr)
sys.exit(2)
"""
# runs the program as the tool does, says what it found by tool, and keeps its arguments
STAND_IN = """
import os, subprocess, sys, time
from pathlib import Path
arguments = sys.argv[1:]
tool = arguments[arguments.index("--tool") + 1]
with Path({calls!r}).open("a") as calls:
    calls.write(" ".join(arguments) + "\\n")
print("========= COMPUTE-SANITIZER", flush=True)
{before}
code = subprocess.run(arguments[arguments.index({python!r}):]).returncode if {runs} else 0
said = {said!r}.get(tool, "ERROR SUMMARY: 0 errors")
print("=========", said)
sys.exit(code or (0 if ": 0 " in said else 66))
"""
CLEAN = {"racecheck": "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose exercise is right at once."""
    for module in (gpu, sys.modules["steps"]):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    bench(tmp_path, "exercise", RIGHT)
    return tmp_path


def bench(checkout: Path, module: str, body: str) -> None:
    """Write a module of the bench; the folder that a program starts in precedes all others."""
    package = checkout / "tritonbn_bench"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").touch()
    (package / f"{module}.py").write_text(body)


def install(
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: dict[str, str],
    before: str = "",
    runs: bool = True,
) -> None:
    """Put a compute-sanitizer on PATH that says this of what it finds."""
    values = {"said": said, "before": before, "runs": runs, "python": sys.executable}
    body = STAND_IN.format(calls=str(checkout / "calls"), **values)
    put_on_path(checkout / "bin", "compute-sanitizer", body, monkeypatch)


def calls(checkout: Path) -> list[str]:
    path = checkout / "calls"
    return path.read_text().splitlines() if path.exists() else []


def run(checkout: Path, seconds: float = 60.0) -> list[tuple[str, int, str]]:
    """Name, code and note of each outcome of the step."""
    outcomes = gpu.run_sanitizers(checkout / "state", time.monotonic() + seconds)
    return [(outcome.name, outcome.code, outcome.note) for outcome in outcomes]


def test_clean_run_passes_with_its_counts(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(checkout, monkeypatch, CLEAN)
    assert run(checkout) == [
        ("exercise", 0, ""),
        ("memcheck", 0, "0 errors"),
        ("racecheck", 0, "0 hazards displayed (0 errors, 0 warnings)"),
        ("synccheck", 0, "0 errors"),
    ]


def test_every_tensor_has_an_allocation_of_its_own_on_a_gpu(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(checkout, monkeypatch, CLEAN)
    run(checkout)
    for tool in ("exercise", "memcheck", "racecheck", "synccheck"):
        log = (checkout / "state" / "sanitize" / f"{tool}.log").read_text()
        assert "caching 1 --device cuda" in log
    assert "--padding" in calls(checkout)[0]


@pytest.mark.parametrize(
    ("tool", "summary", "note"),
    [
        ("memcheck", "ERROR SUMMARY: 3 errors", "3 errors: see memcheck.log"),
        ("synccheck", "ERROR SUMMARY: 1 error", "1 error: see synccheck.log"),
        (
            "racecheck",
            "RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)",
            "1 hazard displayed (1 error, 0 warnings): see racecheck.log",
        ),
    ],
)
def test_findings_fail_with_their_count_and_the_next_tool_runs(
    tool: str, summary: str, note: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(checkout, monkeypatch, {**CLEAN, tool: summary})
    outcomes = run(checkout)
    assert (tool, 1, note) in outcomes
    assert [name for name, code, _ in outcomes if code == 0] == [
        name for name in ("exercise", "memcheck", "racecheck", "synccheck") if name != tool
    ]


def test_device_that_is_refused_is_not_run_and_not_passed(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = "Error: Device not supported. Please refer to the documentation"
    before = f"print('========= {refusal}', flush=True)"
    install(checkout, monkeypatch, {"memcheck": "ERROR SUMMARY: 1 error"}, before)
    assert run(checkout) == [("exercise", 0, ""), ("memcheck", 1, f"not run: {refusal}")]
    # another machine may do better
    install(checkout, monkeypatch, CLEAN)
    assert [code for _, code, _ in run(checkout)] == [0, 0, 0, 0]


def test_missing_tool_is_not_run(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout))
    assert run(checkout)[1:] == [("memcheck", 1, "not run: compute-sanitizer is missing")]


def test_missing_gpu_is_not_run(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench(checkout, "exercise", WITHOUT_GPU)
    install(checkout, monkeypatch, CLEAN)
    assert run(checkout) == [("exercise", 1, "not run: no CUDA device is visible")]
    assert calls(checkout) == []


def test_clean_summary_of_a_program_that_never_ran_is_no_pass(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(checkout, monkeypatch, CLEAN, runs=False)
    note = "0 errors, but the exercise failed: see memcheck.log"
    assert run(checkout)[1] == ("memcheck", 1, note)


def test_wrong_result_under_a_tool_is_no_pass(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench(checkout, "exercise", f"{RIGHT}\nsys.exit(4)\n")
    install(checkout, monkeypatch, CLEAN)
    assert [code for _, code, _ in run(checkout)] == [4, 1, 1, 1]


def test_tool_without_a_summary_is_no_pass(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(checkout, monkeypatch, {**CLEAN, "synccheck": "Internal error"})
    assert run(checkout)[-1] == ("synccheck", 1, "no summary: see synccheck.log")


def test_repeated_step_goes_on_at_the_first_tool_without_a_verdict(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(checkout, monkeypatch, CLEAN, before="time.sleep(60 if tool == 'racecheck' else 0)")
    assert [code for _, code, _ in run(checkout, 3.0)] == [0, 0, gpu.UNFINISHED, gpu.UNFINISHED]
    install(checkout, monkeypatch, CLEAN)
    assert [code for _, code, _ in run(checkout)] == [0, 0, 0, 0]
    tools = [call.split()[1] for call in calls(checkout)]
    assert tools == ["memcheck", "racecheck", "racecheck", "synccheck"]


BEATING = """
import time
from pathlib import Path
while True:
    with Path({beats!r}).open("a") as stream:
        stream.write("x")
    time.sleep(0.05)
"""


def test_program_under_a_tool_ends_with_it(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beats = checkout / "beats"
    bench(checkout, "exercise", BEATING.format(beats=str(beats)))
    install(checkout, monkeypatch, CLEAN)
    outcome = sanitize.run_sanitizer("memcheck", checkout / "log", time.monotonic() + 3.0)
    assert outcome.code == gpu.UNFINISHED
    time.sleep(0.5)
    before = beats.stat().st_size
    assert before > 0
    time.sleep(0.5)
    assert beats.stat().st_size == before


def test_step_looks_for_the_words_that_the_exercise_ends_with() -> None:
    assert sanitize.EXERCISED == PASSED_WORDS


@pytest.mark.parametrize("measured", [False, True], ids=["no-results", "results"])
def test_profile_is_asked_in_words_that_it_knows(measured: bool, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    if measured:
        (tmp_path / "report" / "results.json").touch()
    dash, module, *arguments = gpu.profile_arguments(tmp_path)
    assert (dash, module) == ("-m", "tritonbn_bench.counters")
    chosen = counters._parser().parse_args(arguments)
    assert (chosen.worst, chosen.resume) == (gpu.PROFILED, True)
    assert chosen.results == (tmp_path / "report" if measured else None)
    # in the state, hence in the archive
    assert chosen.out == tmp_path / "counters"
    # one call may be under way when time is over
    assert 60 * chosen.minutes + counters.GRACE < gpu.STEP_SECONDS - 10


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("print('counted')", "profile: profile passed in 0 s"),
        (
            "import sys\nprint('counters: ncu is missing', file=sys.stderr)\nsys.exit(2)",
            "profile: profile NOT RUN: counters: ncu is missing",
        ),
        ("import sys\nsys.exit(1)", "profile: profile FAILED in 0 s see profile.log"),
        (
            "print('time is over: go on with --resume')",
            "profile: profile unfinished in 0 s out of time: repeat the step",
        ),
    ],
    ids=["counted", "refused", "failed", "out-of-time"],
)
def test_profile_has_a_line_of_its_own(body: str, line: str, checkout: Path) -> None:
    bench(checkout, "counters", body)
    state = checkout / "state"
    state.mkdir()
    (outcome,) = gpu.run_step("profile", state)
    assert gpu.in_words("profile", outcome).replace(f" {outcome.seconds:.0f} s", " 0 s") == line


def test_what_was_not_run_fails_the_whole(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(checkout))
    out, state = checkout / "out", checkout / "state"
    arguments = ["--step", "sanitize", "--out", str(out), "--state", str(state)]
    assert gpu.main(arguments) == 1
    line = "sanitize: memcheck NOT RUN: compute-sanitizer is missing"
    assert line in (out / "summary.txt").read_text().splitlines()
    assert "memcheck passed" not in capsys.readouterr().out
