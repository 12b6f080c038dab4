"""The gate: every case in a first pass, then again what failed or stayed open.

A regression needs two passes in a row that say so, the later ones of twice the rounds on fresh
buffers. Where the first pass stayed open and the second is the first to see a regression, a third
one decides. Totals, the geometric mean of a mode and dtype, follow the same rule over the same
passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .intervals import Interval
from .passes import Passes, Reading, StoredRatios, TwoVersions, total_of
from .rounds import Measurer
from .rule import RULE, Rule
from .verdicts import Verdict, exit_code

if TYPE_CHECKING:
    from .baseline import Baseline

__all__ = [
    "CaseResult",
    "GateResult",
    "OnCase",
    "Total",
    "against_baseline",
    "compare",
    "group_of",
]

AGAIN = (Verdict.REGRESSION, Verdict.INCONCLUSIVE)


@dataclass(frozen=True)
class CaseResult:
    """What a gate says of a case.

    Attributes:
        case: its id
        verdict: after all passes
        interval: of the log ratio that was judged, in the last pass; None where there is none
        tau: margin, a share
        rounds: usable ones of the last pass
        dropped: share of the last pass's rounds that were dropped
        confirmed: two passes in a row agreed that it regressed
        times: ms per call by side in the last pass, geometric mean over usable rounds
        labels: facts of the case, from the measurer
        reason: what else is to be said, such as why it was skipped
        ratios: log ratio of the head to every other side, in the last pass
        first: interval of the first pass
    """

    case: str
    verdict: Verdict
    interval: Interval | None = None
    tau: float = RULE.margin
    rounds: int = 0
    dropped: float = 0.0
    confirmed: bool = False
    times: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    ratios: Mapping[str, Interval] = field(default_factory=dict)
    first: Interval | None = None


@dataclass(frozen=True)
class Total:
    """What a gate says of a mode and dtype.

    Attributes:
        mode: of the cases
        dtype: of the cases
        interval: of the mean log ratio
        verdict: after all passes
        cases: ids
        tau: margin, a share
        reason: what else is to be said
    """

    mode: str
    dtype: str
    interval: Interval
    verdict: Verdict
    cases: tuple[str, ...]
    tau: float = RULE.total_margin
    reason: str = ""


@dataclass(frozen=True)
class GateResult:
    """What a gate says."""

    cases: tuple[CaseResult, ...]
    totals: tuple[Total, ...] = ()

    def exit_code(self, strict: bool = False) -> int:
        """That of the gravest verdict of cases and totals.

        Args:
            strict: whether no verdict is a failure too
        """
        return exit_code((item.verdict for item in (*self.cases, *self.totals)), strict=strict)


OnCase = Callable[[CaseResult], None]


def _ignore(result: CaseResult) -> None:
    """Nobody watches."""


def compare(
    cases: Sequence[str],
    measurer: Measurer,
    rule: Rule = RULE,
    margins: Mapping[str, float] | None = None,
    on_case: OnCase = _ignore,
) -> GateResult:
    """Judge a head against its base, both measured here and now.

    Args:
        cases: ids
        measurer: times the sides BASE and HEAD, others are reported
        rule: of the gate
        margins: tau by case, of a self-check; never below the rule's own
        on_case: called after each pass over a case with what it says
    """
    return _run(cases, Passes(measurer, rule, TwoVersions(rule, margins or {})), on_case)


def against_baseline(
    cases: Sequence[str],
    measurer: Measurer,
    baseline: Baseline | None,
    rule: Rule = RULE,
    on_case: OnCase = _ignore,
) -> GateResult:
    """Judge a head by stored ratios to the reference and to a copy.

    The ratio to the reference decides. A regression (or gain) counts only if the ratio to the copy
    moved the same way by more than half the margin: the reference may have moved instead.

    Args:
        cases: ids
        measurer: times the sides HEAD, REFERENCE and COPY
        baseline: as `baseline.find` gives it; None measures without a verdict, for `accept`
        rule: of the gate
        on_case: called after each pass over a case with what it says
    """
    return _run(cases, Passes(measurer, rule, StoredRatios(rule, baseline)), on_case)


def group_of(case: str) -> tuple[str, str]:
    """Mode and dtype of a case, by its id."""
    mode, _, rest = case.partition("/")
    return mode, rest.partition("/")[0]


def _run(cases: Sequence[str], passes: Passes, on_case: OnCase) -> GateResult:
    passes.on_reading = lambda reading: on_case(_so_far(reading))
    for case in cases:
        passes.reading(case, 0)
    found = {case: _case_result(case, passes) for case in cases}
    groups: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        if found[case].interval is not None:
            groups.setdefault(group_of(case), []).append(case)
    totals = [_total(*group, members, passes) for group, members in groups.items()]
    # the passes of a total may have found what those of its cases had no occasion to
    late = {case: reading for case in cases if (reading := passes.fault(case)) is not None}
    results = [_so_far(late[case]) if case in late else found[case] for case in cases]
    return GateResult(tuple(results), tuple(item for item in totals if item is not None))


def _so_far(reading: Reading) -> CaseResult:
    return CaseResult(
        case=reading.case,
        verdict=reading.verdict,
        interval=reading.interval,
        tau=reading.tau,
        rounds=reading.kept,
        dropped=reading.dropped,
        times=reading.times,
        labels=reading.labels,
        reason=reading.reason,
        ratios=reading.ratios,
        first=reading.interval,
    )


def _settle(ask: Callable[[int], Verdict]) -> tuple[Verdict, ...]:
    """What the passes say one after another, as many as it takes; the last decides.

    A regression that the last pass is alone to see stays open.
    """
    said = [ask(0)]
    if said[0] in AGAIN:
        said.append(ask(1))
        if said == [Verdict.INCONCLUSIVE, Verdict.REGRESSION]:
            said.append(ask(2))
    return tuple(said)


def _history(said: Sequence[Verdict], estimates: Sequence[Interval | None]) -> str:
    """Why passes that disagreed came to what they came to."""
    if Verdict.REGRESSION not in said or said[-2:] == (Verdict.REGRESSION,) * 2:
        return ""
    figures = ", then ".join(
        f"{math.expm1(item.estimate):+.1%}" if item else "nothing" for item in estimates
    )
    return f"regressed in one pass only ({figures}): not a regression"


def _case_result(case: str, passes: Passes) -> CaseResult:
    said = _settle(lambda index: passes.reading(case, index).verdict)
    readings = [passes.reading(case, index) for index in range(len(said))]
    last = readings[-1]
    history = _history(said, [item.interval for item in readings])
    verdict, warning = passes.question.final(said[-1])
    so_far = _so_far(last)
    return CaseResult(
        **{
            **vars(so_far),
            "verdict": verdict,
            "confirmed": said[-2:] == (Verdict.REGRESSION,) * 2,
            "reason": "; ".join(filter(None, (warning, history, last.reason))),
            "first": readings[0].interval,
        }
    )


def _total(mode: str, dtype: str, cases: Sequence[str], passes: Passes) -> Total | None:
    answers = {}

    def ask(index: int) -> Verdict:
        answers[index] = total_of([passes.reading(case, index) for case in cases], passes)
        return answers[index].verdict

    said = _settle(ask)
    last = answers[len(said) - 1]
    if last.interval is None:
        return None
    verdict, warning = passes.question.final(said[-1])
    history = _history(said, [answers[index].interval for index in range(len(said))])
    reason = "; ".join(filter(None, (warning, history, last.reason)))
    return Total(mode, dtype, last.interval, verdict, tuple(cases), last.tau, reason)
