"""The run on a GPU machine that has no network: tests, accuracy, speed, report.

    python scripts/gpu.py --out DIR [--step NAME|all]

Steps: tests, sanitize (each family of plans under compute-sanitizer), accuracy, bench (ResNet-50's
layers and the sweep), profile (hardware counters of the slowest cases, by ncu), networks (the
layers of every network), endtoend (training steps), selfcheck (what the gate can see on this
machine), baseline (ratios that a later gate compares with), report.

Uses this interpreter and the checkout, never a virtual environment, never TRITON_INTERPRET. Each
step ends within 9 minutes and goes on where it stopped when it is repeated: the state is in
build/gpu. Whatever happened, OUT gets summary.txt and one archive of the state under 16 MiB.

Exit code: 0 all asked for is done and passed, 1 something failed or could not run (a tool is
missing, or refuses this machine), 2 torch, triton or numpy is missing, 3 a step ran out of time and
wants to be repeated.
"""

from __future__ import annotations

import argparse
import os
import sys
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from environment import CORE, ROOT, missing
from sanitize import run_sanitizers
from steps import NOT_RUN, UNFINISHED, Outcome, last_line, remembered, run

STEPS = (
    *("tests", "sanitize", "accuracy", "bench", "profile", "networks", "endtoend", "selfcheck"),
    *("baseline", "report"),
)
STEP_SECONDS = 500.0
# test files at a time: each process keeps its own memory on the GPU
MOST_TESTS = 8
# what one file of an archive may add up to, in bytes, before compression is even tried
ARCHIVE_BYTES = 15 * 2**20
# cases that are profiled: the slowest against a copy, and half as many against rivals
PROFILED = 6


def run_tests(state: Path, deadline: float) -> list[Outcome]:
    """One pytest per file, several at a time: most of a test's time is Triton's compiler, on one
    core. A repeated step starts at the first file without a verdict."""
    if "pytest" in missing(["test"]):
        return [Outcome("tests", 1, 0.0, f"{NOT_RUN}pytest is missing")]
    folder = state / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    paths = sorted((ROOT / "tests").glob("test_*.py"))
    with ThreadPoolExecutor(max(1, min(MOST_TESTS, (os.cpu_count() or 1) // 2))) as workers:
        return list(workers.map(lambda path: run_test(path, folder, deadline), paths))


def run_test(path: Path, folder: Path, deadline: float) -> Outcome:
    """The tests of one file, or what they came to when they were run before."""
    verdict = folder / f"{path.stem}.xml"
    arguments = ["-m", "pytest", str(path), "-q", "-p", "no:cacheprovider"]
    arguments.append(f"--junitxml={verdict}")

    def tested() -> Outcome:
        outcome = run(path.stem, arguments, folder / f"{path.stem}.log", deadline)
        return outcome if outcome.code == UNFINISHED else judge(outcome, verdict)

    return remembered(folder / f"{path.stem}.json", tested)


def judge(outcome: Outcome, verdict: Path) -> Outcome:
    """The outcome with the counts of pytest's own record; a file with no test at all passes."""
    if not verdict.exists():
        return outcome
    suites = list(ElementTree.parse(verdict).iter("testsuite"))
    names = ("tests", "failures", "errors", "skipped")
    counts = {name: sum(int(suite.get(name, "0")) for suite in suites) for name in names}
    note = ", ".join(f"{count} {name}" for name, count in counts.items())
    # pytest exits with 5 where it collected nothing
    return Outcome(outcome.name, 0 if outcome.code == 5 else outcome.code, outcome.seconds, note)


def profile_arguments(state: Path) -> list[str]:
    """Arguments of this interpreter that count what the slowest cases do; the report's results say
    which these are."""
    chosen = ["--worst", str(PROFILED), "--resume", "--minutes", "7.5"]
    if (state / "report" / "results.json").exists():
        chosen += ["--from", str(state / "report")]
    return ["-m", "tritonbn_bench.counters", *chosen, "--out", str(state / "counters")]


def commands(state: Path) -> dict[str, list[str]]:
    """Arguments of `tritonbn-bench` by step; each ends before a step's time does."""
    report = str(state / "report")
    measured = ["--resume", "--minutes", "7.5", "--out", report]
    return {
        "accuracy": ["run", "--only", "accuracy", "--only", "training", *measured],
        "bench": ["run", "--only", "speed", *measured],
        "networks": ["run", "--only", "networks", *measured],
        "endtoend": ["run", "--only", "endtoend", *measured],
        # the gate's own steps
        "selfcheck": [
            *("selfcheck", "--device", "cuda", "--minutes", "7.5"),
            *("--out", str(state / "selfcheck")),
        ],
        "baseline": [
            *("baseline", "--device", "cuda", "--minutes", "7.5"),
            *("--accept", str(state / "baselines")),
        ],
        "report": ["report", report],
    }


def run_step(step: str, state: Path) -> list[Outcome]:
    """Run one step within its time."""
    deadline = time.monotonic() + STEP_SECONDS
    if step == "tests":
        return run_tests(state, deadline)
    if step == "sanitize":
        return run_sanitizers(state, deadline)
    log, profiles = state / f"{step}.log", step == "profile"
    bench = ["-m", "tritonbn_bench"]
    arguments = profile_arguments(state) if profiles else [*bench, *commands(state)[step]]
    outcome = run(step, arguments, log, deadline)
    text = log.read_text(encoding="utf-8", errors="replace")
    if "go on with --resume" in text:
        outcome = replace(outcome, code=UNFINISHED, note="out of time: repeat the step")
    elif profiles and outcome.code == 2:
        outcome = replace(outcome, code=1, note=NOT_RUN + last_line(text))
    return [outcome]


def in_words(step: str, outcome: Outcome) -> str:
    """The line of summary.txt on an outcome."""
    if outcome.note.startswith(NOT_RUN):
        return f"{step}: {outcome.name} NOT RUN: {outcome.note.removeprefix(NOT_RUN)}"
    verdict = {0: "passed", UNFINISHED: "unfinished"}.get(outcome.code, "FAILED")
    return f"{step}: {outcome.name} {verdict} in {outcome.seconds:.0f} s {outcome.note}".strip()


def describe_machine() -> list[str]:
    """Lines that say which GPU, which versions, and what is absent."""
    import torch
    import triton

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU is seen"
    absent = ", ".join(missing(["report", "test"])) or "nothing"
    return [
        f"gpu: {gpu}",
        f"python {sys.version.split()[0]}, torch {torch.__version__}, triton {triton.__version__}",
        f"missing: {absent}",
    ]


def deliver(out: Path, state: Path, lines: Sequence[str]) -> None:
    """Write summary.txt and the archive of `state`; what would break the limit is named."""
    out.mkdir(parents=True, exist_ok=True)
    left_out, total = [], 0
    files = [path for path in state.rglob("*") if path.is_file()]
    with tarfile.open(out / "tritonbn-gpu.tar.gz", "w:gz") as archive:
        for path in sorted(files, key=lambda path: (path.stat().st_size, path)):
            total += path.stat().st_size
            if total > ARCHIVE_BYTES:
                left_out.append(f"not in the archive (too large): {path.relative_to(state)}")
            else:
                archive.add(path, arcname=path.relative_to(state))
    text = "\n".join([*lines, *left_out]) + "\n"
    (out / "summary.txt").write_text(text, encoding="utf-8")
    print(text, end="")


def main(arguments: Sequence[str]) -> int:
    """Run the steps asked for and deliver what there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for summary and archive")
    parser.add_argument("--step", choices=[*STEPS, "all"], default="all")
    parser.add_argument("--state", type=Path, default=ROOT / "build" / "gpu")
    chosen = parser.parse_args(arguments)
    absent = [name for name in missing([]) if name in CORE]
    if absent:
        print(f"{sys.executable} lacks {', '.join(absent)}", file=sys.stderr)
        return 2
    chosen.state.mkdir(parents=True, exist_ok=True)
    lines, codes = describe_machine(), set()
    for step in STEPS if chosen.step == "all" else (chosen.step,):
        for outcome in run_step(step, chosen.state):
            codes.add(outcome.code)
            lines.append(in_words(step, outcome))
    deliver(chosen.out, chosen.state, lines)
    return 1 if codes - {0, UNFINISHED} else 3 if UNFINISHED in codes else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
