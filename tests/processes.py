"""The command line in a process of its own, started and interrupted as a terminal would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType

__all__ = ["ENVIRONMENT", "Process", "bench", "until"]

# what these processes do is decided by their arguments, and a job's page is not theirs to write
_LEFT_OUT = ("TRITONBN_", "GITHUB_STEP_SUMMARY")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(_LEFT_OUT)},
    "PYTHONPATH": os.pathsep.join(str(Path(item).resolve()) for item in sys.path if item),
    "OMP_NUM_THREADS": "1",
    # they use the interpreter even where a GPU is, so that they behave alike everywhere
    "TRITON_INTERPRET": "1",
}
BENCH = ("-m", "tritonbn_bench")
PATIENCE = 60.0


class Process:
    """A Python process, ended with its context; what it prints never waits for a reader.

    Args:
        words: of the command line, behind those of `python`
        python: what is run, as Python's own arguments say
        cwd: where; here if None
        environment: all of it
    """

    def __init__(
        self,
        *words: str,
        python: tuple[str, ...] = BENCH,
        cwd: Path | None = None,
        environment: Mapping[str, str] = ENVIRONMENT,
    ) -> None:
        self._output, self._errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, *python, *words],
            cwd=cwd,
            env=environment,
            stdout=self._output,
            stderr=self._errors,
            # a shell starts its background jobs deaf to it, and so would a test be
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._output.close()
        self._errors.close()

    @property
    def errors(self) -> str:
        """Its stderr so far."""
        # the process goes on writing where it is: reading must not move that
        return os.pread(self._errors.fileno(), 1 << 20, 0).decode()

    def interrupt(self, when: Callable[[], object]) -> None:
        """Send SIGINT as soon as something has come true."""

        def ready() -> bool:
            true = bool(when())
            assert true or self._process.poll() is None, f"it ended before that: {self.errors}"
            return true

        assert until(ready), f"it did not come to it: {self.errors}"
        self._process.send_signal(signal.SIGINT)

    def end(self, within: float = 2 * PATIENCE) -> subprocess.CompletedProcess[str]:
        """Wait for its end, for some seconds at most; exit code, output and errors."""
        self._process.wait(timeout=within)
        output = os.pread(self._output.fileno(), 1 << 20, 0).decode()
        return subprocess.CompletedProcess("", self._process.returncode, output, self.errors)


def until(true: Callable[[], object]) -> bool:
    """Wait for something to come true; whether it did while patience lasted."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def bench(
    *words: str, cwd: Path | None = None, environment: Mapping[str, str] = ENVIRONMENT
) -> subprocess.CompletedProcess[str]:
    """A run of `tritonbn-bench` to its end: exit code, output and errors."""
    return subprocess.run(
        [sys.executable, *BENCH, *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )
