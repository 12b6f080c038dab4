"""A folder of reports: its index, and the table of speed for a README, both from the figures alone.

Both stand in Markdown files between marks, and nothing else of the files is touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .environment import device_name
from .fusions import NONE
from .results import SHARE, Results, Row
from .summary import (
    EAGER,
    LARGE,
    OURS,
    UNFUSED,
    Speedup,
    geomean,
    has_speed,
    is_fake,
    mean_speedup,
    speedups,
)
from .tables import markdown_table
from .verdict import step_sentences, verdict

__all__ = ["Report", "index_of", "reports_in", "speed_table", "written_between"]

# while no GPU has measured anything
NOTHING = """| speed against cuDNN, ATen and torch.compile | GPU | date | command |
| --- | --- | --- | --- |
| not measured yet |  |  | `make gpu STEP=bench` |

No speed has been measured on a GPU yet: what is said of traffic below is modelled, or counted in
Triton's interpreter."""
_FIRST, _LAST = ("nchw", "ncdhw"), ("nhwc", "ndhwc")


@dataclass(frozen=True)
class Report:
    """One report of a folder of them.

    Attributes:
        path: of its folder
        results: its figures
    """

    path: Path
    results: Results

    @property
    def date(self) -> str:
        """When it was measured, as its environment says."""
        return str(self.results.environment.get("date") or "")

    @property
    def measured(self) -> bool:
        """Whether it holds times of a GPU."""
        on_gpu = self.results.environment.get("device") == "cuda"
        return on_gpu and not is_fake(self.results) and has_speed(self.results.rows)


def reports_in(folder: Path) -> list[Report]:
    """The reports in folders of a folder, the newest first.

    Raises:
        FileNotFoundError: there is no such folder
        ValueError: a file of results is damaged, or of another version
    """
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and Results.path(path).exists():
            found.append(Report(path, Results.load(path)))
    return sorted(found, key=lambda report: report.date, reverse=True)


def index_of(reports: Sequence[Report]) -> str:
    """A line for each report."""
    head = ("report", "machine", "date", "torch", "triton", "speed", "first of its verdict")
    lines = [
        (
            f"[{report.path.name}]({report.path.name}/index.md)",
            device_name(report.results.environment).removeprefix("on "),
            report.date,
            str(report.results.environment.get("torch") or ""),
            str(report.results.environment.get("triton") or ""),
            "measured" if report.measured else "not measured",
            verdict(report.results)[0],
        )
        for report in reports
    ]
    parts = [markdown_table(head, lines)] if lines else []
    if not any(report.measured for report in reports):
        parts.append("No speed has been measured yet: there is no report from a GPU.")
    return "\n\n".join(parts)


def speed_table(reports: Sequence[Report], folder: str) -> str:
    """What the newest report with a sweep that a GPU measured says of speed.

    Args:
        reports: the newest first
        folder: where they lie, as the file that gets the table would link to it
    """
    for report in reports:
        rows = report.results.rows if report.measured else []
        swept = [item for item in speedups(rows) if item.case.job == "sweep"]
        ratios = [item for item in swept if item.rival != UNFUSED]
        rivals = list(dict.fromkeys(_rival(item) for item in ratios))
        lines = list(_lines(ratios, _shares(rows), rivals))
        if lines:
            head = ("time of the rival / time of tritonbn", *rivals, "% of a copy's speed")
            return f"{markdown_table(head, lines)}\n\n{_caption(report, folder)}"
    return NOTHING


def _rival(item: Speedup) -> str:
    """What really ran."""
    return item.backend if item.rival in EAGER else item.rival


def _shares(rows: Sequence[Row]) -> list[Row]:
    return [
        row
        for row in rows
        if (row.job, row.provider, row.quantity) == ("sweep", OURS, SHARE)
        and row.value
        and (row.floor_bytes or 0) >= LARGE
    ]


def _lines(
    ratios: Sequence[Speedup], shares: Sequence[Row], rivals: Sequence[str]
) -> Iterator[tuple[object, ...]]:
    """A line for each part of the sweep that has cases."""
    for words, belongs in _parts():
        part = [item for item in ratios if belongs(item.case)]
        if part:
            cells = [_mean([item for item in part if _rival(item) == rival]) for rival in rivals]
            values = [row.value or 1.0 for row in shares if belongs(row)]
            share = f"{100 * geomean(values):.0f} (n = {len(values)})" if values else None
            yield (words, *cells, share)


def _parts() -> Iterator[tuple[str, Callable[[Row], bool]]]:
    """Parts of the sweep, and what belongs to them."""
    for order, layouts in (("NCHW", _FIRST), ("channels_last", _LAST)):
        for words, mode in (("forward", "forward_train"), ("backward", "backward_train")):

            def alone(row: Row, mode: str = mode, layouts: tuple[str, ...] = layouts) -> bool:
                return (row.mode, row.fusion) == (mode, NONE) and row.layout in layouts

            yield f"training {words}, {order}", alone
    yield (
        "training, (N, C) and (N, C, L)",
        lambda row: (
            row.mode.endswith("train") and row.fusion == NONE and row.layout not in _FIRST + _LAST
        ),
    )
    yield (
        "training, activation and residual in the kernel",
        lambda row: row.mode.endswith("train") and row.fusion != NONE,
    )
    yield "inference", lambda row: row.mode == "forward_eval"


def _mean(chosen: Sequence[Speedup]) -> str | None:
    """Geometric mean with its interval and the number of cases."""
    if not chosen:
        return None
    mean, low, high = mean_speedup(chosen)
    ends = "" if low is None else f" [{low:.2f} ... {high:.2f}]"
    return f"{mean:.2f}{ends} (n = {len(chosen)})"


def _caption(report: Report, folder: str) -> str:
    environment = report.results.environment
    versions = ", ".join(
        f"{name} {environment[name]}" for name in ("torch", "cudnn", "triton") if environment[name]
    )
    text = (
        f"Measured on {environment['gpu']}, {report.date}, by `{environment['command']}` "
        f"({versions}): [{report.path.name}]({folder}/{report.path.name}/index.md). Geometric "
        "means over n cases of the sweep, in each column those in which that ran, with the 95 % "
        "interval of the measurement; the copy's speed where at least 64 MB must move."
    )
    return " ".join([text, *step_sentences(report.results.rows)])


def written_between(text: str, name: str, content: str) -> str:
    """A text with `content` between the marks of `name`, in the place of what stood there.

    Raises:
        ValueError: the marks are not there, once each and in their order
    """
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, *parts = re.split(f"({re.escape(first)}|{re.escape(last)})", text)
    if parts[::2] != [first, last]:
        raise ValueError(f"expected one {first} and one {last} after it")
    return f"{before}{first}\n{content}\n{last}{parts[-1]}"
