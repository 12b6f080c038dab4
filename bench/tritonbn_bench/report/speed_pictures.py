"""Pictures of speed: means, throughput along lines, time against bytes, bars by shape."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..fusions import FUSIONS, NONE
from ..results import Row
from ..summary import OURS, UNFUSED, Speedup, mean_speedup, times
from .canvas import (
    BLUE,
    DTYPE_COLOURS,
    GREEN,
    GREY,
    INK,
    MODES,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Panel,
    plain_log,
    thinned,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["bytes_panels", "fused_panels", "mean_panels", "shape_panels", "throughput_panels"]

# colour, marker, line style; no curve is told apart by colour only
STYLES = {
    (OURS, "nchw"): (VERMILION, "o", "-"),
    (OURS, "nhwc"): (ORANGE, "s", "-"),
    ("torch", "nchw"): (BLUE, "^", "--"),
    ("torch channels_last", "nhwc"): (SKY, "v", "--"),
    ("torch.compile", "nchw"): (GREEN, "D", "-."),
    ("torch.compile", "nhwc"): (PURPLE, "P", "-."),
    ("copy", "nchw"): (INK, "", ":"),
}
DTYPES = ("fp32", "fp16", "bf16", "fp64")
# letters of a legend in one line that a small screen shows without scrolling
LONGEST_LEGEND = 54
_MARKERS = {"fp32": "o", "fp16": "s", "bf16": "^", "fp64": "D"}
# the lines of the sweep: what is held along each, and its words
_HELD = {"batch": ("channels", 256, "C = 256"), "channels": ("batch", 32, "N = 32")}
_PLANE = 784


def mean_panels(chosen: Sequence[Speedup]) -> list[Panel]:
    """Geometric means of ratios with their intervals, a panel for each mode with a line for each
    layout and dtype."""
    groups: dict[str, dict[tuple[str, str, str], list[Speedup]]] = {}
    for item in chosen:
        case = item.case
        key = (case.layout, case.dtype, f"{item.rival} ({item.backend})")
        groups.setdefault(case.mode, {}).setdefault(key, []).append(item)
    ends = [item.ratio for item in chosen]
    return [
        _means(groups[mode], mode, (min(*ends, 1.0), max(*ends, 1.0)))
        for mode in MODES
        if mode in groups
    ]


def _means(
    groups: dict[tuple[str, str, str], list[Speedup]], mode: str, ends: tuple[float, float]
) -> Panel:
    order = sorted(groups, reverse=True)

    def draw(axes: Axes) -> None:
        for index, key in enumerate(order):
            mean, low, high = mean_speedup(groups[key])
            ratios = [item.ratio for item in groups[key]]
            colour = DTYPE_COLOURS[key[1]]
            axes.plot([min(ratios), max(ratios)], [index] * 2, color=colour, linewidth=1)
            if low is not None and high is not None:
                axes.plot([low, high], [index] * 2, color=colour, linewidth=5)
            axes.plot([mean], [index], color=colour, marker=_MARKERS[key[1]], markersize=6)
            axes.annotate(
                f"{mean:.2f}", (mean, index), (0, 5), textcoords="offset points", ha="center",
                fontsize=7.5,
            )  # fmt: skip
        axes.axvline(1.0, color=INK, linewidth=1)
        names = [f"{layout}, {dtype}\n{rival}" for layout, dtype, rival in order]
        axes.set_yticks(range(len(order)), names, fontsize=7.5)
        axes.set_ylim(-0.6, len(order) - 0.3)
        axes.set_xscale("log", base=2)
        axes.set_xlim(0.97 * ends[0], 1.03 * ends[1])
        ticks = [
            tick
            for tick in (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 8.0)
            if ends[0] <= tick <= ends[1]
        ]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_title(MODES[mode])
        axes.set_xlabel("time of rival / time of tritonbn")
        axes.grid(True, axis="x")

    words = f"Geometric mean of the ratio to each rival with its interval, {MODES[mode]}"
    return Panel(f"means-{mode}", words, draw, 5.4, 1.2 + 0.36 * len(order))


def throughput_panels(rows: Sequence[Row], axis: str) -> list[Panel]:
    """Throughput along the line of batch sizes or of channels, a panel for each mode and dtype."""
    other, held, _ = _HELD[axis]
    lines = [
        row
        for row in rows
        if row.quantity == "throughput"
        and row.space == _PLANE
        and row.fusion == NONE
        and getattr(row, other) == held
        and (row.provider, row.layout) in STYLES
    ]
    panels = []
    for mode in MODES:
        for dtype in DTYPES:
            part = [row for row in lines if (row.mode, row.dtype) == (mode, dtype)]
            if len({getattr(row, axis) for row in part}) > 1:
                panels.append(_throughput(part, mode, dtype, axis))
    return panels


def _throughput(rows: Sequence[Row], mode: str, dtype: str, axis: str) -> Panel:
    title = f"{MODES[mode]}, {dtype}; {_HELD[axis][2]}, 28 x 28"

    def draw(axes: Axes) -> None:
        for (provider, layout), (colour, marker, style) in STYLES.items():
            curve = sorted(
                (row for row in rows if (row.provider, row.layout) == (provider, layout)),
                key=lambda row: float(getattr(row, axis)),
            )
            if not curve:
                continue
            where = [getattr(row, axis) for row in curve]
            axes.plot(
                where,
                [row.value or math.nan for row in curve],
                color=colour,
                marker=marker or None,
                linestyle=style,
                markersize=4.5,
                fillstyle="none" if layout == "nhwc" else "full",
                label=_label(curve),
            )
            low = [row.low or math.nan for row in curve]
            high = [row.high or math.nan for row in curve]
            axes.fill_between(where, low, high, color=colour, alpha=0.18, linewidth=0)
        _log_axis(axes, sorted({getattr(row, axis) for row in rows}))
        axes.set_title(title)
        axes.set_xlabel({"batch": "batch size N", "channels": "channels C"}[axis])
        axes.set_ylabel("floor bytes / time, GB/s")
        axes.set_ylim(0, 1.05 * max(row.high or 0.0 for row in rows))
        axes.grid(True)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)

    words = f"Throughput of every provider against {axis}: {title}"
    return Panel(f"throughput-{mode}-{axis}-{dtype}", words, draw, 5.4, 4.6)


def _label(curve: Sequence[Row]) -> str:
    """Provider, layout where the name does not say it, and every backend that ran."""
    first = curve[0]
    backends = " / ".join(dict.fromkeys(row.backend for row in curve))
    if first.provider == "copy":
        return "copy of the floor bytes"
    layout = "" if first.provider.startswith("torch channels") else f" {first.layout}"
    return f"{first.provider}{layout} ({backends})"


def _log_axis(axes: Axes, values: list[int]) -> None:
    """A logarithmic axis with a tick at each measured value, thinned so that none touch."""
    axes.set_xscale("log", base=2)
    ticks = thinned(values)
    axes.set_xticks(ticks, [str(value) for value in ticks], fontsize=8)
    axes.minorticks_off()


def bytes_panels(rows: Sequence[Row]) -> list[Panel]:
    """Time against floor bytes, a panel for each mode, with the line of the copies' medians."""
    found = list(times(rows).values())
    panels = []
    for mode in MODES:
        part = [row for row in found if row.mode == mode and row.fusion == NONE]
        if len({row.floor_bytes for row in part if row.provider == OURS}) > 2:
            panels.append(_bytes(part, mode))
    return panels


def _bytes(rows: Sequence[Row], mode: str) -> Panel:
    series = {
        "torch": (BLUE, "^", ("torch", "torch channels_last")),
        "torch.compile": (GREEN, "D", ("torch.compile",)),
        OURS: (VERMILION, "o", (OURS,)),
    }

    def draw(axes: Axes) -> None:
        for label, (colour, marker, providers) in series.items():
            part = [row for row in rows if row.provider in providers]
            axes.plot(
                [(row.floor_bytes or 0) / 1e6 for row in part],
                [1e3 * (row.value or math.nan) for row in part],
                color=colour,
                marker=marker,
                markersize=3.5,
                linestyle="none",
                fillstyle="none",
                label=label,
            )
        # several cases may have as many bytes: a line has one time for them
        copies: dict[float, list[float]] = {}
        for row in rows:
            if row.provider == "copy" and row.value is not None:
                copies.setdefault((row.floor_bytes or 0) / 1e6, []).append(1e3 * row.value)
        if copies:
            where = sorted(copies)
            middle = [statistics.median(copies[place]) for place in where]
            axes.plot(where, middle, color=INK, linewidth=1, label="copy")
        axes.set_xscale("log")
        axes.set_yscale("log")
        plain_log(axes.xaxis)
        plain_log(axes.yaxis)
        axes.set_title(MODES[mode])
        axes.set_xlabel("bytes that must move, MB")
        axes.set_ylabel("time, us")
        axes.grid(True)
        axes.legend(loc="upper left")

    words = f"Time against bytes that must move, {MODES[mode]}; the copy is a line"
    return Panel(f"bytes-{mode}", words, draw, 5.0, 4.0)


def shape_panels(chosen: Sequence[Speedup]) -> list[Panel]:
    """Ratios by shape of a network's layers, a panel for each mode, layout and rival."""
    panels = []
    keys = dict.fromkeys((item.case.mode, item.case.layout, item.rival) for item in chosen)
    for mode, layout, rival in keys:
        part = [
            item
            for item in chosen
            if (item.case.mode, item.case.layout, item.rival) == (mode, layout, rival)
        ]
        panels.append(_shapes(part, mode, layout, rival))
    return panels


def _shape(item: Speedup) -> tuple[Any, ...]:
    """What a group of bars stands for."""
    return (item.case.channels, item.case.space, item.case.fusion)


def _shapes(chosen: Sequence[Speedup], mode: str, layout: str, rival: str) -> Panel:
    title = f"{MODES[mode]}, {layout}, against {rival}"
    fused = any(item.case.fusion != NONE for item in chosen)

    def draw(axes: Axes) -> None:
        shapes = list(dict.fromkeys(map(_shape, chosen)))
        dtypes = [dtype for dtype in DTYPES if any(item.case.dtype == dtype for item in chosen)]
        width = 0.8 / len(dtypes)
        for index, dtype in enumerate(dtypes):
            found = {_shape(item): item for item in chosen if item.case.dtype == dtype}
            shift = (index - (len(dtypes) - 1) / 2) * width
            where = [shapes.index(shape) + shift for shape in found]
            ends = [item.interval.as_ratio() if item.interval else None for item in found.values()]
            backends = " / ".join(dict.fromkeys(item.backend for item in found.values()))
            axes.bar(
                where,
                [item.ratio for item in found.values()],
                width,
                color=DTYPE_COLOURS[dtype],
                label=f"{dtype} ({backends})",
            )
            for place, end in zip(where, ends, strict=True):
                if end:
                    axes.plot([place] * 2, end[1:], color=INK, linewidth=1)
        axes.axhline(1.0, color=INK, linewidth=1)
        names = [
            f"{channels}\n{math.isqrt(space)}²"
            + (f"\n{FUSIONS[fusion].words}" if fusion != NONE else "")
            for channels, space, fusion in shapes
        ]
        axes.set_xticks(range(len(shapes)), names, fontsize=6.5 if fused else 8)
        axes.margins(x=0.01)
        axes.set_ylim(0, 1.05 * max(1.0, *(item.ratio for item in chosen)))
        axes.set_title(title)
        # at the left, where a small screen begins
        axes.set_xlabel("channels, plane" + (", what follows" if fused else ""), loc="left")
        axes.set_ylabel("time of rival / tritonbn")
        axes.grid(True, axis="y")
        labels = axes.get_legend_handles_labels()[1]
        columns = len(labels) if sum(map(len, labels)) <= LONGEST_LEGEND else 2
        below = -0.3 if fused else -0.23
        axes.legend(loc="upper left", bbox_to_anchor=(0.0, below), ncols=columns)

    name = f"{'fused-' if fused else ''}{mode}-{layout}-{rival}".replace(" ", "-").replace(".", "-")
    words = f"Ratio for each shape of the network: {title}"
    wide = 3.0 + 0.42 * len(dict.fromkeys(map(_shape, chosen)))
    return Panel(f"shapes-{name}", words, draw, max(5.4, wide), 4.2)


def fused_panels(chosen: Sequence[Speedup]) -> list[Panel]:
    """What one kernel gains over BatchNorm of ours with torch's operators behind it, by batch."""
    chosen = [item for item in chosen if item.rival == UNFUSED and item.case.channels == 256]
    panels = []
    for mode in MODES:
        for layout in dict.fromkeys(item.case.layout for item in chosen):
            part = [item for item in chosen if (item.case.mode, item.case.layout) == (mode, layout)]
            if part:
                panels.append(_fused(part, mode, layout))
    return panels


def _fused(chosen: Sequence[Speedup], mode: str, layout: str) -> Panel:
    title = f"{MODES[mode]}, {layout}; C = 256, 28 x 28"
    styles = {"relu": "-", "add_relu": "--", "silu": ":"}

    def draw(axes: Axes) -> None:
        keys = dict.fromkeys((item.case.fusion, item.case.dtype) for item in chosen)
        for fusion, dtype in keys:
            part = sorted(
                (item for item in chosen if (item.case.fusion, item.case.dtype) == (fusion, dtype)),
                key=lambda item: item.case.batch or 0,
            )
            axes.plot(
                [item.case.batch or 0 for item in part],
                [item.ratio for item in part],
                color=DTYPE_COLOURS[dtype],
                marker=_MARKERS[dtype],
                markersize=4.5,
                linestyle=styles.get(fusion, "-."),
                label=f"{FUSIONS[fusion].words}, {dtype}",
            )
        axes.axhline(1.0, color=GREY, linewidth=1)
        _log_axis(axes, sorted({item.case.batch or 0 for item in chosen}))
        axes.set_ylim(bottom=0)
        axes.set_title(title)
        axes.set_xlabel("batch size N")
        axes.set_ylabel("time unfused / fused")
        axes.grid(True)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3)

    words = f"Time of BatchNorm with operators behind it over time of one kernel: {title}"
    return Panel(f"fused-{mode}-{layout}", words, draw, 5.4, 4.4)
