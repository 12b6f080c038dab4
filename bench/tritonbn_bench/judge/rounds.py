"""Rounds: the unit of every comparison. In a round each side is timed twice, forwards and then
backwards through the sides (ABBA), so that a drift of the machine hits all of them alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

__all__ = [
    "BASE",
    "COPY",
    "HEAD",
    "REFERENCE",
    "Block",
    "Clock",
    "Measured",
    "Measurer",
    "Round",
    "no_clock",
    "take_round",
]

# sides of a gate: two versions of the same package, the rival's layer, a copy of equal bytes
BASE, HEAD, REFERENCE, COPY = "base", "head", "reference", "copy"
# times one side: n calls one after another, median in ms per call
Block = Callable[[], float]
# SM clock in MHz (None where unknown), and what throttles it
Clock = Callable[[], tuple[float | None, tuple[str, ...]]]


def no_clock() -> tuple[float | None, tuple[str, ...]]:
    """A clock that knows nothing: of a CPU, or of a GPU that does not tell."""
    return None, ()


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        times: ms per call by side: the geometric mean of the medians of its two blocks
        clock_mhz: lowest SM clock seen in the round, None where unknown
        throttled: reasons for a lowered clock that were seen
    """

    times: Mapping[str, float]
    clock_mhz: float | None = None
    throttled: tuple[str, ...] = ()


def take_round(sides: Mapping[str, Block], index: int, clock: Clock = no_clock) -> Round:
    """Time every side twice in mirrored order; odd rounds begin at the other end.

    Args:
        sides: by name
        index: of the round
        clock: asked after each block
    """
    order = list(sides) if index % 2 == 0 else list(sides)[::-1]
    found: dict[str, list[float]] = {name: [] for name in sides}
    clocks: list[float] = []
    throttled: dict[str, None] = {}
    for name in (*order, *order[::-1]):
        found[name].append(sides[name]())
        mhz, reasons = clock()
        clocks += [] if mhz is None else [mhz]
        throttled.update(dict.fromkeys(reasons))
    times = {name: math.sqrt(first * second) for name, (first, second) in found.items()}
    return Round(times, min(clocks) if clocks else None, tuple(throttled))


@dataclass(frozen=True)
class Measured:
    """What a measurer has to say of one case.

    Attributes:
        case: its id
        rounds: in the order taken, none where `fault` or `skipped` says why
        fault: the correctness check is red, and no speed was looked at
        skipped: why it could not be measured
        labels: facts of the case for reports, such as the backend of each side
    """

    case: str
    rounds: tuple[Round, ...] = ()
    fault: str = ""
    skipped: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


class Measurer(Protocol):
    """What measures a case in rounds: a GPU, a CPU, or a model of one."""

    def __call__(
        self, case: str, rounds: int, enough: Callable[[Sequence[Round]], bool]
    ) -> Measured:
        """At most `rounds` rounds on fresh buffers; no more once `enough` of those so far."""
