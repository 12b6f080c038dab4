"""A report in sentences, what matters most first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from .cases import suite
from .environment import Environment
from .fusions import NONE
from .results import RATIO, Results, Row
from .summary import (
    EAGER,
    FAKE_TIMER,
    HOST_DIFFERENCE,
    NO_SPEED,
    OURS,
    SAVED_BYTES,
    STEP_LAUNCHES,
    UNFUSED,
    WRONG,
    Speedup,
    failed,
    family,
    has_speed,
    is_fake,
    mean_speedup,
    red,
    speedups,
    step_bytes,
    tally,
    times,
)

__all__ = ["counted", "step_sentences", "verdict"]

# jobs whose cases are a declared suite, in the words of a sentence
_SUITES = {
    "sweep": "the sweep",
    "resnet50": "ResNet-50's layers",
    "networks": "the layers of networks",
}
_KINDS = {
    "forward_train": "Training",
    "backward_train": "Training",
    "both_train": "Training",
    "forward_eval": "Inference",
    "backward_eval": "Backward with fixed statistics",
}


def verdict(results: Results) -> list[str]:
    """The report in a few sentences, what matters most first."""
    rows = results.rows
    sentences = [FAKE_TIMER] if is_fake(results) else []
    wrong = red(rows)
    if wrong:
        sentences.append(f"{WRONG} {counted(len(wrong), 'check of tritonbn')} red: see failures.")
    if not has_speed(rows):
        sentences.append(_no_speed(results.environment))
    # what who trains asks first
    sentences += step_sentences(rows)
    sentences += _speed_sentences(rows)
    sentences += _unfinished(results)
    sentences += _accuracy_sentences(rows)
    sentences += _training_sentences(rows)
    sentences += _host_sentences(rows)
    sentences += _traffic_sentences(rows, "traffic", "BatchNorm of ResNet-50")
    sentences += _traffic_sentences(rows, "fusion", "BatchNorm of ResNet-50 with what follows it")
    sentences += _memory_sentences(rows)
    missing = [row for row in failed(rows) if row.job not in ("accuracy", "training")]
    if missing:
        sentences.append(f"{counted(len(missing), 'figure')} missing: see failures and skips.")
    return sentences


def counted(number: int, what: str) -> str:
    """So many of something, and the verb: `2 checks of tritonbn are`."""
    return f"{_number(number, what)} {'is' if number == 1 else 'are'}"


def _number(number: int, what: str) -> str:
    first, *rest = what.split(" ", 1)
    return f"{number} {' '.join([first if number == 1 else f'{first}s', *rest])}"


def _no_speed(environment: Environment) -> str:
    if environment.get("device") == "cuda":
        return "No speed was measured in this run."
    return NO_SPEED


def _speed_sentences(rows: Sequence[Row]) -> list[str]:
    """Against torch's layers, whatever runs in them, against each other rival, and what fusion
    gains; training before inference, the sweep before networks."""
    ratios = speedups(rows)
    if not ratios:
        timed = any(provider == OURS for _, _, provider in times(rows))
        return ["Nothing was compared: no rival was timed beside tritonbn."] if timed else []
    jobs = list(dict.fromkeys(item.case.job for item in ratios))
    jobs.sort(key=lambda job: [*_SUITES, job].index(job))
    return [sentence for job in jobs for sentence in _of_job(job, jobs[0], ratios)]


def _of_job(job: str, first: str, ratios: Sequence[Speedup]) -> Iterator[str]:
    """All rivals of the first job, and of those that follow torch's layers alone."""
    chosen = [item for item in ratios if item.case.job == job]
    modes = {item.case.mode for item in chosen}
    groups: dict[tuple[int, bool, str], list[Speedup]] = defaultdict(list)
    for item in chosen:
        # forward and backward are there already, each by itself
        again = item.case.mode == "both_train" and "forward_train" in modes
        rival = family(item.rival)
        if not again and (job == first or rival == "torch"):
            kind = [*_KINDS].index(item.case.mode) if item.case.mode in _KINDS else len(_KINDS)
            training = item.case.mode.endswith("train")
            groups[0 if training else kind, item.case.fusion != NONE, rival].append(item)
    place = f", {_SUITES[job]}" if job != first and job in _SUITES else ""
    for (_, fused, rival), part in sorted(groups.items()):
        words = _KINDS.get(part[0].case.mode, part[0].case.mode)
        behind = ", fused with what follows" if fused else ""
        yield f"{words}{place}{behind}: {_in_words(part, rival)}"


def _in_words(chosen: Sequence[Speedup], rival: str) -> str:
    """What ratios to one rival come to."""
    mean, low, high = mean_speedup(chosen)
    ends = "" if low is None else f" ({low:.2f} ... {high:.2f})"
    backends = ", ".join(dict.fromkeys(item.backend for item in chosen))
    ratios = [item.ratio for item in chosen]
    text = (
        f"{mean:.2f} x{ends} the speed of {rival} ({backends}) in the geometric mean of "
        f"{_number(len(chosen), 'case')}, {min(ratios):.2f} to {max(ratios):.2f}"
    )
    if low is None:
        return f"{text}; slower in {sum(ratio < 1 for ratio in ratios)}."
    wins, ties, losses = tally(chosen)
    return f"{text}; faster in {wins}, equal or uncertain in {ties}, slower in {losses}."


def step_sentences(rows: Sequence[Row]) -> list[str]:
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


def _unfinished(results: Results) -> list[str]:
    """Suites of which not every case was timed, and rivals that were timed in fewer cases."""
    quick = bool(results.environment.get("quick"))
    sentences = []
    for job, words in _SUITES.items():
        tried: dict[str, set[str]] = defaultdict(set)
        for row in results.rows:
            if row.job == job:
                tried[row.provider].add(row.case)
        cases, planned = tried.get(OURS, set()), len(suite(job, quick=quick))
        fewer = {
            name: len(found & cases)
            for name, found in tried.items()
            # these are not for every case
            if name not in (*EAGER, UNFUSED) and len(found & cases) < len(cases)
        }
        if tried and (len(cases) < planned or fewer):
            others = "".join(f", {name} in {count}" for name, count in fewer.items())
            sentences.append(
                f"UNFINISHED: {len(cases)} of {planned} cases of {words} were tried{others}; go on "
                "with --resume."
            )
    return sentences


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
    skipped = [row for row in gaps if row.status == "skipped"]
    if skipped:
        return [f"Training: not compared ({skipped[0].reason})."]
    steps = 1 + max((row.step for row in training if row.step is not None), default=-1)
    outcome = "agree" if all(row.status == "ok" for row in gaps) else "DISAGREE"
    values = [row.value for row in gaps]
    # a gap that is not finite has no value
    known = [value for value in values if value is not None]
    largest = f"{max(known):.2g}" if len(known) == len(values) else "not finite"
    launches = _side_by_side(training, STEP_LAUNCHES, 1.0, "")
    saved = _side_by_side(training, SAVED_BYTES, 1e6, " MB")
    return [
        f"Training: SimpleCNN with torch's layers, ours, and ours with the activations in them "
        f"{outcome} over {steps} steps on digits; largest loss gap {largest}, allowed "
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
        f"{'more' if row.value > 0 else 'less'} than torch's on the CPU (median of pairs), kernels "
        "launched into a driver that does nothing."
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
    order = ("bf16", "fp16", "fp32", "fp64")
    shown = min((key[0] for key in moved), key=order.index, default="")
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
