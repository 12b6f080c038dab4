"""One command of a step of `gpu.py`: run within its time, its outcome remembered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from environment import ROOT, checkout_environment

# as timeout(1) says it: pytest and the bench have a meaning of their own for 3
UNFINISHED = 124
# how the note of a step begins whose tool is missing or refuses the machine: never a success
NOT_RUN = "not run: "


@dataclass(frozen=True)
class Outcome:
    """What one command of a step came to: name, exit code (UNFINISHED too), wall time in s."""

    name: str
    code: int
    seconds: float
    note: str = ""


def run(
    name: str,
    arguments: Sequence[str],
    log: Path,
    deadline: float,
    under: Sequence[str] = (),
    **variables: str,
) -> Outcome:
    """Run this interpreter with `arguments` until `deadline` (time.monotonic), output to `log`;
    `under` a command that starts it, with `variables` in its environment."""
    environment = checkout_environment(
        {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | variables
    )
    start = time.monotonic()
    if start >= deadline:
        return Outcome(name, UNFINISHED, 0.0, "not started: no time left")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*under, sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=deadline - start)
        except subprocess.TimeoutExpired:
            code = UNFINISHED
        finally:
            if process.poll() is None:
                # what it started too: a profiler's program would outlive it, and keep the GPU
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    note = "out of time: repeat the step" if code == UNFINISHED else f"see {log.name}"
    return Outcome(name, code, time.monotonic() - start, note if code else "")


def remembered(record: Path, work: Callable[[], Outcome]) -> Outcome:
    """What `record` holds, or what `work` comes to, which it then holds if it is a verdict."""
    if record.exists():
        return Outcome(**json.loads(record.read_text(encoding="utf-8")))
    outcome = work()
    if outcome.code != UNFINISHED and not outcome.note.startswith(NOT_RUN):
        record.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    return outcome


def last_line(text: str) -> str:
    """The last line that is not empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")
