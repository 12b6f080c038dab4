"""Markdown tables of the report: cells, one line per case, worst results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .fusions import FUSIONS, NONE
from .results import Row
from .summary import OURS, UNFUSED, times

__all__ = [
    "case_table",
    "error_tables",
    "folded",
    "markdown_table",
    "side_by_side",
    "traffic_table",
]


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A Markdown table: columns of numbers to the right, the others to the left."""
    values = [list(line) for line in lines]
    marks = []
    for column in zip(*values, strict=True):
        numbers = all(isinstance(value, int | float | None) for value in column)
        marks.append("---:" if numbers else "---")
    cells = [[_cell(value) for value in line] for line in values]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(head), marks, *cells])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1e4 or abs(value) >= 1e6 else f"{value:.0f}"
    return str(value).replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


def folded(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{content}\n\n</details>"


def case_table(rows: Sequence[Row], l2_bytes: int) -> str:
    """One line per case: time of every provider in us, the backend where torch chose it.

    Args:
        rows: of one job
        l2_bytes: size of the L2 cache; cases whose floor bytes fit are marked, as they may pass
            the copy of a larger case
    """
    found = times(rows)
    walls = {row.case: row for row in rows if (row.provider, row.quantity) == (OURS, "wall time")}
    cases = list(dict.fromkeys(case for _, case, _ in found))
    by_case = {(case, provider): row for (_, case, provider), row in found.items()}
    lines = []
    for case in cases:
        rivals = [name for name in ("torch", "torch channels_last") if (case, name) in by_case]
        rival = by_case.get((case, rivals[0])) if rivals else None
        ours, compiled = by_case.get((case, OURS)), by_case.get((case, "torch.compile"))
        copy = by_case.get((case, "copy"))
        unfused = by_case.get((case, UNFUSED))
        first = next(row for row in (ours, unfused, rival, compiled, copy) if row is not None)
        lines.append(
            (
                f"`{case}`",
                first.count,
                _micro(ours),
                _micro(unfused),
                _micro(rival),
                rival.backend if rival else None,
                _micro(compiled),
                _micro(copy),
                _ratio(unfused, ours),
                _ratio(rival, ours),
                _percent(copy, ours),
                _remarks(ours, walls.get(case), l2_bytes),
            )
        )
    head = (
        "case",
        "layers",
        "tritonbn, us",
        "unfused, us",
        "torch, us",
        "torch ran",
        "compile, us",
        "copy, us",
        "unfused / tritonbn",
        "torch / tritonbn",
        "% of copy",
        "remarks",
    )
    return folded("Every case", markdown_table(head, lines))


def _remarks(ours: Row | None, wall: Row | None, l2_bytes: int) -> str:
    """Whether the host or the L2 cache decides about our figure."""
    remarks = []
    if wall is not None and wall.host_bound:
        remarks.append("host-bound")
    if ours is not None and (ours.floor_bytes or 0) < l2_bytes:
        remarks.append("fits L2")
    return ", ".join(remarks)


def _micro(row: Row | None) -> float | None:
    return None if row is None or row.value is None else 1e3 * row.value


def _ratio(first: Row | None, second: Row | None) -> float | None:
    if first is None or second is None or not first.value or not second.value:
        return None
    return first.value / second.value


def _percent(copy: Row | None, ours: Row | None) -> str | None:
    ratio = _ratio(copy, ours)
    return None if ratio is None else f"{ratio:.0%}"


def _figure_key(row: Row) -> tuple[str, str, str]:
    return (row.case, row.data, row.quantity)


def _share(row: Row) -> float:
    """How much of its bound an error takes; an exact result takes nothing."""
    return row.value / row.bound if row.value and row.bound else 0.0


def _group(row: Row) -> tuple[str, str, str]:
    """What shares a line of the table of the nearest to their bounds."""
    return (row.fusion, _result(row), row.dtype)


def _at_least_as_near(
    ours: Sequence[Row], torchs: dict[tuple[str, str, str], Row], group: Row
) -> str:
    pairs = [
        (row.value or 0.0, torchs[_figure_key(row)].value or 0.0)
        for row in ours
        if _group(row) == _group(group)
    ]
    return f"{sum(mine <= theirs for mine, theirs in pairs) / len(pairs):.0%}"


def error_tables(rows: Sequence[Row]) -> tuple[str, str, str]:
    """For each result and dtype the input nearest to its bound, of BatchNorm alone and of what
    follows it too; and every result.

    Args:
        rows: of the accuracy job, of tritonbn and of torch, with a figure
    """
    ours = [row for row in rows if row.provider == OURS]
    torchs = {_figure_key(row): row for row in rows if row.provider == "torch"}
    worst: dict[tuple[str, str, str], Row] = {}
    for row in ours:
        group = _group(row)
        if group not in worst or _share(row) > _share(worst[group]):
            worst[group] = row
    head = ("result", "dtype", "tritonbn", "torch", "bound", "of bound", "at least as near")
    lines = [
        (
            FUSIONS[group[0]].words,
            *group[1:],
            row.value,
            torchs[_figure_key(row)].value,
            row.bound,
            f"{_share(row):.0%}",
            _at_least_as_near(ours, torchs, row),
            row.mode,
            row.layout,
            row.data,
        )
        for group, row in sorted(worst.items())
    ]
    nothing = FUSIONS[NONE].words
    columns = (*head, "mode", "layout", "data")
    fused = [line for line in lines if line[0] != nothing]
    every = [
        (
            f"`{row.case}`",
            row.data,
            _result(row),
            row.value,
            torchs[_figure_key(row)].value,
            row.bound,
        )
        for row in ours
    ]
    return (
        markdown_table(columns, [line[1:] for line in lines if line[0] == nothing]),
        markdown_table(("followed by", *columns), fused) if fused else "",
        markdown_table(("case", "data", "result", "tritonbn", "torch", "bound"), every),
    )


def _result(row: Row) -> str:
    return row.quantity.removeprefix("error of ")


def side_by_side(rows: Sequence[Row], providers: Sequence[str]) -> str:
    """One line per quantity, one column per provider, and what is allowed."""
    found = {(row.quantity, row.provider): row for row in rows}
    lines = []
    for quantity in dict.fromkeys(row.quantity for row in rows):
        cells = [found.get((quantity, provider)) for provider in providers]
        bound = next((row.bound for row in cells if row and row.bound is not None), None)
        unit = next(row.unit for row in cells if row is not None)
        label = quantity if unit == "1" else f"{quantity}, {unit}"
        # bytes to the last one
        values = [row and row.value for row in cells]
        lines.append((label, *[int(v) if v and v == int(v) else v for v in values], bound))
    return markdown_table(("quantity", *providers, "allowed"), lines)


def traffic_table(rows: Sequence[Row]) -> str:
    """Modelled megabytes (1e6) of one layer of every shape, one column per provider."""
    providers = list(dict.fromkeys(row.provider for row in rows))
    found = {(row.case, row.provider): row for row in rows}
    lines = []
    for case in dict.fromkeys(row.case for row in rows):
        columns = [found[(case, provider)] for provider in providers]
        figures = [(row.value or 0.0) / 1e6 for row in columns]
        lines.append((f"`{case}`", columns[0].count, *figures, columns[0].origin))
    return markdown_table(("case", "layers", *providers, "origin"), lines)
