"""Cells and Markdown tables, as reports and gates write them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

__all__ = ["cell", "folded", "is_number", "markdown_table"]


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A Markdown table: columns of numbers to the right, the others to the left."""
    values = [list(line) for line in lines]
    marks = []
    for column in zip(*values, strict=True):
        marks.append("---:" if is_number(column) else "---")
    cells = [[_escaped(cell(value)) for value in line] for line in values]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(head), marks, *cells])


def is_number(column: Sequence[object]) -> bool:
    """Whether a column holds numbers, or nothing."""
    return all(isinstance(value, int | float | None) for value in column)


def cell(value: object) -> str:
    """A value as tables show it: three digits of a number that is not whole, and words for one that
    is not finite."""
    if value is None:
        return "-"
    if isinstance(value, float) and not math.isfinite(value):
        return "not finite"
    if isinstance(value, float):
        # by what they are rounded to: three digits of 999.7 would be 1e+03
        whole = 999.5 <= abs(value) < 999_999.5
        return f"{value:.0f}" if whole else f"{value:.3g}"
    return str(value)


# what is code, and what Markdown would take for a mark: within a word an underscore is none
_CODE = re.compile(r"(`[^`]+`)")
_MARKS = re.compile(r"[*$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def _escaped(text: str) -> str:
    """For a cell; a renderer drops a tag that it does not know, and with it what looks like one."""
    # code and others take turns; in code nothing is a mark but what ends a cell
    parts = _CODE.split(text.replace("\n", " "))
    parts[::2] = [_MARKS.sub(r"\\\g<0>", part).replace("<", "&lt;") for part in parts[::2]]
    return "".join(parts).replace("|", "\\|")


def folded(title: str, content: str) -> str:
    """Markdown that is shown on demand."""
    return f"<details><summary>{title}</summary>\n\n{content}\n\n</details>"
