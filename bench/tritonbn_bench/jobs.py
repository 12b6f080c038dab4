"""The jobs of a run: what each measures, saved as it goes, so that an interruption loses little."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from .cases import Case, resnet50_cases, suite
from .progress import progress
from .results import Results, Row

__all__ = ["JOBS", "NEEDS_GPU", "OutOfTime", "Run", "default_jobs", "perform"]

NEEDS_GPU = ("sweep", "resnet50")
_SAVE_SECONDS = 5.0


class OutOfTime(Exception):
    """The time given to a run is over; what was measured is kept."""


@dataclass
class Run:
    """A run in progress.

    Attributes:
        results: where rows go
        folder: where they are saved
        device: "cuda" or "cpu"
        quick: fewer cases
        providers: names of the providers to be measured, all if empty
        deadline: `time.monotonic()` at which to stop, never if None
    """

    results: Results
    folder: Path
    device: str
    quick: bool = False
    providers: tuple[str, ...] = ()
    deadline: float | None = None
    _saved: float = field(default_factory=time.monotonic)

    def add(self, rows: list[Row]) -> None:
        """Keep rows, save now and then, and stop where time is over.

        Raises:
            OutOfTime: after the rows are kept
        """
        self.results.add(rows)
        now = time.monotonic()
        if now - self._saved > _SAVE_SECONDS:
            self.results.save(self.folder)
            self._saved = now
        if self.deadline is not None and now > self.deadline:
            raise OutOfTime


def default_jobs(device: str) -> tuple[str, ...]:
    """Jobs that a device can do."""
    return tuple(name for name in JOBS if device == "cuda" or name not in NEEDS_GPU)


def perform(job: str, run: Run) -> None:
    """Do what is not done yet of a job.

    Raises:
        OutOfTime: the deadline of the run has passed
        KeyboardInterrupt: as the user wished; the rows so far are in the results
    """
    JOBS[job](run)


def _accuracy(run: Run) -> None:
    from .accuracy import accuracy_cases, accuracy_rows

    done = run.results.done()
    cases = [
        case
        for case in accuracy_cases(quick=run.quick)
        if ("accuracy", case.id, case.data, "tritonbn") not in done
    ]
    with progress("accuracy", len(cases)) as advance:
        for case in cases:
            absent = _absent(case)
            run.add(
                [_skipped("accuracy", case, absent)] if absent else accuracy_rows(case, run.device)
            )
            advance()


def _training(run: Run) -> None:
    from .training import STEPS, train_pair, training_rows

    case = "SimpleCNN on digits"
    if ("training", case, "digits", "tritonbn") in run.results.done():
        return
    if find_spec("sklearn") is None:
        reason = "scikit-learn is missing"
        gap = Row("training", "measured", case, "tritonbn", "largest loss gap", data="digits")
        run.add([_with_reason(gap, reason)])
        return
    with progress("training", STEPS) as advance:
        outcome = train_pair(run.device, on_step=advance)
    run.add(training_rows(outcome))


def _traffic(run: Run) -> None:
    from tritonbn_kernels.traffic import floor_bytes, two_read_bytes

    done = run.results.done()
    formulas = {"floor": floor_bytes, "tritonbn": two_read_bytes, "torch": two_read_bytes}
    for case in resnet50_cases(dtypes=("fp32", "bf16"), layouts=("nchw",)):
        for provider, formula in formulas.items():
            row = Row(
                job="traffic",
                kind="modelled",
                case=case.id,
                provider=provider,
                quantity="bytes moved",
                unit="bytes",
                value=float(formula(case.mode, case.numel, case.channels, case.itemsize)),
                mode=case.mode,
                dtype=case.dtype,
                layout=case.layout,
                batch=case.batch,
                channels=case.channels,
                space=case.space,
                data=case.data,
                origin=case.origin,
                count=case.count,
            )
            if row.key not in done:
                run.add([row])


def _suite(name: str) -> Callable[[Run], None]:
    def measure_suite(run: Run) -> None:
        from .providers import PROVIDERS
        from .sweep import measure, planned
        from .timer import CudaTimer

        done = run.results.done()
        wanted = [PROVIDERS[item] for item in run.providers or PROVIDERS]
        pairs = [
            (case, provider)
            for case, provider in planned(suite(name, quick=run.quick), wanted)
            if (name, case.id, case.data, provider.name) not in done and not _absent(case)
        ]
        with progress(name, len(pairs)) as advance:

            def keep(rows: list[Row]) -> None:
                advance()
                run.add(rows)

            measure(name, pairs, CudaTimer(), run.device, keep)

    return measure_suite


def _absent(case: Case) -> str:
    """Why a case cannot be measured here; empty if it can."""
    if case.data == "digits" and find_spec("sklearn") is None:
        return "scikit-learn is missing"
    return ""


def _skipped(job: str, case: Case, reason: str) -> Row:
    row = Row(job, "measured", case.id, "tritonbn", "error", mode=case.mode, data=case.data)
    return _with_reason(row, reason)


def _with_reason(row: Row, reason: str) -> Row:
    from dataclasses import replace

    return replace(row, status="skipped", reason=reason)


# cheap and conclusive ones first
JOBS: dict[str, Callable[[Run], None]] = {
    "accuracy": _accuracy,
    "training": _training,
    "traffic": _traffic,
    "resnet50": _suite("resnet50"),
    "sweep": _suite("sweep"),
}
