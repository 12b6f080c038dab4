"""What the compiler made of every plan, committed: a change that makes it worse is seen.

One file for each minor version of Triton, `budgets/<version>.json`, one line for each launch and
for each training step. Widths may not shrink; shared memory, stack, spills, double precision,
atomics and launches may not grow; registers are compared with their cap elsewhere and only noted
here, since they move with the compiler's mood. Beside it `<version>.hints.json` has the cache hints
of some of the launches: of two hints none is better, so any change is worse.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import triton

from .accesses import ATOMIC, LOAD, PLAIN, STORE
from .metrics import KernelFigures

if TYPE_CHECKING:
    from .check import Row

Figures = dict[str, int]
Numbers = dict[str, float]
Words = dict[str, str]
Value = int | float | str
# sentences on what became worse, or otherwise changed, from one line of a budget to another
Change = Callable[[Mapping[str, Any], Mapping[str, Any]], Iterator[str]]
FOLDER = Path(__file__).with_name("budgets")
# the tensors that are read and written as a whole
DATA_ARGUMENTS = ("x_ptr", "dy_ptr", "y_ptr", "dx_ptr")
# figures that may shrink, as opposed to widths, which may grow
CEILINGS = ("spill", "stack", "shared", "fp64", "float atomics", "launches")
SOFT = ("registers", "cap")
TRAINING = ("forward train", "backward train", "train")
# what of a tensor's traffic may grow: rounding of shares, not a sector
TRAFFIC_SLACK = 0.005


def version() -> str:
    """Minor version of the Triton that compiles, such as `3.9`."""
    return ".".join(triton.__version__.split(".")[:2])


def path_of(name: str) -> Path:
    """File of the budget for Triton's minor version `name`."""
    return FOLDER / f"{name}.json"


def figures_of(figures: KernelFigures) -> Figures:
    """What the budget keeps of one binary; figures that are 0 are left out.

    Widths are the widest access to each tensor, in bytes a thread; memory is in bytes.
    """
    found = {
        "registers": figures.registers,
        "cap": figures.cap,
        "shared": figures.shared_bytes,
        "stack": figures.stack_bytes,
        "spill": figures.spill_bytes,
        "fp64": figures.fp64,
        "float atomics": sum(
            access.count
            for access in figures.accesses
            if access.kind == ATOMIC and access.is_float_atomic
        ),
    }
    for kind in (LOAD, STORE):
        for argument in DATA_ARGUMENTS:
            widths = figures.widths(kind, argument)
            found[f"{kind} {argument.removesuffix('_ptr')}"] = widths[-1] if widths else 0
    return {name: value for name, value in found.items() if value}


def measure(rows: Iterable[Row]) -> dict[str, Figures]:
    """The budget that `rows` would keep exactly: figures by `target case | operation | kernel`."""
    found: dict[str, Figures] = {}
    steps: Counter[str] = Counter()
    for row in rows:
        planned = row.planned
        place = f"{row.figures.target} {planned.case.name}"
        found[key_of(row)] = figures_of(row.figures)
        steps[f"{place} | training step"] += planned.operation in TRAINING
    return {**found, **{step: {"launches": count} for step, count in steps.items()}}


def place_of(key: str) -> str:
    """Target and case of a key."""
    return key.split(" | ", 1)[0]


def worse_figures(before: Mapping[str, int], now: Mapping[str, int]) -> Iterator[str]:
    """Sentences on the figures that became worse."""
    for name in sorted({*before, *now} - {*SOFT}):
        old, new = before.get(name, 0), now.get(name, 0)
        if (new > old) if name in CEILINGS else (new < old):
            yield f"{name} {old} -> {new}"


def other_figures(before: Mapping[str, int], now: Mapping[str, int]) -> Iterator[str]:
    """Sentences on the figures that changed without becoming worse."""
    worse = {sentence.rsplit(" ", 3)[0] for sentence in worse_figures(before, now)}
    for name in sorted({*before, *now} - worse):
        old, new = before.get(name, 0), now.get(name, 0)
        if old != new:
            yield f"{name} {old} -> {new}"


def hints_kept(figures: KernelFigures) -> Words:
    """Cache modifiers of each tensor's loads and stores; tensors without any are left out, and so
    is the fusion of products and sums, unless it is off."""
    kept = {f"hints of {access}": hint for access, hint in figures.hints if hint != PLAIN}
    return kept if figures.fp_fusion else {**kept, "fp_fusion": "off"}


def hints_of(rows: Iterable[Row]) -> dict[str, Words]:
    """The budget of cache hints that `rows` would keep exactly, by the keys of `measure`."""
    return {key_of(row): hints_kept(row.figures) for row in rows}


def key_of(row: Row) -> str:
    """`target case | operation | kernel`."""
    planned = row.planned
    return (
        f"{row.figures.target} {planned.case.name} | {planned.operation} | {planned.record.kernel}"
    )


def any_change(before: Mapping[str, Value], now: Mapping[str, Value]) -> Iterator[str]:
    """Sentences on everything that changed: for budgets in which nothing is better or worse."""
    for name in sorted({*before, *now}):
        default = PLAIN if name.startswith("hints") else "on" if name == "fp_fusion" else 0
        old, new = before.get(name, default), now.get(name, default)
        if old != new:
            yield f"{name} {old} -> {new}"


def more_traffic(before: Mapping[str, float], now: Mapping[str, float]) -> Iterator[str]:
    """Sentences on tensors that are moved more often, or not written any more."""
    for name in sorted({*before, *now}):
        old, new = before.get(name, 0), now.get(name, 0)
        if new > old + TRAFFIC_SLACK * max(old, 1):
            yield f"{name} {old} -> {new}"


def other_traffic(before: Mapping[str, float], now: Mapping[str, float]) -> Iterator[str]:
    """Sentences on traffic that changed without becoming more."""
    worse = {*more_traffic(before, now)}
    return (sentence for sentence in any_change(before, now) if sentence not in worse)


def nothing(before: Mapping[str, Value], now: Mapping[str, Value]) -> Iterator[str]:
    """No sentence: beside `any_change`."""
    return iter(())


def compare(
    budget: Mapping[str, Mapping[str, Any]],
    measured: Mapping[str, Mapping[str, Any]],
    worse_of: Change = worse_figures,
    other_of: Change = other_figures,
    whole: bool = False,
) -> tuple[list[str], list[str]]:
    """(lines on what became worse, lines on what else changed), one line for each launch.

    Launches that the budget has for other targets and cases are not looked at, unless `measured`
    is the whole of what the budget should have.
    """
    worse, other = [], []
    for key, now in measured.items():
        before = budget.get(key)
        if before is None:
            worse.append(f"{key}: not in the budget")
            continue
        if found := list(worse_of(before, now)):
            worse.append(f"{key}: {', '.join(found)}")
        if found := list(other_of(before, now)):
            other.append(f"{key}: {', '.join(found)}")
    places = {place_of(key) for key in measured}
    gone = [key for key in budget if (whole or place_of(key) in places) and key not in measured]
    return worse, other + [f"{key}: no longer launched" for key in gone]


def read(path: Path) -> dict[str, Any] | None:
    """The budget in `path`, None where there is none."""
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def write(path: Path, measured: Mapping[str, Mapping[str, Any]], whole: bool) -> None:
    """Commit `measured` to `path`; unless it is the whole, what was there for others stays."""
    places = {place_of(key) for key in measured}
    kept = {} if whole else read(path) or {}
    kept = {key: figures for key, figures in kept.items() if place_of(key) not in places}
    lines = [
        f"{json.dumps(key)}: {json.dumps(figures)}"
        for key, figures in sorted({**kept, **measured}.items())
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
