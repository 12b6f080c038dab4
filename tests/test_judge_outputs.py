"""What a gate's result is written as: it parses, says the worst first, leaves nothing unsaid."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.judging import CASE, ENVIRONMENT, SECOND, Line, Scripted, rounds_of
from tritonbn_bench.judge.baseline import accept
from tritonbn_bench.judge.gate import CaseResult, GateResult, against_baseline, compare
from tritonbn_bench.judge.intervals import Interval
from tritonbn_bench.judge.outputs import junit, markdown, sentence, trend
from tritonbn_bench.judge.rounds import BASE, HEAD, Measured
from tritonbn_bench.judge.verdicts import Verdict

NASTY = 'expected <y & "z">, got | *nothing*\n\x1b[31mat line 3\x00'
THIRD, FOURTH, FIFTH = (f"backward_train/fp16/nhwc/{name}" for name in "abc")


def without_base(times: Mapping[str, float]) -> dict[str, float]:
    return {side: value for side, value in times.items() if side != BASE}


def everything() -> GateResult:
    """A gate with a case of each kind."""
    cases: dict[str, list[Line]] = {
        THIRD: [0.0],
        CASE: [0.05],
        FIFTH: [Measured(FIFTH, skipped="no GPU")],
        SECOND: [rounds_of(0.0, spread=0.4)],
        FOURTH: [Measured(FOURTH, fault=NASTY)],
    }
    return compare(list(cases), Scripted(cases))


def of(*verdicts: Verdict, reason: str = "") -> GateResult:
    """Cases with these verdicts, and plausible figures."""
    return GateResult(
        tuple(
            CaseResult(
                f"forward_train/bf16/nchw/N{index}C256S784",
                verdict,
                Interval(0.1 - 1e-5 * index, 0.0, 0.2),
                rounds=8,
                times={BASE: 1.0, HEAD: 1.1},
                reason=reason,
            )
            for index, verdict in enumerate(verdicts)
        )
    )


def test_the_verdict_comes_first_and_names_the_worst() -> None:
    text = markdown(compare([CASE, SECOND], Scripted({CASE: [0.05], SECOND: [0.08]})), ENVIRONMENT)
    assert text.startswith(
        f"**Slower**: confirmed for 2 cases and 1 total, the worst +8.0% (`{SECOND}`). "
        "2 cases: 2 REGRESSION."
    )


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (of(Verdict.PASS, Verdict.IMPROVED), "**No regression.** 2 cases: 1 IMPROVED, 1 PASS."),
        (of(Verdict.PASS, Verdict.INCONCLUSIVE), "not everything allows a verdict"),
        (of(Verdict.REGRESSION, Verdict.ACCURACY), "**Wrong results**"),
        (
            GateResult((CaseResult(CASE, Verdict.SKIPPED),)),
            "**Nothing was compared.** 1 case: 1 SKIPPED.",
        ),
        (GateResult(()), "**Nothing was compared.** 0 cases: none."),
    ],
    ids=["pass", "open", "wrong", "skipped", "empty"],
)
def test_each_outcome_has_its_sentence(result: GateResult, words: str) -> None:
    assert words in sentence(result)


def test_what_is_wrong_stands_above_what_is_slow_and_what_passed_is_folded() -> None:
    text = markdown(everything(), ENVIRONMENT)
    places = [text.index(f"`{case}`") for case in (FOURTH, CASE, SECOND, FIFTH, THIRD)]
    # the sentence names the worst, but a red check speaks first
    assert places == sorted(places)
    folded = text.index("<details>")
    assert places[2] < folded < places[3]
    assert "no GPU" in text
    assert "1 accuracy failure, 1 REGRESSION, 1 INCONCLUSIVE, 1 SKIPPED, 1 PASS" in text


def test_a_line_holds_times_ratio_interval_margin_and_verdict() -> None:
    text = markdown(compare([CASE], Scripted({CASE: [rounds_of(0.05, spread=0.0)]})), ENVIRONMENT)
    cells = f"| `{CASE}` | 1 | 1.05 | 1.050 (1.050 ... 1.050) | 3.0% | REGRESSION | "
    assert cells + "confirmed: +5.0%, then +5.0% |" in text
    assert "| case | base, ms | head, ms | ratio | margin | verdict | remarks |" in text


def test_it_is_said_how_it_was_measured_and_what_else_is_to_be_said() -> None:
    text = markdown(everything(), ENVIRONMENT, remarks="- Base: main.")
    assert "- Base: main.\n\nHow measured: on NVIDIA H200 (driver 570.1, torch 2.11.0" in text
    assert "20 to 40 usable rounds a case, 0.0% of rounds dropped" in text
    assert markdown(GateResult(()), {}).endswith("seen in two passes.\n")


def test_a_baselines_table_shows_the_reference() -> None:
    rounds = rounds_of(0.0, reference=0.5)
    alone = tuple(replace(item, times=without_base(item.times)) for item in rounds)
    measurer = Scripted({CASE: [alone]})
    baseline = accept(against_baseline([CASE], measurer, None), ENVIRONMENT)
    text = markdown(against_baseline([CASE], measurer, baseline), ENVIRONMENT)
    assert "| case | reference, ms | head, ms |" in text
    assert f"| `{CASE}` | 1.5 | 1 | 1.000 " in text


def test_warnings_are_not_folded_away() -> None:
    before = Scripted({CASE: [rounds_of(0.0)]})
    slower = Scripted({CASE: [rounds_of(0.06)]})
    baseline = accept(against_baseline([CASE], before, None), ENVIRONMENT)
    near = replace(baseline, differs="the baseline has driver 1 instead of 2")
    text = markdown(against_baseline([CASE], slower, near), ENVIRONMENT)
    assert text.startswith("**Nothing was gated, but there are warnings.**")
    assert text.index("warning, not gated: REGRESSION") < text.index("How measured")
    assert "<details>" not in text


def test_nothing_in_a_reason_breaks_the_page() -> None:
    line = next(it for it in markdown(everything(), ENVIRONMENT).splitlines() if FOURTH in it)
    assert '| expected &lt;y &amp; "z"&gt;, got \\| \\*nothing\\* [31mat line 3 |' in line
    long = markdown(of(Verdict.REGRESSION, reason="why " * 1000), ENVIRONMENT)
    assert len(long) < 3000


@pytest.mark.parametrize("count", [100, 3000])
@pytest.mark.parametrize("verdict", [Verdict.PASS, Verdict.REGRESSION, Verdict.SKIPPED])
def test_the_summary_fits_a_comment_and_counts_what_it_leaves_out(
    count: int, verdict: Verdict
) -> None:
    text = markdown(of(*[verdict] * count, reason="a reason of some length"), ENVIRONMENT)
    assert len(text.encode()) <= 64 * 1024
    shown = text.count("| `forward_train")
    left_out = f"{count - shown} more cases are left out here" in text
    assert left_out == (shown < count)
    # space is used, and the worst are the ones that stay
    assert shown == count or len(text.encode()) > 48 * 1024
    assert "`forward_train/bf16/nchw/N0C256S784`" in text


def test_the_worst_are_shown_though_many_passed() -> None:
    text = markdown(of(*[Verdict.REGRESSION] * 600, *[Verdict.PASS] * 3000), ENVIRONMENT)
    assert len(text.encode()) <= 64 * 1024
    assert text.count("REGRESSION |") >= 400
    assert "Every other case: 3000" in text


@pytest.mark.parametrize(("strict", "failures", "skipped"), [(False, 2, 3), (True, 4, 1)])
def test_junit_tells_failures_from_skips(strict: bool, failures: int, skipped: int) -> None:
    # two totals beside the five cases: of bf16, open; none of fp16, of which one case was timed
    result = everything()
    suite = ET.fromstring(junit(result, strict=strict))[0]
    assert {name: suite.get(name) for name in ("tests", "failures", "skipped", "errors")} == {
        "tests": "6",
        "failures": str(failures),
        "skipped": str(skipped),
        "errors": "0",
    }
    assert len(suite.findall("testcase/failure")) == failures
    assert len(suite.findall("testcase/skipped")) == skipped
    kinds = {item.get("type") for item in suite.findall("testcase/failure")}
    assert {"ACCURACY", "REGRESSION"} <= kinds


def test_junit_names_cases_and_totals_and_keeps_what_can_be_kept() -> None:
    text = junit(everything())
    assert text.startswith("<?xml version='1.0' encoding='utf-8'?>")
    tests = {test.get("name"): test for test in ET.fromstring(text).iter("testcase")}
    assert tests[CASE].get("classname") == "tritonbn.gate.forward_train"
    assert tests["forward_train/bf16"].get("classname") == "tritonbn.gate.total"
    failure = tests[FOURTH].find("failure")
    assert failure is not None
    # the line break and two letters that XML cannot hold have become spaces
    assert failure.get("message") == (
        'accuracy failure: expected <y & "z">, got | *nothing*  [31mat line 3 '
    )
    slow = tests[CASE].find("failure")
    assert slow is not None
    assert (slow.text or "").startswith("REGRESSION: 1.050 (1.0")


def test_no_baseline_is_a_skip_even_when_strict() -> None:
    suite = ET.fromstring(junit(of(Verdict.NO_BASELINE), strict=True))[0]
    assert (suite.get("failures"), suite.get("skipped")) == ("0", "1")


def test_the_trend_is_what_the_action_reads() -> None:
    entries = json.loads(trend(everything(), ENVIRONMENT))
    assert [entry["name"] for entry in entries] == [
        f"{case} (head / reference)" for case in (THIRD, CASE, SECOND)
    ]
    assert all(set(entry) == {"name", "unit", "value", "range", "extra"} for entry in entries)
    assert entries[1]["value"] == pytest.approx(1.05, abs=1e-5)
    assert entries[1]["unit"] == "ratio"
    low, high = map(float, entries[1]["range"].split(" ... "))
    assert low < 1.05 < high
    extra = json.loads(entries[1]["extra"])
    assert (extra["verdict"], extra["gpu"]) == ("REGRESSION", "NVIDIA H200")


def test_a_trend_of_nothing_is_an_empty_list() -> None:
    assert json.loads(trend(GateResult(()), ENVIRONMENT)) == []
