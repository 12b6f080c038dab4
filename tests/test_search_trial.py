"""Which plan takes the table's place: one that is faster in every case, twice, and right."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.searching import Effect, FakeMeter
from tritonbn_bench.cases import Case
from tritonbn_bench.judge.fake import CALM, ROUGH, Weather
from tritonbn_bench.judge.rounds import Round
from tritonbn_bench.judge.rule import RULE
from tritonbn_bench.judge.verdicts import Verdict
from tritonbn_bench.search.candidates import TABLE, Proposals
from tritonbn_bench.search.regimes import regime_of_case
from tritonbn_bench.search.trial import (
    FINALISTS,
    LOOK_ROUNDS,
    Outcome,
    PlanTimes,
    Stop,
    try_plans,
)
from tritonbn_kernels.plan_file import Regime


def _case(dtype: str) -> Case:
    return Case("forward_train", dtype, "nchw", 32, 256, (28, 28), "sweep", "a line")


CASES = (_case("bf16"), _case("fp16"))
REGIME = regime_of_case(CASES[0])
PLANS = tuple(f"one_read,block_c={2**power}" for power in range(20))
FAST = PLANS[7]


def _tried(meter: FakeMeter, cases: tuple[Case, ...] = CASES) -> Outcome:
    return try_plans(REGIME, cases, Proposals(PLANS, 5, 3), meter, RULE)


def _only(factors: dict[str, float]) -> Effect:
    return lambda plan, case: factors.get(plan, 1.0)


def test_cases_of_a_regime_share_it() -> None:
    assert regime_of_case(CASES[1]) == REGIME


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weather", [CALM, ROUGH], ids=["calm", "rough"])
def test_a_planted_fast_plan_is_found(weather: Weather, seed: int) -> None:
    meter = FakeMeter(_only({FAST: 0.85}), seed, weather)
    outcome = _tried(meter)
    assert (outcome.plan, outcome.tried, outcome.refused, outcome.same) == (FAST, 20, 5, 3)
    assert [reading.case for reading in outcome.readings] == [case.id for case in CASES]
    for reading in outcome.readings:
        assert reading.verdict is Verdict.IMPROVED
        assert reading.low < reading.ratio < reading.high < 1 / (1 + RULE.margin)
        assert reading.ratio == pytest.approx(0.85, rel=0.05)
        # means of all rounds here, of the middle ones there
        assert reading.plan_ms / reading.table_ms == pytest.approx(reading.ratio, rel=0.02)
    # a look at all, the rule's rounds for a few, twice as many for the one that is confirmed
    rounds = [count for _, _, count in meter.calls]
    assert rounds == [LOOK_ROUNDS] * 2 + [RULE.rounds] * 2 + [2 * RULE.rounds] * 2
    assert meter.calls[0][1] == PLANS and len(meter.calls[2][1]) <= FINALISTS
    assert meter.calls[-1][1] == (FAST,)


def test_equal_plans_are_not_taken_however_noisy() -> None:
    taken = [_tried(FakeMeter(_only({}), seed, ROUGH), CASES[:1]).plan for seed in range(40)]
    assert taken == [""] * 40


def test_what_is_faster_within_the_margin_is_not_taken_but_told() -> None:
    outcome = _tried(FakeMeter(_only({FAST: 0.975})))
    assert (outcome.plan, outcome.best) == ("", FAST)
    assert outcome.readings[0].ratio == pytest.approx(0.975, abs=0.01)


@pytest.mark.parametrize("other", [1.2, 1.0, 0.98], ids=["hurts", "is-equal", "within-margin"])
def test_a_plan_must_help_in_every_case(other: float) -> None:
    def effect(plan: str, case: Case) -> float:
        return 1.0 if plan != FAST else 0.8 if case.dtype == "bf16" else other

    assert _tried(FakeMeter(effect)).plan == ""
    assert _tried(FakeMeter(effect), CASES[:1]).plan == FAST


@pytest.mark.parametrize("hurt", ["bf16", "fp16"])
def test_what_hurts_at_first_sight_gets_no_more_rounds(hurt: str) -> None:
    def effect(plan: str, case: Case) -> float:
        return 1.0 if plan != FAST else 1.3 if case.dtype == hurt else 0.7

    meter = FakeMeter(effect)
    assert _tried(meter).best == "" and len(meter.calls) == len(CASES)


def test_a_wrong_plan_is_refused_and_the_next_best_taken() -> None:
    wrong = {FAST: "y: error 3 is above the bound 1"}
    outcome = _tried(FakeMeter(_only({FAST: 0.5, PLANS[2]: 0.8}), wrong=wrong))
    assert outcome.plan == PLANS[2]
    assert outcome.wrong == {FAST: f"{CASES[0].id}: {wrong[FAST]}"}


def test_a_plan_that_is_wrong_later_is_refused() -> None:
    class TurnsWrong(FakeMeter):
        def __call__(self, *arguments: Any) -> PlanTimes:
            self.wrong = {FAST: "wrong"} if len(self.calls) > 2 else {}
            return super().__call__(*arguments)

    outcome = _tried(TurnsWrong(_only({FAST: 0.5})))
    assert (outcome.plan, outcome.best) == ("", "")
    assert outcome.wrong == {FAST: f"{CASES[1].id}: wrong"}


def test_a_plan_that_fails_is_left_out() -> None:
    outcome = _tried(FakeMeter(_only({FAST: 0.5}), failed={FAST: "OutOfResources: smem"}))
    assert (outcome.plan, outcome.best) == ("", "")
    assert outcome.failed == {FAST: f"{CASES[0].id}: OutOfResources: smem"}


@pytest.mark.parametrize("kind", ["wrong", "failed"])
def test_nothing_is_compared_with_a_table_that_is_wrong_or_fails(kind: str) -> None:
    meter = FakeMeter(_only({FAST: 0.5}))
    setattr(meter, kind, {TABLE: "broken"})
    outcome = _tried(meter)
    assert outcome.plan == ""
    assert getattr(outcome, kind) == {TABLE: f"{CASES[0].id}: broken"}
    assert len(meter.calls) == 1


@pytest.mark.parametrize("passes", [1, 2], ids=["look", "pass"])
def test_what_is_fast_at_first_only_is_not_confirmed(passes: int) -> None:
    """Buffers may lie well for as long as they live."""
    meter = FakeMeter(_only({}))
    lucky = passes * len(CASES)
    meter.effect = lambda plan, case: 0.8 if plan == FAST and len(meter.calls) <= lucky else 1.0
    assert _tried(meter).plan == ""
    assert len(meter.calls) == (passes + 1) * len(CASES)


@pytest.mark.parametrize(("every", "taken"), [(3, ""), (10, FAST)])
def test_too_many_rounds_at_a_lowered_clock_give_no_verdict(every: int, taken: str) -> None:
    def meter(
        regime: Regime, case: Case, plans: Sequence[str], rounds: int, enough: Stop
    ) -> PlanTimes:
        times = {TABLE: 1.0, **dict.fromkeys(plans, 1.0)} | ({FAST: 0.8} if FAST in plans else {})
        held = [("hw thermal slowdown",) if index % every == 0 else () for index in range(rounds)]
        return PlanTimes(tuple(Round(times, 1980.0, reasons) for reasons in held))

    outcome = try_plans(REGIME, CASES, Proposals(PLANS, 0, 0), meter, RULE)
    assert (outcome.plan, outcome.best) == (taken, FAST)
    verdict = Verdict.IMPROVED if taken else Verdict.INCONCLUSIVE
    assert {reading.verdict for reading in outcome.readings} == {verdict}


def test_a_pass_that_time_ended_decides_nothing() -> None:
    meter = FakeMeter(_only({FAST: 0.8}))
    rule = replace(RULE, seconds=1e-9)
    outcome = try_plans(REGIME, CASES, Proposals(PLANS, 0, 0), meter, rule)
    # looked at, measured, and never confirmed
    assert outcome.plan == ""
    assert [rounds for _, _, rounds in meter.calls][:3] == [LOOK_ROUNDS, LOOK_ROUNDS, RULE.rounds]
    assert 2 * RULE.rounds not in [rounds for _, _, rounds in meter.calls]
