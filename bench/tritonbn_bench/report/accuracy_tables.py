"""Lines of the tables of errors: the inputs nearest to their bounds, and every input."""

from __future__ import annotations

from collections.abc import Sequence

from ..fusions import FUSIONS
from ..results import Row
from ..summary import OURS

__all__ = ["error_lines", "every_error"]


def error_lines(rows: Sequence[Row]) -> list[tuple[object, ...]]:
    """For each fusion, result and dtype the input nearest to its bound: what follows, result,
    dtype, error, torch's, bound, % of it, % of inputs at least as near as torch, mode, layout,
    data.

    Args:
        rows: of the accuracy job, of tritonbn and of torch, with a figure
    """
    theirs = {_figure(row): row for row in rows if row.provider == "torch"}
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.provider == OURS and _figure(row) in theirs:
            groups.setdefault((row.fusion, _result(row), row.dtype), []).append(row)
    lines: list[tuple[object, ...]] = []
    for (fusion, result, dtype), part in sorted(groups.items()):
        worst = max(part, key=_share)
        near = [(row.value or 0.0) <= (theirs[_figure(row)].value or 0.0) for row in part]
        lines.append(
            (
                FUSIONS[fusion].words,
                result,
                dtype,
                worst.value,
                theirs[_figure(worst)].value,
                worst.bound,
                round(100 * _share(worst)),
                round(100 * sum(near) / len(near)),
                worst.mode,
                worst.layout,
                worst.data,
            )
        )
    return lines


def every_error(rows: Sequence[Row]) -> list[tuple[object, ...]]:
    """Case, data, result, error, torch's, bound; arguments as `error_lines`."""
    theirs = {_figure(row): row for row in rows if row.provider == "torch"}
    return [
        (
            row.case,
            row.data,
            _result(row),
            row.value,
            theirs[_figure(row)].value if _figure(row) in theirs else None,
            row.bound,
        )
        for row in rows
        if row.provider == OURS
    ]


def _figure(row: Row) -> tuple[str, str, str]:
    return (row.case, row.data, row.quantity)


def _share(row: Row) -> float:
    """How much of its bound an error takes; an exact result takes nothing."""
    return row.value / row.bound if row.value and row.bound else 0.0


def _result(row: Row) -> str:
    return row.quantity.removeprefix("error of ")
