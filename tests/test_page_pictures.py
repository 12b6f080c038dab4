"""Pictures and tables of a page hold the figures of the rows."""

import math
import re
import statistics
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from tests.pages import full_table
from tritonbn_bench.results import Results, Row
from tritonbn_bench.summary import Speedup, speedups
from tritonbn_bench.tables import cell
from tritonbn_bench.totals import step_gains
from tritonbn_bench.training import Outcome, Trained, training_rows

pytest.importorskip("pandas", reason="needs pandas")
pytest.importorskip("matplotlib", reason="needs matplotlib")
pytest.importorskip("jinja2", reason="needs jinja2")

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tritonbn_bench.report.accuracy_tables import error_lines, every_error
from tritonbn_bench.report.blocks import Picture, Table
from tritonbn_bench.report.canvas import Panel, render
from tritonbn_bench.report.heatmaps import share_panels, speedup_panels
from tritonbn_bench.report.sections import sections_of
from tritonbn_bench.report.speed_pictures import bytes_panels, shape_panels, throughput_panels
from tritonbn_bench.report.step_pictures import accuracy_panels, loss_panels

Colour = tuple[float, ...]
# of a plane that every colour of the scales of heatmaps is on
_SIDE = 20


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


def _plane(space: int = 784) -> list[Row]:
    """Rows over a plane of batch sizes and channels, with values from 0 to 1.2."""
    row = Row("sweep", "measured", "", "tritonbn", "share of copy", mode="forward_train")
    row = replace(row, dtype="bf16", layout="nchw", space=space, floor_bytes=1)
    return [
        replace(
            row,
            case=f"{batch} {channels}",
            batch=batch,
            channels=channels,
            value=1.2 * (_SIDE * batch + channels) / _SIDE**2,
        )
        for batch in range(_SIDE)
        for channels in range(_SIDE)
    ]


def _luminance(colour: Colour) -> float:
    """Relative, by WCAG 2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrasts(panels: Iterable[Panel]) -> list[float]:
    """Of every number against its cell."""
    from matplotlib.colors import to_rgb

    found = []
    for panel in panels:
        axes = _axes(panel)
        fills = {
            tuple(round(where + 0.5) for where in patch.get_xy()): patch.get_facecolor()
            for patch in axes.patches
            if not patch.get_hatch()
        }
        for text in axes.texts:
            place = tuple(round(where) for where in text.get_position())
            both = sorted(map(_luminance, (to_rgb(text.get_color()), fills[place])))
            found.append((both[1] + 0.05) / (both[0] + 0.05))
    return found


def test_numbers_stand_out_from_every_colour_of_the_shares() -> None:
    found = _contrasts(share_panels(_plane(), 0))
    assert len(found) == _SIDE**2
    assert min(found) >= 4.5


def test_numbers_stand_out_from_every_colour_of_the_ratios() -> None:
    ratios = [2 ** (2 * (row.value or 0.0) - 1.2) for row in _plane()]
    assert min(ratios) < 0.5 < 2 < max(ratios)
    chosen = [
        Speedup(row, "torch", "cuDNN", ratio) for row, ratio in zip(_plane(), ratios, strict=True)
    ]
    found = _contrasts(speedup_panels(chosen))
    assert len(found) == _SIDE**2
    assert min(found) >= 4.5


@pytest.mark.parametrize(
    ("space", "words"), [(784, "28 x 28"), (1, "1 x 1"), (1000, "1000 values")]
)
def test_a_plane_of_batch_sizes_and_channels_says_its_own_size(space: int, words: str) -> None:
    (panel,) = share_panels(_plane(space), 0)
    assert _axes(panel).get_xlabel() == f"channels C ({words})"


def test_the_mark_of_a_fake_timer_lies_on_cells_and_under_numbers() -> None:
    (panel,) = share_panels(_plane(), 0)
    svg = render(panel, "fake")
    cells = [found.start() for found in re.finditer(r'<path [^>]*style="fill:#', svg)]
    numbers = [found.start() for found in re.finditer(r">\d+</text>", svg)]
    marks = [found.start() for found in re.finditer(">fake timer</text>", svg)]
    assert len(cells) == _SIDE**2 and marks
    # what comes later in the file lies above
    assert max(cells) < min(marks)
    # the numbers of the axes come first
    assert sum(number > max(marks) for number in numbers) == _SIDE**2
    assert ">fake timer</text>" not in render(panel, "measured")


def test_a_wide_panel_of_a_fake_timer_is_marked_wherever_a_small_screen_looks() -> None:
    panel = shape_panels(
        [
            item
            for item in speedups(full_table().rows)
            if item.case.job == "resnet50" and item.case.fusion == "none"
        ]
    )[0]
    svg = render(panel, "fake")
    bars = [found.start() for found in re.finditer(r"<path [^>]*clip-path=[^>]*fill: ?#", svg)]
    marks = [found.start() for found in re.finditer(">fake timer</text>", svg)]
    assert bars and max(bars) < min(marks)
    # twice at each place: its edge, and itself
    assert panel.width > 6 and len(marks) >= 4


def test_what_is_not_seen_takes_no_place_in_a_picture() -> None:
    svg = render(_panel("lines", "throughput-forward_train-batch-bf16"), "measured")
    assert "<path" in svg and 'style="fill:none"' not in svg
    # lines of the grid end where the axes do
    grid = [path for path in re.findall("<path [^>]*>", svg) if "stroke-opacity:0.3" in path]
    assert grid and not any("clip-path" in path for path in grid)


def test_the_copy_has_one_time_for_as_many_bytes_and_that_is_the_median() -> None:
    row = Row("sweep", "measured", "", "copy", "time", unit="ms", mode="forward_train")
    found = {10**6: (3.0, 1.0, 8.0), 2 * 10**6: (4.0,), 4 * 10**6: (6.0, 5.0)}
    rows = [
        replace(row, case=f"{floor} {value}", provider=provider, floor_bytes=floor, value=value)
        for floor, values in found.items()
        for value in values
        for provider in ("copy", "tritonbn")
    ]
    (panel,) = bytes_panels(rows)
    (line,) = (line for line in _axes(panel).lines if line.get_label() == "copy")
    assert list(line.get_xdata()) == [1, 2, 4]
    expected = [1e3 * statistics.median(values) for values in found.values()]
    assert list(line.get_ydata()) == expected


def _panel(section: str, name: str) -> Panel:
    """A panel of the full page."""
    (found,) = (
        panel
        for part in sections_of(full_table())
        if part.name == section
        for block in part.blocks
        if isinstance(block, Picture)
        for panel in block.panels
        if panel.name == name
    )
    return found


def test_wall_time_is_shown_of_torch_in_either_layout() -> None:
    lines = {line.get_label(): line for line in _axes(_panel("host", "host-bound")).lines}
    for provider in ("tritonbn", "torch", "torch channels_last"):
        times = {
            1e3 * (row.value or 0.0)
            for row in full_table().rows
            if (row.provider, row.quantity) == (provider, "wall time")
        }
        assert set(lines[provider].get_ydata()) == times


def test_both_pictures_of_losses_have_the_same_whole_steps() -> None:
    theirs, ours = (Trained((2.0, 1.5, 1.0, end), {}, 1, 1) for end in (0.5, 0.5 + 1e-6))
    rows = training_rows(Outcome(theirs, theirs, ours, 4, "triton", (), True))
    losses, gaps = map(_axes, loss_panels([row for row in rows if row.quantity == "loss"]))
    assert losses.get_xlim() == gaps.get_xlim()
    low, high = gaps.get_xlim()
    for axes in (losses, gaps):
        seen = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert seen == [0, 1, 2, 3]


def _errors() -> list[Row]:
    """Errors of two inputs, the second of which is not finite, and torch's."""
    row = Row("accuracy", "measured", "a", "tritonbn", "error of y", value=1.0, bound=2.0)
    row = replace(row, mode="forward_train", dtype="fp32", layout="nchw", data="digits")
    first = replace(row, quantity="error of dx", mode="backward_train")
    rows = [first, row, replace(row, data="constant", value=None, status="failed")]
    rivals = [replace(row, provider="torch", value=0.5, bound=None, status="ok") for row in rows]
    return rows + rivals


def test_a_result_that_is_not_finite_is_nearest_to_its_bound_and_comes_first() -> None:
    first, second = error_lines(_errors())
    assert first[1:6] == ("y", "fp32", math.inf, 0.5, 2.0)
    assert first[6:8] == (math.inf, 0) and first[-1] == "constant"
    assert second[1:4] == ("dx", "fp32", 1.0)
    assert [line[1:4] for line in every_error(_errors())] == [
        ("constant", "y", math.inf),
        ("digits", "dx", 1.0),
        ("digits", "y", 1.0),
    ]
    assert cell(math.inf) == "not finite"


def test_a_page_tells_of_results_that_are_not_finite() -> None:
    (section,) = (
        part
        for part in sections_of(Results({"device": "cpu"}, _errors()))
        if part.name == "accuracy"
    )
    tables = {block.name: block for block in section.blocks if isinstance(block, Table)}
    assert tables["accuracy-worst"].lines[0][2] == math.inf
    assert tables["accuracy-all"].lines[0][3] == math.inf


def test_a_result_that_is_not_finite_has_a_mark_above_all_others() -> None:
    (panel,) = (panel for panel in accuracy_panels(_errors()) if "-y-" in panel.name)
    axes = _axes(panel)
    (line,) = (line for line in axes.lines if line.get_label() == "tritonbn, not finite")
    assert [*zip(line.get_xdata(), line.get_ydata(), strict=True)] == [(1, 1.0)]
    assert line.get_transform() == axes.get_xaxis_transform()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (999.4, "999"),
        (999.5, "1000"),
        (-999.7, "-1000"),
        (999_999.4, "999999"),
        (999_999.6, "1e+06"),
        (0.12345, "0.123"),
    ],
)
def test_numbers_have_an_exponent_only_beyond_a_million(value: float, words: str) -> None:
    assert cell(value) == words


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
