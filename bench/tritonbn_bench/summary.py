"""What the rows amount to: verdicts, ratios to rivals, modelled totals. Plain Python."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .environment import Environment
from .fusions import NONE
from .judge.intervals import Interval, mean_of
from .judge.rule import RULE
from .results import RATIO, Results, Row

__all__ = [
    "EAGER",
    "FAKE_TIMER",
    "HOST_DIFFERENCE",
    "LARGEST_GAP",
    "NO_SPEED",
    "OURS",
    "PEAK_BYTES",
    "SAVED_BYTES",
    "STEP_LAUNCHES",
    "UNFUSED",
    "WRONG",
    "Speedup",
    "counted",
    "exit_code",
    "failed",
    "geomean",
    "is_fake",
    "mean_speedup",
    "speedups",
    "step_bytes",
    "tally",
    "times",
    "verdict",
]

OURS = "tritonbn"
# our BatchNorm, with torch's operators behind it
UNFUSED = "tritonbn unfused"
_OURS = (OURS, UNFUSED)
# torch's layers, called one by one
EAGER = ("torch", "torch channels_last")
WRONG = "WRONG RESULTS:"
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
HOST_DIFFERENCE = "tritonbn less torch, forward + backward, minimum"
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

    @property
    def group(self) -> tuple[str, str, str, str, str, str]:
        """What ratios are averaged over: job, mode, fusion, dtype, layout, rival."""
        case = self.case
        return (case.job, case.mode, case.fusion, case.dtype, case.layout, self.rival)


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


def step_bytes(rows: Iterable[Row], job: str = "traffic") -> dict[tuple[str, str, str, str], float]:
    """Modelled bytes of ResNet-50's BatchNorm layers in a step, by dtype, layout, mode and
    provider; of the layers alone, or with what follows them if `job` is "fusion"."""
    sums: dict[tuple[str, str, str, str], float] = defaultdict(float)
    for row in rows:
        if row.job == job and row.value is not None:
            sums[(row.dtype, row.layout, row.mode, row.provider)] += row.value * (row.count or 1)
    return dict(sums)


def failed(rows: Iterable[Row]) -> list[Row]:
    """Rows of what failed or was skipped."""
    return [row for row in rows if row.status != "ok"]


def exit_code(rows: Sequence[Row]) -> int:
    """0 if every check of tritonbn passed, 4 if one is red; a rival's failure is only listed."""
    red = any(row.status == "failed" and row.provider in _OURS for row in rows)
    return FAILED_ACCURACY if red else PASSED


def verdict(results: Results) -> list[str]:
    """The report in a few sentences, what matters most first."""
    rows = results.rows
    sentences = [FAKE_TIMER] if is_fake(results) else []
    red = [row for row in failed(rows) if row.status == "failed" and row.provider in _OURS]
    if red:
        sentences.append(f"{WRONG} {counted(len(red), 'check of tritonbn')} red: see failures.")
    if not times(rows):
        sentences.append(_no_speed(results.environment))
    sentences += _speed_sentences(rows)
    sentences += _step_sentences(rows)
    sentences += _accuracy_sentences(rows)
    sentences += _training_sentences(rows)
    sentences += _host_sentences(rows)
    sentences += _traffic_sentences(rows, "traffic", "BatchNorm of ResNet-50")
    sentences += _traffic_sentences(rows, "fusion", "BatchNorm of ResNet-50 with what follows it")
    sentences += _memory_sentences(rows)
    wrong = [row for row in failed(rows) if row.job not in ("accuracy", "training")]
    if wrong:
        sentences.append(f"{counted(len(wrong), 'figure')} missing: see failures and skips.")
    return sentences or ["Nothing was compared: no rival was timed beside tritonbn."]


def counted(number: int, what: str) -> str:
    """So many of something, and the verb: `2 checks of tritonbn are`."""
    first, *rest = what.split(" ", 1)
    words = " ".join([first if number == 1 else f"{first}s", *rest])
    return f"{number} {words} {'is' if number == 1 else 'are'}"


def _no_speed(environment: Environment) -> str:
    if environment.get("device") == "cuda":
        return "No speed was measured in this run."
    return NO_SPEED


def _speed_sentences(rows: Sequence[Row]) -> list[str]:
    """Against torch's layers, whatever runs in them, against each other rival, and what fusion
    gains; training before inference."""
    groups: dict[tuple[bool, bool, str], list[Speedup]] = defaultdict(list)
    for item in speedups(rows):
        rival = "torch" if item.rival in EAGER else item.rival
        infers = not item.case.mode.endswith("train")
        groups[infers, item.case.fusion != NONE, rival].append(item)
    return [
        f"{'Inference' if infers else 'Training'}{', fused with what follows' if fused else ''}: "
        f"{_in_words(chosen, rival)}"
        for (infers, fused, rival), chosen in sorted(groups.items())
    ]


def _in_words(chosen: Sequence[Speedup], rival: str) -> str:
    """What ratios to one rival come to."""
    mean, low, high = mean_speedup(chosen)
    ends = "" if low is None else f" ({low:.2f} ... {high:.2f})"
    backends = ", ".join(dict.fromkeys(item.backend for item in chosen))
    ratios = [item.ratio for item in chosen]
    text = (
        f"{mean:.2f} x{ends} the speed of {rival} ({backends}) in the geometric mean of "
        f"{len(chosen)} cases, {min(ratios):.2f} to {max(ratios):.2f}"
    )
    if low is None:
        return f"{text}; slower in {sum(ratio < 1 for ratio in ratios)}."
    wins, ties, losses = tally(chosen)
    return f"{text}; faster in {wins}, equal or uncertain in {ties}, slower in {losses}."


def _step_sentences(rows: Sequence[Row]) -> list[str]:
    """What training steps of whole networks come to, beside torch's, where they were timed."""
    ratios = [
        row
        for row in rows
        if row.job == "endtoend" and row.quantity == f"{RATIO}torch" and row.value
    ]
    return [
        f"End to end: a {case.replace('/', ', ')} runs "
        + ", ".join(f"{_turned(row)} ({row.provider})" for row in chosen)
        + " as fast as with torch's layers."
        for case in dict.fromkeys(row.case for row in ratios)
        for chosen in ([row for row in ratios if row.case == case],)
    ]


def _turned(row: Row) -> str:
    """A ratio of our time to a rival's as the rival's to ours, with its interval."""
    text = f"{1 / row.value:.2f} x" if row.value else "-"
    return f"{text} [{1 / row.high:.2f} ... {1 / row.low:.2f}]" if row.low and row.high else text


def _accuracy_sentences(rows: Sequence[Row]) -> list[str]:
    ours = [row for row in rows if row.job == "accuracy" and row.provider == OURS]
    if not ours:
        return []
    good = [row for row in ours if row.status == "ok"]
    shares = [(row.value / row.bound, row) for row in good if row.value is not None and row.bound]
    sentence = f"Accuracy: {len(good)} of {len(ours)} results keep the bound"
    if shares:
        share, worst = max(shares, key=lambda pair: pair[0])
        sentence += (
            f"; the nearest to it reaches {share:.0%} ({worst.quantity}, {worst.dtype}, "
            f"{worst.layout}, {worst.data})"
        )
    return [f"{sentence}."]


def _training_sentences(rows: Sequence[Row]) -> list[str]:
    training = [row for row in rows if row.job == "training"]
    gaps = [row for row in training if row.quantity == "largest loss gap"]
    if not gaps:
        return []
    if any(row.value is None for row in gaps):
        reason = next(row.reason for row in gaps if row.value is None)
        return [f"Training: not compared ({reason})."]
    steps = 1 + max(row.step for row in training if row.step is not None)
    outcome = "agree" if all(row.status == "ok" for row in gaps) else "DISAGREE"
    largest = max(row.value or 0.0 for row in gaps)
    launches = _side_by_side(training, STEP_LAUNCHES, 1.0, "")
    saved = _side_by_side(training, SAVED_BYTES, 1e6, " MB")
    return [
        f"Training: SimpleCNN with torch's layers, ours, and ours with the activations in them "
        f"{outcome} over {steps} steps on digits; largest loss gap {largest:.2g}, allowed "
        f"{gaps[0].bound:g}.",
        f"A step of it launches for BatchNorm and activation {launches}, and keeps for its "
        f"backward pass {saved}.",
    ]


def _side_by_side(rows: Sequence[Row], quantity: str, scale: float, unit: str) -> str:
    """A figure of every provider, in the order of the rows."""
    return ", ".join(
        f"{(row.value or 0.0) / scale:.4g}{unit} ({row.provider})"
        for row in rows
        if row.quantity == quantity
    )


def _host_sentences(rows: Sequence[Row]) -> list[str]:
    return [
        f"Host cost: forward + backward of a tiny layer takes {abs(row.value):.1f} us "
        f"{'more' if row.value > 0 else 'less'} than torch's on the CPU, kernels launched into a "
        "driver that does nothing."
        for row in rows
        if row.quantity == HOST_DIFFERENCE and row.value is not None
    ]


def _memory_sentences(rows: Sequence[Row]) -> list[str]:
    saved = [row for row in rows if row.job == "memory" and row.quantity == SAVED_BYTES]
    return [
        f"Memory computed by accounting: a training step of ResNet-50, N = {chosen[0].batch}, "
        f"{chosen[0].dtype}, {data}, keeps for its backward pass "
        + ", ".join(f"{(row.value or 0.0) / 1e9:.2f} GB ({row.backend})" for row in chosen)
        + "."
        for data in dict.fromkeys(row.data for row in saved)
        for chosen in ([row for row in saved if row.data == data],)
    ]


def _traffic_sentences(rows: Sequence[Row], job: str, what: str) -> list[str]:
    """Of the smallest dtype alone: the others move as many times more."""
    moved = step_bytes(rows, job)
    shown = min((key[0] for key in moved), key=("bf16", "fp16", "fp32", "fp64").index, default="")
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for (dtype, layout, _, provider), value in moved.items():
        if dtype == shown:
            sums[layout][provider] += value / 1e9
    return [
        f"Traffic by formula, not measured: {what} in {shown}, {layout} moves "
        + ", ".join(f"{value:.2f} GB ({provider})" for provider, value in providers.items())
        + " in a training step."
        for layout, providers in sums.items()
    ]
