"""Trials of the gate itself: does it keep silent over nothing, and find what was planted?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..verbs import common
from .gate import CaseResult, GateResult, compare
from .rounds import HEAD, Measured, Measurer, Round
from .rule import RULE, Rule
from .verdicts import Verdict

__all__ = ["CaseTrials", "SelfCheck", "self_check", "slowed"]

# smallest detectable change by the spread of log ratios: alpha 1 %, power 90 %
DETECTABLE = 3.6
FEWEST_FOUND = 0.95


@dataclass(frozen=True)
class CaseTrials:
    """What the trials of a case came to.

    Attributes:
        case: its id
        runs: in which it was measured against itself
        false_alarms: of them that said REGRESSION
        open: of them that said INCONCLUSIVE
        sd: standard deviation over runs of the log ratio of a first pass; nan for fewer than two
        tau: margin in these runs, a share
        planted: runs with a planted slowdown
        found: of them that said REGRESSION
        reason: why it could not be measured, or what is wrong with its results
    """

    case: str
    runs: int
    false_alarms: int
    open: int
    sd: float
    tau: float
    planted: int = 0
    found: int = 0
    reason: str = ""

    @property
    def detectable(self) -> float:
        """Smallest change that one pass would see in nine of ten runs, a share."""
        return math.expm1(DETECTABLE * self.sd)

    @property
    def gateable(self) -> bool:
        """Whether the smallest detectable change is within the margin."""
        # not known of a single run
        return not self.detectable > self.tau

    @property
    def margin(self) -> float:
        """Margin for later gates: three times the spread, at least that of these runs; a share."""
        return self.tau if math.isnan(self.sd) else max(self.tau, math.expm1(3 * self.sd))


@dataclass(frozen=True)
class SelfCheck:
    """What the trials came to.

    Attributes:
        cases: one each
        total_alarms: runs against itself in which a total said REGRESSION
        planted: the planted slowdown, a share; None where none was
        wrong: cases whose correctness check is red
    """

    cases: tuple[CaseTrials, ...]
    total_alarms: int
    planted: float | None
    wrong: tuple[str, ...] = ()

    @property
    def false_alarms(self) -> int:
        """Of cases and totals."""
        return sum(item.false_alarms for item in self.cases) + self.total_alarms

    @property
    def found(self) -> float | None:
        """Share of planted slowdowns that were found in cases quiet enough to be gated; None where
        none was planted in such a case."""
        quiet = [item for item in self.cases if item.gateable]
        planted = sum(item.planted for item in quiet)
        return sum(item.found for item in quiet) / planted if planted else None

    @property
    def margins(self) -> dict[str, float]:
        """Margin of each case that was measured, for `compare`; shares."""
        return {item.case: item.margin for item in self.cases if item.runs}

    @property
    def exit_code(self) -> int:
        """4 for a red correctness check, 1 for a false alarm or a planted slowdown missed in more
        than 5 % of its runs, 3 where nothing was measured or no case is quiet enough to gate."""
        if self.wrong:
            return common.ACCURACY
        if self.false_alarms:
            return common.REGRESSION
        if not any(item.runs and item.gateable for item in self.cases):
            return common.INCONCLUSIVE
        if self.found is not None and self.found < FEWEST_FOUND:
            return common.REGRESSION
        return common.PASSED


OnRun = Callable[[int, GateResult], None]


def _ignore(index: int, result: GateResult) -> None:
    """Nobody watches."""


def self_check(
    cases: Sequence[str],
    measurer: Measurer,
    runs: int,
    rule: Rule = RULE,
    planted: float | None = None,
    on_run: OnRun = _ignore,
    *,
    margins: Mapping[str, float] | None = None,
    slow: Measurer | None = None,
    stopped: Callable[[], object] = lambda: False,
) -> SelfCheck:
    """Compare the package with itself, and with a slowdown planted in the head.

    Args:
        cases: ids
        measurer: times BASE and HEAD, both the same code
        runs: of each kind
        rule: of the gate
        planted: slowdown of the head in a second set of runs, a share; None plants none
        on_run: called after each run with its index and result; planted runs count on
        margins: tau by case
        slow: times a head that is slower by `planted`; where None, its times are stretched
        stopped: whether measuring has ended; the run under way then does not count, unless it is
            the first

    Raises:
        ValueError: no run is wanted, or the slowdown lies within the rule's margin
    """
    if runs < 1:
        raise ValueError(f"expected at least one run, got {runs}")
    if planted is not None and planted <= rule.margin:
        raise ValueError(f"expected a slowdown above the margin {rule.margin}, got {planted}")
    equal: list[GateResult] = []
    planted_results: list[GateResult] = []
    for index in range(runs):
        result = compare(cases, measurer, rule, margins)
        if equal and stopped():
            break
        equal.append(result)
        on_run(index, result)
    if planted is not None:
        slower = slow or slowed(measurer, HEAD, planted)
        for index in range(runs):
            if stopped():
                break
            result = compare(cases, slower, rule, margins)
            if stopped():
                break
            planted_results.append(result)
            on_run(runs + index, result)
    trials = tuple(
        _trials(
            [result.cases[place] for result in equal],
            [result.cases[place] for result in planted_results],
        )
        for place in range(len(cases))
    )
    everything = [item for result in (*equal, *planted_results) for item in result.cases]
    wrong = {item.case: None for item in everything if item.verdict is Verdict.ACCURACY}
    alarms = sum(_alarmed(result) for result in equal)
    return SelfCheck(trials, alarms, planted, tuple(wrong))


def slowed(measurer: Measurer, side: str, share: float) -> Measurer:
    """The same measurer, the times of one side stretched by a share."""

    def stretched(rounds: Sequence[Round]) -> tuple[Round, ...]:
        return tuple(
            replace(item, times={**item.times, side: item.times[side] * (1 + share)})
            for item in rounds
        )

    def measure(case: str, rounds: int, enough: Callable[[Sequence[Round]], bool]) -> Measured:
        found = measurer(case, rounds, lambda so_far: enough(stretched(so_far)))
        return replace(found, rounds=stretched(found.rounds))

    return measure


def _alarmed(result: GateResult) -> bool:
    return any(total.verdict is Verdict.REGRESSION for total in result.totals)


def _count(results: Sequence[CaseResult], verdict: Verdict) -> int:
    return sum(item.verdict is verdict for item in results)


def _trials(equal: Sequence[CaseResult], planted: Sequence[CaseResult]) -> CaseTrials:
    measured = [item for item in equal if item.verdict not in (Verdict.ACCURACY, Verdict.SKIPPED)]
    estimates = [item.first.estimate for item in measured if item.first is not None]
    unmeasured = [item.reason for item in equal if item not in measured]
    return CaseTrials(
        case=equal[0].case,
        runs=len(measured),
        false_alarms=_count(measured, Verdict.REGRESSION),
        open=_count(measured, Verdict.INCONCLUSIVE),
        sd=statistics.stdev(estimates) if len(estimates) > 1 else math.nan,
        tau=equal[0].tau,
        planted=len(planted) - _count(planted, Verdict.SKIPPED) - _count(planted, Verdict.ACCURACY),
        found=_count(planted, Verdict.REGRESSION),
        reason=unmeasured[0] if unmeasured else "",
    )
