"""The command line as a user meets it: verbs, exit codes, interruption, resumption."""

import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.processes import Process, bench
from tritonbn_bench import cli, environment
from tritonbn_bench.results import Results, Row
from tritonbn_bench.verbs import report

HAS_REPORT_EXTRAS = all(find_spec(name) for name in ("pandas", "matplotlib"))


@pytest.mark.parametrize(
    "arguments", [(), ("run",), ("report",), ("model",), ("plan",), ("env",)], ids=str
)
def test_help_answers_at_once_with_exit_code_0(arguments: tuple[str, ...]) -> None:
    durations = []
    for _ in range(3):
        started = time.perf_counter()
        done = bench(*arguments, "--help")
        durations.append(time.perf_counter() - started)
        assert done.returncode == 0
        assert done.stdout.startswith("usage: tritonbn-bench")
    # the least of three: other tests may be running beside this one
    assert min(durations) < 0.3


@pytest.mark.parametrize("verb", [verb.__name__.rpartition(".")[2] for verb in cli.VERBS])
def test_every_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    assert f"\n  tritonbn-bench {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param((), "the following arguments are required: VERB", id="no-verb"),
        pytest.param(("fly",), "invalid choice: 'fly'", id="unknown-verb"),
        pytest.param(("run", "--only", "tea"), "invalid choice: 'tea'", id="unknown-job"),
        pytest.param(("run", "--minutes", "x"), "expected a finite number", id="not-a-number"),
        pytest.param(("run", "--only", "speed"), "needs a GPU: none is visible", id="no-gpu"),
        pytest.param(("run", "--device", "cuda"), "tritonbn-bench: ", id="gpu-and-interpreter"),
        pytest.param(("run", "--providers", "abacus"), "expected providers of", id="provider"),
        pytest.param(("report", "no-such-folder"), "no results.json", id="nothing-to-redraw"),
    ],
)
def test_a_users_error_is_explained_with_exit_code_2(
    arguments: tuple[str, ...], message: str
) -> None:
    done = bench(*arguments)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr


def test_env_prints_what_a_bug_report_needs() -> None:
    done = bench("env")
    assert done.returncode == 0
    names = {line.split(" ", 1)[0] for line in done.stdout.splitlines()}
    assert {"torch", "triton", "python", "gpu", "driver", "commit", "cpu"} <= names
    assert {"numpy", "pandas", "c_compiler", "triton_cache"} <= names
    # whatever is set of what decides how kernels run
    assert "OMP_NUM_THREADS      1" in done.stdout and "TRITON_INTERPRET     1" in done.stdout


@pytest.mark.skipif(not HAS_REPORT_EXTRAS, reason="needs pandas and matplotlib")
def test_a_run_prints_verdict_and_page_and_the_page_can_be_redrawn(tmp_path: Path) -> None:
    done = bench("run", "--only", "traffic", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("No speed was measured")
    assert lines[-1] == f"report: {tmp_path / 'index.html'}"
    pages = [tmp_path / "index.html", tmp_path / "index.md"]
    before = [page.read_text() for page in pages]
    for page in pages:
        page.unlink()
    again = bench("report", str(tmp_path))
    assert again.returncode == 0, again.stderr
    assert [page.read_text() for page in pages] == before


@pytest.mark.skipif(not HAS_REPORT_EXTRAS, reason="needs pandas and matplotlib")
def test_an_interrupted_run_keeps_its_figures_and_goes_on(tmp_path: Path) -> None:
    arguments = ["run", "--quick", "--only", "accuracy", "--out", str(tmp_path), "--resume"]
    with Process(*arguments) as process:
        # the JSON appears with the first figures
        process.interrupt((tmp_path / "results.json").exists)
        done = process.end()
    assert done.returncode == 130, done.stderr
    assert "interrupted; go on with --resume" in done.stderr
    assert "Traceback" not in done.stderr
    kept = Results.load(tmp_path).rows
    assert kept
    assert (tmp_path / "index.html").exists()
    # no time left: one more case, then it stops cleanly
    done = bench(*arguments, "--minutes", "0")
    assert done.returncode == 0, done.stderr
    assert "time is over; go on with --resume" in done.stderr
    rows = Results.load(tmp_path).rows
    assert rows[: len(kept)] == kept
    assert len({row.key for row in rows}) == len({row.key for row in kept}) + 2
    assert len({(row.key, row.quantity) for row in rows}) == len(rows)


@pytest.mark.skipif(not HAS_REPORT_EXTRAS, reason="needs pandas and matplotlib")
def test_a_broken_bound_gives_exit_code_4(tmp_path: Path) -> None:
    red = Row("accuracy", "measured", "a", "tritonbn", "error of y", status="failed")
    Results({"device": "cpu"}, [red]).save(tmp_path)
    done = bench("report", str(tmp_path))
    assert (done.returncode, done.stderr) == (4, "")


def test_results_of_other_versions_are_refused_with_exit_code_2(tmp_path: Path) -> None:
    Results({"device": "cpu", "torch": "0.1"}).save(tmp_path)
    done = bench("run", "--only", "traffic", "--resume", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "differ from this run in torch" in done.stderr


def test_states_of_the_caches_are_not_mixed_in_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "choose_device", lambda wanted: "cuda")
    monkeypatch.setattr(environment, "collect", lambda device, command: {"device": "cuda"})
    time_row = Row("sweep", "measured", "a", "torch", "time", unit="ms", value=1.0, cache="cold")
    Results({"device": "cuda"}, [time_row]).save(tmp_path)
    arguments = ["run", "--only", "sweep", "--resume", "--cache", "hot", "--out", str(tmp_path)]
    assert cli.main(arguments) == 2
    assert "measured with cold caches, this run asks for hot ones" in capsys.readouterr().err


def test_without_the_extras_figures_are_kept_and_what_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "absent_extras", lambda: ["pandas"])
    assert cli.main(["run", "--only", "traffic", "--out", str(tmp_path)]) == 0
    assert "no report was drawn: pandas missing" in capsys.readouterr().out
    assert Results.load(tmp_path).rows
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "pandas missing: pip install 'tritonbn[report]'" in capsys.readouterr().err
