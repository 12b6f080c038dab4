"""The page in HTML: one file, from which no request goes out."""

from __future__ import annotations

import base64
import gzip
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from ..results import Results
from ..summary import FAKE_TIMER, is_fake
from ..tables import cell, is_number
from .blocks import Block, Picture, Section, Table
from .canvas import LABELS, themed

__all__ = ["as_html"]

# tables of fewer lines need no filter
FEWEST_TO_FILTER = 20
# a style that occurs as often is said once for the page
FEWEST_TO_SHARE = 4
_STYLED = r' style="([^"]+)"'
# letters of a cell that is not broken into lines
LONGEST_UNBROKEN = 34
# of the numbers in the page's copy of the data; the file beside it has them all
DIGITS = 6


def as_html(
    title: str,
    sections: Sequence[Section],
    drawn: Mapping[str, str],
    data: Mapping[str, Results],
) -> str:
    """The whole page.

    Args:
        title: of the page
        sections: in order
        drawn: SVG by the name of its panel
        data: what the page is made of, by the name of its file
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("tritonbn_bench", "templates")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["table"] = lambda block: isinstance(block, Table)
    environment.tests["picture"] = lambda block: isinstance(block, Picture)
    environment.globals["labels"] = LABELS
    environment.filters["prose"] = _prose
    environment.filters["cells"] = _cells
    environment.filters["numeric"] = _numeric
    styles, pictures = _shared_styles({name: themed(svg) for name, svg in drawn.items()})
    environment.filters["svg"] = lambda panel: _accessible(pictures[panel.name], panel.words)
    environment.filters["source"] = lambda name: loader.get_source(environment, name)[0]
    environment.filters["filtered"] = lambda block: len(block.lines) >= FEWEST_TO_FILTER
    return environment.get_template("page.html").render(
        title=title,
        styles=f"{_cell_rules(sections)}\n{styles}",
        sections=sections,
        downloads={name: _packed(results) for name, results in data.items()},
        fake=FAKE_TIMER if any(map(is_fake, data.values())) else "",
        kinds=_kinds(sections),
    )


def _prose(text: str) -> Markup:
    """Words in which code stands between backticks."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _cells(line: Sequence[object]) -> list[str]:
    return [cell(value) for value in line]


def _numeric(table: Table) -> list[bool]:
    """Which columns are numbers."""
    if not table.lines:
        return [False] * len(table.columns)
    return [is_number(column) for column in zip(*table.lines, strict=True)]


def _cell_rules(sections: Sequence[Section]) -> str:
    """Rules for whole columns, said once and not in each of many thousand cells: numbers stand at
    the right, and neither they nor what is short are broken, not even on paper; what is longer is
    broken between its words."""
    numbers, short, wordy = [], [], []
    for table in [block for part in sections for block in part.blocks if isinstance(block, Table)]:
        for index, numeric in enumerate(_numeric(table)):
            place = f"#rows-{table.name} td:nth-child({index + 1})"
            if numeric:
                numbers.append(place)
            elif all(len(cell(line[index])) <= LONGEST_UNBROKEN for line in table.lines):
                short.append(place)
            elif all(_longest_word(cell(line[index])) <= LONGEST_UNBROKEN for line in table.lines):
                wordy.append(place)
    rules = (
        (numbers, "text-align: right; white-space: nowrap; min-width: 0"),
        (short, "white-space: nowrap; min-width: 0"),
        (wordy, "overflow-wrap: normal"),
    )
    return "\n".join(f"{','.join(places)} {{ {rule}; }}" for places, rule in rules if places)


def _longest_word(text: str) -> int:
    """Letters of the longest part that a line does not end within: browsers break after a slash."""
    return max(map(len, re.split(r"\s+|(?<=/)", text)))


def _kinds(sections: Sequence[Section]) -> list[str]:
    """Kinds of figures on the page."""
    blocks: list[Block] = [block for section in sections for block in section.blocks]
    return [
        kind
        for kind in LABELS
        if any(isinstance(block, Table | Picture) and block.kind == kind for block in blocks)
    ]


def _shared_styles(drawn: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Rules for the styles that pictures repeat, and the pictures with classes in their place."""
    count = Counter(found for svg in drawn.values() for found in re.findall(_STYLED, svg))
    names = {
        style: f"s{index}"
        for index, (style, times) in enumerate(count.most_common())
        if times >= FEWEST_TO_SHARE
    }

    def shared(found: re.Match[str]) -> str:
        return f' class="{names[found[1]]}"' if found[1] in names else found[0]

    rules = "\n".join(f".{name}{{{style}}}" for style, name in names.items())
    return rules, {name: re.sub(_STYLED, shared, svg) for name, svg in drawn.items()}


def _accessible(svg: str, words: str) -> str:
    """With its words for who cannot see it."""
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(words)}" ', 1)


def _packed(results: Results) -> str:
    """The file of the results, compressed, in base64."""
    content = results.as_columns(DIGITS).encode()
    # no time of writing: the same rows give the same page
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()
