"""The rule of a gate: every number that a verdict depends on."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

__all__ = ["RULE", "Rule"]


@dataclass(frozen=True)
class Rule:
    """What counts as a change, and how long to look for one.

    Attributes:
        margin: smallest tau of a case, a share: a slowdown within it is none
        total_margin: the same for the geometric mean of a mode and dtype
        rounds: at most, in the first pass over a case; passes that confirm take twice as many
        fewest: usable rounds without which there is no verdict, and before which none stops early
        resamples: of the bootstrap
        confidence: of the intervals, two-sided
        slow_clock: share of the case's median SM clock below which a round is dropped
        most_dropped: share of rounds dropped above which a case gets no verdict
        seconds: time cap of a case's first pass, from the end of its first round on; passes that
            confirm get twice as many
        seed: of the bootstrap
    """

    margin: float = 0.03
    total_margin: float = 0.015
    rounds: int = 20
    fewest: int = 8
    resamples: int = 2000
    confidence: float = 0.95
    slow_clock: float = 0.9
    most_dropped: float = 0.2
    seconds: float = 30.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("margin", "total_margin", "confidence", "slow_clock"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ValueError(f"expected {name} between 0 and 1, got {value}")
        # an interval of fewer would rest on nothing
        if not 3 <= self.fewest <= self.rounds:
            raise ValueError(
                f"expected 3 <= fewest <= rounds, got fewest {self.fewest}, rounds {self.rounds}"
            )

    def for_case(self, case: str) -> Rule:
        """The same, seeded by the case: its bootstrap is repeatable and its own."""
        return replace(self, seed=self.seed ^ zlib.crc32(case.encode()))

    def to_confirm(self) -> Rule:
        """Of the passes that confirm: twice the rounds, in twice the time."""
        return replace(self, rounds=2 * self.rounds, seconds=2 * self.seconds)


RULE = Rule()
