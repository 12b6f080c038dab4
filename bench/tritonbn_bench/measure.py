"""Calls timed against one another in the same rounds, until their ratios are known well enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .judge.decision import enough, time_is_up, usable
from .judge.rounds import Block, Clock, Round, no_clock, take_round
from .judge.rule import RULE, Rule
from .stopwatch import Stopwatch
from .timer import Work

__all__ = ["SWEEP_RULE", "Meter", "Timed", "in_words", "time_together"]

# hundreds of cases: each gets seconds, and its interval says what they were worth
SWEEP_RULE = replace(RULE, rounds=12, fewest=5, seconds=5.0)


@dataclass(frozen=True)
class Meter:
    """What measures: a device, its stopwatch and clock, and how long is enough.

    Attributes:
        device: "cuda" or "cpu"
        stopwatch: times blocks
        clock: asked between blocks
        rule: rounds, seconds and interval of a case; half of its margin is narrow enough
    """

    device: str
    stopwatch: Stopwatch
    clock: Clock = no_clock
    rule: Rule = SWEEP_RULE


@dataclass(frozen=True)
class Timed:
    """What came of rounds.

    Attributes:
        rounds: those that count, at least two, or none
        taken: how many there were
        cache: state of the caches before each call
        faults: why a side has no times, by name
    """

    rounds: tuple[Round, ...]
    taken: int
    cache: str
    faults: Mapping[str, str] = field(default_factory=dict)

    def times(self, side: str) -> tuple[float, ...]:
        """ms per call of a side, one for each round."""
        return tuple(item.times[side] for item in self.rounds)


class _Lost(Exception):
    """A side that raised in the middle of a round."""

    def __init__(self, name: str, problem: Exception) -> None:
        super().__init__(name)
        self.name, self.problem = name, problem


def time_together(works: Mapping[str, Work], meter: Meter, first: str) -> Timed:
    """Time works in rounds; one that raises is left out, and the others are timed without it.

    Args:
        works: by name
        meter: what measures; `meter.rule` says when to stop
        first: whose ratio to each of the others is to become narrow; without it all rounds of the
            rule are taken
    """
    faults: dict[str, str] = {}
    sides: dict[str, Block] = {}
    for name, work in works.items():
        try:
            calls = meter.stopwatch.calls_for(work)
        except Exception as problem:
            # one rival's missing compiler or memory must not end a sweep of hours
            faults[name] = in_words(problem)
        else:
            sides[name] = _block(name, meter.stopwatch, work, calls)
    rounds: list[Round] = []
    while sides:
        try:
            rounds = _rounds(sides, meter, first)
            break
        except _Lost as lost:
            faults[lost.name] = in_words(lost.problem)
            del sides[lost.name]
    cache = meter.stopwatch.cache
    kept, _ = usable(rounds, meter.rule)
    if len(kept) < 2:
        reason = f"expected two rounds or more at a steady clock, got {len(kept)} of {len(rounds)}"
        return Timed((), len(rounds), cache, faults | dict.fromkeys(sides, reason))
    return Timed(kept, len(rounds), cache, faults)


def in_words(problem: Exception) -> str:
    """Kind and text of an error, in a line."""
    return f"{type(problem).__name__}: {str(problem).strip()[:300]}"


def _block(name: str, stopwatch: Stopwatch, work: Work, calls: int) -> Block:
    def block() -> float:
        try:
            return stopwatch.block(work, calls)
        except Exception as problem:
            raise _Lost(name, problem) from problem

    return block


def _rounds(sides: Mapping[str, Block], meter: Meter, first: str) -> list[Round]:
    rule = meter.rule
    stops: list[Callable[[Sequence[Round]], bool]]
    if first in sides and len(sides) > 1:
        stops = [enough(rule, rule.margin, first, name) for name in sides if name != first]
    else:
        stops = [time_is_up(rule.seconds)]
    rounds: list[Round] = []
    while len(rounds) < rule.rounds:
        rounds.append(take_round(sides, len(rounds), meter.clock))
        if len(rounds) > 1 and all(stop(rounds) for stop in stops):
            break
    return rounds
