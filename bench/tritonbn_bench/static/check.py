"""Judgement of compiled kernels: what must hold for every plan on every target.

- no bytes spilled by kernels that read twice (those that hold a channel have a budget of them), no
  more registers than the launch allows, no more shared memory than the target has;
- a cooperative grid fits on the device as it was compiled;
- a release comes behind a block barrier;
- accesses to tensors of data move 16 bytes a thread where consecutive bytes are a multiple of 16;
- no double precision unless the data is;
- no floating-point atomics: two runs must agree to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from . import budget
from .accesses import ATOMIC, LOAD, STORE
from .budget import DATA_ARGUMENTS
from .driver import TARGETS, Target
from .metrics import KernelFigures, examine
from .plans import Case, Planned, planned_launches

WIDE_BYTES = 16
# kernels that fill the registers with a channel: what they spill is bounded by the budget
HOLDING = ("resident_", "rows_")


@dataclass(frozen=True)
class Demand:
    """What the data lets a kernel do.

    run_bytes: consecutive bytes in memory. tensor_bytes: of x. is_double: whether data is fp64.
    """

    run_bytes: int
    tensor_bytes: int
    is_double: bool

    def is_wide(self, target: Target) -> bool:
        """Whether 16-byte access is due.

        Not where x is too small to give every thread of one warp a multiprocessor 16 bytes: more
        programs then matter more than width.
        """
        enough = target.sm_count * target.warp_size * WIDE_BYTES
        return self.run_bytes % WIDE_BYTES == 0 and self.tensor_bytes >= enough


@dataclass(frozen=True)
class Row:
    """One launch with its figures and what is to be said against it."""

    planned: Planned
    figures: KernelFigures
    faults: tuple[str, ...]


def judge(figures: KernelFigures, target: Target, demand: Demand, num_warps: int) -> Iterator[str]:
    """Sentences against a kernel, none where it is as it must be."""
    if figures.spill_bytes and not figures.kernel.startswith(HOLDING):
        yield f"{figures.spill_bytes} bytes spilled ({figures.registers} registers)"
    if figures.registers > target.registers:
        yield f"{figures.registers} registers a thread, the target has {target.registers}"
    if figures.cap and figures.registers > figures.cap:
        yield f"{figures.registers} registers a thread, the launch allows {figures.cap}"
    if figures.loose_releases:
        yield f"{figures.loose_releases} releases behind stores without bar.sync in between"
    threads = num_warps * target.warp_size
    if target.backend == "cuda" and figures.registers * threads > 65_536:
        yield f"{threads} threads of {figures.registers} registers do not fit a multiprocessor"
    if figures.shared_bytes > target.shared_bytes:
        yield f"{figures.shared_bytes} bytes of shared memory, the target has {target.shared_bytes}"
    if figures.fp64 and not demand.is_double:
        yield f"{figures.fp64} instructions in double precision"
    for access in figures.accesses:
        if access.kind == ATOMIC and access.is_float_atomic:
            yield f"floating-point atomics on {access.argument}"
    if demand.is_wide(target):
        yield from _narrow_accesses(figures)


def _narrow_accesses(figures: KernelFigures) -> Iterator[str]:
    """Tensors of data that are not read or written 16 bytes at a time.

    A few narrow accesses are right, such as one element of each channel to shift moments by. A
    pass over the tile that lost its width moves as many bytes as a pass that kept it.
    """
    for kind in (LOAD, STORE):
        for argument in DATA_ARGUMENTS:
            moved = {True: 0, False: 0}
            for access in figures.accesses:
                if access.kind == kind and argument in access.argument.split("|"):
                    moved[access.width >= WIDE_BYTES] += access.width * access.count
            if moved[False] >= moved[True] and moved[False]:
                widths = figures.widths(kind, argument)
                yield f"{kind} of {argument} moves {widths} bytes a thread, expected {WIDE_BYTES}"


def resident_programs(figures: KernelFigures, target: Target, num_warps: int) -> int:
    """Programs of a CUDA binary that are on the device at once."""
    # registers are dealt to warps by 256; each program takes 1 KB of shared memory besides its own
    of_warp = -(-figures.registers // 8) * 8 * 32
    limits = [65_536 // (of_warp * num_warps), 64 // num_warps, 32]
    limits.append((target.shared_bytes + 1024) // (figures.shared_bytes + 1024))
    return target.sm_count * min(limits)


def too_large_grids(planned: Planned, figures: KernelFigures, target: Target) -> Iterator[str]:
    """A sentence against a cooperative launch of more programs than fit: it would be refused."""
    record = planned.record
    metadata = getattr(record.compiled, "metadata", None)
    if getattr(metadata, "launch_cooperative_grid", False):
        fit = resident_programs(figures, target, record.num_warps)
        if record.grid[0] > fit:
            yield f"a cooperative grid of {record.grid[0]} programs, {fit} fit"


def check(targets: Iterable[Target], chosen: Iterable[Case]) -> Iterator[Row]:
    """Every launch of the cases on the targets, judged."""
    chosen = list(chosen)
    for target in targets:
        known: dict[int, tuple[object, KernelFigures]] = {}
        for case in chosen:
            demand = Demand(case.run_bytes, case.tensor_bytes, case.dtype == "fp64")
            for planned in planned_launches(case, target):
                compiled = planned.record.compiled
                if id(compiled) not in known:
                    # the object is kept, so that its id stays its own
                    known[id(compiled)] = compiled, examine(compiled, target)
                figures = known[id(compiled)][1]
                faults = [
                    *judge(figures, target, demand, planned.record.num_warps),
                    *too_large_grids(planned, figures, target),
                ]
                yield Row(planned, figures, tuple(faults))


def summary(rows: Iterable[Row]) -> list[str]:
    """A table with the worst of each target, kernel, family and dtype."""
    worst: dict[tuple[str, str, str, str], list[int]] = {}
    for row in rows:
        case, figures = row.planned.case, row.figures
        key = (figures.target, figures.kernel, case.layout, case.dtype)
        values = worst.setdefault(key, [0] * 7)
        found = (figures.registers, figures.stack_bytes, figures.spill_bytes)
        more = (figures.shared_bytes, figures.fp64, len(row.faults))
        for index, value in enumerate((*found, *more)):
            values[index] = max(values[index], value)
        values[6] += 1
    columns = ("regs", "stack", "spill", "shared", "fp64", "faults", "launches")
    lines = [f"{'target':8}{'kernel':24}{'layout':16}{'dtype':6}"]
    lines[0] += "".join(f"{column:>9}" for column in columns)
    for key, values in sorted(worst.items()):
        target, kernel, layout, dtype = key
        line = f"{target:8}{kernel:24}{layout:16}{dtype:6}"
        lines.append(line + "".join(f"{value:9}" for value in values))
    return lines


def describe(row: Row) -> str:
    """One launch on one line, what is to be said against it first."""
    record, figures = row.planned.record, row.figures
    plan = {name: value for name, value in record.constants.items() if name.startswith("BLOCK")}
    accesses = [
        f"{access.kind}:{access.argument}:{access.width}x{access.count}"
        for access in figures.accesses
        if access.argument in DATA_ARGUMENTS
    ]
    parts = [
        f"{figures.target} {record.kernel} [{row.planned.operation}] {row.planned.case.name}:",
        "; ".join(row.faults) or "as expected",
        f"| grid {record.grid[0]} warps {record.num_warps} {plan}",
        f"registers {figures.registers} stack {figures.stack_bytes} spill {figures.spill_bytes}",
        f"shared {figures.shared_bytes} fp64 {figures.fp64}",
        *accesses,
    ]
    return " ".join(parts)


def run(
    names: Iterable[str], chosen: Iterable[Case], every_launch: bool, update: str = ""
) -> tuple[list[str], int]:
    """(lines to print, number of complaints) for the cases on the targets `names`.

    Complaints are launches with faults and lines that became worse than the budget of this Triton;
    `update` ("whole" or "part") writes the budget instead of comparing with it.
    """
    rows = list(check([TARGETS[name] for name in names], chosen))
    faulty = [row for row in rows if row.faults]
    lines = [describe(row) for row in rows] if every_launch else summary(rows)
    lines += [f"FAULT {describe(row)}" for row in faulty]
    binaries = len({id(row.figures) for row in rows})
    lines.append(f"{len(rows)} launches, {binaries} binaries, {len(faulty)} launches with faults")
    path, measured = budget.path_of(budget.version()), budget.measure(rows)
    if update:
        budget.write(path, measured, whole=update == "whole")
        return [*lines, f"budget written to {path}"], len(faulty)
    committed = budget.read(path)
    if committed is None:
        return [*lines, f"no budget for triton {budget.version()}: not compared"], len(faulty)
    worse, other = budget.compare(committed, measured)
    lines += [f"changed {line}" for line in other] + [f"WORSE {line}" for line in worse]
    lines.append(f"budget of triton {budget.version()}: {len(worse)} worse, {len(other)} changed")
    return lines, len(faulty) + len(worse)
