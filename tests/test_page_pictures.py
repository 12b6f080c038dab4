"""Pictures and tables of a page hold the figures of the rows."""

from dataclasses import replace
from typing import Any

import pytest

from tests.pages import full_table
from tritonbn_bench.results import Results
from tritonbn_bench.summary import speedups
from tritonbn_bench.totals import step_gains

pytest.importorskip("pandas", reason="needs pandas")
pytest.importorskip("matplotlib", reason="needs matplotlib")
pytest.importorskip("jinja2", reason="needs jinja2")

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tritonbn_bench.report.blocks import Table
from tritonbn_bench.report.canvas import Panel
from tritonbn_bench.report.heatmaps import share_panels, speedup_panels
from tritonbn_bench.report.sections import sections_of
from tritonbn_bench.report.speed_pictures import throughput_panels


def _axes(panel: Panel) -> Any:
    axes = Figure().subplots()
    panel.draw(axes)
    return axes


def test_cells_hold_ratios_and_are_hatched_where_these_are_uncertain() -> None:
    chosen = [
        item
        for item in speedups(full_table().rows)
        if item.case.job == "sweep"
        and (item.case.mode, item.case.dtype, item.case.layout) == ("forward_train", "bf16", "nchw")
        and item.rival == "torch"
    ]
    (panel,) = speedup_panels(chosen)
    axes = _axes(panel)
    batches = [int(label.get_text()) for label in axes.get_yticklabels()]
    channels = [int(label.get_text()) for label in axes.get_xticklabels()]
    items = {
        (item.case.channels, item.case.batch): item
        for item in chosen
        if item.case.space == 784 and item.case.fusion == "none"
    }
    # a patch of its colour for each cell, and one on it where it is hatched
    places = [
        (tuple(round(where + 0.5) for where in patch.get_xy()), bool(patch.get_hatch()))
        for patch in axes.patches
        if isinstance(patch, Rectangle)
    ]
    cells = {place for place, is_hatched in places if not is_hatched}
    hatched = {place for place, is_hatched in places if is_hatched}
    assert len(cells) == len(axes.texts) > 30
    for text in axes.texts:
        place = tuple(round(where) for where in text.get_position())
        item = items[channels[place[0]], batches[place[1]]]
        assert text.get_text() == f"{item.ratio:.2f}"
        assert place in cells
        assert (place in hatched) == (item.outcome == "uncertain")
    assert 0 < len(hatched) < len(cells)


def test_cells_of_the_copys_share_are_marked_where_the_l2_cache_decides() -> None:
    rows = [
        row
        for row in full_table().rows
        if (row.quantity, row.provider) == ("share of copy", "tritonbn")
        and (row.mode, row.dtype, row.layout) == ("forward_train", "bf16", "nhwc")
        and row.fusion == "none"
        and row.job == "sweep"
    ]
    (panel,) = share_panels(rows, 60 * 10**6)
    texts = [text.get_text() for text in _axes(panel).texts]
    marked = [text for text in texts if text.endswith("\nL2")]
    assert 0 < len(marked) < len(texts)
    (without,) = share_panels(rows, 0)
    assert not any(text.get_text().endswith("L2") for text in _axes(without).texts)
    shown = sorted(int(text.split("\n")[0]) for text in texts)
    expected = {round(100 * (row.value or 0.0)) for row in rows}
    assert set(shown) <= expected


def test_the_curves_hold_the_figures_of_the_rows_and_are_labelled_by_what_ran() -> None:
    rows = [row for row in full_table().rows if row.job == "sweep"]
    panel = next(
        panel
        for panel in throughput_panels(rows, "channels")
        if panel.name == "throughput-backward_train-channels-bf16"
    )
    axes = _axes(panel)
    curve = next(line for line in axes.lines if str(line.get_label()).startswith("tritonbn nchw"))
    expected = {
        row.channels: row.value
        for row in rows
        if (row.mode, row.layout, row.provider) == ("backward_train", "nchw", "tritonbn")
        and (row.quantity, row.dtype, row.fusion) == ("throughput", "bf16", "none")
        and (row.batch, row.space) == (32, 784)
    }
    assert dict(zip(curve.get_xdata(), curve.get_ydata(), strict=True)) == expected
    labels = axes.get_legend_handles_labels()[1]
    assert "torch nchw (ATen native)" in labels
    assert "torch channels_last (ATen native)" in labels
    assert "tritonbn nhwc (triton)" in labels


def test_the_gain_of_a_step_is_called_modelled_or_fake_and_never_measured() -> None:
    def table(results: Results) -> Table:
        sections = {section.name: section for section in sections_of(results)}
        (found,) = (
            block
            for block in sections["networks"].blocks
            if isinstance(block, Table) and block.name == "gains"
        )
        return found

    full = full_table()
    assert table(full).kind == "fake"
    as_if_measured = Results(
        {**full.environment, "timer": None}, [replace(row, cache="cold") for row in full.rows]
    )
    assert table(as_if_measured).kind == "modelled"
    gains = step_gains(full.rows)
    assert {gain.network for gain in gains} >= {"ResNet-50", "MobileNetV2", "MLP"}
    for line, gain in zip(table(full).lines, gains, strict=True):
        assert line[7] == gain.theirs - gain.ours
        assert line[-3:] == (gain.step_batch, gain.step, gain.projected)
    projected = [gain for gain in gains if gain.projected]
    assert projected and all(gain.projected and gain.projected > 1 for gain in projected)
