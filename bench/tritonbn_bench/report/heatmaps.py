"""Pictures over the batch x channels plane: a number in each cell, its colour, and a hatch where it
is uncertain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..fusions import NONE
from ..results import Row
from ..summary import Speedup
from .canvas import MODES, Panel, readable_on
from .frames import dense, frame_of, plane, speedup_frame

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

__all__ = ["share_panels", "speedup_panels"]

# cells in a row and in a column; fewer make a line, which has pictures of its own
FEWEST = 3
# log2 of the ratio at the ends of the scale
_ENDS = 1.0
_CELL_WIDTH, _CELL_HEIGHT = 0.62, 0.42
_GAP, _HATCH = 0.03, "#808081"


def speedup_panels(chosen: Sequence[Speedup]) -> list[Panel]:
    """Ratios to one rival, a panel for each mode, dtype and layout."""
    frame = speedup_frame([item for item in chosen if item.case.fusion == NONE])
    panels = []
    for (mode, dtype, layout), part in _planes(frame):
        rival = part["rival"].iloc[0]
        ran = " / ".join(dict.fromkeys(part["backend"]))
        panels.append(
            _panel(
                f"speedup-{mode}-{dtype}-{layout}",
                f"{MODES[mode]}, {dtype}, {layout}",
                f"time of {rival} ({ran}) over time of tritonbn",
                part.assign(shown=part["ratio"], marked=part["outcome"] == "uncertain"),
                diverging=True,
            )
        )
    return panels


def share_panels(rows: Sequence[Row], l2_bytes: int) -> list[Panel]:
    """Shares of a copy's speed of tritonbn; what fits the L2 cache is marked."""
    panels = []
    for (mode, dtype, layout), part in _planes(frame_of(rows)):
        panels.append(
            _panel(
                f"share-{mode}-{dtype}-{layout}",
                f"{MODES[mode]}, {dtype}, {layout}",
                "speed of tritonbn in % of a copy's",
                part.assign(
                    shown=100 * part["value"],
                    marked=False,
                    resident=part["floor_bytes"] < l2_bytes,
                ),
                diverging=False,
            )
        )
    return panels


def _planes(frame: pandas.DataFrame) -> list[tuple[tuple[str, str, str], pandas.DataFrame]]:
    """Parts of a frame that span a plane, of the space that most cases have."""
    if frame.empty:
        return []
    frame = frame[frame["space"] == frame["space"].mode().iloc[0]]
    modes = list(MODES)
    groups = [
        (key, dense(part, FEWEST))
        for key, part in frame.groupby(["mode", "dtype", "layout"], sort=False)
    ]
    groups = [(key, part) for key, part in groups if len(part)]
    return sorted(groups, key=lambda item: (modes.index(item[0][0]), item[0][1:]))


def _panel(name: str, title: str, words: str, part: pandas.DataFrame, *, diverging: bool) -> Panel:
    shown = plane(part, "shown")
    rows, columns = shown.shape
    space = int(part["space"].iloc[0])
    side = math.isqrt(space)
    values = f"{side} x {side}" if side * side == space else f"{space} values"

    def draw(axes: Axes) -> None:
        _cells(axes, part, diverging=diverging)
        axes.set_title(title)
        axes.set_xlabel(f"channels C ({values})")
        axes.set_ylabel("batch size N")

    least, most = shown.min(axis=None), shown.max(axis=None)
    return Panel(
        name,
        f"{title}: {words}, over batch size and channels of {values}; {least:.3g} to {most:.3g}",
        draw,
        1.0 + _CELL_WIDTH * columns,
        1.1 + _CELL_HEIGHT * rows,
    )


def _cells(axes: Axes, part: pandas.DataFrame, *, diverging: bool) -> None:
    """Rectangles with their numbers; the origin at the lower left."""
    import matplotlib
    from matplotlib.patches import Rectangle

    shown, marked = plane(part, "shown"), plane(part, "marked")
    resident = plane(part, "resident") if "resident" in part else None
    scale = matplotlib.colormaps["PuOr" if diverging else "cividis"]
    for down, batch in enumerate(shown.index):
        for across, channels in enumerate(shown.columns):
            value = shown.loc[batch, channels]
            if math.isnan(value):
                continue
            # PuOr runs from orange to purple, and faster is to be purple
            share = 0.5 + math.log2(value) / _ENDS / 2 if diverging else value / 110
            colour = scale(min(max(share, 0.0), 1.0))
            ink = readable_on(colour)
            uncertain = bool(marked.loc[batch, channels])
            corner = (across - 0.5, down - 0.5)
            # the page shows between cells, in its own colour
            cell: dict[str, Any] = {"width": 1 - _GAP, "height": 1 - _GAP, "clip_on": False}
            axes.add_patch(Rectangle(corner, **cell, facecolor=colour, edgecolor="none"))
            if uncertain:
                # by itself: with the colour of the cell it would be a pattern for each colour
                axes.add_patch(
                    Rectangle(
                        corner, **cell, fill=False, hatch="////", edgecolor=_HATCH, linewidth=0.0
                    )
                )
            text = f"{value:.2f}" if diverging else f"{value:.0f}"
            fits = resident is not None and bool(resident.loc[batch, channels])
            axes.text(
                across,
                down,
                f"{text}\nL2" if fits else text,
                ha="center",
                va="center",
                color=ink,
                fontsize=8 if not fits else 7.5,
                linespacing=0.9,
                # readable on a hatch
                bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8} if uncertain else None,
            )
    axes.set_xticks(range(len(shown.columns)), [str(int(item)) for item in shown.columns])
    axes.set_yticks(range(len(shown.index)), [str(int(item)) for item in shown.index])
    axes.tick_params(length=0)
    axes.set_xlim(-0.5, len(shown.columns) - 0.5)
    axes.set_ylim(-0.5, len(shown.index) - 0.5)
    axes.spines[:].set_visible(False)
