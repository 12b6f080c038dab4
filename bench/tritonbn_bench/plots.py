"""Pictures from the tidy table alone. Agg, no window, colours of Okabe and Ito, and a marker and a
line style per provider, so that no curve is told apart by colour only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import step_plots
from .canvas import MODES, blank
from .fusions import FUSIONS, NONE
from .results import Results, Row
from .summary import OURS, speedups

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "figures"]

# colour, marker, line style
STYLES = {
    ("tritonbn", "nchw"): ("#D55E00", "o", "-"),
    ("tritonbn", "nhwc"): ("#E69F00", "s", "-"),
    ("torch", "nchw"): ("#0072B2", "^", "--"),
    ("torch channels_last", "nhwc"): ("#56B4E9", "v", "--"),
    ("torch.compile", "nchw"): ("#009E73", "D", "-."),
    ("torch.compile", "nhwc"): ("#CC79A7", "P", "-."),
    ("copy", "nchw"): ("#000000", "", ":"),
}
DTYPES = ("fp32", "fp16", "bf16", "fp64")
_DTYPE_COLOURS = {"fp32": "#0072B2", "fp16": "#E69F00", "bf16": "#009E73", "fp64": "#CC79A7"}
_HATCHES = {"fp32": "", "fp16": "//", "bf16": "..", "fp64": "xx"}
_DPI = 120


def draw(results: Results, folder: Path) -> dict[str, Path]:
    """Draw every picture that the rows allow into `folder`; name -> file."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, figure in figures(results).items():
        files[name] = folder / f"{name}.png"
        # without the software's version the same rows give the same file
        figure.savefig(files[name], dpi=_DPI, metadata={"Software": None})
    return files


def figures(results: Results) -> dict[str, Figure]:
    """Every picture that the rows allow, by name."""
    found: dict[str, Figure] = {}
    rows = results.rows
    for mode in ("forward_train", "backward_train"):
        for axis in ("batch", "channels"):
            lines = _line_rows(rows, mode, axis)
            if lines:
                found[f"throughput-{mode}-{axis}"] = _throughput(lines, mode, axis)
    ratios = [item for item in speedups(rows) if item.case.job == "resnet50"]
    for name, chosen in (
        ("resnet50-speedup", [item for item in ratios if item.case.fusion == NONE]),
        ("resnet50-fused-speedup", [item for item in ratios if item.case.fusion != NONE]),
    ):
        if chosen:
            found[name] = _resnet50(chosen)
    accuracy = [
        row
        for row in rows
        if row.job == "accuracy" and row.value is not None and row.fusion == NONE
    ]
    if any(row.provider == OURS for row in accuracy):
        found["accuracy"] = _accuracy(accuracy)
    return {**found, **step_plots.figures(rows)}


def _line_rows(rows: Sequence[Row], mode: str, axis: str) -> list[Row]:
    """Throughput along one line of the sweep."""
    origin = {"batch": 256, "channels": 32}
    other = {"batch": "channels", "channels": "batch"}[axis]
    return [
        row
        for row in rows
        if row.job == "sweep"
        and row.mode == mode
        and row.quantity == "throughput"
        and row.space == 784
        and row.fusion == NONE
        and getattr(row, other) == origin[axis]
    ]


def _throughput(rows: Sequence[Row], mode: str, axis: str) -> Figure:
    dtypes = [dtype for dtype in DTYPES if any(row.dtype == dtype for row in rows)]
    figure, panels = blank(len(dtypes), 1, 5.2 * len(dtypes), 5.6)
    for dtype, panel in zip(dtypes, panels[0], strict=True):
        for (provider, layout), (colour, marker, style) in STYLES.items():
            curve = _curve(rows, provider, layout, dtype, axis)
            if not curve:
                continue
            where = [getattr(row, axis) for row in curve]
            panel.plot(
                where,
                [row.value for row in curve],
                color=colour,
                marker=marker or None,
                linestyle=style,
                markersize=5,
                fillstyle="none" if layout == "nhwc" else "full",
                label=_label(curve),
            )
            panel.fill_between(
                where,
                [row.low for row in curve],
                [row.high for row in curve],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
        _log_axis(panel, sorted({getattr(row, axis) for row in rows}))
        panel.set_title(dtype)
        panel.set_xlabel({"batch": "batch size N", "channels": "channels C"}[axis])
        panel.grid(True, alpha=0.3)
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), fontsize=8, ncols=2)
    highest = max(row.high or 0.0 for row in rows)
    for panel in panels[0]:
        panel.set_ylim(0, 1.05 * highest)
    panels[0][0].set_ylabel("throughput: floor bytes / time, GB/s")
    fixed = {"batch": "C = 256, plane 28 x 28", "channels": "N = 32, plane 28 x 28"}[axis]
    how = f"{rows[0].cache} caches, band 20 to 80 %; measured"
    figure.suptitle(f"BatchNorm {MODES[mode]}, {fixed}; {how}")
    return figure


def _curve(rows: Sequence[Row], provider: str, layout: str, dtype: str, axis: str) -> list[Row]:
    found = [
        row for row in rows if (row.provider, row.layout, row.dtype) == (provider, layout, dtype)
    ]
    return sorted(found, key=lambda row: float(getattr(row, axis)))


def _label(curve: Sequence[Row]) -> str:
    """Provider, layout where the name does not say it, and every backend that ran."""
    first = curve[0]
    backends = " / ".join(dict.fromkeys(row.backend for row in curve))
    if first.provider == "copy":
        return "device copy of the floor bytes"
    layout = "" if first.provider.startswith("torch channels") else f" {first.layout}"
    return f"{first.provider}{layout} ({backends})"


def _log_axis(panel: Axes, values: Sequence[int]) -> None:
    """A logarithmic axis with a tick at each measured value, thinned so that none touch."""
    panel.set_xscale("log", base=2)
    ticks: list[int] = []
    for value in values:
        if not ticks or math.log2(value / ticks[-1]) >= 0.99:
            ticks.append(value)
    panel.set_xticks(ticks, [str(value) for value in ticks], fontsize=8)
    panel.minorticks_off()


def _resnet50(ratios: Sequence[Any]) -> Figure:
    modes = list(dict.fromkeys(item.case.mode for item in ratios))
    rivals = list(dict.fromkeys((item.rival, item.case.layout) for item in ratios))
    figure, panels = blank(len(modes), len(rivals), 7.5 * len(modes), 3.4 * len(rivals))
    for line, (rival, layout) in zip(panels, rivals, strict=True):
        for mode, panel in zip(modes, line, strict=True):
            chosen = [
                item
                for item in ratios
                if (item.rival, item.case.layout, item.case.mode) == (rival, layout, mode)
            ]
            _bars(panel, chosen)
            panel.set_title(f"{MODES[mode]}, {layout}, against {rival}", fontsize=10)
        line[0].set_ylabel("time of rival / tritonbn")
    for panel in panels[-1]:
        panel.set_xlabel("channels, plane")
    batch = ratios[0].case.batch
    what = "shapes" if ratios[0].case.fusion == NONE else "with what follows it in one kernel"
    figure.suptitle(
        f"ResNet-50's BatchNorm {what}, N = {batch}, measured; above 1 tritonbn is faster"
    )
    return figure


def _shape(item: Any) -> tuple[int, int, str]:
    """What a bar stands for."""
    return (item.case.channels, item.case.space, item.case.fusion)


def _bars(panel: Axes, chosen: Sequence[Any]) -> None:
    shapes = list(dict.fromkeys(map(_shape, chosen)))
    dtypes = [dtype for dtype in DTYPES if any(item.case.dtype == dtype for item in chosen)]
    width = 0.8 / max(len(dtypes), 1)
    for index, dtype in enumerate(dtypes):
        found = {_shape(item): item for item in chosen if item.case.dtype == dtype}
        backends = " / ".join(dict.fromkeys(item.backend for item in found.values()))
        where = [shapes.index(shape) + (index - (len(dtypes) - 1) / 2) * width for shape in found]
        panel.bar(
            where,
            [item.ratio for item in found.values()],
            width,
            color=_DTYPE_COLOURS[dtype],
            hatch=_HATCHES[dtype],
            edgecolor="white",
            label=f"{dtype} against {backends}",
        )
    panel.axhline(1.0, color="black", linewidth=1)
    names = [
        f"{channels}\n{math.isqrt(space)}²"
        + (f"\n{FUSIONS[fusion].words}" if fusion != NONE else "")
        for channels, space, fusion in shapes
    ]
    panel.set_xticks(range(len(shapes)), names, fontsize=8)
    panel.margins(x=0.01)
    # room for the legend above the bars
    panel.set_ylim(0, 1.3 * max(1.0, *(item.ratio for item in chosen)))
    panel.legend(fontsize=7, ncols=len(dtypes), loc="upper left")
    panel.grid(True, axis="y", alpha=0.3)


def _accuracy(rows: Sequence[Row]) -> Figure:
    """Error against conditioning: largest over layouts, ours, torch's and the bound."""
    dtypes = [dtype for dtype in DTYPES if any(row.dtype == dtype for row in rows)]
    quantities = [
        ("error of y", "forward_train"),
        ("error of dx", "backward_train"),
        ("error of dgamma", "backward_train"),
    ]
    figure, panels = blank(len(dtypes), len(quantities), 3.6 * len(dtypes), 8.6)
    data = list(dict.fromkeys(row.data for row in rows))
    for line, (quantity, mode) in zip(panels, quantities, strict=True):
        for dtype, panel in zip(dtypes, line, strict=True):
            chosen = [
                row
                for row in rows
                if (row.quantity, row.mode, row.dtype) == (quantity, mode, dtype)
            ]
            _errors(panel, chosen, data)
            panel.set_title(f"{quantity}, {dtype}", fontsize=10)
        line[0].set_ylabel("largest absolute error")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.suptitle(
        "Error against float64, largest over layouts, measured; a mark on the lower edge: exact"
    )
    return figure


def _errors(panel: Axes, chosen: Sequence[Row], data: Sequence[str]) -> None:
    def largest(provider: str, name: str, column: str) -> float | None:
        found = [
            getattr(row, column) for row in chosen if (row.provider, row.data) == (provider, name)
        ]
        return max((value for value in found if value is not None), default=None)

    series: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
        ("tritonbn", OURS, "value", {"marker": "o", "color": "#D55E00"}),
        ("torch", "torch", "value", {"marker": "^", "color": "#0072B2", "fillstyle": "none"}),
        (
            "bound for tritonbn",
            OURS,
            "bound",
            {"marker": "_", "color": "#000000", "markersize": 14, "markeredgewidth": 2},
        ),
    )
    for label, provider, column, style in series:
        values = [largest(provider, name, column) for name in data]
        seen = [value or math.nan for value in values]
        panel.plot(range(len(data)), seen, linestyle="none", label=label, **style)
        # a logarithmic axis has no zero: exact results stand on its lower edge
        exact = [index for index, value in enumerate(values) if value == 0 and column == "value"]
        edge = panel.get_xaxis_transform()
        for index in exact:
            panel.plot(
                index, 0.0, transform=edge, clip_on=False, zorder=3, in_layout=False, **style
            )
    panel.set_yscale("log")
    names = [name.replace("=", " ") for name in data]
    panel.set_xticks(range(len(data)), names, fontsize=8, rotation=35, ha="right")
    panel.set_xlim(-0.5, len(data) - 0.5)
    panel.grid(True, alpha=0.3)
