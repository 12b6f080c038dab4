"""Rows as pandas frames: one line per case and rival, pivots over the plane of sizes, totals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..results import COLUMNS, Row
from ..summary import Speedup, mean_speedup, tally

if TYPE_CHECKING:
    import pandas

__all__ = ["by_provider", "frame_of", "group_lines", "plane", "speedup_frame"]


def frame_of(rows: Iterable[Row]) -> pandas.DataFrame:
    """Rows, one column per entry of COLUMNS."""
    import pandas

    return pandas.DataFrame([asdict(row) for row in rows], columns=list(COLUMNS))


def speedup_frame(chosen: Sequence[Speedup]) -> pandas.DataFrame:
    """Ratios with what they are of: job, case, mode, dtype, layout, fusion, batch, channels, rival,
    backend, ratio, low, high and outcome; low and high are NaN without an interval."""
    import pandas

    lines = []
    for item in chosen:
        row, interval = item.case, item.interval
        ends = interval.as_ratio()[1:] if interval is not None else (float("nan"), float("nan"))
        lines.append(
            {
                **asdict(row),
                "rival": item.rival,
                "backend": item.backend,
                "ratio": item.ratio,
                "low": ends[0],
                "high": ends[1],
                "outcome": item.outcome,
            }
        )
    names = ("rival", "ratio", "outcome")
    return pandas.DataFrame(lines, columns=[*COLUMNS, *names])


def plane(frame: pandas.DataFrame, value: str) -> pandas.DataFrame:
    """A column over the plane: batch sizes down, channels across; NaN where nothing was measured.

    Args:
        frame: of one mode, dtype and layout
        value: name of the column
    """
    return frame.pivot_table(index="batch", columns="channels", values=value, aggfunc="first")


def by_provider(rows: Iterable[Row], value: str = "value") -> pandas.DataFrame:
    """One line per job and case, one column per provider, in the order of the rows."""
    frame = frame_of(rows)
    providers = list(dict.fromkeys(frame["provider"]))
    wide = frame.pivot_table(
        index=["job", "case", "data"],
        columns="provider",
        values=value,
        aggfunc="first",
        sort=False,
    )
    return wide.reindex(columns=providers)


def group_lines(chosen: Sequence[Speedup]) -> list[tuple[object, ...]]:
    """One line per mode, fusion, dtype, layout, rival and what ran of it: geometric mean, its
    interval, least, most, wins, ties, losses, cases."""
    frame = speedup_frame(chosen)
    keys = ["mode", "fusion", "dtype", "layout", "rival", "backend"]
    lines: list[tuple[object, ...]] = []
    for key, part in frame.groupby(keys, sort=True):
        items = [chosen[index] for index in part.index]
        lines.append(
            (
                *key,
                *mean_speedup(items),
                float(part["ratio"].min()),
                float(part["ratio"].max()),
                *tally(items),
                len(items),
            )
        )
    return lines
