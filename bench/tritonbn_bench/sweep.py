"""Cases times providers: correctness first, then time, then rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from tritonbn_kernels.traffic import floor_bytes

from .accuracy import judge
from .cases import Case
from .inputs import Inputs, make_inputs
from .providers import Prepared, Provider, composed, poisoned_memory, results_of
from .results import Row, throughput_row
from .timer import Samples, Timer, Work

__all__ = ["measure", "planned", "time_rows"]


def planned(
    cases: Sequence[Case], providers: Sequence[Provider]
) -> Iterator[tuple[Case, Provider]]:
    """Pairs to be measured: every case with each provider that takes it."""
    for case in cases:
        for provider in providers:
            if provider.takes(case):
                yield case, provider


@dataclass
class _Bench:
    """Inputs of the case at hand, shared by the providers that follow one another."""

    device: str
    case: Case | None = None
    inputs: Inputs | None = None
    torch_results: dict[str, Tensor] = field(default_factory=dict)

    def at(self, case: Case) -> Inputs:
        """Inputs for a case, made anew only when the case changes."""
        if self.inputs is None or self.case != case:
            # first let go of the old ones: two large cases need not fit side by side
            self.inputs, self.torch_results = None, {}
            if self.device == "cuda":
                torch.cuda.empty_cache()
            self.case, self.inputs = case, make_inputs(case, self.device)
        return self.inputs

    def fault(self, case: Case, provider: Provider, prepared: Prepared) -> str:
        """Why the results are wrong; empty if they are right."""
        inputs = self.at(case)
        with poisoned_memory():
            if not self.torch_results:
                torchs = composed(functional.batch_norm)
                self.torch_results = results_of(torchs, inputs, case.mode)
            # a change of the poison's switches would compile again, so a compiled one goes without
            results = None if provider.slow else prepared.outputs()
        results = prepared.outputs() if results is None else results
        if "wrong" in results:
            wrong = int(results["wrong"])
            return f"{wrong} elements were not copied" if wrong else ""
        verdicts = judge(inputs, case.mode, results, self.torch_results)
        return "; ".join(verdict.reason for verdict in verdicts if not verdict.passed)


def measure(
    job: str,
    pairs: Iterable[tuple[Case, Provider]],
    timer: Timer,
    device: str,
    on_rows: Callable[[list[Row]], None],
) -> None:
    """Measure every pair and hand its rows over as soon as they are there.

    A provider that raises, or whose results break the bound of the accuracy table, gets one row
    with its reason and no figure.

    Args:
        job: name of the job in the rows
        pairs: as `planned` gives them, less what is done already
        timer: measures what passed
        device: "cuda" or "cpu"
        on_rows: called once for each pair
    """
    bench = _Bench(device)
    for case, provider in pairs:
        try:
            prepared = provider.prepare(case, bench.at(case))
            fault = bench.fault(case, provider, prepared)
            if not fault:
                work = Work(prepared.call, prepared.setup, prepared.moved_bytes)
                rows = time_rows(job, case, provider.name, prepared.backend, timer.measure(work))
        except Exception as problem:
            # one rival's missing compiler or memory must not end a sweep of hours
            fault = f"{type(problem).__name__}: {str(problem).strip()[:300]}"
        if fault:
            rows = [_time_row(job, case, provider.name, status="failed", reason=fault)]
        on_rows(rows)


def time_rows(job: str, case: Case, provider: str, backend: str, samples: Samples) -> list[Row]:
    """Rows of one measurement: device time, throughput, host wall time."""
    time = _time_row(
        job,
        case,
        provider,
        value=samples.median,
        low=samples.low,
        high=samples.high,
        samples=len(samples.device_ms),
        backend=backend,
        cache=samples.cache,
    )
    wall = _time_row(
        job,
        case,
        provider,
        quantity="wall time",
        value=samples.wall_ms,
        backend=backend,
        # calls follow one another, so what fits stays in the caches
        cache="hot",
    )
    return [time, throughput_row(time), wall]


def _time_row(
    job: str,
    case: Case,
    provider: str,
    *,
    quantity: str = "time",
    value: float | None = None,
    low: float | None = None,
    high: float | None = None,
    samples: int | None = None,
    backend: str = "",
    cache: str = "",
    status: str = "ok",
    reason: str = "",
) -> Row:
    return Row(
        job=job,
        kind="measured",
        case=case.id,
        provider=provider,
        quantity=quantity,
        unit="ms",
        value=value,
        low=low,
        high=high,
        samples=samples,
        floor_bytes=floor_bytes(
            case.mode, case.numel, case.channels, case.itemsize, **case.fused.formula
        ),
        **case.columns,
        backend=backend,
        cache=cache,
        status=status,
        reason=reason,
    )
