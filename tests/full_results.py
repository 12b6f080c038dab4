"""Full results of an imaginary GPU, for tests and to try the report: times are made up by a fake
stopwatch, and everything says so.

    PYTHONPATH=.:kernels:bench python -m tests.full_results FOLDER

The sweep is the real one: its cases, rounds, intervals and rows. Only what touches a device is
replaced: operands, correctness, memory and graph replay.
"""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from tritonbn_bench import sweep
from tritonbn_bench.cases import Case, suite
from tritonbn_bench.environment import Environment
from tritonbn_bench.jobs import Run, perform
from tritonbn_bench.measure import SWEEP_RULE, Meter
from tritonbn_bench.providers import PROVIDERS, Prepared, Provider
from tritonbn_bench.results import Results, Row
from tritonbn_bench.stopwatch import FakeStopwatch
from tritonbn_bench.timer import Work
from tritonbn_bench.training import Outcome, Trained, training_rows
from tritonbn_kernels.traffic import floor_bytes, two_read_bytes, unfused_bytes

FAKE_GPU: Environment = {
    "timer": "fake timer: not a measurement",
    "device": "cuda",
    "gpu": "Imaginary GPU",
    "date": "2026-01-01 00:00 UTC",
    "command": "python -m tests.full_results",
    "compute_capability": "9.0",
    "sm_count": 132,
    "l2_bytes": 60 * 10**6,
    "driver": "0.0",
    "torch": "2.11.0",
    "cudnn": "91900",
    "triton": "3.6.0",
    "python": "3.12.0",
    "commit": "0" * 12,
    "dirty": False,
}
FORMULAS = {"copy": floor_bytes, "tritonbn": floor_bytes, "torch.compile": two_read_bytes}
# of the copy's bandwidth
EFFICIENCY = {"copy": 1.0, "tritonbn": 0.92, "torch.compile": 0.9}
# fewer rounds than a real sweep, and no more resamples than a picture needs
RULE = replace(SWEEP_RULE, rounds=5, fewest=3, resamples=200)


class Stopwatch(FakeStopwatch):
    """A fake one whose small cases are less steady, as on a GPU."""

    def block(self, work: Work, calls: int) -> float:
        """As `FakeStopwatch`."""
        exact = self.exact(work)
        return exact * self._random.lognormvariate(0.0, 0.004 + 0.0004 / exact)


def chance(*what: object) -> float:
    """A number of 0 to 1 that always belongs to `what`."""
    digest = hashlib.sha256(repr(what).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def backend_of(case: Case, provider: str) -> str:
    """What would run on a GPU."""
    if provider.startswith("torch") and provider != "torch.compile":
        return "ATen native" if case.dtype == "bf16" or case.layout == "nc" else "cuDNN"
    names = {"tritonbn": "triton", "tritonbn unfused": "triton, then torch"}
    return {**names, "torch.compile": "Inductor", "copy": "copy_"}[provider]


def imaginary(provider: Provider, slower: float = 1.0) -> Provider:
    """The same provider, moving imaginary bytes."""

    def prepare(case: Case, inputs: object) -> Prepared:
        moved = case.moved(FORMULAS.get(provider.name, unfused_bytes))
        # odd channel counts and few channels suit nobody, and us least
        odd = 1.5 if case.channels % 8 and provider.name == "tritonbn" else 1.0
        luck = 0.94 + 0.12 * chance(case.id, provider.name)
        share = EFFICIENCY.get(provider.name, 0.8)
        if provider.name != "copy":
            moved = round(moved * odd * luck * slower / share)
        return Prepared(
            backend_of(case, provider.name),
            lambda _: None,
            lambda: None,
            lambda: {"wrong": 0},  # type: ignore[dict-item]
            moved,
            graph=None if case.mode == "forward_eval" else lambda: None,  # type: ignore[arg-type,return-value]
        )

    return replace(provider, prepare=prepare)


@contextmanager
def no_device() -> Iterator[None]:
    """Replace what touches a device in the sweep."""

    def kept(prepared: Prepared, inputs: Case) -> int | None:
        tensor = inputs.numel * inputs.itemsize
        unfused = prepared.backend not in ("triton", "copy_") and inputs.fusion != "none"
        return None if prepared.graph is None else tensor * (2 if unfused else 1)

    def replay(work: Work, *, with_setup: bool) -> Work:
        return replace(work, moved_bytes=round(0.97 * work.moved_bytes))

    with ExitStack() as stack:
        for name, value in {
            # the sweep hands the inputs on to what is replaced here too
            "make_inputs": lambda case, device: case,
            "results_of": lambda *_: {"y": None},
            "kept_bytes": kept,
            "peak_bytes": lambda work: work.moved_bytes // 3,
            "replayed": replay,
        }.items():
            stack.enter_context(mock.patch.object(sweep, name, value))
        yield


def sweep_rows(job: str, cases: Sequence[Case], seed: int = 0, slower: float = 1.0) -> list[Row]:
    """Rows of the real sweep on the imaginary GPU.

    Args:
        job: name of the job
        cases: what to time
        seed: of the noise
        slower: factor on the bytes of tritonbn's training forward passes
    """
    rows: list[Row] = []
    meter = Meter("cuda", Stopwatch(seed, bandwidth_gb_s=4300.0), rule=RULE)
    for mode_slower, part in (
        (slower, [case for case in cases if case.mode == "forward_train"]),
        (1.0, [case for case in cases if case.mode != "forward_train"]),
    ):
        providers = [
            imaginary(one, mode_slower if one.name == "tritonbn" else 1.0)
            for one in PROVIDERS.values()
        ]
        with no_device():
            sweep.measure(job, sweep.planned(part, providers), meter, rows.extend)
    return rows


def accuracy_rows() -> list[Row]:
    """Errors as an imaginary GPU has them, with one that breaks its bound."""
    rows = []
    for dtype, eps in (("fp32", 6e-8), ("fp16", 5e-4), ("bf16", 4e-3)):
        for mode, result in (
            ("forward_train", "y"),
            ("backward_train", "dx"),
            ("backward_train", "dgamma"),
        ):
            for place, data in enumerate(("digits", "mean/std=0", "mean/std=100", "mean/std=1e4")):
                theirs = eps * 10**place
                row = Row(
                    "accuracy",
                    "measured",
                    f"{mode}/{dtype}/nchw/N32C8S64",
                    "tritonbn",
                    f"error of {result}",
                    value=eps * (1 + chance(dtype, result, data)),
                    bound=2.5 * theirs + 2 * eps,
                    mode=mode,
                    dtype=dtype,
                    layout="nchw",
                    data=data,
                    backend="triton",
                )
                rows += [
                    row,
                    replace(row, provider="torch", value=theirs, bound=None, backend="cuDNN"),
                ]
    reason = "y: error 1 is above the bound 0.5"
    rows[0] = replace(rows[0], value=1.0, bound=0.5, status="failed", reason=reason)
    return rows


def endtoend_rows() -> list[Row]:
    """Images per second of five ways."""
    speeds = {
        "torch": 1000.0,
        "torch.compile": 1150.0,
        "tritonbn": 1210.0,
        "tritonbn fused": 1390.0,
        "tritonbn + torch.compile": 1320.0,
    }
    rows = []
    for dtype, layout in (("bf16", "nhwc"), ("fp32", "nchw")):
        for way, speed in speeds.items():
            value = speed * (1 if dtype == "bf16" else 0.4)
            row = Row(
                "endtoend",
                "measured",
                f"ResNet-50 training step/{dtype}/{layout}/N128",
                way,
                "images per second",
                unit="images/s",
                value=value,
                low=0.99 * value,
                high=1.01 * value,
                dtype=dtype,
                layout=layout,
                batch=128,
                cache="fake",
            )
            step = replace(row, quantity="step time", unit="ms", value=128e3 / value)
            rows.append(replace(step, low=0.99 * 128e3 / value, high=1.01 * 128e3 / value))
            peak = replace(row, quantity="peak memory of a step", unit="bytes", value=2.2e10)
            rows += [row, replace(peak, low=None, high=None)]
            if way != "torch":
                ratio = speeds["torch"] / speed
                turned = replace(row, quantity="ratio to torch", unit="1", value=ratio)
                rows.append(replace(turned, low=0.99 * ratio, high=1.01 * ratio))
    return rows


def host_rows() -> list[Row]:
    """Host time of a few contenders."""
    case = "BatchNorm2d on (2, 2, 1, 1), stub driver"
    costs = {"tritonbn forward + backward": 60.0, "torch forward + backward": 52.0}
    return [
        Row("host", "measured", case, name.split()[0], f"{name}, minimum", unit="us", value=cost)
        for name, cost in costs.items()
    ]


def full_results(seed: int = 0, slower: float = 1.0) -> Results:
    """Results of every job.

    Args:
        seed: of the noise
        slower: factor on the bytes of tritonbn's training forward passes
    """
    results = Results(dict(FAKE_GPU))
    run = Run(results, Path(), "cpu")
    # results of thousands of rows are saved by whoever asked for them
    with mock.patch.object(Results, "save", lambda self, folder: folder):
        perform(["traffic", "fusion", "memory", "plan", "static"], run)
    results.rows += accuracy_rows() + endtoend_rows() + host_rows()
    trained = Trained((2.0, 1.0), {}, 4000, 16)
    fused = Trained((2.0, 1.0 + 1e-6), {"forward with relu": 8}, 3000, 8)
    results.rows += training_rows(Outcome(trained, trained, fused, 4, "triton", (), True))
    for job in ("sweep", "resnet50", "networks"):
        results.rows += sweep_rows(job, suite(job), seed, slower)
    results.rows.append(
        replace(
            results.rows[-1],
            provider="torch.compile",
            quantity="time",
            case="forward_train/bf16/nchw/N1C1S1",
            value=None,
            low=None,
            high=None,
            status="failed",
            reason="RuntimeError: no | <compiler>",
        )
    )
    return results


def main(arguments: Sequence[str]) -> int:
    """Write the results and their report."""
    from tritonbn_bench.report import write_report

    folder = Path(arguments[0])
    results = full_results()
    results.save(folder)
    page: Any = write_report(results, folder)
    print(f"{len(results.rows)} rows, {page}: {page.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
