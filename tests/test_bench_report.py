"""The report, drawn from the fake timer's figures and from those of a machine without a GPU."""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.pages import full_page, full_table, page_without_a_gpu, table_without_a_gpu
from tritonbn_bench.jobs import Run, perform
from tritonbn_bench.resources import static_rows
from tritonbn_bench.results import Results, Row
from tritonbn_bench.summary import FAKE_TIMER, NO_SPEED
from tritonbn_bench.tables import markdown_table

pytest.importorskip("pandas", reason="needs pandas")
pytest.importorskip("matplotlib", reason="needs matplotlib")
pytest.importorskip("jinja2", reason="needs jinja2")


from tritonbn_bench.report import write_report
from tritonbn_bench.report.blocks import Draft, Picture, Section, Table
from tritonbn_bench.report.canvas import LABELS, Panel, render
from tritonbn_bench.report.sections import sections_of

FACTS = {"environment", "failures", "columns"}


def _blocks(sections: list[Section]) -> list[Table | Picture]:
    return [
        block
        for section in sections
        for block in section.blocks
        if isinstance(block, Table | Picture)
    ]


# what a figure is called


@pytest.mark.parametrize("table", [full_table, table_without_a_gpu], ids=["full", "no-gpu"])
def test_every_picture_and_table_says_what_its_figures_are(
    table: Callable[[], Results],
) -> None:
    page = full_page() if table is full_table else page_without_a_gpu()
    html, markdown = page.read_text(), page.with_suffix(".md").read_text()
    blocks = _blocks(sections_of(table()))
    assert {block.name for block in blocks if not block.kind} <= FACTS
    for block in blocks:
        if block.kind:
            label = LABELS[block.kind]
            assert block.heading.endswith(f"({label})")
            assert block.heading in markdown
            kind = "figure" if isinstance(block, Picture) else "table"
            head = html.split(f'id="{kind}-{block.name}" ')[1].split("</strong>")[1]
            assert head.lstrip().startswith(f'<span class="badge {block.kind}">{label}</span>')
        if isinstance(block, Picture):
            for panel in block.panels:
                picture = page.parent / "pictures" / f"{panel.name}.svg"
                assert f">{LABELS[block.kind]}</text>" in picture.read_text()


@pytest.mark.parametrize("kind", ["measured", "modelled", "static"])
@pytest.mark.parametrize(
    "job", ["accuracy", "training", "traffic", "fusion", "memory", "plan", "static"]
)
def test_rows_alone_decide_what_a_figure_is_called(job: str, kind: str) -> None:
    rows = [replace(row, kind=kind) for row in table_without_a_gpu().rows if row.job == job]
    blocks = [block for block in _blocks(sections_of(Results({}, rows))) if block.kind]
    assert blocks
    assert {block.kind for block in blocks} == {kind}


JOBS = ("accuracy", "training", "endtoend", "host", "traffic", "fusion", "memory", "plan", "static")


def _kinds(rows: list[Row]) -> dict[str, str]:
    """Kind by name of every table and picture that rows make."""
    return {block.name: block.kind for block in _blocks(sections_of(Results({}, rows)))}


@pytest.mark.parametrize("job", JOBS)
def test_a_figure_is_called_by_the_rows_that_it_shows_and_by_no_others(job: str) -> None:
    rows = [replace(row, cache="") for row in full_table().rows if row.job in JOBS]
    other = {"measured": "modelled", "modelled": "measured", "static": "measured"}
    flipped = [replace(row, kind=other[row.kind]) if row.job == job else row for row in rows]
    kinds, after = _kinds(rows), _kinds(flipped)
    # what a job's rows make is gone without them
    made = kinds.keys() - _kinds([row for row in rows if row.job != job]).keys()
    assert made
    assert {name for name in kinds if kinds[name] != after[name]} == made - FACTS


def test_measured_and_modelled_rows_share_no_figure() -> None:
    results = table_without_a_gpu()
    loss = next(row for row in results.rows if row.quantity == "loss")
    mixed = [*results.rows, replace(loss, kind="modelled")]
    with pytest.raises(ValueError, match="expected rows of one kind, got measured and modelled"):
        sections_of(Results({}, mixed))


def test_what_is_measured_without_a_gpu_is_errors_and_training_alone() -> None:
    blocks = _blocks(sections_of(table_without_a_gpu()))
    measured = {block.name for block in blocks if block.kind == "measured"}
    assert measured == {
        *("accuracy", "accuracy-worst", "accuracy-all"),
        *("training", "training-figures"),
    }
    assert {block.kind for block in blocks if block.name.startswith("traffic")} == {"modelled"}
    assert {block.kind for block in blocks if block.name == "resources"} == {"static"}


def test_what_is_not_measured_is_hatched_or_dashed() -> None:
    def draw(axes: Any) -> None:
        axes.bar([0, 1], [1, 2])
        axes.plot([0, 1], [1, 2])

    svg = {kind: render(Panel("x", "words", draw), kind) for kind in LABELS}
    for kind, text in svg.items():
        not_measured = kind in ("modelled", "static")
        assert ("<pattern" in text) == not_measured, kind
        assert ("stroke-dasharray" in text) == not_measured, kind
        assert (">fake timer<" in text) == (kind == "fake"), kind
    assert svg["modelled"] != svg["static"]


# the page of a measured report


def test_figures_of_a_fake_timer_are_called_so_everywhere() -> None:
    html = full_page().read_text()
    assert f'<p class="ribbon" role="alert">{FAKE_TIMER}</p>' in html
    assert full_page().with_suffix(".md").read_text().splitlines()[2] == f"- **{FAKE_TIMER}**"
    kinds = {block.kind for block in _blocks(sections_of(full_table()))}
    assert kinds == {"fake", "modelled", "static", ""}
    assert '<span class="badge measured">' not in html


def test_a_page_that_was_measured_has_no_ribbon() -> None:
    assert "ribbon" not in page_without_a_gpu().read_text().split("</style>")[1]


def test_the_page_of_many_cases_is_small_and_one_file() -> None:
    results = full_table()
    cases = {(row.job, row.case) for row in results.rows if row.quantity == "time"}
    assert len(cases) > 180
    assert len({row.mode for row in results.rows if row.job == "sweep"}) == 5
    html = full_page().read_text()
    assert len(html.encode()) < 2_000_000
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', html)


def test_sections_stand_in_their_order_and_verdicts_lead() -> None:
    names = [section.name for section in sections_of(full_table())]
    assert names == [
        *("verdict", "method", "speed", "plane", "lines", "networks", "fused", "call-memory"),
        *("endtoend", "accuracy", "training", "host", "traffic", "memory", "plans", "resources"),
        *("failures", "cases", "data"),
    ]
    top = full_page().with_suffix(".md").read_text().split("## ")[0]
    assert "- **WRONG OR FAILED: 1 check of tritonbn is red: see failures.**" in top
    for rival in ("torch (cuDNN, ATen native)", "torch.compile (Inductor)"):
        assert rival in top
    assert NO_SPEED not in top


def test_a_failure_is_listed_with_its_reason_and_nothing_of_it_is_markup() -> None:
    assert "RuntimeError: no \\| &lt;compiler>" in full_page().with_suffix(".md").read_text()
    html = full_page().read_text().split('id="failures"')[1]
    assert "RuntimeError: no | &lt;compiler&gt;" in html


def test_the_page_holds_its_data(tmp_path: Path) -> None:
    found = re.search(r'href="data:application/gzip;base64,([^"]+)"', full_page().read_text())
    assert found
    path = tmp_path / "downloaded.json.gz"
    path.write_bytes(base64.b64decode(found[1]))
    loaded, rows = Results.load(path), full_table().rows
    assert loaded.environment == full_table().environment
    assert len(loaded.rows) == len(rows)
    # what is compared to the bit is kept to the bit
    steps = [pair for pair in zip(loaded.rows, rows, strict=True) if pair[1].step is not None]
    assert steps and all(kept == row for kept, row in steps)
    for kept, row in list(zip(loaded.rows, rows, strict=True))[::97]:
        assert kept.value == pytest.approx(row.value, rel=1e-5)
        assert kept.key == row.key


def test_redrawing_from_the_file_gives_the_same_page_and_pictures(tmp_path: Path) -> None:
    run = Run(Results({"device": "cpu"}), tmp_path, "cpu")
    perform(["fusion", "memory"], run)
    run.results.save(tmp_path)
    page = write_report(run.results, tmp_path)
    files = [page, page.with_suffix(".md"), *sorted((tmp_path / "pictures").iterdir())]
    assert len(files) == 2 + 2 + 3
    before = [file.read_bytes() for file in files]
    (tmp_path / "pictures" / "of-an-earlier-page.svg").touch()
    write_report(Results.load(tmp_path), tmp_path)
    assert [file.read_bytes() for file in files] == before
    assert len(list((tmp_path / "pictures").iterdir())) == 5


# the page of a machine without a GPU


def test_without_a_gpu_the_page_says_so_first_and_shows_no_throughput() -> None:
    text = page_without_a_gpu().with_suffix(".md").read_text()
    assert (
        text.splitlines()[2] == "- **WRONG OR FAILED: 1 check of tritonbn is red: see failures.**"
    )
    assert text.splitlines()[3] == f"- **{NO_SPEED}**"
    assert "GB/s" not in text
    names = {section.name for section in sections_of(table_without_a_gpu())}
    assert {"accuracy", "training", "traffic", "memory", "plans", "resources"} <= names
    assert not {"speed", "lines", "cases"} & names


def test_the_three_trainings_stand_side_by_side() -> None:
    text = page_without_a_gpu().with_suffix(".md").read_text()
    assert "16 (torch), 16 (tritonbn unfused), 8 (tritonbn)" in text.split("## ")[0]
    section = text.split("## Training on real data")[1].split("## Traffic")[0]
    assert "| quantity | torch | tritonbn unfused | tritonbn | allowed |" in section
    assert "in a step, parameters left out, bytes | 4000 | 4000 | 3000 | - |" in section
    assert "| launches of forward with relu | - | - | 8 | - |" in section


def test_a_red_result_is_in_the_verdict_and_in_the_failures() -> None:
    text = page_without_a_gpu().with_suffix(".md").read_text()
    assert "Accuracy: 1 of 2 results keep the bound" in text.split("## ")[0]
    assert "y: error 5 is above 4" in text.split("## Failures and skips")[1]


def test_a_table_aligns_numbers_right_and_escapes_bars() -> None:
    table = markdown_table(("a", "b"), [("x|y", 1.5), (None, 20000.0)])
    assert table.splitlines() == ["| a | b |", "| --- | ---: |", "| x\\|y | 1.5 |", "| - | 20000 |"]


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        pytest.param("no <compiler> & more", "no &lt;compiler> & more", id="tag"),
        pytest.param("__init__() of a_b", "\\_\\_init\\_\\_() of a_b", id="underscores"),
        pytest.param("$HOME and $PATH", "\\$HOME and \\$PATH", id="formula"),
        pytest.param("`a<b|_c_*`, <d>", "`a<b\\|_c_*`, &lt;d>", id="code"),
        pytest.param("one ` and <a>", "one ` and &lt;a>", id="backtick"),
        pytest.param("a\nb", "a b", id="lines"),
    ],
)
def test_a_cell_shows_what_it_holds(text: str, cell: str) -> None:
    assert markdown_table(("a",), [(text,)]).splitlines()[2] == f"| {cell} |"


def test_a_draft_needs_rows() -> None:
    with pytest.raises(ValueError, match="expected rows of one kind, got none"):
        Draft(Results({})).kind([])


# what is modelled and static


def test_traffic_of_resnet50_is_the_formula_times_the_layers() -> None:
    traffic = [row for row in table_without_a_gpu().rows if row.job == "traffic"]
    rows = [row for row in traffic if row.dtype == "fp32" and row.provider == "floor"]
    assert {row.kind for row in traffic} == {"modelled"}
    # two passes in two layouts, and the floor knows no layout
    assert sum(row.count or 0 for row in rows) == 2 * 2 * 53
    floors = [[row.value for row in rows if row.layout == layout] for layout in ("nchw", "nhwc")]
    assert floors[0] == floors[1]
    first = next(row for row in rows if row.mode == "forward_train" and row.space == 112**2)
    # x read once, y written once, and 9 vectors of 64 channels
    assert first.value == 2 * 4 * 64 * 64 * 112**2 + 9 * 64 * 4


def test_modelled_bytes_with_what_follows_are_those_of_the_plan(tmp_path: Path) -> None:
    run = Run(Results({"device": "cpu"}), tmp_path, "cpu")
    perform(["fusion"], run)
    rows = list(run.results.rows)
    assert {row.kind for row in rows} == {"modelled"}
    # two passes in two layouts by four providers
    assert sum(row.count or 0 for row in rows) == 2 * 2 * 4 * 53
    first = next(row for row in rows if (row.provider, row.fusion) == ("torch", "add_relu"))
    tensor = 64 * 256 * 56 * 56 * 2
    assert first.mode == "forward_train" and first.space == 56 * 56
    assert first.value == (5 + 3) * tensor + 9 * 256 * 4
    perform(["fusion", "memory", "plan", "static"], run)
    perform(["plan", "static"], run)
    assert run.results.rows[: len(rows)] == rows
    keys = [(row.key, row.quantity) for row in run.results.rows]
    assert len(set(keys)) == len(keys)
    assert sum(row.job == "memory" for row in run.results.rows) == 3 * 4 * 2


def test_resources_are_the_worst_of_every_plan_in_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tritonbn_bench import resources

    budget = {
        "sm_90 8x8 channels_last bf16 | train | a_kernel": {"registers": 10, "load x": 16},
        "sm_90 9x9 bf16 relu | train | a_kernel": {"registers": 30, "load x": 2, "stack": 8},
        "sm_90 9x9 bf16 relu | training step": {"launches": 2},
        "sm_80 9x9 bf16 | train | a_kernel": {"registers": 99},
    }
    for version in ("3.6", "3.10"):
        (tmp_path / f"{version}.json").write_text(json.dumps(budget))
    counted = {"interpreter features, 7x9 bf16 | forward train": {"all over floor": 1.25}}
    (tmp_path / "traffic.json").write_text(json.dumps(counted))
    monkeypatch.setattr(resources, "BUDGETS", tmp_path)
    found: dict[str, Row] = {row.quantity: row for row in static_rows() if row.origin == "sm_90"}
    assert {name: row.value for name, row in found.items()} == {
        "registers, most": 30,
        "stack, most": 8,
        "spill, most": 0,
        "shared, most": 0,
        "load x, least width": 2,
        "launches": 2,
    }
    assert {(row.kind, row.dtype, row.backend) for row in found.values()} == {
        # the newest, as none belongs to the installed one
        ("static", "bf16", f"triton {resources.budget_version()}")
    }
    assert resources.budget_version() in ("3.6", "3.10")
    (row,) = (row for row in static_rows() if row.quantity == resources.OVER_FLOOR)
    assert (row.kind, row.case, row.data, row.value) == (
        *("static", "features, 7x9 bf16"),
        *("forward train", 1.25),
    )
