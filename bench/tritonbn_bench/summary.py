"""What the rows amount to in figures: ratios to rivals, means, modelled totals. Plain Python."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .cases import TRAINING_MODES
from .judge.intervals import Interval, mean_of
from .judge.rule import RULE
from .networks import RESNET50
from .results import RATIO, Results, Row

__all__ = [
    "COMPILER",
    "EAGER",
    "FAKE_TIMER",
    "HOST_DIFFERENCE",
    "IMAGES_PER_SECOND",
    "LARGE",
    "LARGEST_GAP",
    "NO_SPEED",
    "OURS",
    "PEAK_BYTES",
    "SAVED_BYTES",
    "STEP_LAUNCHES",
    "UNFUSED",
    "WRONG",
    "Speedup",
    "exit_code",
    "failed",
    "family",
    "geomean",
    "has_speed",
    "is_fake",
    "is_ours",
    "mean_speedup",
    "of_sweep",
    "red",
    "speedups",
    "step_bytes",
    "tally",
    "times",
]

OURS = "tritonbn"
# our BatchNorm, with torch's operators behind it
UNFUSED = "tritonbn unfused"
COMPILER = "torch.compile"
IMAGES_PER_SECOND = "images/s"
# bytes that a call must move for memory alone to decide: below it launches rule, and the L2 cache
# holds most of it
LARGE = 64 * 10**6
# torch's layers, called one by one
EAGER = ("torch", "torch channels_last")
WRONG = "WRONG OR FAILED:"
NO_SPEED = (
    "No speed was measured: the kernels ran in Triton's interpreter, whose time says nothing "
    "about a GPU."
)
FAKE_TIMER = (
    "NOT A MEASUREMENT: a fake timer made these times up, to try the report; they say nothing "
    "about any GPU."
)
# allowed between the losses of 25 steps in fp32: rounding differs between two right kernels, and
# each step amplifies it
LARGEST_GAP = 5e-3
PEAK_BYTES = "activations and their gradients at once in a step"
SAVED_BYTES = "saved for backward in a step, parameters left out"
STEP_LAUNCHES = "launches of BatchNorm and activation in a step (torch: operators)"
HOST_DIFFERENCE = "tritonbn less torch, forward + backward, median of pairs"
# exit codes of a run
PASSED, FAILED_ACCURACY = 0, 4


@dataclass(frozen=True)
class Speedup:
    """Time of a rival over ours for one case; above 1 we are faster.

    Attributes:
        case: our row of time
        rival: who
        backend: what really ran of it
        interval: of the log of the ratio, from rounds that both shared; None where they shared none
        ratio: the estimate
    """

    case: Row
    rival: str
    backend: str
    ratio: float
    interval: Interval | None = None

    @property
    def outcome(self) -> str:
        """faster or slower where the interval lies beyond the margin, equal where it lies within,
        uncertain where it crosses it, or where there is none."""
        if self.interval is None:
            return "uncertain"
        margin = math.log1p(RULE.margin)
        if self.interval.low > margin:
            return "faster"
        if self.interval.high < -margin:
            return "slower"
        within = -margin <= self.interval.low and self.interval.high <= margin
        return "equal" if within else "uncertain"


def geomean(values: Iterable[float]) -> float:
    """Geometric mean of positive values.

    Raises:
        ValueError: there are none
    """
    logs = [math.log(value) for value in values]
    if not logs:
        raise ValueError("expected at least one value, got none")
    return math.exp(sum(logs) / len(logs))


def times(rows: Iterable[Row]) -> dict[tuple[str, str, str], Row]:
    """Rows of device time that have a figure, by job, case and provider."""
    return {
        (row.job, row.case, row.provider): row
        for row in rows
        if row.quantity == "time" and row.value is not None and row.kind == "measured"
    }


def is_fake(results: Results) -> bool:
    """Whether a fake timer made the times."""
    said = str(results.environment.get("timer") or "").startswith("fake")
    return said or any(row.cache == "fake" for row in results.rows)


def speedups(rows: Iterable[Row]) -> list[Speedup]:
    """The ratio of every rival to tritonbn, case by case; the copy is a ceiling and no rival.

    From the rounds that both shared where there were such, else from the medians.
    """
    rows = list(rows)
    found = times(rows)
    shared = {
        (row.job, row.case, row.quantity.removeprefix(RATIO)): row
        for row in rows
        if row.provider == OURS and row.quantity.startswith(RATIO)
    }
    ratios = []
    for (job, case, provider), row in found.items():
        ours = found.get((job, case, OURS))
        if ours is None or provider in (OURS, "copy"):
            continue
        ratio = shared.get((job, case, provider))
        if ratio is not None and ratio.value and ratio.low and ratio.high:
            # theirs over ours where the row has ours over theirs
            log = [-math.log(end) for end in (ratio.value, ratio.high, ratio.low)]
            interval = Interval(*log)
            ratios.append(Speedup(ours, provider, row.backend, 1 / ratio.value, interval))
        elif ours.value and row.value:
            ratios.append(Speedup(ours, provider, row.backend, row.value / ours.value))
    return ratios


def mean_speedup(chosen: Sequence[Speedup]) -> tuple[float, float | None, float | None]:
    """Geometric mean of ratios, and the ends of its interval where every ratio has one.

    Raises:
        ValueError: there are none
    """
    intervals = [item.interval for item in chosen if item.interval is not None]
    if chosen and len(intervals) == len(chosen):
        return mean_of(intervals).as_ratio()
    return geomean(item.ratio for item in chosen), None, None


def tally(chosen: Iterable[Speedup]) -> tuple[int, int, int]:
    """Wins, ties and losses; whatever is not surely beyond the margin is a tie."""
    outcomes = [item.outcome for item in chosen]
    wins, losses = outcomes.count("faster"), outcomes.count("slower")
    return wins, len(outcomes) - wins - losses, losses


def of_sweep(ratios: Sequence[Speedup]) -> list[Speedup]:
    """Those of the sweep alone where there are any: networks repeat some of its cases, and others
    stand for many layers."""
    return [item for item in ratios if item.case.job == "sweep"] or list(ratios)


def step_bytes(rows: Iterable[Row], job: str = "traffic") -> dict[tuple[str, str, str, str], float]:
    """Modelled bytes of ResNet-50's BatchNorm layers in a step, by dtype, layout, mode and
    provider; of the layers alone, or with what follows them if `job` is "fusion". Of what an
    interruption left unfinished there is no sum."""
    sums: dict[tuple[str, str, str, str], float] = defaultdict(float)
    layers: dict[tuple[str, str, str, str], int] = defaultdict(int)
    for row in rows:
        if row.job == job and row.value is not None:
            key = (row.dtype, row.layout, row.mode, row.provider)
            sums[key] += row.value * (row.count or 1)
            layers[key] += row.count or 1
    every = sum(layer.count for layer in RESNET50)
    whole = {key for key, count in layers.items() if count == every}
    return {
        key: value
        for key, value in sums.items()
        # a step is forward and backward
        if all((*key[:2], mode, key[3]) in whole for mode in TRAINING_MODES)
    }


def failed(rows: Iterable[Row]) -> list[Row]:
    """Rows of what failed or was skipped."""
    return [row for row in rows if row.status != "ok"]


def is_ours(provider: str) -> bool:
    """Whether a provider runs tritonbn: alone, with operators behind it, fused, or compiled."""
    return provider == OURS or provider.startswith(f"{OURS} ")


def family(provider: str) -> str:
    """A provider under the name that it has in every layout."""
    return "torch" if provider in EAGER else provider


def red(rows: Iterable[Row]) -> list[Row]:
    """Checks of tritonbn that failed; where a compiler fails with torch's layers too it is no
    fault of ours."""
    lost = [row for row in failed(rows) if row.status == "failed"]
    uncompiled = {(row.job, row.case) for row in lost if row.provider == COMPILER}
    return [
        row
        for row in lost
        if is_ours(row.provider)
        and not (row.provider.endswith(COMPILER) and (row.job, row.case) in uncompiled)
    ]


def has_speed(rows: Iterable[Row]) -> bool:
    """Whether anything was timed: calls on a device, or whole training steps."""
    rows = list(rows)
    steps = (row for row in rows if row.unit == IMAGES_PER_SECOND and row.value is not None)
    return bool(times(rows)) or any(row.kind == "measured" for row in steps)


def exit_code(rows: Sequence[Row]) -> int:
    """0 if every check of tritonbn passed, 4 if one is red; a rival's failure is only listed."""
    return FAILED_ACCURACY if red(rows) else PASSED
