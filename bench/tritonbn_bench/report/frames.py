"""Rows as pandas frames: one line per case and rival, pivots over the plane of sizes, totals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..results import COLUMNS, Row
from ..summary import Speedup, mean_speedup, tally

if TYPE_CHECKING:
    import pandas

__all__ = ["dense", "frame_of", "group_lines", "plane", "speedup_frame"]


def frame_of(rows: Iterable[Row]) -> pandas.DataFrame:
    """Rows, one column per entry of COLUMNS."""
    import pandas

    return pandas.DataFrame([_columns(row) for row in rows], columns=list(COLUMNS))


def _columns(row: Row) -> dict[str, Any]:
    # asdict copies deeply, which takes a hundred times as long
    return {name: getattr(row, name) for name in COLUMNS}


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
                **_columns(row),
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
    once = frame.drop_duplicates(["batch", "channels"])
    return (
        once.pivot(index="batch", columns="channels", values=value).sort_index().sort_index(axis=1)
    )


def dense(frame: pandas.DataFrame, fewest: int) -> pandas.DataFrame:
    """Lines whose batch size has been measured at `fewest` channel counts or more, and the other
    way round: a grid without the lines that cross it."""
    while True:
        across = frame.groupby("batch")["channels"].transform("nunique")
        down = frame.groupby("channels")["batch"].transform("nunique")
        kept = frame[(across >= fewest) & (down >= fewest)]
        if len(kept) == len(frame):
            return kept
        frame = kept


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
