"""Pictures of training steps: losses, and what is modelled of traffic and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .canvas import MODES, blank
from .results import Row
from .summary import LARGEST_GAP, OURS, PEAK_BYTES, SAVED_BYTES, UNFUSED, step_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figures"]

_WAYS = {
    "torch": ("#0072B2", ""),
    "torch out of place": ("#56B4E9", "\\\\"),
    "tritonbn": ("#D55E00", "//"),
    "tritonbn memory_efficient": ("#E69F00", ".."),
}


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Every picture that the rows allow, by name."""
    found: dict[str, Figure] = {}
    losses = [row for row in rows if row.job == "training" and row.quantity == "loss"]
    if losses:
        found["training"] = _training(losses)
    for job, what in (
        ("traffic", "BatchNorm of ResNet-50"),
        ("fusion", "BatchNorm of ResNet-50 with what follows it"),
    ):
        modelled = [row for row in rows if row.job == job]
        if modelled:
            found[job] = _traffic(modelled, job, what)
    memory = [row for row in rows if row.job == "memory"]
    if memory:
        found["memory"] = _memory(memory)
    return found


def _training(losses: Sequence[Row]) -> Figure:
    figure, panels = blank(1, 2, 7.0, 6.0)
    top, bottom = panels[0][0], panels[1][0]
    by_provider = {
        name: [row.value or 0.0 for row in losses if row.provider == name]
        for name in ("torch", UNFUSED, OURS)
    }
    theirs = by_provider["torch"]
    top.plot(theirs, color="#0072B2", linewidth=5, alpha=0.4, label="torch's layers")
    styles = {
        UNFUSED: ("#009E73", "s", "converted"),
        OURS: ("#D55E00", "o", "ours, activations in them"),
    }
    for name, (colour, marker, label) in styles.items():
        ours = by_provider[name]
        size = 6 if name == UNFUSED else 3
        look = {"color": colour, "marker": marker, "markersize": size, "fillstyle": "none"}
        top.plot(ours, linestyle="--", label=label, **look)
        gaps = [abs(a - b) for a, b in zip(theirs, ours, strict=True)]
        # a logarithmic axis has no zero
        seen = [gap or math.nan for gap in gaps]
        equal = f"{label}; equal to the last bit in {gaps.count(0.0)} of {len(gaps)} steps"
        bottom.plot(seen, linestyle="none", label=equal, **look)
    top.set_ylabel("cross entropy")
    top.legend()
    bottom.axhline(LARGEST_GAP, color="black", linestyle=":", label="allowed")
    bottom.set_yscale("log")
    bottom.set_ylabel("gap to torch's losses")
    bottom.set_xlabel("step")
    bottom.set_ylim(1e-8, 5e-2)
    bottom.legend(loc="center right", fontsize=8)
    for panel in (top, bottom):
        panel.grid(True, alpha=0.3)
    figure.suptitle(f"SimpleCNN on digits, fp32, kernels by {losses[-1].backend}; measured")
    return figure


def _traffic(rows: Sequence[Row], job: str, what: str) -> Figure:
    """Bytes of all layers in a training step; hatched, because no device counted them."""
    kinds = list(dict.fromkeys((row.dtype, row.layout) for row in rows))
    figure, panels = blank(len(kinds), 1, 3.4 * len(kinds), 4.2)
    highest = 0.0
    providers = list(dict.fromkeys(row.provider for row in rows))
    colours = {"forward_train": "#56B4E9", "backward_train": "#E69F00"}
    moved = step_bytes(rows, job)
    for kind, panel in zip(kinds, panels[0], strict=True):
        bottoms = [0.0] * len(providers)
        for mode, colour in colours.items():
            sums = [moved[(*kind, mode, provider)] / 1e9 for provider in providers]
            panel.bar(
                [name.replace(" ", "\n") for name in providers],
                sums,
                0.6,
                bottom=bottoms,
                color=colour,
                hatch="//",
                edgecolor="white",
                label=MODES[mode],
            )
            bottoms = [bottom + value for bottom, value in zip(bottoms, sums, strict=True)]
        for index, total in enumerate(bottoms):
            panel.text(index, total, f"{total:.2f}", ha="center", va="bottom")
        highest = max(highest, *bottoms)
        panel.set_title(", ".join(kind))
    for panel in panels[0]:
        panel.set_ylim(0, 1.15 * highest)
    panels[0][0].set_ylabel("GB per training step")
    panels[0][-1].legend(fontsize=8, loc="upper left")
    figure.suptitle(f"{what}, N = {rows[0].batch}:\nmodelled by formula, not measured")
    return figure


def _memory(rows: Sequence[Row]) -> Figure:
    """Bytes kept for backward and at most, by activation and by how they are computed."""
    data = list(dict.fromkeys(row.data for row in rows))
    figure, panels = blank(len(data), 1, 4.2 * len(data), 4.8)
    highest = max(row.value or 0.0 for row in rows) / 1e9
    for name, panel in zip(data, panels[0], strict=True):
        _memory_bars(panel, [row for row in rows if row.data == name])
        panel.set_title(name)
        panel.set_ylim(0, 1.3 * highest)
    panels[0][0].set_ylabel("GB of activations and their gradients")
    panels[0][0].legend(fontsize=8, loc="upper left")
    first = rows[0]
    figure.suptitle(
        f"A training step of ResNet-50, N = {first.batch}, {first.dtype}, by activation: "
        "computed by accounting, not measured"
    )
    return figure


def _memory_bars(panel: Axes, rows: Sequence[Row]) -> None:
    found = {(row.provider, row.quantity): (row.value or 0.0) / 1e9 for row in rows}
    providers = list(dict.fromkeys(row.provider for row in rows))
    for index, provider in enumerate(providers):
        colour, hatch = _WAYS[provider]
        saved, peak = found[(provider, SAVED_BYTES)], found[(provider, PEAK_BYTES)]
        panel.bar(index, saved, 0.6, color=colour, hatch=hatch, edgecolor="white")
        panel.plot(index, peak, marker="_", markersize=26, color="black", linestyle="none")
        panel.text(index, peak, f"{saved:.2f}", ha="center", va="bottom", fontsize=9)
    panel.bar(0, 0, color="#999999", label="kept for backward (number)")
    panel.plot([], [], marker="_", color="black", linestyle="none", label="at most at once")
    ways = {row.provider: row.backend.replace(", ", ",\n") for row in rows}
    panel.set_xticks(range(len(providers)), [ways[name] for name in providers], fontsize=8)
    panel.grid(True, axis="y", alpha=0.3)
