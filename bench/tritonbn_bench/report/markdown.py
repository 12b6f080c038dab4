"""The page in Markdown, its pictures beside it."""

from __future__ import annotations

from collections.abc import Sequence

from ..tables import folded, markdown_table
from .blocks import Block, Picture, Section, Table

__all__ = ["as_markdown"]

# what is open in Markdown; longer ones are folded, for nothing scrolls there
MOST_LINES = 30


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """The whole page.

    Args:
        title: of the page
        sections: in order
    """
    parts = [f"# {title}"]
    for section in sections:
        if section.name == "verdict":
            # sentences of a list, each on its line
            lines = [_words(block) for block in section.blocks]
            parts.append("\n".join(f"- {line}" for line in lines))
            continue
        parts.append(f"## {section.title}")
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _words(block: Block) -> str:
    assert not isinstance(block, Table | Picture)
    return f"**{block.text}**" if block.loud else block.text


def _block(block: Block) -> str:
    if isinstance(block, Table):
        table = markdown_table(block.columns, block.lines)
        note = f"{block.note}\n\n" if block.note else ""
        if block.folded or len(block.lines) > MOST_LINES:
            return folded(block.heading, f"{note}{table}")
        return f"### {block.heading}\n\n{note}{table}"
    if isinstance(block, Picture):
        links = [f"![{_bare(panel.words)}](pictures/{panel.name}.svg)" for panel in block.panels]
        return "\n\n".join(part for part in (f"### {block.heading}", block.note, *links) if part)
    return _words(block)


def _bare(words: str) -> str:
    """Without what would end the words of a link."""
    return words.replace("[", "(").replace("]", ")")
