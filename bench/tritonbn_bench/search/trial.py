"""One regime on trial: its plans against the table's, in the gate's rounds, until one is confirmed.

A plan takes the table's place only where the interval of every case of the regime says that it is
faster by more than the margin, and says so again on fresh buffers. The plans are first looked at in
a few rounds, all side by side, and only the best of them get more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Protocol

from tritonbn_kernels.plan_file import Regime

from ..cases import Case
from ..judge.decision import decide, enough, time_is_up, usable
from ..judge.intervals import log_ratio
from ..judge.rounds import Round
from ..judge.rule import Rule
from ..judge.verdicts import Verdict
from .candidates import TABLE, Proposals

__all__ = ["Outcome", "PlanMeter", "PlanTimes", "Reading", "Stop", "try_plans"]

# whether the rounds so far are enough
Stop = Callable[[Sequence[Round]], bool]
# rounds of the first look, and plans that get more
LOOK_ROUNDS, FINALISTS = 3, 3


@dataclass(frozen=True)
class PlanTimes:
    """What a meter found out about plans on one case.

    Attributes:
        rounds: with the times of TABLE and of each plan that is neither wrong nor failed
        wrong: results outside the bound, by plan
        failed: errors, by plan
    """

    rounds: tuple[Round, ...]
    wrong: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)


class PlanMeter(Protocol):
    """What times plans on a case: a GPU, or a model of one."""

    def __call__(
        self,
        regime: Regime,
        case: Case,
        plans: Sequence[str],
        rounds: int,
        enough: Stop,
    ) -> PlanTimes:
        """Check each plan and the table's, on fresh buffers, then time them in the same rounds: at
        most `rounds`, and no more once `enough` of those so far."""


@dataclass(frozen=True)
class Reading:
    """A plan against the table's on one case.

    Attributes:
        case: its id
        table_ms, plan_ms: geometric means over the rounds
        ratio, low, high: time of the plan over that of the table, with its interval
        rounds: those that count
        verdict: of these rounds
    """

    case: str
    table_ms: float
    plan_ms: float
    ratio: float
    low: float
    high: float
    rounds: int
    verdict: Verdict


@dataclass(frozen=True)
class Outcome:
    """What a regime's trial came to.

    Attributes:
        regime: it
        cases: ids
        tried: plans measured; refused, same: as in `Proposals`
        plan: that takes the table's place, "" if none does
        readings: of the confirmation of `plan`; of the best plan's last pass if none does
        best: the plan of the readings
        wrong, failed: by plan, TABLE among them
    """

    regime: Regime
    cases: tuple[str, ...]
    tried: int = 0
    refused: int = 0
    same: int = 0
    plan: str = ""
    best: str = ""
    readings: tuple[Reading, ...] = ()
    wrong: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)


def try_plans(
    regime: Regime, cases: Sequence[Case], proposals: Proposals, meter: PlanMeter, rule: Rule
) -> Outcome:
    """Look for a plan that should take the table's place in a regime.

    Args:
        regime: of the cases
        cases: every one must be faster
        proposals: plans to try
        meter: checks and times
        rule: margin, rounds, seconds and intervals
    """
    trial = _Trial(regime, cases, meter, rule)
    outcome = Outcome(
        regime,
        tuple(case.id for case in cases),
        tried=len(proposals.plans),
        refused=proposals.refused,
        same=proposals.same,
        wrong=trial.wrong,
        failed=trial.failed,
    )
    finalists = trial.look(proposals.plans)
    found = trial.read(finalists, rule, confirm=False)
    # the worst case decides
    order = sorted(found, key=lambda plan: max(reading.ratio for reading in found[plan]))
    if order:
        outcome = replace(outcome, best=order[0], readings=found[order[0]])
    for plan in order:
        if not _faster(found[plan]):
            continue
        confirmed = trial.read([plan], rule.to_confirm(), confirm=True).get(plan, ())
        if confirmed and _faster(confirmed):
            return replace(outcome, plan=plan, best=plan, readings=confirmed)
        if plan == outcome.best and confirmed:
            outcome = replace(outcome, readings=confirmed)
    return outcome


def _any(stops: Iterable[Stop]) -> Stop:
    given = tuple(stops)
    return lambda rounds: any(stop(rounds) for stop in given)


def _all(stops: Iterable[Stop]) -> Stop:
    given = tuple(stops)
    return lambda rounds: all(stop(rounds) for stop in given)


def _faster(readings: Sequence[Reading]) -> bool:
    return all(reading.verdict is Verdict.IMPROVED for reading in readings)


class _Trial:
    """Passes over the cases of a regime, and what was found wrong in any of them."""

    def __init__(self, regime: Regime, cases: Sequence[Case], meter: PlanMeter, rule: Rule) -> None:
        self.wrong: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self._regime, self._cases, self._meter, self._rule = regime, cases, meter, rule

    def look(self, plans: Sequence[str]) -> list[str]:
        """The plans that may well be faster in every case, best first."""
        worst = dict.fromkeys(plans, -math.inf)
        for case in self._cases:
            rounds = self._measured(case, [*worst], LOOK_ROUNDS, lambda rounds: False)
            worst = {
                plan: max(
                    before, fmean(math.log(item.times[plan] / item.times[TABLE]) for item in rounds)
                )
                for plan, before in worst.items()
                if rounds and plan in rounds[0].times
            }
        # what does not look faster by half the margin will not be faster by all of it
        promising = [plan for plan in worst if worst[plan] < -math.log1p(self._rule.margin) / 2]
        return sorted(promising, key=lambda plan: worst[plan])[:FINALISTS]

    def read(
        self, plans: Sequence[str], rule: Rule, confirm: bool
    ) -> dict[str, tuple[Reading, ...]]:
        """A reading of each plan on every case; none of a plan that was found wrong or failed."""
        found: dict[str, list[Reading]] = {plan: [] for plan in plans}
        for case in self._cases:
            if not found:
                break
            own = rule.for_case(case.id)
            stops = [time_is_up(own.seconds)]
            if not confirm:
                # a confirmation is stopped by the clock alone, or a lucky start would decide it
                stops.append(_all(enough(own, own.margin, plan, TABLE) for plan in found))
            rounds = self._measured(case, [*found], own.rounds, _any(stops))
            kept, dropped = usable(rounds, own)
            for plan in [*found]:
                if len(kept) < 2 or plan not in kept[0].times:
                    del found[plan]
                else:
                    found[plan].append(_reading(case, plan, kept, dropped, own))
        return {plan: tuple(readings) for plan, readings in found.items()}

    def _measured(
        self,
        case: Case,
        plans: Sequence[str],
        rounds: int,
        enough: Stop,
    ) -> tuple[Round, ...]:
        if not plans:
            return ()
        times = self._meter(self._regime, case, plans, rounds, enough)
        self.wrong.update({plan: f"{case.id}: {text}" for plan, text in times.wrong.items()})
        self.failed.update({plan: f"{case.id}: {text}" for plan, text in times.failed.items()})
        return times.rounds


def _reading(case: Case, plan: str, rounds: Sequence[Round], dropped: float, rule: Rule) -> Reading:
    interval = log_ratio(rounds, plan, TABLE, rule)
    steady = dropped <= rule.most_dropped and len(rounds) >= rule.fewest
    verdict = decide(interval, rule.margin) if steady else Verdict.INCONCLUSIVE
    return Reading(
        case.id,
        _mean(rounds, TABLE),
        _mean(rounds, plan),
        *interval.as_ratio(),
        rounds=len(rounds),
        verdict=verdict,
    )


def _mean(rounds: Sequence[Round], side: str) -> float:
    return math.exp(fmean(math.log(item.times[side]) for item in rounds))
