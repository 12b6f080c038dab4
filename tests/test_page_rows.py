"""The page of whatever rows there are: a run may be interrupted anywhere, and rivals may fail."""

import random
from collections.abc import Callable

import pytest

from tests.pages import full_table
from tritonbn_bench.results import Results, Row

pytest.importorskip("pandas", reason="needs pandas")
pytest.importorskip("matplotlib", reason="needs matplotlib")
pytest.importorskip("jinja2", reason="needs jinja2")

from matplotlib.figure import Figure

from tritonbn_bench.report.blocks import Picture
from tritonbn_bench.report.markdown import as_markdown
from tritonbn_bench.report.page import as_html
from tritonbn_bench.report.sections import sections_of

Choice = Callable[[list[Row]], list[Row]]
CHOICES: dict[str, Choice] = {
    "none": lambda rows: [],
    "the-first-50": lambda rows: rows[:50],
    "the-last-500": lambda rows: rows[-500:],
    "any-300": lambda rows: random.Random(0).sample(rows, 300),
    "any-3000": lambda rows: random.Random(1).sample(rows, 3000),
    "ours-alone": lambda rows: [row for row in rows if row.provider == "tritonbn"],
    "torch-alone": lambda rows: [row for row in rows if row.provider == "torch"],
    "no-copy": lambda rows: [row for row in rows if row.provider != "copy"],
    "no-ratios": lambda rows: [row for row in rows if not row.quantity.startswith("ratio")],
    "no-times": lambda rows: [row for row in rows if row.quantity != "time"],
}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_a_page_is_drawn_of_whatever_rows_there_are(choice: Choice) -> None:
    full = full_table()
    sections = sections_of(Results(full.environment, choice(full.rows)))
    assert [section.name for section in sections][-1] == "data"
    panels = [
        panel
        for section in sections
        for block in section.blocks
        if isinstance(block, Picture)
        for panel in block.panels
    ]
    for panel in panels:
        panel.draw(Figure().subplots())
    drawn = {panel.name: "<svg ></svg>" for panel in panels}
    assert len(drawn) == len(panels)
    assert as_html("a title", sections, drawn, {}).endswith("</html>")
    assert as_markdown("a title", sections).startswith("# a title")
