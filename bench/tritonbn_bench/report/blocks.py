"""What a page is made of: sections of words, tables and pictures.

A table or a picture is made from rows, and the rows decide what it is called: measured, modelled or
static. Rows of two kinds never share one, so no figure can be taken for what it is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..results import Results, Row
from ..summary import Speedup, is_fake
from .canvas import FAKE, LABELS, Panel

__all__ = ["Block", "Draft", "Picture", "Section", "Table", "Words"]


@dataclass(frozen=True)
class Words:
    """A paragraph; the gravest are `loud`."""

    text: str
    loud: bool = False


@dataclass(frozen=True)
class Table:
    """A table of figures of one kind, or of facts.

    Attributes:
        name: unique in a report
        title: without its kind
        kind: key of LABELS; empty for facts
        columns: their heads
        lines: of cells: None, words or numbers
        note: a sentence below the title
        folded: shown on demand
    """

    name: str
    title: str
    kind: str
    columns: tuple[str, ...]
    lines: tuple[tuple[object, ...], ...]
    note: str = ""
    folded: bool = False

    @property
    def heading(self) -> str:
        """Title and kind."""
        return f"{self.title} ({LABELS[self.kind]})" if self.kind else self.title


@dataclass(frozen=True)
class Picture:
    """Panels of figures of one kind, side by side where there is room; as `Table`."""

    name: str
    title: str
    kind: str
    panels: tuple[Panel, ...]
    note: str = ""

    @property
    def heading(self) -> str:
        """Title and kind."""
        return f"{self.title} ({LABELS[self.kind]})"


Block = Words | Table | Picture


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: unique in a report
        title: of the section
        blocks: in order
    """

    name: str
    title: str
    blocks: tuple[Block, ...]


@dataclass
class Draft:
    """Makes blocks of the rows of a report.

    Attributes:
        results: of the report
        fake: whether a fake timer made the times
    """

    results: Results
    fake: bool = field(init=False)

    def __post_init__(self) -> None:
        self.fake = is_fake(self.results)

    @property
    def rows(self) -> list[Row]:
        """All of them."""
        return self.results.rows

    def of(self, *jobs: str, quantity: str = "") -> list[Row]:
        """Rows of jobs with a figure, of one quantity if one is named."""
        return [
            row
            for row in self.rows
            if row.job in jobs and row.value is not None and quantity in ("", row.quantity)
        ]

    def used(self, ratios: Iterable[Speedup]) -> list[Row]:
        """The rows that ratios come from."""
        keys = {(item.case.job, item.case.case) for item in ratios}
        return [row for row in self.rows if (row.job, row.case) in keys and row.value is not None]

    def kind(self, rows: Iterable[Row]) -> str:
        """The kind that rows share; measured by a fake timer is a kind of its own.

        Raises:
            ValueError: there are no rows, or rows of two kinds
        """
        kinds = sorted({row.kind for row in rows})
        if len(kinds) != 1:
            raise ValueError(f"expected rows of one kind, got {' and '.join(kinds) or 'none'}")
        return FAKE if self.fake and kinds[0] == "measured" else kinds[0]

    def table(
        self,
        rows: Iterable[Row],
        name: str,
        title: str,
        columns: Sequence[str],
        lines: Iterable[Sequence[object]],
        note: str = "",
        *,
        folded: bool = False,
    ) -> Table:
        """A table of the figures of `rows`; arguments as the fields of `Table`."""
        cells = tuple(tuple(line) for line in lines)
        return Table(name, title, self.kind(rows), tuple(columns), cells, note, folded)

    def picture(
        self, rows: Iterable[Row], name: str, title: str, panels: Iterable[Panel], note: str = ""
    ) -> Picture:
        """A picture of the figures of `rows`; arguments as the fields of `Picture`."""
        return Picture(name, title, self.kind(rows), tuple(panels), note)
