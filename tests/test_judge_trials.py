"""The whole decision rule on a machine that is drawn: false alarms, power, and what would fail.

400 gates a kind of weather, each on a machine of its own seed. At no false alarm in 400 the true
share is below 0.75 % (95 %, rule of three).
"""

import math
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest

from tests.judging import CASE, SECOND, Scripted, counted, outcomes, sequential, unclocked
from tritonbn_bench.judge.decision import decide
from tritonbn_bench.judge.fake import CALM, ROUGH, STILL, FakeMachine, Weather
from tritonbn_bench.judge.gate import CaseResult, GateResult, compare
from tritonbn_bench.judge.rounds import BASE, HEAD, REFERENCE
from tritonbn_bench.judge.rule import RULE
from tritonbn_bench.judge.trials import self_check, slowed
from tritonbn_bench.judge.verdicts import Verdict

RUNS, POWER_RUNS = 400, 200


@cache
def equal(weather: Weather) -> list[CaseResult]:
    """Gates of a head that equals its base."""
    return outcomes(weather, 0.0, RUNS)


def test_a_calm_machine_raises_no_false_alarm_and_leaves_nothing_open() -> None:
    assert counted(equal(CALM)) == {"PASS": RUNS}


def test_a_rough_machine_raises_no_false_alarm_and_leaves_little_open() -> None:
    found = counted(equal(ROUGH))
    assert found["REGRESSION"] == 0
    assert found["INCONCLUSIVE"] <= 0.1 * RUNS


def test_five_percent_are_found_on_a_calm_machine() -> None:
    found = counted(outcomes(CALM, 0.05, RUNS))
    assert found["REGRESSION"] >= 0.95 * RUNS
    assert found["PASS"] == found["IMPROVED"] == 0


def test_five_percent_on_a_rough_machine_are_found_or_left_open_and_never_passed() -> None:
    found = counted(outcomes(ROUGH, 0.05, POWER_RUNS))
    assert found["REGRESSION"] >= 0.2 * POWER_RUNS
    assert found["PASS"] + found["IMPROVED"] <= 0.01 * POWER_RUNS


@pytest.mark.parametrize(("weather", "share"), [(CALM, 1.0), (ROUGH, 0.9)], ids=["calm", "rough"])
def test_ten_percent_are_found(weather: Weather, share: float) -> None:
    found = counted(outcomes(weather, 0.10, POWER_RUNS))
    assert found["REGRESSION"] >= share * POWER_RUNS
    assert found["PASS"] + found["IMPROVED"] == 0


# what the rule would be without its parts: each makes the tests above fail


def test_without_confirmation_unlucky_buffers_would_be_regressions() -> None:
    # buffers that lie 1.5 % better or worse for as long as they live
    unlucky = replace(CALM, placement=0.015)
    found = outcomes(unlucky, 0.0, RUNS)
    first = Counter(decide(item.first, item.tau) for item in found if item.first is not None)
    assert first[Verdict.REGRESSION] >= 0.02 * RUNS
    assert counted(found)["REGRESSION"] <= 0.005 * RUNS


def test_one_side_after_the_other_would_raise_false_alarms() -> None:
    found = outcomes(CALM, 0.0, RUNS, measurer=sequential)
    first = Counter(decide(item.first, item.tau) for item in found if item.first is not None)
    assert first[Verdict.REGRESSION] >= 0.01 * RUNS
    mirrored = Counter(
        decide(item.first, item.tau) for item in equal(CALM) if item.first is not None
    )
    assert mirrored[Verdict.REGRESSION] == 0


def test_without_dropping_short_throttles_would_hide_a_slowdown() -> None:
    hot = replace(CALM, throttle=0.02, stretch=2.0)
    # a trimmed mean leaves such rounds out by itself
    plain = replace(RULE, trimmed=0.0)
    found = counted(outcomes(hot, 0.05, 100, plain))
    unseen = counted(
        outcomes(hot, 0.05, 100, plain, measurer=lambda it: unclocked(it, {HEAD: 1.05}))
    )
    assert found["REGRESSION"] >= 90
    assert unseen["REGRESSION"] <= 75


# the self-check of a machine


def test_a_self_check_finds_what_is_planted_and_nothing_else() -> None:
    seen: list[int] = []
    found = self_check(
        [CASE, SECOND],
        FakeMachine(1).measurer(),
        runs=20,
        planted=0.05,
        on_run=lambda index, result: seen.append(index),
    )
    assert seen == list(range(40))
    assert (found.false_alarms, found.found, found.exit_code) == (0, 1.0, 0)
    for case in found.cases:
        assert (case.runs, case.planted, case.found) == (20, 20, 20)
        # two sides' placement of 0.2 % and little besides
        assert 0.002 < case.sd < 0.006
        assert case.detectable == pytest.approx(math.expm1(3.6 * case.sd))
        assert case.gateable
    assert found.margins == {CASE: RULE.margin, SECOND: RULE.margin}


def test_a_case_too_noisy_for_its_margin_is_named_and_gets_a_wider_one() -> None:
    noisy = FakeMachine(1, replace(CALM, placement=0.02)).measurer()
    found = self_check([CASE], noisy, runs=20, planted=0.05)
    (case,) = found.cases
    assert not case.gateable
    assert case.detectable > RULE.margin
    assert found.margins[CASE] == pytest.approx(math.expm1(3 * case.sd))
    # what is not gated cannot miss anything, and a check of nothing else has no verdict
    assert found.found is None
    assert found.exit_code in (1, 3)
    assert (found.exit_code == 1) == (found.false_alarms > 0)


def test_the_spread_is_that_of_first_passes() -> None:
    """Passes that confirm are chosen by what the first found, and longer: they spread less."""
    found = self_check([CASE], Scripted({CASE: [0.05, 0.0]}), 2)
    assert found.cases[0].sd == pytest.approx(math.log(1.05) / math.sqrt(2))


def test_a_planted_slowdown_that_is_missed_fails() -> None:
    # the one that plants does nothing
    idle = FakeMachine(1).measurer()
    found = self_check([CASE], FakeMachine(2).measurer(), 5, planted=0.05, slow=idle)
    assert (found.found, found.exit_code) == (0.0, 1)


def test_a_false_alarm_fails() -> None:
    crooked = FakeMachine(1, STILL).measurer({HEAD: 1.05})
    found = self_check([CASE], crooked, 3)
    assert (found.cases[0].false_alarms, found.exit_code) == (3, 1)


def test_a_false_alarm_of_a_total_alone_fails() -> None:
    crooked = FakeMachine(1, STILL).measurer({HEAD: 1.025})
    cases = [f"forward_train/bf16/nchw/{name}" for name in "abcd"]
    found = self_check(cases, crooked, 2)
    assert (sum(item.false_alarms for item in found.cases), found.total_alarms) == (0, 2)
    assert found.exit_code == 1


def test_a_red_correctness_check_fails_the_self_check() -> None:
    machine = FakeMachine(1)
    found = self_check([CASE, SECOND], machine.measurer(faults={SECOND: "y is off"}), 2)
    assert (found.wrong, found.exit_code) == ((SECOND,), 4)
    assert (found.cases[1].runs, found.cases[1].reason) == (0, "y is off")


def test_a_self_check_of_nothing_has_no_verdict() -> None:
    found = self_check([CASE], FakeMachine(1).measurer(skipped={CASE: "no GPU"}), 2, planted=0.05)
    assert (found.exit_code, found.found, found.margins) == (3, None, {})
    assert found.cases[0].reason == "no GPU"


def test_one_run_tells_no_spread() -> None:
    (case,) = self_check([CASE], FakeMachine(1).measurer(), 1).cases
    assert math.isnan(case.sd)
    assert (case.gateable, case.margin) == (True, RULE.margin)


@pytest.mark.parametrize(
    ("runs", "planted", "message"),
    [(0, None, "at least one run, got 0"), (1, 0.02, "above the margin 0.03, got 0.02")],
)
def test_a_self_check_that_could_not_succeed_is_refused(
    runs: int, planted: float | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        self_check([CASE], FakeMachine(1).measurer(), runs, planted=planted)


def test_a_slowed_side_is_slower_and_the_others_are_not() -> None:
    script: dict[str, list[float]] = {CASE: [0.0]}
    plain = Scripted(script)(CASE, 20, lambda rounds: False).rounds
    slower = slowed(Scripted(script), HEAD, 0.05)(CASE, 20, lambda rounds: False).rounds
    pairs = list(zip(plain, slower, strict=True))
    assert all(after.times[HEAD] == 1.05 * before.times[HEAD] for before, after in pairs)
    assert all(after.times[BASE] == before.times[BASE] for before, after in pairs)


# the machine itself


def test_a_seed_gives_one_result_and_another_seed_another() -> None:
    def run(seed: int) -> GateResult:
        return compare([CASE], FakeMachine(seed, ROUGH).measurer())

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_effects_are_exact_on_a_machine_at_rest() -> None:
    measure = FakeMachine(1, STILL).measurer(
        {HEAD: 1.1, f"{HEAD}@{SECOND}": 2.0}, sides=(BASE, HEAD, REFERENCE)
    )
    ratios = [
        item.times[HEAD] / item.times[BASE]
        for case in (CASE, SECOND)
        for item in measure(case, 3, lambda rounds: False).rounds
    ]
    assert ratios == pytest.approx([1.1] * 3 + [2.2] * 3)


def test_rough_weather_has_all_that_it_claims() -> None:
    measure = FakeMachine(4, replace(ROUGH, throttle=0.02)).measurer()
    rounds = measure(CASE, 400, lambda rounds: False).rounds
    clocks = {round(item.clock_mhz or 0.0) for item in rounds}
    assert {1980, 1902, 1400} <= clocks
    assert {reason for item in rounds for reason in item.throttled} == {"hw_thermal_slowdown"}
    # stretches end
    assert 0 < sum(bool(item.throttled) for item in rounds) < len(rounds) / 2
    ratios = [math.log(item.times[HEAD] / item.times[BASE]) for item in rounds]
    assert max(map(abs, ratios)) > 0.1


def test_a_run_that_was_ended_does_not_count() -> None:
    runs: list[int] = []
    found = self_check(
        [CASE],
        FakeMachine(0, STILL).measurer(),
        5,
        planted=0.05,
        on_run=lambda index, _: runs.append(index),
        stopped=lambda: len(runs) >= 7,
    )
    assert runs == [0, 1, 2, 3, 4, 5, 6]
    assert (found.cases[0].runs, found.cases[0].planted) == (5, 2)
    ended = self_check([CASE], FakeMachine(0, STILL).measurer(), 5, stopped=lambda: True)
    assert ended.cases[0].runs == 1
