"""What a user can put right is told in a line, before anything is measured or written."""

import gzip
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.processes import ENVIRONMENT, bench
from tests.searching import FakeMeter, fake_machine
from tritonbn_bench import cli, jobs, model_speed
from tritonbn_bench.providers import PROVIDERS
from tritonbn_bench.results import Results, Row
from tritonbn_bench.search import machine
from tritonbn_bench.verbs import baseline, env, gate, selfcheck
from tritonbn_bench.verbs.common import UsageError, check_folder
from tritonbn_bench.verbs.run import PROVIDERS as NAMED
from tritonbn_kernels import clear_cache

Told = Callable[..., tuple[int, str, str]]
NETWORK = """
import torch
from torch import nn

def make():
    return nn.BatchNorm2d(4), torch.randn(2, 4, 3, 3)
"""
LOSS = Row("training", "measured", "digits", "torch", "loss", value=1.0, step=0)
needs_report = pytest.mark.skipif(
    not all(find_spec(name) for name in ("pandas", "matplotlib", "jinja2")),
    reason="needs pandas, matplotlib and jinja2",
)
# a file, below a file, and a folder that takes no files even from root
PLACES = ("file", "file/below", "/proc/x")


@pytest.fixture
def told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Told]:
    """Exit code, output and errors of the command line, in a folder of one's own."""
    for name in ("TRITONBN_PLAN", "TRITONBN_PLAN_FILE", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "users_batch_norm.py").write_text(NETWORK)
    (tmp_path / "file").write_text("kept")
    Results({"device": "cpu"}, [LOSS]).save(tmp_path / "a")
    clear_cache()

    def run(*words: str) -> tuple[int, str, str]:
        code = cli.main(words)
        return code, *capsys.readouterr()

    yield run
    monkeypatch.undo()
    clear_cache()


def _measured(*_: object, **__: object) -> None:
    raise AssertionError("it was measured before its place was looked at")


# where it is to be written


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("run", "--only", "traffic"), id="run"),
        pytest.param(("run", "--only", "traffic", "--resume"), id="resumed"),
        pytest.param(("model", "users_batch_norm:make", "--device", "cpu"), id="model"),
        pytest.param(("gate", "--baseline", "file", "--device", "cpu"), id="gate"),
        pytest.param(("selfcheck", "--device", "cpu"), id="selfcheck"),
        pytest.param(("check", "--static", "--model", "users_batch_norm:make"), id="check"),
        pytest.param(("search", "--cases", "model:mlp"), id="search"),
        pytest.param(("report", "a"), id="report", marks=needs_report),
        pytest.param(("report", "a", "a"), id="comparison", marks=needs_report),
    ],
)
def test_a_place_that_takes_no_files_is_told_before_anything_is_measured(
    words: tuple[str, ...], place: str, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "perform", _measured)
    monkeypatch.setattr(model_speed, "speed_rows", _measured)
    monkeypatch.setattr(machine, "local_machine", fake_machine(FakeMeter(_measured)))  # type: ignore[arg-type]
    for verb in (gate, selfcheck):
        monkeypatch.setattr(verb, "session", _measured)
    before = sorted(tmp_path.rglob("*"))
    code, out, errors = told(*words, "--out", place)
    assert (code, out) == (2, "")
    expected = f"tritonbn-bench: expected a folder for --out that can be written to, got {place}: "
    assert errors.startswith(expected) and errors.endswith("; choose another\n"), errors
    assert [
        path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(path)
    ] == before
    assert (tmp_path / "file").read_text() == "kept"


def test_a_place_is_looked_at_and_left_as_it_was(tmp_path: Path) -> None:
    check_folder(tmp_path / "some" / "where")
    assert not list(tmp_path.iterdir())
    (tmp_path / "kept").mkdir()
    check_folder(tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir())
    with pytest.raises(UsageError, match="folder for --accept that"):
        check_folder(Path("/proc/x"), "--accept")


def test_a_place_for_a_baseline_is_looked_at_before_it_is_measured(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what touches them would be measured
    monkeypatch.setattr(baseline, "session", lambda *_: nullcontext(Mock(environment={})))
    code, out, errors = told("baseline", "--accept", "/proc/x", "--device", "cpu")
    assert (code, out) == (2, "")
    assert errors.startswith("tritonbn-bench: expected a folder for --accept that can be written")


def test_what_writes_nothing_asks_for_no_place(told: Told) -> None:
    assert told("search", "--list", "--cases", "model:mlp", "--out", "file")[0] == 0


@pytest.mark.parametrize(
    ("error", "words"),
    [
        pytest.param(
            FileNotFoundError(2, "No such file or directory", "some/file"),
            "tritonbn-bench: some/file: No such file or directory; see whether the path is right\n",
            id="named",
        ),
        pytest.param(
            OSError(74, "Bad message", "some/file"),
            "tritonbn-bench: some/file: Bad message; see to it, or choose another path\n",
            id="rare",
        ),
    ],
)
def test_an_error_of_a_file_is_told_in_a_line(
    error: OSError, words: str, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verb(_: object) -> int:
        raise error

    monkeypatch.setattr(env, "run", verb)
    assert told("env") == (2, "", words)


@pytest.mark.parametrize("error", [OSError("of no file"), KeyError("a bug")], ids=["os", "other"])
def test_an_error_of_ours_keeps_its_traceback(
    error: Exception, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verb(_: object) -> int:
        raise error

    monkeypatch.setattr(env, "run", verb)
    code, _, errors = told("env")
    assert code == 2 and "Traceback" in errors and str(error) in errors


@needs_report
@pytest.mark.parametrize("place", ["/dev/null", "file"])
def test_what_is_no_results_file_cannot_be_redrawn(place: str, told: Told) -> None:
    code, out, errors = told("report", place)
    assert (code, out) == (2, "")
    expected = f"tritonbn-bench: {place} holds no results of this version: expected JSON, got: "
    assert errors.startswith(expected)


# what the environment and the options ask for


@pytest.mark.parametrize("words", ["run --only traffic", "model users_batch_norm:make", "search"])
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("TRITONBN_PLAN", "bogus", "expected plans of two_read, "),
        ("TRITONBN_PLAN_FILE", "/nowhere", "[Errno 2] No such file or directory: '/nowhere'; "),
    ],
)
def test_a_plan_that_cannot_be_had_is_told(
    words: str, name: str, value: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "users_batch_norm.py").write_text(NETWORK)
    done = bench(*words.split(), cwd=tmp_path, environment={**ENVIRONMENT, name: value})
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith(f"tritonbn-bench: {name}: {reason}")
    assert done.stderr.endswith("; correct it or unset it\n")


@pytest.mark.parametrize(
    "words",
    [
        *("run --minutes", "search --minutes", "gate --base HEAD --minutes"),
        *("baseline --accept b --minutes", "selfcheck --minutes"),
        *("gate --base HEAD --plant", "selfcheck --planted"),
    ],
)
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "x"])
def test_a_number_out_of_bounds_is_told(words: str, value: str, told: Told) -> None:
    code, _, errors = told(*words.split(), value)
    assert (code, "Traceback" in errors) == (2, False)
    assert f"expected a finite number of 0 or more, got '{value}'" in errors


def test_the_help_of_run_names_every_provider_and_what_needs_no_gpu(told: Told) -> None:
    assert sorted(NAMED) == sorted(PROVIDERS)
    help_text = " ".join(told("run", "--help")[1].split())
    assert all(name in help_text for name in PROVIDERS)
    without = help_text.split("Without a GPU")[1].split("endtoend")[0]
    assert all(job in without for job in jobs.default_jobs("cpu"))


# earlier results


@needs_report
def test_a_run_keeps_the_results_that_it_replaces(told: Told, tmp_path: Path) -> None:
    place = ("run", "--only", "traffic", "--out", "a")
    before = (tmp_path / "a" / "results.json").read_bytes()
    code, _, errors = told(*place)
    assert code == 0
    kept = "a/results.json.before"
    assert f"results are in {kept} now; to have them back: mv {kept} a/results.json\n" in errors
    assert (tmp_path / kept).read_bytes() == before
    # what goes on replaces nothing
    code, _, errors = told(*place, "--resume")
    assert (code, "mv " in errors) == (0, False)
    assert (tmp_path / kept).read_bytes() == before
    assert len(Results.load(tmp_path / "a").rows) > 1


def test_a_model_keeps_the_results_that_it_replaces(told: Told, tmp_path: Path) -> None:
    words = ("model", "users_batch_norm:make", "--device", "cpu", "--rounds", "3", "--out", "a")
    code, _, errors = told(*words)
    assert code == 0, errors
    assert "to have them back: mv a/results.json.before a/results.json\n" in errors
    assert Results.load(tmp_path / "a" / "results.json.before").rows == [LOSS]


def test_a_run_does_not_go_on_with_a_file_of_other_columns(told: Told, tmp_path: Path) -> None:
    path = tmp_path / "a" / "results.json"
    path.write_text(path.read_text().replace('"quantity"', '"quality"'))
    before = path.read_text()
    code, _, errors = told("run", "--only", "traffic", "--resume", "--out", "a")
    assert code == 2
    assert errors.startswith("tritonbn-bench: a/results.json holds no results of this version: ")
    assert path.read_text() == before


# a folder of reports


def _shelf(folder: Path, text: str) -> Path:
    shelf = folder / "shelf"
    Results({"device": "cpu", "date": "2026-01-02"}, [LOSS]).save(shelf / "good")
    (shelf / "README.md").write_text(text, encoding="utf-8")
    return shelf / "README.md"


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@needs_report
@pytest.mark.parametrize("bug", [False, True], ids=["explained", "a-bug"])
def test_where_a_report_cannot_be_drawn_nothing_is_written(
    bug: bool, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tritonbn_bench import report

    shelf = _shelf(tmp_path, "<!-- index --><!-- /index -->").parent
    # the older one is the last to be drawn
    two_kinds = [LOSS, replace(LOSS, kind="modelled", step=1)]
    Results({"device": "cpu", "date": "2026-01-01"}, two_kinds).save(shelf / "bad")
    write_report = report.write_report

    def broken(results: Results, folder: Path) -> Path:
        if bug and len(results.rows) == 2:
            raise KeyError("a bug")
        return write_report(results, folder)

    monkeypatch.setattr(report, "write_report", broken)
    before = _files(shelf)
    code, out, errors = told("report", "--all", "shelf")
    assert (code, out) == (2, "")
    first, *others = errors.splitlines()
    what = "tritonbn-bench: shelf/bad: it cannot be drawn, so nothing was written"
    if bug:
        assert first == what and others[0].startswith("Traceback")
    else:
        reason = "expected rows of one kind, got measured and modelled"
        assert (first, others) == (f"{what}: {reason}", [])
    assert _files(shelf) == before


@needs_report
def test_both_marks_may_stand_in_one_file(told: Told, tmp_path: Path) -> None:
    page = _shelf(
        tmp_path, "<!-- index -->\n<!-- /index -->\nand\n<!-- speed -->\n<!-- /speed -->\n"
    )
    code, out, _ = told("report", "--all", "shelf", "--readme", "./shelf/../shelf/README.md")
    assert code == 0 and "index: shelf/README.md\nspeed: " in out
    index, speed = page.read_text(encoding="utf-8").split("\nand\n")
    assert "[good](good/index.md)" in index and "not measured yet" in speed


@needs_report
def test_marks_that_cross_are_told(told: Told, tmp_path: Path) -> None:
    page = _shelf(tmp_path, "<!-- index --><!-- speed --><!-- /index --><!-- /speed -->")
    before = _files(tmp_path)
    code, out, errors = told("report", "--all", "shelf", "--readme", str(page))
    assert (code, out) == (2, "")
    assert errors == (
        f"tritonbn-bench: {page}: expected one <!-- speed --> and one <!-- /speed --> after it\n"
    )
    assert _files(tmp_path) == before


@needs_report
def test_files_are_read_and_written_alike_whatever_the_locale(tmp_path: Path) -> None:
    page = _shelf(tmp_path, "é <!-- index --><!-- /index --> é")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = bench(
        "report", "--all", "shelf", cwd=tmp_path, environment={**ENVIRONMENT, **ascii_only}
    )
    assert (done.returncode, done.stderr) == (0, "")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("é ") and text.endswith(" é") and "good" in text


def test_a_compressed_file_from_a_pipe_is_read(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    text = Results({"device": "cpu"}, [LOSS]).as_text()
    with open(writer, "wb") as stream:
        stream.write(gzip.compress(text.encode()))
    assert Results.load(Path(f"/dev/fd/{reader}")).rows == [LOSS]
    os.close(reader)
