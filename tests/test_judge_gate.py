"""The gate on rounds that are known: passes, confirmation, totals, baselines, exit codes."""

import math
from dataclasses import replace

import pytest

from tests.judging import CASE, ENVIRONMENT, SECOND, Scripted, rounds_of
from tritonbn_bench.judge.baseline import Baseline, Stored, accept, key_of
from tritonbn_bench.judge.gate import (
    CaseResult,
    GateResult,
    against_baseline,
    compare,
    group_of,
)
from tritonbn_bench.judge.rounds import BASE, HEAD, Measured, Round
from tritonbn_bench.judge.rule import RULE
from tritonbn_bench.judge.verdicts import Verdict

# a spread at which even forty rounds leave an interval wider than the margin
LOUD = 0.4


def loud(change: float) -> tuple[Round, ...]:
    return rounds_of(change, spread=LOUD)


def judged(
    *passes: Measured | tuple[Round, ...] | float,
) -> tuple[CaseResult, Scripted, GateResult]:
    """One case whose passes say these, one after another."""
    measurer = Scripted({CASE: passes})
    result = compare([CASE], measurer)
    return result.cases[0], measurer, result


@pytest.mark.parametrize(
    ("change", "verdict", "code"),
    [
        (0.05, Verdict.REGRESSION, 1),
        (0.0, Verdict.PASS, 0),
        (0.02, Verdict.PASS, 0),
        (-0.02, Verdict.PASS, 0),
        (-0.05, Verdict.IMPROVED, 0),
    ],
)
def test_a_change_gets_its_verdict_and_exit_code(
    change: float, verdict: Verdict, code: int
) -> None:
    case, _, result = judged(change)
    assert (case.verdict, result.exit_code(strict=True)) == (verdict, code)
    assert case.interval is not None
    assert case.interval.as_ratio()[0] == pytest.approx(1 + change)


def test_a_regression_is_confirmed_by_a_second_pass_of_twice_the_rounds() -> None:
    case, measurer, _ = judged(0.05)
    assert measurer.asked == [(CASE, RULE.rounds), (CASE, 2 * RULE.rounds)]
    assert case.confirmed
    assert case.reason == "confirmed: +5.0%, then +5.0%"


@pytest.mark.parametrize(
    ("passes", "verdict"),
    [
        ((0.05, 0.0), Verdict.PASS),
        ((0.05, -0.05), Verdict.IMPROVED),
        ((0.05, loud(0.0)), Verdict.INCONCLUSIVE),
        ((loud(0.0), 0.05, 0.0), Verdict.PASS),
        ((loud(0.0), 0.05, loud(0.0)), Verdict.INCONCLUSIVE),
    ],
    ids=["then-equal", "then-faster", "then-open", "second-alone", "second-alone-then-open"],
)
def test_a_regression_of_one_pass_is_none(
    passes: tuple[tuple[Round, ...] | float, ...], verdict: Verdict
) -> None:
    case, measurer, result = judged(*passes)
    assert case.verdict is verdict
    assert not case.confirmed
    assert "not a regression, as one pass alone saw it: " in case.reason
    assert len(measurer.asked) == len(passes)
    assert result.exit_code() == 0


def test_a_regression_after_an_open_pass_is_confirmed_by_a_third() -> None:
    case, measurer, result = judged(loud(0.0), 0.05, 0.05)
    assert (case.verdict, case.confirmed) == (Verdict.REGRESSION, True)
    assert len(measurer.asked) == 3
    assert result.exit_code() == 1


def test_what_stays_open_is_inconclusive_and_fails_only_when_strict() -> None:
    case, measurer, result = judged(loud(0.0))
    assert case.verdict is Verdict.INCONCLUSIVE
    assert len(measurer.asked) == 2
    assert (result.exit_code(), result.exit_code(strict=True)) == (0, 3)


def test_only_what_failed_or_stayed_open_is_measured_again() -> None:
    cases = [f"forward_train/bf16/nchw/{name}" for name in "abcdefgh"]
    script: dict[str, list[tuple[Round, ...] | float]] = {case: [0.0] for case in cases}
    script[cases[2]], script[cases[5]] = [0.05, 0.0], [loud(0.0), 0.0]
    measurer = Scripted(script)
    found = compare(cases, measurer)
    assert measurer.asked[8:] == [(cases[2], 40), (cases[5], 40)]
    assert {item.verdict for item in found.cases} == {Verdict.PASS}


def test_a_red_correctness_check_outranks_any_speed_and_shows_none() -> None:
    measurer = Scripted({CASE: [Measured(CASE, fault="y is off")], SECOND: [0.10]})
    result = compare([CASE, SECOND], measurer)
    wrong = result.cases[0]
    assert (wrong.verdict, wrong.reason) == (Verdict.ACCURACY, "y is off")
    assert (wrong.interval, dict(wrong.times)) == (None, {})
    assert result.exit_code() == 4


def test_a_correctness_check_that_turns_red_while_confirming_is_not_lost() -> None:
    case, _, result = judged(0.05, Measured(CASE, fault="y is off"))
    assert (case.verdict, result.exit_code()) == (Verdict.ACCURACY, 4)


def test_a_correctness_check_that_turns_red_while_a_total_confirms_is_not_lost() -> None:
    # each case is within its margin, all of them together are not
    cases = [f"forward_train/bf16/nchw/{name}" for name in "abcdefgh"]
    script: dict[str, list[Measured | float]] = {case: [0.025] for case in cases}
    script[cases[3]] = [0.025, Measured(cases[3], fault="y is off")]
    result = compare(cases, Scripted(script))
    assert [item.verdict for item in result.cases].count(Verdict.ACCURACY) == 1
    assert result.cases[3].verdict is Verdict.ACCURACY
    assert result.exit_code() == 4


def test_a_skipped_case_says_why_and_fails_nothing() -> None:
    case, measurer, result = judged(Measured(CASE, skipped="no GPU"))
    assert (case.verdict, case.reason) == (Verdict.SKIPPED, "no GPU")
    assert len(measurer.asked) == 1
    assert (result.totals, result.exit_code(strict=True)) == ((), 0)


def test_a_regression_that_could_not_be_measured_again_stays_open() -> None:
    case, _, result = judged(0.05, Measured(CASE, skipped="time is over"))
    assert case.verdict is Verdict.INCONCLUSIVE
    assert "time is over" in case.reason
    assert case.interval is not None
    assert result.exit_code(strict=True) == 3


def test_too_many_dropped_rounds_allow_no_verdict() -> None:
    rounds = rounds_of(0.05)
    hot = tuple(replace(item, throttled=("hw_thermal_slowdown",)) for item in rounds[:5])
    case, _, _ = judged((*hot, *rounds[5:]))
    assert case.verdict is Verdict.INCONCLUSIVE
    assert "25% of the rounds were dropped" in case.reason
    # four of twenty are just allowed
    assert judged((*hot[:4], *rounds[4:]))[0].verdict is Verdict.REGRESSION


def test_too_few_rounds_allow_no_verdict() -> None:
    case, _, _ = judged(rounds_of(0.05, count=RULE.fewest - 1))
    assert case.verdict is Verdict.INCONCLUSIVE
    assert "only 7 usable rounds, 8 are needed" in case.reason
    assert judged(())[0].verdict is Verdict.INCONCLUSIVE


def test_a_measurer_without_the_base_is_refused() -> None:
    rounds = tuple(Round({HEAD: 1.0}) for _ in range(20))
    with pytest.raises(ValueError, match="expected every round to time base"):
        judged(rounds)


def test_a_margin_of_ones_own_widens_and_never_narrows() -> None:
    wide = compare([CASE], Scripted({CASE: [0.05]}), margins={CASE: 0.08}).cases[0]
    assert (wide.verdict, wide.tau) == (Verdict.PASS, 0.08)
    narrow = compare([CASE], Scripted({CASE: [0.02]}), margins={CASE: 0.01}).cases[0]
    assert (narrow.verdict, narrow.tau) == (Verdict.PASS, RULE.margin)


def test_each_pass_is_told_as_it_ends() -> None:
    told: list[tuple[str, Verdict]] = []
    script: dict[str, list[float]] = {CASE: [0.05, 0.0], SECOND: [0.0]}
    compare(
        [CASE, SECOND],
        Scripted(script),
        on_case=lambda item: told.append((item.case, item.verdict)),
    )
    # the total, open after a first pass of one case at +5 %, looks at both cases again
    assert told[:3] == [
        (CASE, Verdict.REGRESSION),
        (SECOND, Verdict.PASS),
        (CASE, Verdict.PASS),
    ]


# totals


def together(changes: dict[str, list[float]]) -> GateResult:
    return compare(list(changes), Scripted(changes))


def test_many_small_slowdowns_are_a_regression_of_their_total() -> None:
    cases = {f"forward_train/bf16/nchw/{name}": [0.02] for name in "abcd"}
    result = together({**cases, **{f"forward_eval/fp32/nchw/{name}": [0.0] for name in "ab"}})
    assert {item.verdict for item in result.cases} == {Verdict.PASS}
    assert [(total.mode, total.dtype, total.verdict) for total in result.totals] == [
        ("forward_train", "bf16", Verdict.REGRESSION),
        ("forward_eval", "fp32", Verdict.PASS),
    ]
    assert result.exit_code() == 1


def test_a_total_is_confirmed_like_a_case() -> None:
    measurer = Scripted({f"forward_train/bf16/nchw/{name}": [0.02, 0.0] for name in "abcd"})
    result = compare(list(measurer.script), measurer)
    (total,) = result.totals
    assert total.verdict is Verdict.PASS
    assert "not a regression, as one pass alone saw it: +2.0%, then +0.0%" in total.reason
    assert [rounds for _, rounds in measurer.asked] == [20] * 4 + [40] * 4


def test_a_total_is_left_open_where_a_case_is_and_measured_again_where_none_is() -> None:
    cases = [f"forward_train/bf16/nchw/{name}" for name in "abcd"]
    one_is_loud = Scripted({case: [loud(0.0) if case == cases[0] else 0.0] for case in cases})
    (total,) = compare(cases, one_is_loud).totals
    assert (total.verdict, len(one_is_loud.asked)) == (Verdict.INCONCLUSIVE, 5)
    # each at +1.4 % with intervals that together reach past 1.5 %
    near = Scripted({case: [rounds_of(0.014, spread=0.02)] for case in cases})
    (total,) = compare(cases, near).totals
    assert (total.verdict, len(near.asked)) == (Verdict.INCONCLUSIVE, 8)


def test_the_total_of_few_cases_is_no_stricter_than_they_are() -> None:
    """Half the margin of a case is right for four of independent error, not for two."""
    names = "abcd"
    for count, margin in ((2, 0.03 / math.sqrt(2)), (3, 0.03 / math.sqrt(3)), (4, 0.015)):
        (total,) = together(
            {f"forward_train/bf16/nchw/{name}": [0.0] for name in names[:count]}
        ).totals
        assert total.tau == pytest.approx(margin)
    many = together({f"forward_train/bf16/nchw/{index}": [0.0] for index in range(9)})
    assert many.totals[0].tau == RULE.total_margin
    assert together({CASE: [0.02]}).totals == ()


def test_mode_and_dtype_are_read_from_the_id() -> None:
    assert group_of("forward_train/bf16/nchw/N32C256S784/relu/cold") == ("forward_train", "bf16")
    assert group_of("resnet50") == ("resnet50", "")


# stored ratios


def stored(change: float = 0.0, copy: float | None = 0.0, **fields: float) -> Baseline:
    """A baseline whose head took longer than reference and copy by these shares."""
    witness = None if copy is None else math.log1p(copy)
    line = Stored(((math.log1p(change), witness),), fields.get("arm", 0.002), 1.0)
    return Baseline(key_of(ENVIRONMENT), ENVIRONMENT, {CASE: line})


def now(**others: float) -> Scripted:
    """A head that takes as long as ever, and sides that became slower by these shares."""
    return Scripted({CASE: [rounds_of(0.0, count=20, **others)]})


@pytest.mark.parametrize(
    ("reference", "copy", "verdict", "code"),
    [
        (0.0, 0.0, Verdict.PASS, 0),
        (-0.06, -0.06, Verdict.REGRESSION, 1),
        (-0.06, 0.0, Verdict.INCONCLUSIVE, 3),
        (0.0, -0.06, Verdict.PASS, 0),
        (0.06, 0.06, Verdict.IMPROVED, 0),
        (0.06, 0.0, Verdict.PASS, 0),
    ],
    ids=["equal", "slower", "reference-moved", "copy-moved", "faster", "reference-slower"],
)
def test_a_change_counts_if_both_witnesses_saw_it(
    reference: float, copy: float, verdict: Verdict, code: int
) -> None:
    result = against_baseline([CASE], now(reference=reference, copy=copy), stored())
    assert result.cases[0].verdict is verdict
    assert result.exit_code(strict=True) == code
    assert ("the reference may have moved" in result.cases[0].reason) == (reference != 0 == copy)


def test_a_baseline_without_a_copy_has_but_one_witness() -> None:
    found = against_baseline([CASE], now(reference=-0.06, copy=-0.06), stored(copy=None))
    assert found.cases[0].verdict is Verdict.INCONCLUSIVE
    assert "head to copy was not measured" in found.cases[0].reason


def test_the_interval_of_what_is_stored_counts_too() -> None:
    slower = now(reference=-0.06, copy=-0.06)
    found = against_baseline([CASE], slower, stored(arm=0.05)).cases[0]
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.interval is not None
    assert found.interval.half_width > 0.05


def test_a_baseline_of_other_versions_warns_and_never_fails() -> None:
    near = replace(stored(), differs="the baseline has driver 1 instead of 2")
    result = against_baseline([CASE], now(reference=-0.06, copy=-0.06), near)
    assert {item.verdict for item in result.everything} == {Verdict.PASS}
    assert result.cases[0].reason.startswith(
        "warning, not gated: REGRESSION, but the baseline has driver 1 instead of 2; confirmed: "
    )
    assert result.exit_code(strict=True) == 0
    loud_one = Scripted({CASE: [loud(0.0)]})
    assert against_baseline([CASE], loud_one, near).exit_code(strict=True) == 0


def test_accuracy_fails_whatever_the_baseline() -> None:
    wrong = Scripted({CASE: [Measured(CASE, fault="y is off")]})
    for baseline in (None, stored(), replace(stored(), differs="something")):
        assert against_baseline([CASE], wrong, baseline).exit_code() == 4


def test_without_a_baseline_every_round_is_taken_and_the_command_is_named() -> None:
    measurer = now()
    result = against_baseline([CASE, SECOND], Scripted({CASE: [0.0], SECOND: [0.1]}), None)
    assert {item.verdict for item in result.cases} == {Verdict.NO_BASELINE}
    assert "tritonbn-bench baseline --accept" in result.cases[0].reason
    assert result.exit_code(strict=True) == 0
    stopped: list[bool] = []

    def watched(case: str, rounds: int, enough: object) -> Measured:
        stopped.append(enough(rounds_of(0.0)))  # type: ignore[operator]
        return measurer(case, rounds, enough)  # type: ignore[arg-type]

    against_baseline([CASE], watched, None)
    against_baseline([CASE], watched, stored())
    assert stopped == [False, True]


def test_a_case_that_is_not_stored_is_named_beside_those_that_are() -> None:
    result = against_baseline([CASE, SECOND], Scripted({CASE: [0.0], SECOND: [0.0]}), stored())
    assert [item.verdict for item in result.cases] == [Verdict.PASS, Verdict.NO_BASELINE]
    assert result.totals == ()


def test_what_was_accepted_passes_and_a_slower_head_does_not() -> None:
    first = against_baseline([CASE], now(reference=0.2, copy=-0.5), None)
    baseline = accept(first, ENVIRONMENT)
    again = against_baseline([CASE], now(reference=0.2, copy=-0.5), baseline)
    slower = rounds_of(0.05, reference=0.2, copy=-0.5)
    assert again.exit_code(strict=True) == 0
    assert against_baseline([CASE], Scripted({CASE: [slower]}), baseline).exit_code() == 1


def test_ratios_to_every_side_are_kept() -> None:
    case = compare([CASE], now(reference=0.2, copy=-0.5)).cases[0]
    assert set(case.ratios) == {BASE, "reference", "copy"}
    assert case.ratios["copy"].as_ratio()[0] == pytest.approx(2.0)
    assert case.times[HEAD] == pytest.approx(1.0)
