"""counters.md: what was counted, and which calls do not move what their plan expects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..environment import Environment
from ..tables import markdown_table
from .record import DEVIATION, Record

__all__ = ["as_markdown"]

NOTES = """\
Counted by Nsight Compute (ncu) of one warm call, summed over its kernels. ncu runs each kernel
several times, alone and with cold caches: the times are no benchmark, and no kernel finds in the L2
cache what the one before it left there.

"of plan" and "of floor" are the bytes read from memory and those written to it (to the L2 cache
where that is more: a kernel's last stores are still there when it ends), over the bytes that the
planner expects and over the least that there can be, both modelled, not measured. Stalls are the
largest reasons for which warps wait, in warps for each instruction issued."""
_HEAD = (
    *("case", "provider", "kernels", "us by ncu", "DRAM read, MB", "DRAM written, MB"),
    *("written to L2, MB", "of plan", "of floor", "L2 hits, %", "stalls"),
)


def as_markdown(environment: Environment, records: Sequence[Record]) -> str:
    """The page.

    Args:
        environment: as `environment.collect` returns it
        records: in the order of the table
    """
    counted = [record for record in records if not record.reason]
    versions = ", ".join(
        f"{name} {environment[name]}"
        for name in ("driver", "torch", "triton", "cudnn", "commit")
        if environment.get(name)
    )
    parts = [
        f"# Hardware counters on {environment.get('gpu')}",
        f"{environment.get('date')}; {versions}",
        NOTES,
        markdown_table(_HEAD, map(_line, counted)) if counted else "Nothing was counted.",
        "## Bytes beside the plan's",
        _sentence(counted),
        "## Plans (modelled, not measured)",
        markdown_table(("case", "plan", "plan, MB", "floor, MB"), _plans(records)),
        "## Kernels",
        markdown_table(("case", "provider", "what ran", "kernels"), map(_kernels, counted)),
    ]
    missing = [f"- {one.case}, {one.provider}: {one.reason}" for one in records if one.reason]
    if missing:
        parts += ["## Not counted", "\n".join(missing)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _line(record: Record) -> tuple[object, ...]:
    sums = [record.total(name) for name in ("dram_read", "dram_written")]
    bytes_moved = [_scaled(value, 1e-6) for value in (*sums, record.l2_written)]
    stalls = ", ".join(f"{reason} {warps:.1f}" for reason, warps in record.stalls)
    return (
        record.case,
        record.provider,
        len(record.kernels),
        _scaled(record.total("ns"), 1e-3),
        *bytes_moved,
        record.of_plan,
        record.of_floor,
        record.l2_hit_percent,
        stalls or "-",
    )


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale


def _sentence(counted: Iterable[Record]) -> str:
    """Which calls of ours move another number of bytes than their plan."""
    ours = [record for record in counted if record.of_plan is not None]
    if not ours:
        return "No call of tritonbn was counted."
    margin = f"more than {DEVIATION:.0%}"
    away = [record for record in ours if record.deviates]
    if not away:
        return f"None of {len(ours)} calls of tritonbn deviates from its plan by {margin}."
    lines = [
        f"{len(away)} of {len(ours)} calls of tritonbn deviate from their plan by {margin}:",
        "",
    ]
    lines += [f"- {one.case}: {one.of_plan:.2f} x the plan's bytes" for one in away]
    return "\n".join(lines)


def _plans(records: Iterable[Record]) -> Iterable[tuple[object, ...]]:
    expected = {record.case: record.expected for record in records}
    for case, one in expected.items():
        yield (case, one.plan, one.plan_bytes / 1e6, one.floor_bytes / 1e6)


def _kernels(record: Record) -> tuple[object, ...]:
    names = ", ".join(kernel.name for kernel in record.kernels)
    return (record.case, record.provider, record.backend, names)
