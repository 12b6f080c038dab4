"""Passes over cases, measured when asked for, and the two questions that they can answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

from .decision import decide, enough, time_is_up, usable
from .intervals import Interval, log_ratio, mean_of
from .rounds import BASE, COPY, HEAD, REFERENCE, Measured, Measurer, Round
from .rule import Rule
from .verdicts import Verdict

if TYPE_CHECKING:
    from .baseline import Baseline

__all__ = ["Answer", "Passes", "Question", "Reading", "StoredRatios", "TwoVersions", "total_of"]


@dataclass(frozen=True)
class Answer:
    """What ratios say.

    Attributes:
        verdict: of this pass alone
        interval: what it rests on, None where there is nothing to compare
        tau: margin, a share
        witness: a second ratio that must agree, where the question has one
        reason: what else is to be said
    """

    verdict: Verdict
    interval: Interval | None = None
    tau: float = 0.0
    witness: Interval | None = None
    reason: str = ""


@dataclass(frozen=True)
class Reading(Answer):
    """One pass over one case; attributes as in `gate.CaseResult`."""

    case: str = ""
    kept: int = 0
    dropped: float = 0.0
    times: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    ratios: Mapping[str, Interval] = field(default_factory=dict)


class Question(Protocol):
    """What a gate wants to know."""

    @property
    def against(self) -> str:
        """The side in the denominator."""

    @property
    def witnessed(self) -> bool:
        """Whether a second ratio must agree."""

    @property
    def hurried(self) -> bool:
        """Whether the first pass may stop before its last round."""

    def tau(self, case: str) -> float:
        """Margin of a case, a share."""

    def answer(self, case: str, ratios: Mapping[str, Interval]) -> Answer:
        """What the log ratios of the head to the other sides say in one pass."""

    def final(self, verdict: Verdict) -> tuple[Verdict, str]:
        """The verdict after all passes, and a warning where it had to be softened."""


def judged(interval: Interval, witness: Interval | None, tau: float, witnessed: bool) -> Answer:
    """The verdict of an interval, if a second ratio bears it out where one is asked for.

    Args:
        interval: of the log ratio that decides
        witness: of the second log ratio, None where it was not measured
        tau: a share
        witnessed: whether the second must agree: same direction, by more than half the margin
    """
    verdict = decide(interval, tau)
    if not witnessed or verdict not in (Verdict.REGRESSION, Verdict.IMPROVED):
        return Answer(verdict, interval, tau, witness)
    sign = 1 if verdict is Verdict.REGRESSION else -1
    if witness is not None and sign * witness.estimate > math.log1p(tau) / 2:
        return Answer(verdict, interval, tau, witness)
    seen = "was not measured" if witness is None else witness.percent()
    reason = (
        f"head to reference {interval.percent()}, but head to copy {seen}: "
        "the reference may have moved"
    )
    softened = Verdict.INCONCLUSIVE if verdict is Verdict.REGRESSION else Verdict.PASS
    return Answer(softened, interval, tau, witness, reason)


@dataclass(frozen=True)
class TwoVersions:
    """Is the head slower than the base beside it?"""

    rule: Rule
    margins: Mapping[str, float]
    against: str = BASE
    witnessed: bool = False
    hurried: bool = True

    def tau(self, case: str) -> float:
        """As `Question`."""
        return max(self.rule.margin, self.margins.get(case, 0.0))

    def answer(self, case: str, ratios: Mapping[str, Interval]) -> Answer:
        """As `Question`."""
        return judged(ratios[BASE], None, self.tau(case), witnessed=False)

    def final(self, verdict: Verdict) -> tuple[Verdict, str]:
        """As `Question`."""
        return verdict, ""


@dataclass(frozen=True)
class StoredRatios:
    """Is the head slower than it was, by its ratios to the reference and to a copy?"""

    rule: Rule
    baseline: Baseline | None
    against: str = REFERENCE
    witnessed: bool = True

    @property
    def hurried(self) -> bool:
        """What is to be stored is measured in full."""
        return self.baseline is not None

    def tau(self, case: str) -> float:
        """As `Question`."""
        stored = self.baseline.cases.get(case) if self.baseline else None
        return max(self.rule.margin, stored.margin if stored else 0.0)

    def answer(self, case: str, ratios: Mapping[str, Interval]) -> Answer:
        """As `Question`."""
        stored = self.baseline.cases.get(case) if self.baseline else None
        if stored is None:
            from .baseline import ACCEPT

            reason = f"nothing is stored for it; accept with: {ACCEPT}"
            return Answer(Verdict.NO_BASELINE, tau=self.tau(case), reason=reason)
        now, then = ratios.get(COPY), stored.copy
        witness = now.less(then) if now is not None and then is not None else None
        return judged(
            ratios[REFERENCE].less(stored.reference), witness, self.tau(case), witnessed=True
        )

    def final(self, verdict: Verdict) -> tuple[Verdict, str]:
        """As `Question`."""
        differs = self.baseline.differs if self.baseline else ""
        if differs and verdict in (Verdict.REGRESSION, Verdict.INCONCLUSIVE):
            return Verdict.PASS, f"warning, not gated: {verdict.value}, but {differs}"
        return verdict, ""


class Passes:
    """Readings of cases, each measured once, when it is asked for.

    Args:
        measurer: of cases
        rule: of the gate
        question: what is asked of the readings
    """

    def __init__(self, measurer: Measurer, rule: Rule, question: Question) -> None:
        self.rule = rule
        self.question = question
        self.on_reading: Callable[[Reading], None] = lambda reading: None
        self._measurer = measurer
        self._found: dict[tuple[str, int], Reading] = {}

    def reading(self, case: str, index: int) -> Reading:
        """What the pass `index` over a case says; those after the first confirm."""
        if (case, index) not in self._found:
            self._found[case, index] = self._read(case, confirm=index > 0)
            self.on_reading(self._found[case, index])
        return self._found[case, index]

    def fault(self, case: str) -> Reading | None:
        """The pass over a case in which its correctness check was red, if any was."""
        found = [item for (name, _), item in self._found.items() if name == case]
        return next((item for item in found if item.verdict is Verdict.ACCURACY), None)

    def _read(self, case: str, confirm: bool) -> Reading:
        rule, tau = self.rule.for_case(case), self.question.tau(case)
        rule = rule.to_confirm() if confirm else rule
        if confirm or not self.question.hurried:
            stop = time_is_up(rule.seconds)
        else:
            stop = enough(rule, tau, HEAD, self.question.against)
        reading = self._judge(self._measurer(case, rule.rounds, stop), rule, tau)
        if confirm and reading.verdict is Verdict.SKIPPED:
            # what an earlier pass left open stays so
            return replace(reading, verdict=Verdict.INCONCLUSIVE)
        return reading

    def _judge(self, measured: Measured, rule: Rule, tau: float) -> Reading:
        facts: dict[str, Any] = {"case": measured.case, "labels": measured.labels}
        if measured.fault:
            return Reading(Verdict.ACCURACY, tau=tau, reason=measured.fault, **facts)
        if measured.skipped:
            return Reading(Verdict.SKIPPED, tau=tau, reason=measured.skipped, **facts)
        kept, dropped = usable(measured.rounds, rule)
        facts |= {"kept": len(kept), "dropped": dropped, "times": _times(kept)}
        reason = ""
        if dropped > rule.most_dropped:
            reason = f"{dropped:.0%} of the rounds were dropped for their clock"
        elif len(kept) < rule.fewest:
            reason = f"only {len(kept)} usable rounds, {rule.fewest} are needed"
        if reason:
            return Reading(Verdict.INCONCLUSIVE, tau=tau, reason=reason, **facts)
        others = dict.fromkeys([self.question.against, *kept[0].times])
        others.pop(HEAD, None)
        ratios = {side: log_ratio(kept, HEAD, side, rule) for side in others}
        answer = self.question.answer(measured.case, ratios)
        return Reading(**vars(answer), ratios=ratios, **facts)


def total_of(readings: Sequence[Reading], passes: Passes) -> Answer:
    """What readings say together, by the mean of their log ratios.

    The margin is the rule's, or what the margins of the cases leave after averaging where that is
    more: it is for fewer than four cases, of which one may be as far off as its own margin.
    """
    usable_ones = [item for item in readings if item.interval is not None]
    intervals = [item.interval for item in usable_ones if item.interval is not None]
    if not intervals:
        return Answer(Verdict.INCONCLUSIVE, reason="no case could be used")
    margins = math.hypot(*(item.tau for item in usable_ones)) / len(usable_ones)
    tau = max(passes.rule.total_margin, margins)
    witnesses = [item.witness for item in usable_ones if item.witness is not None]
    witness = mean_of(witnesses) if len(witnesses) == len(intervals) else None
    return judged(mean_of(intervals), witness, tau, passes.question.witnessed)


def _times(rounds: Sequence[Round]) -> dict[str, float]:
    """Geometric mean of the times of each side."""
    sides = rounds[0].times if rounds else ()
    return {side: math.exp(fmean(math.log(item.times[side]) for item in rounds)) for side in sides}
