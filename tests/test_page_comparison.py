"""Two reports, the second against the first."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.full_results import FAKE_GPU, endtoend_rows, sweep_rows
from tritonbn_bench.cases import Case, suite
from tritonbn_bench.cli import main
from tritonbn_bench.judge.verdicts import Verdict
from tritonbn_bench.results import Results, Row
from tritonbn_bench.summary import FAKE_TIMER, is_ours

pytest.importorskip("pandas", reason="needs pandas")
pytest.importorskip("matplotlib", reason="needs matplotlib")
pytest.importorskip("jinja2", reason="needs jinja2")

from tritonbn_bench.report.blocks import Picture, Section, Table, Words
from tritonbn_bench.report.comparison import changes, comparison_sections

CASES = [
    Case(mode, "bf16", "nchw", batch, 256, (28, 28), "sweep", "a test")
    for mode in ("forward_train", "backward_train")
    for batch in (64, 128, 256, 512)
]


def _results(seed: int, slower: float = 1.0, **environment: str) -> Results:
    return Results({**FAKE_GPU, **environment}, sweep_rows("sweep", CASES, seed, slower))


def _words(sections: list[Section]) -> list[str]:
    return [block.text for block in sections[0].blocks if isinstance(block, Words)]


def _table(sections: list[Section], name: str) -> Table:
    (found,) = (
        block
        for section in sections
        for block in section.blocks
        if isinstance(block, Table) and block.name == name
    )
    return found


def test_what_became_slower_comes_first_and_is_that_alone() -> None:
    sections = comparison_sections(_results(0), _results(1, 1.2, commit="1"))
    assert [section.name for section in sections[:2]] == ["verdict", "slower"]
    assert _words(sections)[1].startswith("SLOWER: 4 of 8 cases of tritonbn are slower in B; 0 are")
    lines = _table(sections, "cases-slower").lines
    assert len(lines) == 4
    assert all(str(line[0]).startswith("forward_train/") for line in lines)
    for _, ratio, low, high, *_ in lines:
        assert isinstance(low, float) and isinstance(high, float)
        assert ratio == pytest.approx(1.2, rel=0.06) and 1.03 < low < high


def test_two_runs_of_the_same_code_show_nothing_slower_and_nothing_faster() -> None:
    found, alone = changes(_results(0), _results(1))
    assert len(found) == 8 and not alone
    verdicts = {item.verdict for item in found}
    assert verdicts <= {Verdict.PASS, Verdict.INCONCLUSIVE}
    words = _words(comparison_sections(_results(0), _results(1)))
    assert words[1].startswith("No case of 8 is slower in B; 0 are faster")


def test_a_slow_day_of_the_machine_slows_nothing() -> None:
    today = _results(1)
    # every time twice as long: the copy's too, so that no ratio moves
    rows = [
        replace(row, value=2 * (row.value or 0.0)) if row.quantity == "time" else row
        for row in today.rows
    ]
    found, _ = changes(_results(0), Results(today.environment, rows))
    assert {item.verdict for item in found} <= {Verdict.PASS, Verdict.INCONCLUSIVE}
    assert all(abs(item.interval.estimate) < math.log(1.03) for item in found)


def test_what_became_faster_is_shown_too() -> None:
    sections = comparison_sections(_results(0, 1.3), _results(1))
    assert len(_table(sections, "cases-faster").lines) == 4


def test_without_a_copy_the_rival_is_the_measure() -> None:
    def without(results: Results) -> Results:
        rows = [row for row in results.rows if row.quantity != "share of copy"]
        return Results(results.environment, rows)

    found, _ = changes(without(_results(0)), without(_results(1, 1.2)))
    assert {item.by for item in found} == {"torch"}
    slower = [item.after.mode for item in found if item.verdict is Verdict.REGRESSION]
    assert slower == ["forward_train"] * 4


def _slower_steps(factor: float) -> Results:
    """Training steps of which each of ours takes `factor` times as long."""

    def slowed(row: Row) -> Row:
        if not is_ours(row.provider) or row.unit not in ("ms", "1"):
            return row
        ends = [factor * (end or 0.0) for end in (row.value, row.low, row.high)]
        return replace(row, value=ends[0], low=ends[1], high=ends[2])

    return Results(FAKE_GPU, [slowed(row) for row in endtoend_rows()])


def test_whole_steps_are_compared_by_their_ratio_to_torchs() -> None:
    first, second = _slower_steps(1.0), _slower_steps(1.25)
    found, alone = changes(first, second)
    # three ways of ours in two settings
    assert (len(found), alone) == (6, [])
    assert {(item.by, item.verdict) for item in found} == {("torch", Verdict.REGRESSION)}
    assert all(item.interval.estimate == pytest.approx(math.log(1.25)) for item in found)
    sections = comparison_sections(first, second)
    assert _words(sections)[1].startswith("SLOWER: 6 of 6 cases")
    lines = _table(sections, "cases-slower").lines
    assert "ResNet-50 training step/bf16/nhwc/N128, tritonbn fused" in {line[0] for line in lines}
    assert {item.verdict for item in changes(first, first)[0]} == {Verdict.PASS}


def test_what_has_nothing_beside_it_is_said_not_to_be_compared() -> None:
    first = _results(0)
    bare = Results(FAKE_GPU, [row for row in _results(1).rows if row.quantity == "time"])
    found, alone = changes(first, bare)
    assert not found and len(alone) == 8
    sections = comparison_sections(first, bare)
    assert _words(sections)[1].startswith("No speed is compared: no case was timed in both")
    assert {line[1] for line in _table(sections, "alone").lines} == {
        "both, with no copy or rival beside it in both"
    }


def test_totals_keep_what_is_fused_apart() -> None:
    fused = [replace(case, fusion="relu") for case in CASES]
    first, second = (
        Results(FAKE_GPU, sweep_rows("sweep", [*CASES, *fused], seed)) for seed in (0, 1)
    )
    lines = _table(comparison_sections(first, second), "totals").lines
    assert [(line[0], line[3], line[-1]) for line in lines] == [
        (f"training {way}", what, 4)
        for way in ("backward", "forward")
        for what in ("ReLU", "nothing")
    ]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        pytest.param({"gpu": "Other GPU"}, "got gpu Imaginary GPU and Other GPU", id="gpu"),
        pytest.param({"device": "cpu"}, "got device cuda and cpu", id="device"),
    ],
)
def test_two_machines_are_refused(second: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        comparison_sections(_results(0), Results({**FAKE_GPU, **second}))


def test_a_measurement_is_not_compared_with_what_a_fake_timer_made_up() -> None:
    real = {name: value for name, value in FAKE_GPU.items() if name != "timer"}
    with pytest.raises(ValueError, match="got one of a fake timer"):
        comparison_sections(_results(0), Results(real))


def test_hot_and_cold_caches_are_not_compared() -> None:
    rows = [replace(row, cache="hot") for row in _results(0).rows]
    with pytest.raises(ValueError, match="expected the same state of the caches, got fake and hot"):
        comparison_sections(_results(0), Results(FAKE_GPU, rows))


def test_other_versions_are_said_loudly() -> None:
    sections = comparison_sections(_results(0), _results(1, triton="3.9.0", commit="1"))
    warnings = [text for text in _words(sections) if text.startswith("WARNING")]
    assert len(warnings) == 1 and "triton: 3.6.0 in A, 3.9.0 in B" in warnings[0]


def test_what_is_newly_red_leads() -> None:
    row = Row("accuracy", "measured", "a", "tritonbn", "error of y", value=1.0, bound=2.0)
    red = replace(row, value=3.0, status="failed", reason="y: error 3 is above the bound 2")
    sections = comparison_sections(Results(FAKE_GPU, [row]), Results(FAKE_GPU, [red]))
    assert _words(sections)[:2] == [FAKE_TIMER, "WRONG OR FAILED: 1 check is red in B only."]
    assert _table(sections, "newly-red").lines[0][-1] == red.reason
    # what was red before is not new
    again = comparison_sections(Results(FAKE_GPU, [red]), Results(FAKE_GPU, [red]))
    assert not any(text.startswith("WRONG") for text in _words(again))


def test_counts_that_changed_are_listed_kind_by_kind() -> None:
    first = [
        Row("traffic", "modelled", "a", "tritonbn", "bytes moved", "bytes", 100.0),
        Row("static", "static", "k", "tritonbn", "registers, most", value=64.0),
        Row("sweep", "measured", "a", "tritonbn", "saved for backward", "bytes", 8.0),
    ]
    second = [replace(row, value=2 * (row.value or 0.0)) for row in first]
    sections = comparison_sections(Results(FAKE_GPU, first), Results(FAKE_GPU, second))
    kinds = {"changed-measured": "fake", "changed-modelled": "modelled", "changed-static": "static"}
    for name, kind in kinds.items():
        table = _table(sections, name)
        assert table.kind == kind
        assert [line[-1] for line in table.lines] == [2.0]
    same = comparison_sections(Results(FAKE_GPU, first), Results(FAKE_GPU, first))
    assert not any(section.name == "figures" for section in same)


def test_cases_of_one_report_alone_are_named() -> None:
    whole, part = _results(0), _results(1)
    part.rows = [row for row in part.rows if row.batch != 64]
    sections = comparison_sections(whole, part)
    assert {line[1] for line in _table(sections, "alone").lines} == {"A"}
    assert len(_table(sections, "alone").lines) == 2


def test_the_verb_compares_files_and_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = _results(0), _results(1, 1.2, commit="1")
    before.save(tmp_path / "before")
    file = after.save(tmp_path / "after").rename(tmp_path / "after.json")
    out = tmp_path / "page"
    assert main(["report", str(tmp_path / "before"), str(file), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == FAKE_TIMER
    assert lines[1].startswith("SLOWER: 4 of 8")
    assert lines[-1] == f"comparison: {out / 'index.html'}"
    html = (out / "index.html").read_text()
    assert html.index('id="slower"') < html.index('id="totals"')
    assert 'download="A.json.gz"' in html and 'download="B.json.gz"' in html
    assert "SLOWER" in (out / "index.md").read_text()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param(["a", "b", "c"], "expected one report, or two to compare, got 3", id="three"),
        pytest.param(["a", "other"], "expected two reports of one machine", id="two-machines"),
        pytest.param(["a", "nowhere"], "no results.json in", id="nothing-there"),
        pytest.param(["a", "broken.json"], "holds no results of this version", id="broken"),
    ],
)
def test_the_verb_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str], message: str
) -> None:
    for name in ("a", "b", "c"):
        Results(FAKE_GPU).save(tmp_path / name)
    Results({**FAKE_GPU, "gpu": "Other GPU"}).save(tmp_path / "other")
    (tmp_path / "broken.json").write_text('{"schema": "other"}')
    assert main(["report", *[str(tmp_path / name) for name in names]]) == 2
    assert message in capsys.readouterr().err


def test_pictures_of_a_comparison_say_their_kind() -> None:
    cases = [case for case in suite("sweep") if (case.dtype, case.fusion) == ("bf16", "none")]
    first, second = (
        Results(FAKE_GPU, sweep_rows("sweep", cases, seed, slower))
        for seed, slower in ((0, 1.0), (3, 1.1))
    )
    sections = comparison_sections(first, second)
    pictures = [block for one in sections for block in one.blocks if isinstance(block, Picture)]
    assert {block.kind for block in pictures} == {"fake"}
    assert len(_table(sections, "cases-slower").lines) > 30
