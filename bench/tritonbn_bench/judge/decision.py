"""From the rounds of a case to a verdict: which rounds count, when they are enough, what they say.

A round is dropped where its SM clock lies below 90 % of the case's median, or where the hardware
held the clock down for heat or power brake. A power cap is no reason: it is how a large GPU runs
under load, for all sides alike, and the clock tells where it goes too far.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

from .intervals import Interval, log_ratio
from .rounds import Round
from .rule import Rule
from .verdicts import Verdict

__all__ = ["decide", "enough", "time_is_up", "usable"]

# in lower case, letters only, as they occur in the names that drivers give
HARDWARE_REASONS = ("hwslowdown", "thermal", "powerbrake")


def usable(rounds: Sequence[Round], rule: Rule) -> tuple[tuple[Round, ...], float]:
    """The rounds that count, and the share that was dropped."""
    clocks = [item.clock_mhz for item in rounds if item.clock_mhz is not None]
    slowest = rule.slow_clock * statistics.median(clocks) if clocks else 0.0
    kept = tuple(
        item
        for item in rounds
        if (item.clock_mhz is None or item.clock_mhz >= slowest)
        and not any(_held_by_hardware(reason) for reason in item.throttled)
    )
    return kept, (len(rounds) - len(kept)) / len(rounds) if rounds else 0.0


def _held_by_hardware(reason: str) -> bool:
    letters = "".join(letter for letter in reason.lower() if letter.isalpha())
    return any(name in letters for name in HARDWARE_REASONS)


def enough(
    rule: Rule,
    tau: float,
    numerator: str,
    denominator: str,
    now: Callable[[], float] = time.monotonic,
) -> Callable[[Sequence[Round]], bool]:
    """Whether the rounds so far suffice: the interval is narrow, or time is up.

    The width alone stops, never the verdict: stopping where a result looks good would make a 95 %
    interval one of less.

    Args:
        rule: of the case
        tau: a share; half of it is narrow enough for half the width of the interval
        numerator: a side
        denominator: another
        now: a clock in seconds
    """
    late = time_is_up(rule.seconds, now)
    narrow = math.log1p(tau) / 2

    def suffice(rounds: Sequence[Round]) -> bool:
        if late(rounds):
            return True
        kept, _ = usable(rounds, rule)
        if len(kept) < rule.fewest:
            return False
        return log_ratio(kept, numerator, denominator, rule).half_width <= narrow

    return suffice


def time_is_up(
    seconds: float, now: Callable[[], float] = time.monotonic
) -> Callable[[Sequence[Round]], bool]:
    """Whether `seconds` have gone by since it was first asked, which is after the first round.

    What comes before, compiling and checking results, is no measuring.
    """
    ends: list[float] = []

    def late(rounds: Sequence[Round]) -> bool:
        if not ends:
            ends.append(now() + seconds)
        return now() >= ends[0]

    return late


def decide(interval: Interval, tau: float) -> Verdict:
    """What one pass says, in the order of the table of verdicts.

    Args:
        interval: of ln(head / base)
        tau: a share
    """
    margin = math.log1p(tau)
    if interval.low > margin:
        return Verdict.REGRESSION
    if interval.high < -margin:
        return Verdict.IMPROVED
    if interval.high < margin:
        return Verdict.PASS
    return Verdict.INCONCLUSIVE
