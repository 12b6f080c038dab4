"""A folder of reports: index, table of speed for a README, and the verb that redraws them all."""

import gzip
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.full_results import FAKE_GPU, endtoend_rows, sweep_rows
from tests.processes import bench
from tritonbn_bench.cases import suite
from tritonbn_bench.collection import index_of, reports_in, speed_table, written_between
from tritonbn_bench.environment import Environment
from tritonbn_bench.results import Results, Row
from tritonbn_bench.summary import mean_speedup, speedups

pytest.importorskip("pandas", reason="needs pandas")
pytest.importorskip("matplotlib", reason="needs matplotlib")
pytest.importorskip("jinja2", reason="needs jinja2")

ROOT = Path(__file__).parent.parent
NO_GPU: Environment = {"device": "cpu", "date": "2026-02-03 00:00 UTC", "torch": "2.13.0"}
# as if a GPU had been measured: the rows of the fake timer under another name
GPU: Environment = {**FAKE_GPU, "timer": None, "date": "2026-02-01 00:00 UTC"}
LARGE = [
    case
    for case in suite("sweep", quick=True)
    if case.batch in (512, 256, 4096) and case.dtype == "bf16"
]


def _rows() -> list[Row]:
    rows = [*sweep_rows("sweep", LARGE), *endtoend_rows()]
    return [replace(row, cache="cold") for row in rows]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return _rows()


def _shelf(folder: Path, **reports: Results) -> Path:
    for name, results in reports.items():
        results.save(folder / "reports" / name)
    (folder / "reports" / "README.md").write_text(
        "before\n<!-- index -->\n<!-- /index -->\nafter\n"
    )
    (folder / "README.md").write_text("first\n<!-- speed -->\nold\n<!-- /speed -->\nlast\n")
    return folder / "reports"


def _redraw(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return bench("report", *arguments, cwd=folder)


def test_the_newest_report_comes_first_and_says_what_it_is(tmp_path: Path, rows: list[Row]) -> None:
    shelf = _shelf(
        tmp_path, gpu=Results(GPU, rows), cpu=Results(NO_GPU), fake=Results(FAKE_GPU, rows)
    )
    (shelf / "no-report").mkdir()
    reports = reports_in(shelf)
    assert [report.path.name for report in reports] == ["cpu", "gpu", "fake"]
    lines = index_of(reports).splitlines()[2:]
    assert [line.split(" | ")[5] for line in lines] == ["not measured", "measured", "not measured"]
    assert lines[1].startswith("| [gpu](gpu/index.md) | Imaginary GPU | 2026-02-01 00:00 UTC |")
    assert "NOT A MEASUREMENT" in lines[2]


@pytest.mark.parametrize("environment", [FAKE_GPU, NO_GPU], ids=["fake", "no-gpu"])
def test_what_no_gpu_measured_is_not_measured(
    tmp_path: Path, rows: list[Row], environment: Environment
) -> None:
    reports = reports_in(_shelf(tmp_path, one=Results(environment, rows)))
    assert "| not measured yet |" in speed_table(reports, "reports")
    assert index_of(reports).endswith("there is no report from a GPU.")
    assert index_of([]) == "No speed has been measured yet: there is no report from a GPU."


def test_the_table_holds_the_means_of_the_newest_measured_report(
    tmp_path: Path, rows: list[Row]
) -> None:
    older = Results({**GPU, "date": "2025-12-31 00:00 UTC", "gpu": "Older GPU"}, rows)
    shelf = _shelf(tmp_path, new=Results(GPU, rows), old=older, cpu=Results(NO_GPU))
    head, _, *lines, _, caption = speed_table(reports_in(shelf), "reports").splitlines()
    rivals = "ATen native | torch.compile"
    assert head.startswith(f"| time of the rival / time of tritonbn | {rivals} |")
    line = next(line for line in lines if line.startswith("| training forward, NCHW |"))
    chosen = [
        item
        for item in speedups(rows)
        if (item.case.job, item.case.mode, item.case.layout) == ("sweep", "forward_train", "nchw")
        and (item.case.fusion, item.rival) == ("none", "torch")
    ]
    mean, low, high = mean_speedup(chosen)
    assert f"| {mean:.2f} [{low:.2f} ... {high:.2f}] (n = {len(chosen)}) |" in line
    assert any(
        line.startswith("| training, activation and residual in the kernel |") for line in lines
    )
    assert "Imaginary GPU, 2026-02-01 00:00 UTC, by `python -m tests.full_results`" in caption
    assert "[new](reports/new/index.md)" in caption
    # torch 1000, ours 1210 images a second
    assert "1.21 x [1.20 ... 1.22] (tritonbn)" in caption


def test_the_verb_redraws_all_in_place_again_and_again(tmp_path: Path, rows: list[Row]) -> None:
    shelf = _shelf(tmp_path, gpu=Results(GPU, rows), cpu=Results(NO_GPU))
    packed = shelf / "gpu" / "results.json"
    (shelf / "gpu" / "results.json.gz").write_bytes(gzip.compress(packed.read_bytes()))
    packed.unlink()
    done = _redraw(tmp_path, "--all", "reports", "--readme", "README.md")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        *("report: reports/cpu/index.html", "report: reports/gpu/index.html"),
        *("index: reports/README.md", "speed: README.md"),
    ]
    files = [*sorted(shelf.rglob("*")), tmp_path / "README.md"]
    before = {file: file.read_bytes() for file in files if file.is_file()}
    assert b"1.21 x" in before[tmp_path / "README.md"]
    assert before[tmp_path / "README.md"].startswith(b"first\n<!-- speed -->\n|")
    assert before[tmp_path / "README.md"].endswith(b"<!-- /speed -->\nlast\n")
    assert _redraw(tmp_path, "--all", "reports", "--readme", "README.md").returncode == 0
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("--all", "nowhere"), "nowhere: No such file", id="no-folder"),
        pytest.param(("--all", "reports", "--out", "x"), "takes no other report", id="out"),
        pytest.param(("--readme", "README.md"), "--readme needs --all", id="no-all"),
        pytest.param(("--all", "reports", "--readme", "x.md"), "x.md: No such file", id="no-file"),
        pytest.param(
            ("--all", "reports", "--readme", "marks.md"),
            "expected one <!-- speed --> and one <!-- /speed --> after it",
            id="no-marks",
        ),
        pytest.param(
            ("--all", "damaged"), "results.json.gz holds no results of this version", id="damaged"
        ),
        pytest.param((), "expected one report, or two to compare, got 0", id="none"),
    ],
)
def test_a_users_error_is_explained_and_nothing_is_written(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    _shelf(tmp_path, cpu=Results(NO_GPU))
    (tmp_path / "marks.md").write_text("<!-- /speed --> <!-- speed -->")
    (tmp_path / "damaged" / "cpu").mkdir(parents=True)
    (tmp_path / "damaged" / "cpu" / "results.json.gz").write_bytes(b"\x1f\x8bx")
    before = sorted(tmp_path.rglob("*"))
    done = _redraw(tmp_path, *arguments)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_but_what_stands_between_the_marks_is_touched() -> None:
    text = "a <!-- x --> old <!-- /x --> b"
    assert written_between(text, "x", "new") == "a <!-- x -->\nnew\n<!-- /x --> b"
    again = written_between(text, "x", "\\1 <b>")
    assert written_between(again, "x", "new") == written_between(text, "x", "new")


def test_index_and_table_of_this_repository_are_up_to_date() -> None:
    reports = reports_in(ROOT / "reports")
    for path, mark, content in (
        (ROOT / "reports" / "README.md", "index", index_of(reports)),
        (ROOT / "README.md", "speed", speed_table(reports, "reports")),
    ):
        text = path.read_text()
        assert written_between(text, mark, content) == text, "make report"
