"""A report: one HTML page, and Markdown with pictures, from the tidy table alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..results import Results

if TYPE_CHECKING:
    from .blocks import Section

__all__ = ["write_comparison", "write_report"]


def write_report(results: Results, folder: Path) -> Path:
    """Write `index.html`, `index.md` with `pictures/`, and `results.csv`; the path of the page.

    Raises:
        ImportError: pandas, matplotlib or jinja2 is missing
    """
    from .sections import sections_of, title_of

    folder.mkdir(parents=True, exist_ok=True)
    results.write_csv(folder)
    return _write(title_of(results), sections_of(results), {"results": results}, folder)


def write_comparison(first: Results, second: Results, folder: Path) -> Path:
    """Write what became of the figures of `first` in `second`: `index.html`, `index.md` with
    `pictures/`; the path of the page.

    Raises:
        ImportError: pandas, matplotlib or jinja2 is missing
        ValueError: the two were measured on different machines
    """
    from .comparison import comparison_sections, comparison_title

    sections = comparison_sections(first, second)
    title = comparison_title(first, second)
    return _write(title, sections, {"A": first, "B": second}, folder)


def _write(
    title: str, sections: Sequence[Section], data: Mapping[str, Results], folder: Path
) -> Path:
    from .blocks import Picture
    from .canvas import on_paper, render
    from .markdown import as_markdown
    from .page import as_html

    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    drawn = {
        panel.name: render(panel, block.kind)
        for section in sections
        for block in section.blocks
        if isinstance(block, Picture)
        for panel in block.panels
    }
    # what an earlier page showed and this one does not
    for stale in pictures.glob("*.svg"):
        stale.unlink()
    for name, svg in drawn.items():
        (pictures / f"{name}.svg").write_text(on_paper(svg), encoding="utf-8")
    (folder / "index.md").write_text(as_markdown(title, sections), encoding="utf-8")
    page = folder / "index.html"
    page.write_text(as_html(title, sections, drawn, data), encoding="utf-8")
    return page
