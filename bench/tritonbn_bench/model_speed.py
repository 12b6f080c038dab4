"""A user's model: its BatchNorm layers, the plans they get, and their speed, as text and rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tritonbn_kernels.outlook import Device, outlook

from .cases import Case
from .measure import Meter
from .model_layers import LayerCall
from .plan_table import MODELLED, aligned, plan_text, view_in
from .providers import PROVIDERS, Provider
from .results import Row
from .speed_rows import RATIO, SHARE
from .summary import OURS, failed, times
from .sweep import Unit, measure

__all__ = ["JOB", "layer_lines", "plan_lines", "providers_for", "speed_lines", "speed_rows"]

JOB = "model"
_WORDS = {"case", "layers", "layer", "shape", "dtype", "layout", "followed by", "statistics of"}
_WORDS |= {"plan", "measured", "tritonbn / torch", "tritonbn / torch.compile", "provider", "reason"}


def layer_lines(layers: Sequence[LayerCall]) -> list[str]:
    """A line for each call of a BatchNorm layer, and why it is not measured where it is not."""
    head = ("layer", "shape", "dtype", "layout", "followed by", "statistics of", "measured")
    lines: list[tuple[str, ...]] = [head]
    for call in layers:
        lines.append(
            (
                f"{call.path} ({call.kind})",
                "x".join(map(str, call.shape)),
                call.dtype,
                call.layout,
                "nothing" if call.fusion == "none" else call.fusion,
                "the batch" if call.training else "the past",
                f"no: {call.unmeasured}" if call.unmeasured else "yes",
            )
        )
    return aligned(lines, _WORDS)


def plan_lines(cases: Sequence[Case], device: Device) -> list[str]:
    """A line for each distinct call: the plan that tritonbn has for its BatchNorm, and what is
    expected of it.

    Args:
        cases: as `cases_of` returns them
        device: whose plans
    """
    lines: list[tuple[str, ...]] = [("case", "calls", "plan", "expected, us", "floor, us")]
    for case in cases:
        tensors = 2 if case.mode.startswith("forward") else 3
        views = (view_in(case.shape, case.layout),) * tensors
        expected = outlook(case.mode, views, case.itemsize, device)
        figures = (f"{1e6 * s:.1f}" for s in (expected.seconds, expected.floor_seconds))
        lines.append((case.id, str(case.count), plan_text(expected), *figures))
    return [f"Plans for {device.name}, {MODELLED}:", *aligned(lines, _WORDS)]


def providers_for(device: str, compiled: bool) -> list[Provider]:
    """Who is measured: tritonbn, torch and a copy, torch.compile if asked for; on a CPU torch's
    own kernels alone, for ours do not run there."""
    names = ["torch", "torch channels_last"]
    if device == "cuda":
        names = [OURS, *names, "copy"]
    return [PROVIDERS[name] for name in (*names, *(["torch.compile"] if compiled else []))]


def speed_rows(
    cases: Sequence[Case], meter: Meter, compiled: bool, keep: Callable[[list[Row]], None]
) -> None:
    """Measure every case, all providers in the same rounds.

    Args:
        cases: as `cases_of` returns them
        meter: measures
        compiled: whether torch.compile is measured too
        keep: called with the rows of each case
    """
    providers = providers_for(meter.device, compiled)
    units = [
        Unit(case, tuple(provider for provider in providers if provider.takes(case)))
        for case in cases
    ]
    measure(JOB, units, meter, keep)


def speed_lines(rows: Sequence[Row]) -> list[str]:
    """The table of a user: time of each provider, ratios with their intervals, sums of a step."""
    found = {(case, provider): row for (_, case, provider), row in times(rows).items()}
    others = {(row.case, row.provider, row.quantity): row for row in rows}
    providers = list(dict.fromkeys(_column(provider) for _, provider in found))
    rivals = [name for name in providers if name not in (OURS, "copy") and OURS in providers]
    head = ["case", "calls", *(f"{name}, us" for name in providers)]
    head += [f"{OURS} / {name}" for name in rivals] + ([SHARE] if "copy" in providers else [])
    lines = [head]
    sums: dict[str, float | None] = dict.fromkeys(providers, 0.0)
    for case in dict.fromkeys(case for case, _ in found):
        by_column = {
            _column(provider): row for (name, provider), row in found.items() if name == case
        }
        count = next(iter(by_column.values())).count or 1
        cells = [case, str(count)]
        for name in providers:
            value = by_column[name].value if name in by_column else None
            cells.append("-" if value is None else f"{1e3 * value:.1f}")
            so_far = sums[name]
            # a sum of some of the cases would look faster
            sums[name] = None if value is None or so_far is None else so_far + count * value
        for name in rivals:
            quantities = {f"{RATIO}{name}", f"{RATIO}{name} channels_last"}
            ratios = [others.get((case, OURS, quantity)) for quantity in sorted(quantities)]
            cells.append(next((_interval(row) for row in ratios if row is not None), "-"))
        if "copy" in providers:
            share = others.get((case, OURS, SHARE))
            cells.append("-" if share is None or share.value is None else f"{share.value:.0%}")
        lines.append(cells)
    totals = (sums[name] for name in providers)
    total = ["all calls", "", *("-" if ms is None else f"{1e3 * ms:.1f}" for ms in totals)]
    lines.append(total + [""] * (len(head) - len(total)))
    text = aligned(lines, _WORDS) if found else ["no case has a figure"]
    bad = [row for row in failed(rows) if row.status == "failed"]
    if bad:
        reasons = [("case", "provider", "reason"), *((r.case, r.provider, r.reason) for r in bad)]
        text += ["", "Without a figure:", *aligned(reasons, _WORDS)]
    return text


def _column(provider: str) -> str:
    """torch is one rival to a user, whatever the layout."""
    return provider.removesuffix(" channels_last")


def _interval(row: Row) -> str:
    return f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f})"
