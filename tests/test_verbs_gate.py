"""gate, baseline and selfcheck as a user meets them: verdicts, exit codes, files, interruption."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.gating_repository import HARMLESS, WRONG, case_file, git, make_repository
from tests.processes import Process, bench
from tritonbn_bench import cli
from tritonbn_bench.gating.measurer import Stop
from tritonbn_bench.gating.session import Request, Session
from tritonbn_bench.judge.fake import CALM, STILL, FakeMachine, Weather
from tritonbn_bench.judge.rounds import BASE, COPY, HEAD, REFERENCE, Measured, Round
from tritonbn_bench.verbs import baseline, gate, selfcheck

QUICK = ("forward_train/fp32/nchw/N8C32S64", "backward_train/fp32/nchw/N8C32S64")
NOISY = Weather(noise=0.2)
# three rounds tell hardly anything: wide margins make the verdict that is wanted certain
FEW = ("--rounds", "3", "--device", "cpu")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HEAD~1 and HEAD compute the same from other sources."""
    return make_repository(tmp_path_factory.mktemp("gated"), HARMLESS)


class _Fake:
    """Measurer of a modelled machine, with what the verbs ask of a real one besides."""

    def __init__(self, sides: Sequence[str], weather: Weather, effects: Mapping[str, float]):
        self._machine = FakeMachine(7, weather)
        self._sides, self._effects = sides, effects
        self.planted = 0.0
        self.faults: dict[str, str] = {}

    def __call__(
        self, case: str, rounds: int, enough: Callable[[Sequence[Round]], bool]
    ) -> Measured:
        if case in self.faults:
            return Measured(case, fault=self.faults[case])
        head = (1 + self.planted) * self._effects.get(HEAD, 1.0)
        measurer = self._machine.measurer({**self._effects, HEAD: head}, self._sides)
        return measurer(case, rounds, enough)

    def prove(self) -> None:
        return None


def modelled(
    effects: Mapping[str, float] | None = None,
    weather: Weather = STILL,
    faults: Mapping[str, str] | None = None,
    torch: str = "2.11.0",
    seen: SimpleNamespace | None = None,
) -> Callable[..., Any]:
    """A `session` on a modelled machine; `seen.restarts` counts how often it was restarted."""
    seen = seen or SimpleNamespace(restarts=0)

    def restart() -> None:
        seen.restarts += 1

    @contextmanager
    def session(request: Request, base: object, command: str) -> Iterator[Session]:
        sides = (HEAD, REFERENCE, COPY) if base is None else (BASE, HEAD, REFERENCE, COPY)
        measurer: Any = _Fake(sides, weather, effects or {})
        measurer.faults = faults or {}
        processes: Any = SimpleNamespace(hellos={}, restart=restart)
        machine = {"device": "cpu", "cpu": "Abacus 1", "torch": torch, "triton": "3.6.0"}
        yield Session(processes, measurer, Stop(), {**machine})

    return session


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimpleNamespace]:
    """Puts a modelled machine in the place of processes; what it saw."""

    def fake(effects: Mapping[str, float] | None = None, **named: Any) -> SimpleNamespace:
        seen = SimpleNamespace(restarts=0)
        session = modelled(effects, seen=seen, **named)
        for verb in (gate, baseline, selfcheck):
            monkeypatch.setattr(verb, "session", session)
        return seen

    return fake


def _gate(folder: Path, repository: Path, *arguments: str) -> int:
    common = ("--device", "cpu", "--out", str(folder), "--repository", str(repository))
    return cli.main(["gate", "--base", "HEAD~1", *common, *arguments])


@pytest.mark.parametrize(
    ("arguments", "faking", "code", "words"),
    [
        pytest.param((), {}, 0, "No regression.", id="pass"),
        pytest.param((), {"effects": {HEAD: 1.2}}, 1, "Slower", id="regression"),
        pytest.param((), {"effects": {HEAD: 0.8}}, 0, "3 IMPROVED", id="improved"),
        pytest.param((), {"weather": NOISY}, 0, "not everything allows", id="inconclusive"),
        pytest.param(("--strict",), {"weather": NOISY}, 3, "INCONCLUSIVE", id="strict"),
        pytest.param((), {"faults": {QUICK[0]: "y: wrong"}}, 4, "Wrong results", id="accuracy"),
        pytest.param(
            (), {"effects": {HEAD: 1.2}, "faults": {QUICK[0]: "y"}}, 4, "REGRESSION", id="gravest"
        ),
    ],
)
def test_a_verdict_has_its_exit_code_and_is_written(
    arguments: tuple[str, ...],
    faking: dict[str, Any],
    code: int,
    words: str,
    faked: Callable[..., object],
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    faked(**faking)
    assert _gate(tmp_path, repository, *arguments) == code
    assert words in capsys.readouterr().out
    page = (tmp_path / "gate.md").read_text()
    assert page.startswith("## tritonbn-bench gate\n")
    assert (tmp_path / "summary.md").read_text() == page + "\n"
    facts = json.loads((tmp_path / "gate.json").read_text())
    assert (facts["exit_code"], len(facts["cases"])) == (code, 3)
    suite = ET.parse(tmp_path / "gate.xml").getroot()[0]
    assert (suite.get("failures") != "0") == (code != 0)
    assert all(
        entry["unit"] == "ratio" for entry in json.loads((tmp_path / "trend.json").read_text())
    )


def test_margins_of_a_self_check_widen_those_of_a_gate(
    faked: Callable[..., object], repository: Path, tmp_path: Path
) -> None:
    faked({HEAD: 1.05})
    assert _gate(tmp_path, repository) == 1
    key = dict.fromkeys(("gpu", "sm", "driver", "torch", "cudnn", "triton"))
    cases = (*QUICK, "forward_eval/fp32/nchw/N8C32S64/layer")
    margins = {"schema": "tritonbn.margins/1", "key": key, "margins": dict.fromkeys(cases, 0.2)}
    (tmp_path / "margins.json").write_text(json.dumps(margins))
    arguments = ("--margins", str(tmp_path / "margins.json"))
    assert _gate(tmp_path, repository, *arguments) == 0
    assert "The margins are another machine's: gpu" in (tmp_path / "gate.md").read_text()


def test_a_baseline_is_accepted_shown_and_gated_by(
    faked: Callable[..., SimpleNamespace], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "baselines", ("--out", str(tmp_path / "out"))
    against = ["gate", "--device", "cpu", *out, "--baseline", str(folder)]
    folder.mkdir()
    faked(weather=CALM)
    assert cli.main(against) == 0
    assert "3 NO_BASELINE" in capsys.readouterr().out
    seen = faked(weather=CALM)
    accept = ["baseline", "--device", "cpu", "--accept", str(folder), "--runs", "3"]
    assert cli.main(accept) == 0
    # the first run needs none
    assert seen.restarts == 2
    (path,) = folder.glob("abacus-1/*.json")
    capsys.readouterr()
    assert cli.main(["baseline", "--show", str(path)]) == 0
    assert capsys.readouterr().out.count("3 runs") == 3
    assert cli.main(against) == 0
    faked({HEAD: 1.2}, weather=CALM)
    assert cli.main(against) == 1
    assert cli.main([*against[:-1], str(path)]) == 1
    capsys.readouterr()
    # of other versions it warns only
    faked({HEAD: 1.2}, weather=CALM, torch="2.12.0")
    assert cli.main([*against[:-1], str(path)]) == 0
    assert "warnings" in capsys.readouterr().out
    assert cli.main([*accept[:-3], str(path)]) == 2
    assert "of another machine or other versions" in capsys.readouterr().err


def test_nothing_is_accepted_of_wrong_results(
    faked: Callable[..., object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faked(faults={QUICK[0]: "y: wrong"})
    assert cli.main(["baseline", "--device", "cpu", "--accept", str(tmp_path / "b")]) == 4
    assert "nothing was accepted" in capsys.readouterr().out
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("arguments", "faking", "code"),
    [
        pytest.param((), {"weather": CALM}, 0, id="trusted"),
        pytest.param((), {"effects": {HEAD: 1.2}}, 1, id="false-alarms"),
        # just above the margin, it is lost in a noise that is quiet enough to gate
        pytest.param(
            ("--planted", "0.031"), {"weather": Weather(noise=0.004)}, 1, id="planted-missed"
        ),
        pytest.param(("--planted", "0"), {"weather": CALM}, 0, id="nothing-planted"),
        pytest.param(("--planted", "0"), {"weather": NOISY}, 3, id="too-noisy"),
        pytest.param(("--minutes", "0"), {"faults": {name: "y" for name in QUICK}}, 4, id="wrong"),
    ],
)
def test_a_self_check_has_its_exit_code_and_writes_margins(
    arguments: tuple[str, ...],
    faking: dict[str, Any],
    code: int,
    faked: Callable[..., SimpleNamespace],
    tmp_path: Path,
) -> None:
    seen = faked(**faking)
    common = ("--device", "cpu", "--runs", "4", "--restart", "2", "--out", str(tmp_path))
    assert cli.main(["selfcheck", *common, *arguments]) == code
    assert seen.restarts == (1 if "0" in arguments and "--planted" in arguments else 3)
    written = json.loads((tmp_path / "selfcheck.json").read_text())
    assert written["exit_code"] == code
    assert json.loads((tmp_path / "margins.json").read_text())["schema"] == "tritonbn.margins/1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("gate",), "one of the arguments --base --baseline is required", id="neither"),
        pytest.param(("gate", "--base", "v9", *FEW), "git knows no such commit", id="revision"),
        pytest.param(("gate", "--baseline", "b"), "got b: it is not there", id="baseline"),
        pytest.param(("gate", "--base", "HEAD~1", "--cases", "c"), "or a file, got c", id="cases"),
        pytest.param(("gate", "--base", "HEAD~1", "--rounds", "2"), "3 <= fewest", id="rounds"),
        pytest.param(("gate", "--base", "HEAD~1", "--margins", "m"), "margins in m", id="margins"),
        pytest.param(
            ("gate", "--base", "HEAD~1", "--device", "cuda"), "no CUDA device", id="device"
        ),
        pytest.param(("gate", "--base", "HEAD~1", "--cache", "cold"), "got cold", id="cache"),
        pytest.param(("baseline",), "one of the arguments --accept --show is", id="no-baseline"),
        pytest.param(("baseline", "--show", "b.json"), "No such file", id="nothing-to-show"),
        pytest.param(("selfcheck", "--runs", "0"), "expected --runs of at least 1", id="runs"),
    ],
)
def test_a_users_error_is_explained_with_exit_code_2(
    arguments: tuple[str, ...],
    message: str,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "cuda" in arguments:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(repository)
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["gate", "baseline", "selfcheck"])
def test_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    assert f"\n  tritonbn-bench {verb}" in capsys.readouterr().out


def test_equal_sources_are_not_compared_and_wrong_usage_ends_with_2(repository: Path) -> None:
    done = bench("gate", "--base", "HEAD", *FEW, cwd=repository)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("nothing to compare: head's packages equal those of HEAD (")
    done = bench("gate", "--base", "v9", *FEW, cwd=repository)
    assert done.returncode == 2
    assert done.stderr.startswith("tritonbn-bench: expected a revision")


def test_wrong_results_end_with_4_and_no_speed(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "wrong", WRONG)
    cases = case_file(tmp_path / "cases.json")
    out = ("--cases", str(cases), "--out", str(tmp_path))
    done = bench("gate", "--base", "HEAD~1", *FEW, *out, cwd=repository)
    assert done.returncode == 4, done.stderr
    assert "accuracy failure" in done.stdout
    (case,) = json.loads((tmp_path / "gate.json").read_text())["cases"]
    assert case["reason"].startswith("y: error") and case["times"] == {}
    assert git(repository, "worktree", "list").count("\n") == 0


# noise that no margin of this size can be told from, in the place of processes
UNSURE = """
import sys
from tests.test_verbs_gate import NOISY, modelled
from tritonbn_bench import cli
from tritonbn_bench.verbs import gate

gate.session = modelled(weather=NOISY)
sys.exit(cli.main(["gate", "--base", "HEAD~1", *sys.argv[1:]]))
"""


def test_no_verdict_ends_with_3_under_strict(repository: Path, tmp_path: Path) -> None:
    arguments = ("--device", "cpu", "--out", str(tmp_path), "--strict")
    with Process(*arguments, python=("-c", UNSURE), cwd=repository) as process:
        done = process.end()
    assert done.returncode == 3, done.stdout + done.stderr
    assert "INCONCLUSIVE" in done.stdout


def test_an_interrupted_gate_keeps_what_it_measured_and_ends_with_130(
    repository: Path, tmp_path: Path
) -> None:
    cases = case_file(tmp_path / "cases.json", {}, {"batch": 16, "channels": 64, "plane": [56, 56]})
    words = ("gate", "--base", "HEAD~1", "--device", "cpu", "--margin", "0.9")
    out = ("--cases", str(cases), "--out", str(tmp_path))
    with Process(*words, *out, cwd=repository) as process:
        # the first case is told as soon as it is done
        process.interrupt(lambda: "\n" in process.errors)
        done = process.end()
    assert done.returncode == 130, done.stderr
    assert f"written: {tmp_path}" in done.stdout and "Traceback" not in done.stderr
    found = json.loads((tmp_path / "gate.json").read_text())
    assert [item["verdict"] for item in found["cases"]] == ["PASS", "SKIPPED"], done.stderr
    assert found["cases"][1]["reason"] == "interrupted"
    assert git(repository, "worktree", "list").count("\n") == 0


def test_a_self_check_a_baseline_and_a_gate_by_it_in_processes_of_their_own(
    repository: Path, tmp_path: Path
) -> None:
    cases = case_file(tmp_path / "cases.json")
    common = (*FEW, "--margin", "0.9", "--cases", str(cases))
    out = ("--out", str(tmp_path), "--planted", "9")
    done = bench("selfcheck", *common, "--runs", "1", *out, cwd=repository)
    assert (done.returncode, "planted found 1 of 1" in done.stdout) == (0, True), done.stderr
    path = tmp_path / "b.json"
    done = bench("baseline", "--accept", str(path), *common, "--runs", "1", cwd=repository)
    assert (done.returncode, "x torch" in done.stdout) == (0, True), done.stderr
    done = bench("gate", "--baseline", str(path), *common, *out[:2], cwd=repository)
    assert (done.returncode, "No regression." in done.stdout) == (0, True), done.stderr
    assert json.loads((tmp_path / "gate.json").read_text())["exit_code"] == 0
