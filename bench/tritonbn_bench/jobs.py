"""The jobs of a run: what each measures, saved as it goes, so that an interruption loses little."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from .cases import RESNET50, RESNET50_BATCH, Case, resnet50_cases, suite
from .interruption import raise_lost
from .progress import progress
from .results import Results, Row
from .summary import HOST_DIFFERENCE, OURS, PEAK_BYTES, SAVED_BYTES, UNFUSED

__all__ = ["JOBS", "NEEDS_GPU", "ON_REQUEST", "OutOfTime", "Run", "default_jobs", "perform"]

NEEDS_GPU = ("sweep", "resnet50", "networks")
# without a GPU these tell of agreement only, by a tiny network, and are done when asked for
ON_REQUEST = ("endtoend",)
_SAVE_SECONDS = 5.0
# of the host job: kernels launched into a driver that does nothing
HOST_CASE = "BatchNorm2d on (2, 2, 1, 1), stub driver"
HOST_QUANTITY = "host time"
# of the memory job: the network's own activation, one that can be inverted, one without a kink
MEMORY_ACTIVATIONS = ("relu", "leaky_relu", "silu")
MEMORY_BATCH = 256
_NO_DIGITS = "scikit-learn, which brings the digits, is missing"


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
        cache: of the sweeps: one of `stopwatch.CACHES`, the device's own if None
    """

    results: Results
    folder: Path
    device: str
    quick: bool = False
    providers: tuple[str, ...] = ()
    deadline: float | None = None
    cache: str | None = None
    _saved: float = -math.inf

    def __post_init__(self) -> None:
        # a report tells by it how many cases there would have been
        self.results.environment["quick"] = self.quick or None

    def add(self, rows: list[Row]) -> None:
        """Keep rows, save now and then, and stop where time is over.

        Raises:
            OutOfTime: after the rows are kept
            KeyboardInterrupt: it got lost while they were measured, and they are not kept
        """
        raise_lost()
        self.results.add(rows)
        now = time.monotonic()
        if now - self._saved > _SAVE_SECONDS:
            self.results.save(self.folder)
            self._saved = now
        if self.deadline is not None and now > self.deadline:
            raise OutOfTime


def default_jobs(device: str) -> tuple[str, ...]:
    """Jobs that a device can do unasked."""
    left_out = () if device == "cuda" else (*NEEDS_GPU, *ON_REQUEST)
    return tuple(name for name in JOBS if name not in left_out)


def perform(jobs: Sequence[str], run: Run) -> None:
    """Do what is not done yet of the jobs; what takes seconds to prepare comes after all the rest.

    Raises:
        OutOfTime: the deadline of the run has passed
        KeyboardInterrupt: as the user wished; the rows so far are in the results
    """
    for table in (JOBS, SLOW_JOBS):
        for job in jobs:
            if job in table:
                table[job](run)


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
            if absent:
                run.add([_skipped("accuracy", case, "tritonbn", absent)])
            else:
                run.add(accuracy_rows(case, run.device))
            advance()


def _training(run: Run) -> None:
    from .training import STEPS, train_three, training_rows

    case = "SimpleCNN on digits"
    if ("training", case, "digits", "tritonbn") in run.results.done():
        return
    if find_spec("sklearn") is None:
        gap = Row("training", "measured", case, "tritonbn", "largest loss gap", data="digits")
        run.add([replace(gap, status="skipped", reason=_NO_DIGITS)])
        return
    with progress("training", STEPS) as advance:
        outcome = train_three(run.device, on_step=advance)
    run.add(training_rows(outcome))


def _traffic(run: Run) -> None:
    from tritonbn_kernels.layout import view_of
    from tritonbn_kernels.outlook import H200, outlook

    done = run.results.done()
    for case in resnet50_cases(dtypes=("fp32", "bf16")):
        image = case.channels * case.space
        steps = (case.space, 1) if case.layout == "nchw" else (1, case.channels)
        view = view_of((case.batch, case.channels, case.space), (image, *steps))
        assert view is not None, case
        tensors = 2 if case.mode.startswith("forward") else 3
        # modelled traffic is that of the plans made for an H200
        expected = outlook(case.mode, (view,) * tensors, case.itemsize, H200)
        moved = {
            "floor": expected.floor_bytes,
            "tritonbn": expected.memory_bytes,
            "torch": expected.two_read_bytes,
        }
        for provider, value in moved.items():
            row = _moved_row("traffic", case, provider, value)
            if row.key not in done:
                run.add([row])


def _fusion(run: Run) -> None:
    """Modelled bytes of ResNet-50's BatchNorm layers with what follows them."""
    from tritonbn_kernels.outlook import H200

    from .fused_table import chains
    from .plan_table import PASSES, Request

    done = run.results.done()
    for layout in ("nchw", "nhwc"):
        wanted = Request("ResNet-50", RESNET50, RESNET50_BATCH, "bf16", layout, H200)
        for mode, tensors in PASSES.values():
            for chain in chains(wanted, mode, tensors):
                layer = chain.layer
                case = Case(
                    mode,
                    wanted.dtype,
                    layout,
                    wanted.batch,
                    layer.channels,
                    layer.plane,
                    "resnet50",
                    f"ResNet-50: {layer.names}",
                    chain.count,
                    fusion=chain.fusion.name,
                )
                moved = {
                    "floor": chain.floor_bytes,
                    OURS: chain.fused_bytes,
                    UNFUSED: chain.unfused_bytes,
                    "torch": chain.torch_bytes,
                }
                for provider, value in moved.items():
                    row = _moved_row("fusion", case, provider, value)
                    if row.key not in done:
                        run.add([row])


def _known(rows_of: str) -> Callable[[Run], None]:
    """A job whose rows a function of `resources` has ready."""

    def add_known(run: Run) -> None:
        from . import resources

        done = run.results.done()
        rows: list[Row] = getattr(resources, rows_of)()
        run.add([row for row in rows if row.key not in done])

    return add_known


def _memory(run: Run) -> None:
    """Memory of a training step of ResNet-50, computed by accounting."""
    from .memory import WAYS, resnet50_usage

    done = run.results.done()
    for activation in MEMORY_ACTIVATIONS:
        for way in WAYS:
            used = resnet50_usage(way, MEMORY_BATCH, "bf16", activation)
            rows = [
                Row(
                    "memory",
                    "modelled",
                    "ResNet-50 training step",
                    way.provider,
                    quantity,
                    unit="bytes",
                    value=float(value),
                    dtype="bf16",
                    batch=MEMORY_BATCH,
                    data=activation,
                    origin="computed by accounting",
                    backend=way.name,
                )
                for quantity, value in ((SAVED_BYTES, used.saved), (PEAK_BYTES, used.peak))
            ]
            if rows[0].key not in done:
                run.add(rows)


def _moved_row(job: str, case: Case, provider: str, value: int) -> Row:
    return Row(
        job=job,
        kind="modelled",
        case=case.id,
        provider=provider,
        quantity="bytes moved",
        unit="bytes",
        value=float(value),
        **case.columns,
    )


def _host(run: Run) -> None:
    if ("host", HOST_CASE, "", "tritonbn") in run.results.done():
        return
    with progress("host", 1) as advance:
        run.add(_host_rows())
        advance()


def _host_rows() -> list[Row]:
    """Rows of `tritonbn_bench.hostcost`, run in a process without the interpreter."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("TRITON_INTERPRET", None)
    nothing = Row("host", "measured", HOST_CASE, "tritonbn", HOST_QUANTITY, unit="us")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "host.json"
        command = [sys.executable, "-m", "tritonbn_bench.hostcost", "--json", str(file)]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
        except OSError as error:
            return [replace(nothing, status="skipped", reason=str(error))]
        if done.returncode or not file.exists():
            reason = done.stderr.strip().splitlines()[-1:] or ["no figures came back"]
            return [replace(nothing, status="skipped", reason=reason[0])]
        record = json.loads(file.read_text(encoding="utf-8"))
    rows = []
    for cost in record["costs"]:
        # an empty autograd.Function is nobody's
        first = cost["name"].split()[0].split(".")[0]
        provider = {"torch": "torch", "an": "autograd"}.get(first, "tritonbn")
        for figure in ("minimum", "median"):
            row = replace(nothing, provider=provider, value=cost[figure])
            rows.append(replace(row, quantity=f"{cost['name']}, {figure}"))
    difference = replace(nothing, quantity=HOST_DIFFERENCE, value=record["difference"])
    return [*rows, difference]


def _suite(name: str, *, slow: bool) -> Callable[[Run], None]:
    def measure_suite(run: Run) -> None:
        from .clocks import clock_of
        from .measure import Meter
        from .providers import PROVIDERS
        from .stopwatch import stopwatch_of
        from .sweep import measure, planned

        chosen = [PROVIDERS[item] for item in run.providers or PROVIDERS]
        wanted = [provider for provider in chosen if provider.slow == slow]
        finished = run.results.done()
        present = []
        for case in suite(name, quick=run.quick):
            absent = _absent(case)
            if not absent:
                present.append(case)
                continue
            for provider in wanted:
                if (name, case.id, case.data, provider.name) not in finished:
                    run.add([_skipped(name, case, provider.name, absent)])
        units = list(
            planned(
                present,
                wanted,
                lambda case, provider: (name, case.id, case.data, provider.name) in finished,
                beside=chosen,
            )
        )
        if not units:
            return
        meter = Meter(run.device, stopwatch_of(run.device, run.cache), clock_of(run.device))
        label = f"{name}, compiled" if slow else name
        with progress(label, len(units)) as advance:

            def keep(rows: list[Row]) -> None:
                advance()
                run.add(rows)

            measure(name, units, meter, keep)

    return measure_suite


def _endtoend(run: Run) -> None:
    """Training steps of ResNet-50 in five ways; of a tiny one where there is no GPU."""
    from .endtoend import JOB, SETTINGS, TINY, WAYS, endtoend_rows

    done = run.results.done()
    small = run.device != "cuda"
    settings = [
        setting
        for setting in (TINY if small else SETTINGS)
        if any((JOB, setting.case, "normal", way) not in done for way in WAYS)
    ]
    if small and settings:
        print(
            "endtoend: no GPU, so a tiny network shows that the five ways agree and launch our "
            "kernels; no speed is measured",
            file=sys.stderr,
        )
    with progress(JOB, len(settings)) as advance:
        for setting in settings:
            run.add(endtoend_rows(setting, run.device))
            advance()


def _absent(case: Case) -> str:
    """Why a case cannot be measured here; empty if it can."""
    if case.data == "digits" and find_spec("sklearn") is None:
        return _NO_DIGITS
    return ""


def _skipped(job: str, case: Case, provider: str, reason: str) -> Row:
    return Row(
        job,
        "measured",
        case.id,
        provider,
        "nothing",
        mode=case.mode,
        data=case.data,
        fusion=case.fusion,
        status="skipped",
        reason=reason,
    )


# cheap and conclusive ones first
JOBS: dict[str, Callable[[Run], None]] = {
    "accuracy": _accuracy,
    "training": _training,
    "traffic": _traffic,
    "fusion": _fusion,
    "memory": _memory,
    "plan": _known("plan_rows"),
    "static": _known("static_rows"),
    "host": _host,
    "resnet50": _suite("resnet50", slow=False),
    "sweep": _suite("sweep", slow=False),
    "networks": _suite("networks", slow=False),
    "endtoend": _endtoend,
}
# the same cases with providers that compile: little is lost when time runs out on them
SLOW_JOBS: dict[str, Callable[[Run], None]] = {
    "resnet50": _suite("resnet50", slow=True),
    "sweep": _suite("sweep", slow=True),
    "networks": _suite("networks", slow=True),
}
