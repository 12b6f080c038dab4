"""Rows of what was timed together: times, ratios, the share of a copy's speed, memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tritonbn_kernels.traffic import floor_bytes

from .cases import Case
from .judge.intervals import log_ratio
from .judge.rule import Rule
from .measure import Timed
from .results import DROPPED, GRAPH_TIME, HOST_BOUND, RATIO, SHARE, Row, throughput_row
from .summary import OURS
from .timer import Samples

__all__ = [
    "COPY",
    "DROPPED",
    "HOST_BOUND",
    "RATIO",
    "SHARE",
    "failed_row",
    "figure_row",
    "graph_row",
    "ratio_row",
    "share_row",
    "time_rows",
]

COPY = "copy"


def time_rows(job: str, case: Case, provider: str, backend: str, samples: Samples) -> list[Row]:
    """Rows of one provider's times: device time, throughput, host wall time.

    Args:
        job: name of the job
        case: what was timed
        provider: who
        backend: what really ran
        samples: the times of its rounds
    """
    time = _row(
        job,
        case,
        provider,
        "time",
        unit="ms",
        value=samples.median,
        low=samples.low,
        high=samples.high,
        samples=len(samples.device_ms),
        backend=backend,
        cache=samples.cache,
    )
    wall = _row(
        job,
        case,
        provider,
        "wall time",
        unit="ms",
        value=samples.wall_ms,
        backend=backend,
        # calls follow one another, so what fits stays in the caches
        cache="hot",
        host_bound=samples.wall_ms > HOST_BOUND * samples.median,
    )
    return [time, throughput_row(time), wall]


def graph_row(
    job: str, case: Case, provider: str, backend: str, cache: str, outcome: float | str
) -> Row:
    """The time of a call that a CUDA graph replays, or why it could not be captured.

    Args:
        outcome: ms, or the reason
    """
    row = _row(job, case, provider, GRAPH_TIME, unit="ms", backend=backend, cache=cache)
    if isinstance(outcome, str):
        return replace(row, status="skipped", reason=outcome)
    return replace(row, value=outcome)


def ratio_row(
    job: str, case: Case, rival: str, backends: Mapping[str, str], timed: Timed, rule: Rule
) -> Row:
    """Time of tritonbn over that of a rival, from the same rounds; below 1 tritonbn is faster.

    Args:
        job: name of the job
        case: what was timed
        rival: timed together with tritonbn
        backends: what really ran, by provider
        timed: the rounds
        rule: of the interval
    """
    value, low, high = log_ratio(timed.rounds, OURS, rival, rule.for_case(case.id)).as_ratio()
    backend = f"{backends[OURS]} / {backends[rival]}"
    row = _row(job, case, OURS, f"{RATIO}{rival}", backend=backend, cache=timed.cache)
    return replace(row, value=value, low=low, high=high, samples=len(timed.rounds))


def share_row(
    job: str, case: Case, provider: str, backend: str, timed: Timed, copy_bytes: int, rule: Rule
) -> Row:
    """Speed of a provider on the case's floor bytes over the speed of the copy of the same rounds;
    1 is what the memory gives.

    Args:
        job: name of the job
        case: what was timed
        provider: who
        backend: what really ran
        timed: the rounds, the copy's among them
        copy_bytes: what the copy reads and writes
        rule: of the interval
    """
    interval = log_ratio(timed.rounds, COPY, provider, rule.for_case(case.id))
    scale = case.moved(floor_bytes) / copy_bytes
    value, low, high = (
        scale * math.exp(item) for item in (interval.estimate, interval.low, interval.high)
    )
    row = _row(job, case, provider, SHARE, backend=backend, cache=timed.cache)
    return replace(row, value=value, low=low, high=high, samples=len(timed.rounds))


def figure_row(
    job: str,
    case: Case,
    provider: str,
    quantity: str,
    value: float,
    *,
    unit: str = "1",
    samples: int | None = None,
    backend: str = "",
) -> Row:
    """A plain figure of a provider, such as bytes of memory or rounds that were dropped."""
    return _row(
        job, case, provider, quantity, value=value, unit=unit, samples=samples, backend=backend
    )


def failed_row(job: str, case: Case, provider: str, reason: str) -> Row:
    """The row of a provider without a figure."""
    return _row(job, case, provider, "time", unit="ms", status="failed", reason=reason)


def _row(job: str, case: Case, provider: str, quantity: str, **columns: Any) -> Row:
    return Row(
        job=job,
        kind="measured",
        case=case.id,
        provider=provider,
        quantity=quantity,
        floor_bytes=case.moved(floor_bytes),
        **case.columns,
        **columns,
    )
