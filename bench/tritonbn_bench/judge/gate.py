"""The gate: every case in a first pass, then again what failed or stayed open.

A regression needs two passes in a row that say so, the later ones of twice the rounds on fresh
buffers. Where the first pass stayed open and the second is the first to see a regression, a third
one decides. Totals, the geometric mean of two or more cases of a mode and dtype, follow the same
rule: over the last pass of each case, then over further ones. A total that is open because one of
its cases stayed so is left open: that case has had its second pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .intervals import Interval
from .passes import Answer, Passes, Reading, StoredRatios, TwoVersions, total_of
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
        interval: of the log ratio that was judged, in the last pass with usable rounds, as all
            figures that follow; None where no pass gave one
        tau: margin, a share
        rounds: that were usable
        dropped: share of the rounds that were dropped
        confirmed: two passes in a row agreed that it regressed
        times: ms per call by side, geometric mean over usable rounds
        labels: facts of the case, from the measurer
        reason: what else is to be said, such as why it was skipped
        ratios: log ratio of the head to every other side
        first: interval of the first pass
        warned: it would be a regression or open, but is not gated
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
    warned: bool = False


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
        warned: it would be a regression or open, but is not gated
    """

    mode: str
    dtype: str
    interval: Interval
    verdict: Verdict
    cases: tuple[str, ...]
    tau: float = RULE.total_margin
    reason: str = ""
    warned: bool = False


@dataclass(frozen=True)
class GateResult:
    """What a gate says."""

    cases: tuple[CaseResult, ...]
    totals: tuple[Total, ...] = ()

    @property
    def everything(self) -> list[CaseResult | Total]:
        """Cases, then totals."""
        return [*self.cases, *self.totals]

    def exit_code(self, strict: bool = False) -> int:
        """That of the gravest verdict of cases and totals.

        Args:
            strict: whether no verdict is a failure too
        """
        return exit_code((item.verdict for item in self.everything), strict=strict)


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
    found: dict[str, CaseResult] = {}
    groups: dict[tuple[str, str], dict[str, int]] = {}
    for case in cases:
        found[case], count = _case_result(case, passes)
        if passes.reading(case, count - 1).interval is not None:
            groups.setdefault(group_of(case), {})[case] = count - 1
    totals = []
    for (mode, dtype), last in groups.items():
        if len(last) > 1:
            is_open = any(found[case].verdict is Verdict.INCONCLUSIVE for case in last)
            again = (Verdict.REGRESSION,) if is_open else AGAIN
            totals.append(_total(mode, dtype, last, passes, again))
    # the passes of a total may have found what those of its cases had no occasion to
    late = {case: reading for case in cases if (reading := passes.fault(case)) is not None}
    results = [_so_far(late[case]) if case in late else found[case] for case in cases]
    return GateResult(tuple(results), tuple(totals))


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


def _settle(ask: Callable[[int], Verdict], again: Sequence[Verdict] = AGAIN) -> tuple[Verdict, ...]:
    """What the passes say one after another, as many as it takes; the last decides.

    It says REGRESSION only where the one before it did.

    Args:
        ask: what pass number n says
        again: what the first pass must say for a second
    """
    said = [ask(0)]
    if said[0] in again:
        said.append(ask(1))
        if said == [Verdict.INCONCLUSIVE, Verdict.REGRESSION]:
            said.append(ask(2))
    return tuple(said)


def _history(said: Sequence[Verdict], estimates: Sequence[Interval | None]) -> str:
    """What the passes over a regression found, confirmed or not."""
    if Verdict.REGRESSION not in said:
        return ""
    figures = ", then ".join(item.percent() if item else "nothing usable" for item in estimates)
    if _confirmed(said):
        return f"confirmed: {figures}"
    return f"not a regression, as one pass alone saw it: {figures}"


def _confirmed(said: Sequence[Verdict]) -> bool:
    return tuple(said[-2:]) == (Verdict.REGRESSION, Verdict.REGRESSION)


def _case_result(case: str, passes: Passes) -> tuple[CaseResult, int]:
    """What is said of a case, and the number of passes that it took."""
    said = _settle(lambda index: passes.reading(case, index).verdict)
    readings = [passes.reading(case, index) for index in range(len(said))]
    history = _history(said, [item.interval for item in readings])
    verdict, warning = passes.question.final(said[-1])
    usable = [item for item in readings if item.interval is not None]
    result = replace(
        _so_far(usable[-1] if usable else readings[-1]),
        verdict=verdict,
        confirmed=_confirmed(said),
        reason="; ".join(filter(None, (warning, history, readings[-1].reason))),
        first=readings[0].interval,
        warned=bool(warning),
    )
    return result, len(said)


def _total(
    mode: str, dtype: str, cases: Mapping[str, int], passes: Passes, again: Sequence[Verdict]
) -> Total:
    """What is said of cases together.

    Args:
        mode: of the cases
        dtype: of the cases
        cases: their ids, and the index of their last pass, which has an interval
        passes: over them
        again: what the first pass must say for a second
    """
    answers: list[Answer] = []

    def ask(index: int) -> Verdict:
        readings = [passes.reading(case, last + index) for case, last in cases.items()]
        answers.append(total_of(readings, passes))
        return answers[-1].verdict

    said = _settle(ask, again)
    intervals = [item.interval for item in answers]
    # a last pass that could not be used leaves the figure of the one before
    shown = [item for item in answers if item.interval is not None][-1]
    verdict, warning = passes.question.final(said[-1])
    reason = "; ".join(filter(None, (warning, _history(said, intervals), answers[-1].reason)))
    assert shown.interval is not None
    return Total(
        mode, dtype, shown.interval, verdict, tuple(cases), shown.tau, reason, bool(warning)
    )
