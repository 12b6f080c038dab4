"""Lines of the tables of errors: the inputs nearest to their bounds, and every input.

A result that is not finite has no figure in its row. Here it is infinite, and comes first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..fusions import FUSIONS
from ..results import Row
from ..summary import OURS

__all__ = ["error_lines", "every_error"]


def error_lines(rows: Sequence[Row]) -> list[tuple[object, ...]]:
    """For each fusion, result and dtype the input nearest to its bound: what follows, result,
    dtype, error, torch's, bound, % of it, % of inputs at least as near as torch, mode, layout,
    data. What is not finite comes before all the rest.

    Args:
        rows: of the accuracy job, of tritonbn and of torch, none skipped
    """
    theirs = {_figure(row): row for row in rows if row.provider == "torch"}
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.provider == OURS and _figure(row) in theirs:
            groups.setdefault((row.fusion, _result(row), row.dtype), []).append(row)
    lines: list[tuple[object, ...]] = []
    for (fusion, result, dtype), part in sorted(groups.items()):
        worst = max(part, key=_share)
        near = [row.value is not None and row.value <= _error(theirs[_figure(row)]) for row in part]
        share = _share(worst)
        lines.append(
            (
                FUSIONS[fusion].words,
                result,
                dtype,
                _error(worst),
                _error(theirs[_figure(worst)]),
                worst.bound,
                round(100 * share) if share < math.inf else share,
                round(100 * sum(near) / len(near)),
                worst.mode,
                worst.layout,
                worst.data,
            )
        )
    return sorted(lines, key=lambda line: line[3] != math.inf)


def every_error(rows: Sequence[Row]) -> list[tuple[object, ...]]:
    """Case, data, result, error, torch's, bound, as they came after what is not finite; arguments
    as `error_lines`."""
    theirs = {_figure(row): row for row in rows if row.provider == "torch"}
    ours = [row for row in rows if row.provider == OURS]
    return [
        (
            row.case,
            row.data,
            _result(row),
            _error(row),
            _error(theirs[_figure(row)]) if _figure(row) in theirs else None,
            row.bound,
        )
        for row in sorted(ours, key=lambda row: row.value is not None)
    ]


def _figure(row: Row) -> tuple[str, str, str]:
    return (row.case, row.data, row.quantity)


def _error(row: Row) -> float:
    return math.inf if row.value is None else row.value


def _share(row: Row) -> float:
    """How much of its bound an error takes; an exact result takes nothing. Without a bound, where
    torch's own result is not finite, what failed takes more than any."""
    if row.value is None or (row.bound is None and row.status == "failed"):
        return math.inf
    return row.value / row.bound if row.bound else 0.0


def _result(row: Row) -> str:
    return row.quantity.removeprefix("error of ")
