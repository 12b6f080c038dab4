"""Intervals of log ratios: repeatable, and right as often as they say."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.judging import rounds_of
from tritonbn_bench.judge import intervals
from tritonbn_bench.judge.decision import enough
from tritonbn_bench.judge.intervals import Interval, bootstrap, log_ratio, mean_of
from tritonbn_bench.judge.rounds import BASE, HEAD, Round
from tritonbn_bench.judge.rule import RULE, Rule

TRIALS = 800
# three standard errors of a share of 95 % over TRIALS
ERROR = 3 * math.sqrt(0.95 * 0.05 / TRIALS)


def covered(samples: np.ndarray, rule: Rule = RULE) -> float:
    """Share of samples of mean zero whose interval holds zero."""
    found = [bootstrap(row, replace(rule, seed=index)) for index, row in enumerate(samples)]
    return sum(item.low <= 0 <= item.high for item in found) / len(found)


def drawn(kind: str, count: int) -> np.ndarray:
    """TRIALS samples of mean zero."""
    random, shape = np.random.default_rng(11), (TRIALS, count)
    normal: np.ndarray = random.standard_normal(shape)
    if kind == "outliers":
        disturbed = (random.random(shape) < 0.05) * random.choice([-1, 1], shape)
        normal += disturbed * random.exponential(10, shape)
    return normal


@pytest.mark.parametrize(
    ("kind", "count"), [("normal", 8), ("normal", 12), ("normal", 20), ("outliers", 8)]
)
def test_intervals_cover_the_truth_as_often_as_they_say(kind: str, count: int) -> None:
    # two points less than nominal are granted to eight rounds
    assert 0.93 - ERROR < covered(drawn(kind, count)) < 0.95 + ERROR


def test_plain_percentiles_would_be_too_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "_expanded_tail", lambda tail, count: tail)
    assert covered(drawn("normal", 8)) < 0.93 - ERROR


def test_the_expansion_is_that_of_students_quantile() -> None:
    # quantiles of Student's t at 97.5 % with 7, 11 and 19 degrees of freedom, from tables
    found = [intervals._student(1.959964, freedom) for freedom in (7, 11, 19)]
    assert found == pytest.approx([2.3646, 2.2010, 2.0930], abs=5e-4)
    # the normal's tail beyond 2.262 sqrt(10 / 9) and 2.093 sqrt(20 / 19)
    tails = [intervals._expanded_tail(0.025, count) for count in (10, 20)]
    assert tails == pytest.approx([0.00855, 0.01588], abs=5e-5)


def stops(values: np.ndarray, rule: Rule) -> int:
    """Rounds after which the width of the interval ends the measurement."""
    rounds = [Round({BASE: 1.0, HEAD: math.exp(value)}) for value in values]
    suffice = enough(rule, RULE.margin, HEAD, BASE)
    return next((k for k in range(1, len(values)) if suffice(rounds[:k])), len(values))


def test_stopping_when_narrow_leaves_intervals_honest_and_stopping_on_a_verdict_would_not() -> None:
    # noise at which most trials stop somewhere between the fewest rounds and all
    samples = np.random.default_rng(3).normal(0.0, 0.025, (400, RULE.rounds))
    early, keen, used = 0, 0, []
    for index, row in enumerate(samples):
        rule = replace(RULE, resamples=300, seed=index)
        used.append(stops(row, rule))
        early += bootstrap(row[: used[-1]], rule).low > 0
        keen += any(bootstrap(row[:count], rule).low > 0 for count in range(RULE.fewest, 21, 2))
    # nominal 2.5 % on this side, four standard errors granted
    assert early / len(samples) < 0.056
    assert keen / len(samples) > 0.056
    assert len(set(used)) > 5


def test_the_mean_of_cases_covers_the_truth_as_often_as_they_do() -> None:
    random, hits = np.random.default_rng(7), 0
    for index in range(300):
        rule = replace(RULE, resamples=500, seed=index)
        # cases of unlike noise, of which the loudest decides
        cases = [bootstrap(random.normal(0.0, 0.01 * (1 + n), 8), rule) for n in range(4)]
        whole = mean_of(cases)
        hits += whole.low <= 0 <= whole.high
    assert 0.91 < hits / 300 < 0.99


def test_the_same_case_gives_the_same_interval_and_another_its_own() -> None:
    rounds = rounds_of(0.02, spread=0.05)
    first, again, other = (
        log_ratio(rounds, HEAD, BASE, RULE.for_case(case)) for case in ("a", "a", "b")
    )
    assert first == again
    # in another process too
    assert RULE.for_case("a").seed == 0xE8B7BE43
    assert first.low != other.low


def test_ratios_are_those_of_numerator_to_denominator() -> None:
    found = log_ratio(rounds_of(0.05, spread=0.001), HEAD, BASE, RULE)
    assert found.as_ratio() == pytest.approx((1.05, 1.05, 1.05), abs=1e-3)
    assert found.low < found.estimate < found.high


def test_the_arms_of_a_difference_add_by_their_squares() -> None:
    found = Interval(0.5, 0.2, 0.9).less(Interval(0.1, -0.2, 0.4))
    # below: 0.3 and the other's 0.3 above; above: 0.4 and the other's 0.3 below
    assert (found.estimate, found.low, found.high) == pytest.approx(
        (0.4, 0.4 - math.hypot(0.3, 0.3), 0.9)
    )


def test_the_arms_of_a_mean_add_by_their_squares() -> None:
    found = mean_of([Interval(0.0, -0.3, 0.6), Interval(1.0, 0.6, 1.8)])
    assert (found.estimate, found.low, found.high) == pytest.approx((0.5, 0.25, 1.0))


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        ([Round({BASE: 1.0, HEAD: 1.0})], "at least two rounds, got 1"),
        ([Round({BASE: 1.0})] * 8, "every round to time head"),
        ([Round({BASE: 1.0, HEAD: 0.0})] * 8, "times above 0 ms"),
        ([Round({BASE: math.nan, HEAD: 1.0})] * 8, "times above 0 ms"),
    ],
    ids=["one-round", "no-head", "zero", "nan"],
)
def test_what_is_no_measurement_is_refused(rounds: list[Round], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_ratio(rounds, HEAD, BASE, RULE)


def test_the_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one interval"):
        mean_of([])
