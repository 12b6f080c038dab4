"""Pictures of errors, training, host time, and of bytes that are modelled or accounted for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..results import HOST_BOUND, Row
from ..summary import LARGEST_GAP, OURS, PEAK_BYTES, SAVED_BYTES, UNFUSED, step_bytes
from .canvas import BLUE, GREEN, GREY, INK, MODES, ORANGE, SKY, VERMILION, Panel, plain_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "accuracy_panels",
    "bar_panel",
    "host_panel",
    "loss_panels",
    "memory_panels",
    "ratio_panel",
    "traffic_panels",
]

DTYPES = ("fp32", "fp16", "bf16", "fp64")
_ERRORS = {"y": "forward_train", "dx": "backward_train", "dgamma": "backward_train"}
_LOSS_STYLES = {
    UNFUSED: (GREEN, "s", 6.0, "converted"),
    OURS: (VERMILION, "o", 3.0, "ours, activations in them"),
}


def accuracy_panels(rows: Sequence[Row]) -> list[Panel]:
    """Error against conditioning, largest over layouts: ours, torch's and the bound."""
    panels = []
    data = list(dict.fromkeys(row.data for row in rows))
    for result, mode in _ERRORS.items():
        for dtype in DTYPES:
            part = [
                row
                for row in rows
                if (row.quantity, row.mode, row.dtype) == (f"error of {result}", mode, dtype)
            ]
            if part:
                words = f"Largest error of {result} in {dtype}: tritonbn, torch, and the bound"
                draw = _errors(part, data, f"{result}, {dtype}")
                panels.append(Panel(f"accuracy-{result}-{dtype}", words, draw, 4.0, 3.5))
    return panels


def _errors(rows: Sequence[Row], data: Sequence[str], title: str) -> Callable[[Axes], None]:
    def largest(provider: str, name: str, column: str) -> float | None:
        found = [
            getattr(row, column) for row in rows if (row.provider, row.data) == (provider, name)
        ]
        return max((value for value in found if value is not None), default=None)

    series: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
        ("tritonbn", OURS, "value", {"marker": "o", "color": VERMILION}),
        ("torch", "torch", "value", {"marker": "^", "color": BLUE, "fillstyle": "none"}),
        (
            "bound",
            OURS,
            "bound",
            {"marker": "_", "color": INK, "markersize": 14, "markeredgewidth": 2},
        ),
    )

    def draw(axes: Axes) -> None:
        for label, provider, column, style in series:
            values = [largest(provider, name, column) for name in data]
            seen = [value or math.nan for value in values]
            axes.plot(range(len(data)), seen, linestyle="none", label=label, **style)
            # a logarithmic axis has no zero: exact results stand on its lower edge
            for index, value in enumerate(values):
                if value == 0 and column == "value":
                    edge = axes.get_xaxis_transform()
                    axes.plot(
                        index,
                        0.0,
                        transform=edge,
                        clip_on=False,
                        zorder=3,
                        in_layout=False,
                        **style,
                    )
        lost = [
            index
            for index, name in enumerate(data)
            if any((row.provider, row.data, row.value) == (OURS, name, None) for row in rows)
        ]
        if lost:
            # above every number
            axes.plot(
                lost,
                [1.0] * len(lost),
                transform=axes.get_xaxis_transform(),
                clip_on=False,
                linestyle="none",
                marker="X",
                markersize=8,
                color=VERMILION,
                label="tritonbn, not finite",
            )
        axes.set_yscale("log")
        plain_log(axes.yaxis)
        names = [name.replace("mean/std=", "mean\n") for name in data]
        axes.set_xticks(range(len(data)), names, fontsize=7.5)
        axes.set_xlim(-0.5, len(data) - 0.5)
        axes.set_title(title)
        axes.set_ylabel("largest absolute error")
        axes.grid(True)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3)

    return draw


def loss_panels(losses: Sequence[Row]) -> list[Panel]:
    """Losses of the three networks, and how far ours are from torch's."""
    by_provider = {
        name: [row.value or 0.0 for row in losses if row.provider == name]
        for name in ("torch", UNFUSED, OURS)
    }
    theirs = by_provider["torch"]
    # an interrupted run may lack some
    present = [name for name in _LOSS_STYLES if len(by_provider[name]) == len(theirs)]

    def curves(axes: Axes) -> None:
        axes.plot(theirs, color=BLUE, linewidth=5, alpha=0.4, label="torch's layers")
        for name in present:
            colour, marker, size, label = _LOSS_STYLES[name]
            axes.plot(
                by_provider[name],
                color=colour,
                marker=marker,
                markersize=size,
                fillstyle="none",
                linestyle="--",
                label=label,
            )
        axes.set_title("losses")
        _steps(axes, len(theirs))
        axes.set_ylabel("cross entropy")
        axes.grid(True)
        axes.legend()

    def gaps(axes: Axes) -> None:
        for name in present:
            colour, marker, size, label = _LOSS_STYLES[name]
            found = [abs(a - b) for a, b in zip(theirs, by_provider[name], strict=True)]
            axes.plot(
                # a logarithmic axis has no zero
                [gap or math.nan for gap in found],
                color=colour,
                marker=marker,
                markersize=size,
                fillstyle="none",
                linestyle="none",
                label=f"{label}; equal to the bit in {found.count(0.0)} of {len(found)}",
            )
        axes.axhline(LARGEST_GAP, color=INK, linestyle=":", label="allowed")
        axes.set_yscale("log")
        plain_log(axes.yaxis)
        axes.set_ylim(1e-8, 5e-2)
        axes.set_title("gap to torch's losses")
        _steps(axes, len(theirs))
        axes.grid(True)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17))

    return [
        Panel("training", "Losses of three networks lie on one another", curves, 5.0, 3.9),
        Panel("training-gap", "Gap of both of ours to torch's losses, below the bound", gaps, 5.0),
    ]


def _steps(axes: Axes, count: int) -> None:
    """An axis of whole steps from the first to the last, whichever of them have a mark."""
    from matplotlib.ticker import MaxNLocator

    room = 0.05 * count
    axes.set_xlim(-room, count - 1 + room)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")


def traffic_panels(rows: Sequence[Row], job: str) -> list[Panel]:
    """Bytes of all layers in a training step, a panel for each dtype and layout."""
    moved = step_bytes(rows, job)
    kinds = list(dict.fromkeys((dtype, layout) for dtype, layout, _, _ in moved))
    steps: dict[tuple[str, ...], float] = {}
    for (*kind, _, provider), value in moved.items():
        steps[(*kind, provider)] = steps.get((*kind, provider), 0.0) + value / 1e9
    highest = max(steps.values(), default=0.0)

    def drawer(kind: tuple[str, str]) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            providers = [name for *place, name in steps if tuple(place) == kind]
            bottoms = [0.0] * len(providers)
            for mode, colour in (("forward_train", SKY), ("backward_train", ORANGE)):
                sums = [moved[(*kind, mode, provider)] / 1e9 for provider in providers]
                names = [name.replace(" ", "\n") for name in providers]
                axes.bar(names, sums, 0.6, bottom=bottoms, color=colour, label=MODES[mode])
                bottoms = [bottom + value for bottom, value in zip(bottoms, sums, strict=True)]
            for index, total in enumerate(bottoms):
                axes.text(index, total, f"{total:.2f}", ha="center", va="bottom")
            axes.set_ylim(0, 1.12 * highest)
            axes.set_title(", ".join(kind))
            axes.set_ylabel("GB per training step")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)

        return draw

    return [
        Panel(
            f"{job}-{'-'.join(kind)}",
            f"Modelled bytes of a training step, {' '.join(kind)}, by who moves them",
            drawer(kind),
            4.2,
        )
        for kind in kinds
    ]


def memory_panels(rows: Sequence[Row]) -> list[Panel]:
    """Accounted bytes of a training step, kept for backward and at most, for each activation."""
    highest = max(row.value or 0.0 for row in rows) / 1e9
    colours = {
        "torch": BLUE,
        "torch out of place": SKY,
        "tritonbn": VERMILION,
        "tritonbn memory_efficient": ORANGE,
    }

    def drawer(data: str) -> Callable[[Axes], None]:
        found = {
            (row.provider, row.quantity): (row.value or 0.0) / 1e9
            for row in rows
            if row.data == data
        }
        ways = {row.provider: row.backend for row in rows}

        def draw(axes: Axes) -> None:
            for index, (provider, way) in enumerate(ways.items()):
                values = [found.get((provider, name), 0.0) for name in (SAVED_BYTES, PEAK_BYTES)]
                where = [group + (index - (len(ways) - 1) / 2) * 0.2 for group in range(2)]
                axes.bar(where, values, 0.2, color=colours.get(provider, GREEN), label=way)
                for place, value in zip(where, values, strict=True):
                    axes.text(place, value, f"{value:.1f}", ha="center", va="bottom", fontsize=7)
            axes.set_xticks(range(2), ["kept for backward", "at once, with gradients"])
            axes.set_ylim(0, 1.1 * highest)
            axes.set_title(data)
            axes.set_ylabel("GB")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, fontsize=7)

        return draw

    return [
        Panel(
            f"memory-{data}",
            f"Memory of a training step by accounting, {data}: kept for backward, and at once",
            drawer(data),
            4.8,
            4.0,
        )
        for data in dict.fromkeys(row.data for row in rows)
    ]


def host_panel(pairs: Sequence[tuple[str, float, float]]) -> Panel:
    """Wall time against device time; above the line the host sets the pace.

    Args:
        pairs: provider, device time and wall time in ms
    """
    looks = {OURS: (VERMILION, "o"), "torch": (BLUE, "^"), "torch channels_last": (SKY, "v")}

    def draw(axes: Axes) -> None:
        for provider, (colour, marker) in looks.items():
            points = [(device, wall) for name, device, wall in pairs if name == provider]
            if points:
                device, wall = zip(*points, strict=True)
                axes.plot(
                    [1e3 * item for item in device],
                    [1e3 * item for item in wall],
                    color=colour,
                    marker=marker,
                    markersize=3.5,
                    fillstyle="none",
                    linestyle="none",
                    label=provider,
                )
        ends = [1e3 * min(item[1] for item in pairs), 1e3 * max(item[1] for item in pairs)]
        line = [HOST_BOUND * end for end in ends]
        axes.plot(ends, line, color=INK, linewidth=1, label=f"{HOST_BOUND:g} x device time")
        axes.set_xscale("log")
        axes.set_yscale("log")
        plain_log(axes.xaxis)
        plain_log(axes.yaxis)
        axes.set_title("calls in a row")
        axes.set_xlabel("device time, us")
        axes.set_ylabel("wall time per call, us")
        axes.grid(True)
        axes.legend()

    words = "Wall time per call against device time; above the line the host sets the pace"
    return Panel("host-bound", words, draw, 5.0, 4.0)


def bar_panel(
    name: str,
    title: str,
    label: str,
    bars: Sequence[tuple[str, float, float | None, float | None]],
    colours: Sequence[str] = (),
) -> Panel:
    """Horizontal bars with their figures.

    Args:
        name: of the panel
        title: above it
        label: of the axis
        bars: words, value, and the ends of its interval if it has one
        colours: of the bars
    """

    def draw(axes: Axes) -> None:
        for index, (_, value, low, high) in enumerate(bars):
            axes.barh(index, value, 0.7, color=colours[index] if colours else SKY)
            if low is not None and high is not None:
                axes.plot([low, high], [index] * 2, color=INK, linewidth=1.5)
            axes.annotate(
                f"{value:.4g}",
                (max(value, high or 0.0), index),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axes.set_yticks(range(len(bars)), [words for words, *_ in bars], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.18 * max(value for _, value, *_ in bars))
        axes.set_title(title)
        axes.set_xlabel(label)
        axes.grid(True, axis="x")

    words = f"{title}: " + ", ".join(f"{words} {value:.4g}" for words, value, *_ in bars)
    return Panel(name, words, draw, 5.4, 1.3 + 0.36 * len(bars))


def ratio_panel(
    name: str,
    title: str,
    label: str,
    points: Sequence[tuple[str, float, float, float]],
    margin: float,
) -> Panel:
    """Ratios with their intervals around 1, and the band that counts as equal.

    Args:
        name: of the panel
        title: above it
        label: of the axis
        points: words, ratio, and the ends of its interval
        margin: a share
    """

    def draw(axes: Axes) -> None:
        axes.axvspan(1 / (1 + margin), 1 + margin, color=GREY, alpha=0.2, linewidth=0)
        axes.axvline(1.0, color=INK, linewidth=1)
        for index, (_, ratio, low, high) in enumerate(points):
            beyond = low > 1 + margin or high < 1 / (1 + margin)
            colour = BLUE if not beyond else VERMILION if ratio > 1 else GREEN
            axes.plot([low, high], [index] * 2, color=colour, linewidth=2)
            axes.plot([ratio], [index], color=colour, marker="D" if beyond else "o", markersize=5)
            axes.annotate(
                f"{ratio:.3f}",
                (ratio, index),
                (0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
            )
        axes.set_yticks(range(len(points)), [words for words, *_ in points], fontsize=8)
        axes.set_ylim(len(points) - 0.5, -0.8)
        axes.set_title(title)
        axes.set_xlabel(label)
        axes.grid(True, axis="x")

    words = f"{title}: " + ", ".join(f"{words} {ratio:.3f}" for words, ratio, *_ in points)
    return Panel(name, words, draw, 5.4, 1.3 + 0.36 * len(points))
