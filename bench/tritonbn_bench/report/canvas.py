"""Panels and how they become SVG: one picture each, drawn for light and dark alike. Agg, no window.

The kind of the figures decides how a panel looks, here and nowhere else: modelled bars are hatched
and modelled lines dashed, static ones hatched the other way and dotted, those of a fake timer lie
under a watermark that only numbers stand on, and every panel says its kind in words.
"""

from __future__ import annotations

import io
import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "DTYPE_COLOURS",
    "FAKE",
    "GREEN",
    "GREY",
    "INK",
    "LABELS",
    "MODES",
    "ORANGE",
    "PURPLE",
    "SKY",
    "VERMILION",
    "Panel",
    "mode_words",
    "on_paper",
    "plain_log",
    "readable_on",
    "render",
    "themed",
    "thinned",
]

MODES = {
    "forward_train": "training forward",
    "backward_train": "training backward",
    "forward_eval": "eval forward",
    "backward_eval": "eval backward",
    "both_train": "training forward + backward",
}
FAKE = "fake"
# what a figure of each kind is called, everywhere
LABELS = {
    "measured": "measured",
    "modelled": "modelled, not measured",
    "static": "static, not measured",
    FAKE: "fake timer, not a measurement",
}
# of Okabe and Ito; a page sets others by theme
BLUE, SKY, GREEN = "#0072b2", "#56b4e9", "#009e73"
VERMILION, ORANGE, PURPLE = "#d55e00", "#e69f00", "#cc79a7"
GREY, INK, HATCH, PAPER = "#7f7f7e", "#010203", "#040506", "#fefdfc"
DTYPE_COLOURS = {"fp32": BLUE, "fp16": ORANGE, "bf16": GREEN, "fp64": PURPLE}
_VARIABLES = {
    BLUE: "blue",
    SKY: "sky",
    GREEN: "green",
    VERMILION: "vermilion",
    ORANGE: "orange",
    PURPLE: "purple",
    GREY: "grey",
    HATCH: "hatch",
    PAPER: "paper",
}
_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# any: the keys that matplotlib knows differ by version
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tritonbn",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GREY,
    "grid.alpha": 0.3,
    "hatch.linewidth": 0.6,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        name: of its file, unique in a report
        words: what it shows, for who cannot see it
        draw: draws it
        width, height: in inches; text has its size at 72 pixels an inch
    """

    name: str
    words: str
    draw: Callable[[Axes], None]
    width: float = 5.4
    height: float = 3.8


def render(panel: Panel, kind: str) -> str:
    """The SVG of a panel in `INK` and the colours above, without anything that changes by run.

    Args:
        panel: what to draw
        kind: key of LABELS
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(panel.width, panel.height), layout="constrained")
        axes = figure.subplots()
        panel.draw(axes)
        _mark(figure, kind)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _slim(buffer.getvalue(), panel.name)


def themed(svg: str) -> str:
    """The same SVG for a page that sets ink and colours."""
    svg = svg.replace(INK, "currentColor")
    for colour, name in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def on_paper(svg: str) -> str:
    """The same SVG as a file of its own, on white."""
    head, rest = svg.split(">", 1)
    return f'{head}><rect width="100%" height="100%" fill="#fff"/>{rest}\n'


def mode_words(name: object) -> str:
    """A mode in words; what is none stays as it is."""
    return MODES.get(str(name), str(name))


def plain_log(axis: Any) -> None:
    """A logarithmic axis whose numbers are plain words: small, and read aloud as they are."""
    from matplotlib.ticker import NullLocator

    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(NullLocator())


def thinned(values: list[int], factor: float = 1.98) -> list[int]:
    """Of rising values those that stand a factor apart, so that their labels do not touch."""
    kept: list[int] = []
    for value in values:
        if not kept or value / kept[-1] >= factor:
            kept.append(value)
    return kept


def readable_on(colour: Sequence[float]) -> str:
    """Black or white, whichever has the higher contrast on a colour: 4.58 : 1 or more, by WCAG 2.

    Args:
        colour: red, green and blue, 0 to 1; more is ignored
    """
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # the geometric mean of both contrasts' ends
    return "#000000" if luminance + 0.05 > math.sqrt(1.05 * 0.05) else "#ffffff"


def _mark(figure: Figure, kind: str) -> None:
    """Make the kind of the figures visible."""
    # at the left, where a small screen begins
    figure.suptitle(LABELS[kind], x=0.01, ha="left", fontsize=8, style="italic")
    looks: dict[str, tuple[str, Any]] = {"modelled": ("///", "--"), "static": ("\\\\\\", ":")}
    hatch, style = looks.get(kind, ("", ""))
    for axes in figure.axes:
        if kind == FAKE:
            _watermark(axes, figure.get_figwidth())
        for axis in (axes.xaxis, axes.yaxis):
            for line in axis.get_gridlines():
                # they end where the axes do, and many share a page
                line.set_clip_on(False)
        if hatch:
            for patch in axes.patches:
                patch.set(hatch=hatch, linestyle=style, edgecolor=HATCH, linewidth=0.8)
            for line in axes.lines:
                line.set_linestyle(style)


def _watermark(axes: Axes, width: float) -> None:
    """Words over bars and cells and under numbers, in ink with paper at their edge: seen on every
    colour. A wide panel has them more than once, for a small screen shows a part of it."""
    from matplotlib.transforms import ScaledTranslation

    times = max(1, round(width / 5))
    for index in range(times):
        for colour, shift in ((PAPER, 1.2), (INK, 0.0)):
            axes.text(
                (index + 0.5) / times,
                0.5,
                "fake timer",
                transform=axes.transAxes
                + ScaledTranslation(shift / 72, -shift / 72, axes.figure.dpi_scale_trans),
                rotation=24,
                fontsize=26,
                color=colour,
                alpha=0.3,
                ha="center",
                va="center",
                # texts have 3, lines 2
                zorder=2.9,
                in_layout=False,
            )


def _slim(svg: str, name: str) -> str:
    """Without what says nothing: metadata, groups without attributes, names that nothing refers to;
    the other names are short and belong to this picture, for many share a page."""
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(svg[svg.index("<svg") :])
    used = dict.fromkeys(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    short = {old: f"{zlib.crc32(name.encode()):x}-{index:x}" for index, old in enumerate(used)}
    _tidy(root, short)
    for group in [*root.iter()]:
        _hoist(group)
        _drop_hidden(group)
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", "sans-serif", text)
    text = text.replace("&apos;", "'").replace(" />", "/>")
    return re.sub(r">\s+<", "><", text)


def _tidy(root: ElementTree.Element, short: dict[str, str]) -> None:
    """Rename, round, and drop what is not drawn."""

    def renamed(text: str) -> str:
        return re.sub(r"#([\w-]+)", lambda found: f"#{short.get(found[1], found[1])}", text)

    for element in [*root.iter()]:
        for child in [*element]:
            unseen = child.tag == f"{{{_SVG}}}path" and child.get("style") == "fill: none"
            if unseen or child.tag == f"{{{_SVG}}}metadata":
                element.remove(child)
        for key, value in [*element.attrib.items()]:
            if key == "id":
                del element.attrib["id"]
                if value in short:
                    element.set("id", short[value])
            elif key == f"{{{_LINK}}}href":
                del element.attrib[key]
                element.set("href", renamed(value))
            elif key in ("d", "x", "y", "transform"):
                # a tenth of a pixel is enough
                rounded = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.1f}", value)
                rounded = re.sub(r"\.0\b", "", rounded)
                element.set(key, _short_path(rounded) if key == "d" else rounded)
                if rounded.startswith("rotate(-0 "):
                    del element.attrib[key]
            else:
                element.set(key, renamed(value).replace("; ", ";").replace(": ", ":"))


def _short_path(data: str) -> str:
    """A path without spaces and letters that can be left out: a line goes on until another letter
    comes."""
    parts: list[str] = []
    before = ""
    for letter, numbers in re.findall(r"([A-Za-z])([^A-Za-z]*)", data):
        going_on = letter == "L" and before in ("M", "L")
        parts.append((" " if going_on else letter) + " ".join(numbers.split()))
        before = letter
    return "".join(parts).replace(" -", "-")


def _hoist(group: ElementTree.Element) -> None:
    """Put the content of groups without attributes in their place."""
    index = 0
    while index < len(group):
        child = group[index]
        if child.tag == f"{{{_SVG}}}g" and not child.attrib:
            group.remove(child)
            for offset, grandchild in enumerate(child):
                group.insert(index + offset, grandchild)
        else:
            index += 1


def _drop_hidden(group: ElementTree.Element) -> None:
    """Leave out marks that lie on one like them, to the pixel."""
    seen = set()
    for child in [*group]:
        if child.tag == f"{{{_SVG}}}use":
            place = [round(float(child.get(axis, "0"))) for axis in ("x", "y")]
            mark = (child.get("href"), child.get("style"), *place)
            if mark in seen:
                group.remove(child)
            seen.add(mark)
