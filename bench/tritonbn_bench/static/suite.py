"""The whole check without a GPU: compiled figures, launch plans and traffic against their budgets.

Every part runs in a process of its own: what compiles and what interprets cannot share one. The
text says what was found and nothing of time or place: it is the same on every machine.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import budget
from .driver import TARGETS
from .worker import LAUNCHES, TRAFFIC

__all__ = [
    "CheckStoppedError",
    "Finding",
    "Request",
    "as_markdown",
    "as_text",
    "check",
    "in_words",
    "verdict",
]

# decide plans or compilation, or hide a device from torch: a check is of what everyone gets
DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
OURS = "TRITONBN_"


class CheckStoppedError(RuntimeError):
    """A part could not be measured; the text is what it said."""


@dataclass(frozen=True)
class Request:
    """What is to be checked.

    targets: names of architectures; only: words of which the names of cases contain one, all if ();
    budgets: folder; jobs: processes at a time; update: whether to accept what is found.
    """

    targets: tuple[str, ...]
    only: tuple[str, ...]
    budgets: Path
    jobs: int
    update: bool

    @property
    def whole(self) -> bool:
        """Whether no case is left out."""
        return not self.only


@dataclass(frozen=True)
class Finding:
    """What one part found: number of lines looked at, and lines on what is wrong, worse, changed.

    file: name of the budget. absent: whether there was none; written: whether it was renewed.
    """

    title: str
    file: str
    lines: int
    faults: tuple[str, ...]
    worse: tuple[str, ...]
    changed: tuple[str, ...]
    absent: bool
    written: bool

    @property
    def failed(self) -> bool:
        """Whether something is wrong, or worse and not accepted."""
        return bool(self.faults or (self.worse and not self.written))

    @property
    def summary(self) -> str:
        """One line."""
        counted = f"{self.title}: {self.lines} lines, {len(self.faults)} faults, "
        if self.absent:
            verdict = "written" if self.written else "not compared: NO BASELINE"
            return f"{counted}{verdict} ({self.file})"
        counted += f"{len(self.worse)} worse, {len(self.changed)} otherwise changed"
        return f"{counted}, accepted ({self.file})" if self.written else counted


def check(wanted: Request) -> list[Finding]:
    """Measure every part and compare it with its budget, or renew that.

    Raises:
        CheckStoppedError: a part cannot be measured here.
    """
    found = _all_measured((TRAFFIC, *wanted.targets, LAUNCHES), wanted)
    figures: dict[str, Any] = {}
    hints: dict[str, Any] = {}
    faults: list[str] = []
    for target in wanted.targets:
        figures |= found[target]["figures"]
        hints |= found[target]["hints"]
        faults += found[target]["faults"]
    version = budget.version()
    title = f"compiled kernels ({', '.join(wanted.targets)}; triton {version})"
    # of the compiled kernels there are more cases than these
    all_targets = wanted.whole and {*wanted.targets} == {*TARGETS}
    snapshot = (budget.any_change, budget.nothing)
    parts_found = (
        _Part(title, f"{version}.json", figures, faults),
        _Part(
            f"cache hints (triton {version})",
            f"{version}.hints.json",
            hints,
            changes=snapshot,
            whole=all_targets,
        ),
        _Part(
            "launch plans of networks",
            "launch_plans.json",
            found[LAUNCHES][LAUNCHES],
            changes=snapshot,
            whole=wanted.whole,
        ),
        _Part(
            "traffic",
            "traffic.json",
            found[TRAFFIC][TRAFFIC],
            found[TRAFFIC]["faults"],
            (budget.more_traffic, budget.other_traffic),
            wanted.whole,
        ),
    )
    return [_compared(part, wanted) for part in parts_found]


def _all_measured(parts: Sequence[str], wanted: Request) -> dict[str, dict[str, Any]]:
    """What each part's process prints; where one fails or Ctrl-C comes, the others are ended."""
    running = _Processes()
    with ThreadPoolExecutor(max(1, wanted.jobs)) as pool:
        waiting = {part: pool.submit(_measured, part, wanted.only, running) for part in parts}
        try:
            return {part: answer.result() for part, answer in waiting.items()}
        except BaseException:
            # those that wait for a thread too: it would take minutes
            running.end()
            raise


class _Processes:
    """Processes that threads start and one thread may end."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []
        self._ended = False

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
        """Exit code, output and errors."""
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
        self._started.append(process)
        # whoever ends them may have looked just before
        if self._ended:
            process.kill()
        output, errors = process.communicate()
        return process.returncode, output, errors

    def end(self) -> None:
        """End those that run, and those that start from now on."""
        self._ended = True
        for process in self._started:
            process.kill()


def _measured(part: str, only: Sequence[str], running: _Processes) -> dict[str, Any]:
    """What the process of one part prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    environment |= dict.fromkeys(DEVICES, "")
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    if part == TRAFFIC:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", f"{__package__}.worker", part, *only]
    code, output, errors = running.run(command, environment)
    if code:
        raise CheckStoppedError(f"{part} could not be measured:\n{errors.strip()}")
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


@dataclass(frozen=True)
class _Part:
    """What was measured for one budget, and how it is compared; whole: it is all there is."""

    title: str
    file: str
    measured: Mapping[str, Mapping[str, Any]]
    faults: Sequence[str] = ()
    changes: tuple[budget.Change, budget.Change] = (budget.worse_figures, budget.other_figures)
    whole: bool = False


def _compared(part: _Part, wanted: Request) -> Finding:
    path = wanted.budgets / part.file
    committed = budget.read(path)
    worse, other = budget.compare(committed or {}, part.measured, *part.changes, part.whole)
    if committed is None:
        worse = other = []
    written = wanted.update and bool(part.measured)
    if written:
        budget.write(path, part.measured, part.whole)
    return Finding(
        title=part.title,
        file=part.file,
        lines=len(part.measured),
        faults=tuple(map(in_words, part.faults)),
        worse=tuple(map(in_words, worse)),
        changed=tuple(map(in_words, other)),
        absent=committed is None,
        written=written,
    )


def as_text(findings: Sequence[Finding]) -> str:
    """A line for each part, then what is wrong, worse and changed, then the verdict."""
    lines = [finding.summary for finding in findings]
    lines += [f"{label} {line}" for label, line in _labelled(findings)]
    return "\n".join([*lines, verdict(findings)])


def as_markdown(findings: Sequence[Finding]) -> str:
    """The same as a page: a table of the parts, and lists."""
    rows = [
        f"| {finding.title} | {finding.lines} | {len(finding.faults)} | "
        f"{'no baseline' if finding.absent else len(finding.worse)} | {len(finding.changed)} |"
        for finding in findings
    ]
    said = [f"- **{label}** {line}" for label, line in _labelled(findings)]
    head = ["| part | lines | faults | worse | changed |", "|---|---|---|---|---|"]
    return "\n".join([f"## {verdict(findings)}", "", *head, *rows, "", *said, ""])


def _labelled(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    """(label, line) of everything to be said, the gravest first."""
    said = [("FAULT", line) for finding in findings for line in finding.faults]
    for finding in findings:
        label = "accepted" if finding.written else "WORSE"
        said += [(label, line) for line in finding.worse]
    for finding in findings:
        label = "accepted" if finding.written else "changed"
        said += [(label, line) for line in finding.changed]
    return said


def verdict(findings: Sequence[Finding]) -> str:
    """One sentence, and what to do about it."""
    absent = [finding for finding in findings if finding.absent and not finding.written]
    told = f", {len(absent)} without a budget (accept one with --update)" if absent else ""
    if any(finding.faults for finding in findings):
        return f"check --static: FAILED, see FAULT{told}"
    if any(finding.failed for finding in findings):
        return f"check --static: FAILED; if it is meant, accept it with --update{told}"
    if any(finding.written for finding in findings):
        files = ", ".join(finding.file for finding in findings if finding.written)
        return f"check --static: accepted, written to {files}"
    return f"check --static: passed{told}"


_BYTES = re.compile(r"\b((?<!hints of )(?:load|store) \w+|shared|stack|spill) (\d+ -> \d+)")
_TIMES = re.compile(r"\bmoved (\w+) ([\d.]+) -> ([\d.]+)")


def in_words(line: str) -> str:
    """A line `target case | operation | kernel: change, change` for people."""
    key, change = line.split(": ", 1)
    place, *rest = key.split(" | ")
    target, case = place.split(" ", 1)
    change = _BYTES.sub(r"\1 \2 bytes", change)
    change = _TIMES.sub(r"\1 moved \2 -> \3 times", change).replace(
        "all over floor", "traffic over the floor"
    )
    change = re.sub(r"hints of (\w+ \w+?)(?:_ptr)?\b", r"cache hints of \1:", change)
    return f"{rest[0]} of {case} on {target}{''.join(f', {name}' for name in rest[1:])}: {change}"
