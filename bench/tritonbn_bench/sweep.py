"""Cases with all their providers: correctness first, then time side by side, then rows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from .accuracy import judge
from .cases import Case
from .footprint import PEAK, SAVED, kept_bytes, peak_bytes
from .graphs import replayed
from .inputs import Inputs, make_inputs
from .measure import Meter, Timed, in_words, time_together
from .providers import Prepared, Provider, composed, poisoned_memory, results_of
from .results import Row
from .speed_rows import (
    COPY,
    DROPPED,
    failed_row,
    figure_row,
    graph_row,
    ratio_row,
    share_row,
    time_rows,
)
from .summary import OURS
from .timer import Samples

__all__ = ["Unit", "measure", "planned"]


@dataclass(frozen=True)
class Unit:
    """A case and who is timed on it in the same rounds.

    Attributes:
        case: what is computed
        wanted: who gets rows
        beside: who has rows already and is timed again: tritonbn and the copy, for ratios hold
            between times of the same rounds only
    """

    case: Case
    wanted: tuple[Provider, ...]
    beside: tuple[Provider, ...] = ()


def planned(
    cases: Sequence[Case],
    providers: Sequence[Provider],
    done: Callable[[Case, Provider], bool] = lambda case, provider: False,
    beside: Sequence[Provider] = (),
) -> Iterator[Unit]:
    """What is to be measured: every case with the providers that take it and are not done yet.

    Args:
        cases: in the order of measuring
        providers: who is to get rows
        done: whether a provider has rows of a case; where tritonbn has none, nobody has ratios, and
            all are measured
        beside: of these tritonbn and the copy are timed beside the others where they are done
    """
    for case in cases:
        takes = [provider for provider in providers if provider.takes(case)]
        wanted = [provider for provider in takes if not done(case, provider)]
        if any(provider.name == OURS for provider in wanted):
            wanted = takes
        if wanted:
            others = [
                provider
                for provider in dict.fromkeys((*takes, *beside))
                if provider.name in (OURS, COPY) and provider not in wanted and provider.takes(case)
            ]
            yield Unit(case, tuple(wanted), tuple(others))


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
    job: str, units: Iterable[Unit], meter: Meter, on_rows: Callable[[list[Row]], None]
) -> None:
    """Measure every unit and hand its rows over as soon as they are there.

    A provider that raises, or whose results break the bound of the accuracy table, gets one row
    with its reason and no figure.

    Args:
        job: name of the job in the rows
        units: as `planned` gives them
        meter: measures what passed
        on_rows: called once for each unit
    """
    bench = _Bench(meter.device)
    for unit in units:
        on_rows(_rows(job, unit, bench, meter))


def _rows(job: str, unit: Unit, bench: _Bench, meter: Meter) -> list[Row]:
    case = unit.case
    ready: dict[str, Prepared] = {}
    faults: dict[str, str] = {}
    for provider in (*unit.wanted, *unit.beside):
        try:
            prepared = provider.prepare(case, bench.at(case))
            fault = bench.fault(case, provider, prepared)
        except Exception as problem:
            fault = in_words(problem)
        if fault:
            faults[provider.name] = fault
        else:
            ready[provider.name] = prepared
    timed = time_together({name: one.work for name, one in ready.items()}, meter, OURS)
    faults |= timed.faults
    ready = {name: one for name, one in ready.items() if name not in faults}
    rows: list[Row] = []
    for provider in unit.wanted:
        name = provider.name
        if name in ready:
            try:
                rows += _figures(job, case, name, ready, timed, bench.at(case), meter)
            except Exception as problem:
                faults[name] = in_words(problem)
        if name in faults:
            rows.append(failed_row(job, case, name, faults[name]))
    names = [provider.name for provider in unit.wanted if provider.name not in faults]
    if names:
        dropped = timed.taken - len(timed.rounds)
        rows.append(figure_row(job, case, names[0], DROPPED, dropped, samples=timed.taken))
    return rows


def _figures(
    job: str,
    case: Case,
    name: str,
    ready: Mapping[str, Prepared],
    timed: Timed,
    inputs: Inputs,
    meter: Meter,
) -> list[Row]:
    """Everything about one provider whose results are right."""
    one = ready[name]
    cache, rule = meter.stopwatch.cache, meter.rule
    samples = Samples(timed.times(name), meter.stopwatch.wall(one.work), cache)
    rows = time_rows(job, case, name, one.backend, samples)
    backends = {other: prepared.backend for other, prepared in ready.items()}
    if name not in (OURS, COPY) and OURS in ready:
        rows.append(ratio_row(job, case, name, backends, timed, rule))
    if name != COPY and COPY in ready:
        copied = ready[COPY].moved_bytes
        rows.append(share_row(job, case, name, one.backend, timed, copied, rule))
    kept = kept_bytes(one, inputs)
    if kept is not None:
        rows.append(figure_row(job, case, name, SAVED, kept, unit="bytes", backend=one.backend))
    if meter.device == "cuda":
        peak = peak_bytes(one.work)
        rows.append(figure_row(job, case, name, PEAK, peak, unit="bytes", backend=one.backend))
        rows.append(graph_row(job, case, name, one.backend, cache, _replay(case, one, meter)))
    return rows


def _replay(case: Case, one: Prepared, meter: Meter) -> float | str:
    """ms of a call as a graph replays it, or why there is none."""
    try:
        work = replayed(one.work, with_setup=case.mode.startswith("backward"))
        calls = meter.stopwatch.calls_for(work)
        return statistics.median(meter.stopwatch.block(work, calls) for _ in range(3))
    except Exception as problem:
        return in_words(problem)
