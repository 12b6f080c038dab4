"""The step `sanitize` of `gpu.py`: an exercise of every family of plans under compute-sanitizer."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

from steps import NOT_RUN, UNFINISHED, Outcome, last_line, remembered, run

# tools of compute-sanitizer, with options of each. torch probes the driver by calls that fail.
# racecheck also reports what Triton makes of a reduction: see triton-lang/triton#7264
SANITIZERS: dict[str, tuple[str, ...]] = {
    "memcheck": ("--padding", "256", "--report-api-errors", "no"),
    "racecheck": (),
    "synccheck": (),
}
# what the tool says where it cannot watch the device; the program may well run to its end there
REFUSED = ("Device not supported", "Failed to initialize")
# last words of the exercise where it ran to its end
EXERCISED = "every result agrees with float64"


def run_sanitizers(state: Path, deadline: float) -> list[Outcome]:
    """The exercise alone, which compiles for the others too, then under each tool. A repeated step
    starts at the first without a verdict."""
    folder = state / "sanitize"
    folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for tool in ("exercise", *SANITIZERS):

        def checked(tool: str = tool) -> Outcome:
            return run_sanitizer(tool, folder / f"{tool}.log", deadline)

        outcomes.append(remembered(folder / f"{tool}.json", checked))
        if outcomes[-1].note.startswith(NOT_RUN):
            # the next would say the same
            break
    return outcomes


def run_sanitizer(tool: str, log: Path, deadline: float) -> Outcome:
    """The exercise under a tool of compute-sanitizer, or alone."""
    under: list[str] = []
    if tool in SANITIZERS:
        if shutil.which("compute-sanitizer") is None:
            return Outcome(tool, 1, 0.0, f"{NOT_RUN}compute-sanitizer is missing")
        under = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "66"]
        under += ["--target-processes", "application-only", *SANITIZERS[tool]]
    arguments = ["-m", "tritonbn_bench.exercise", "--device", "cuda"]
    # an allocation of its own for each tensor: inside torch's pool nothing is out of bounds
    outcome = run(tool, arguments, log, deadline, under, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    if under and outcome.code != UNFINISHED:
        return judge_sanitizer(outcome, text, log.name)
    if outcome.code == 2:
        return replace(outcome, code=1, note=NOT_RUN + last_line(text))
    return outcome


def judge_sanitizer(outcome: Outcome, text: str, log: str) -> Outcome:
    """The outcome by what a tool printed: clean only with a summary that says so, and with the
    exercise at its end."""
    for line in text.splitlines():
        if line.startswith("=====") and any(words in line for words in REFUSED):
            return replace(outcome, code=1, note=NOT_RUN + line.strip("= "))
    found = re.findall(r"SUMMARY: ((\d+) (?:errors?|hazards?).*)", text)
    if not found:
        return replace(outcome, code=1, note=f"no summary: see {log}")
    words = ", ".join(line.strip() for line, _ in found)
    if any(int(count) for _, count in found):
        return replace(outcome, code=1, note=f"{words}: see {log}")
    if outcome.code or EXERCISED not in text:
        return replace(outcome, code=1, note=f"{words}, but the exercise failed: see {log}")
    return replace(outcome, note=words)
