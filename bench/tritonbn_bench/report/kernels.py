"""Sections about our kernels: their plans by device, and what their binaries need."""

from __future__ import annotations

from collections.abc import Sequence

from ..resources import OVER_FLOOR
from ..results import Row
from .blocks import Block, Draft, Section
from .frames import frame_of
from .step_pictures import bar_panel

__all__ = ["plans_section", "resources_section"]


def plans_section(draft: Draft) -> Section:
    """Which kernels a network gets on each device, and what is expected of them."""
    rows = draft.of("plan")
    if not rows:
        return Section("plans", "Plans", ())
    quantities = tuple(dict.fromkeys(row.quantity for row in rows))
    found = {(row.origin, row.case, row.quantity): row for row in rows}
    first = {(row.origin, row.case): row for row in rows}
    lines = [
        (
            *key,
            row.backend,
            *[found[(*key, name)].value if (*key, name) in found else None for name in quantities],
        )
        for key, row in first.items()
    ]
    note = (
        "Which kernels the BatchNorm layers of ResNet-50 get, and what is expected of them: "
        "one read: the channel stays on the chip; two reads: it does not. Times are those of the "
        "model, of the plan, of the floor, and of a kernel that reads twice."
    )
    table = draft.table(
        rows,
        "plans",
        "Plans by architecture",
        ("device", "case", "plan", *[_with_unit(name, rows) for name in quantities]),
        lines,
        note,
    )
    return Section("plans", "Plans", (table,))


def _with_unit(quantity: str, rows: Sequence[Row]) -> str:
    unit = next(row.unit for row in rows if row.quantity == quantity)
    return quantity if unit == "1" else f"{quantity}, {unit}"


def resources_section(draft: Draft) -> Section:
    """What compiled kernels need, by architecture."""
    counted = draft.of("static", quantity=OVER_FLOOR)
    rows = [row for row in draft.of("static") if row.quantity != OVER_FLOOR]
    blocks: list[Block] = []
    if counted:
        lines = [(row.case, row.data, row.value) for row in counted]
        note = (
            "Sectors of 32 bytes that each family of plans moves, counted in Triton's interpreter "
            "for the committed budget, over what any algorithm must move: 1 is the floor."
        )
        head = ("plan", "operation", OVER_FLOOR)
        blocks = [draft.table(counted, "counted", "Traffic by plan", head, lines, note)]
    if rows:
        blocks += _resources(draft, rows)
    return Section("resources", "Resources of the kernels", tuple(blocks))


def _by_age(target: object) -> tuple[bool, int, str]:
    """Order of architectures: sm_80, sm_90, sm_100, then those of other makers."""
    name = str(target)
    return (not name.startswith("sm_"), len(name), name)


def _resources(draft: Draft, rows: Sequence[Row]) -> list[Block]:
    quantities = tuple(dict.fromkeys(row.quantity for row in rows))
    cells: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        cells.setdefault((row.origin, row.case, row.dtype), {})[row.quantity] = row
    lines = [
        (*key, *[found[name].value if name in found else None for name in quantities])
        for key, found in cells.items()
    ]
    registers = frame_of(row for row in rows if row.quantity == "registers, most")
    panels = []
    for target, part in sorted(registers.groupby("origin"), key=lambda item: _by_age(item[0])):
        most = part.groupby("case", sort=False)["value"].max()
        bars = [(str(kernel), float(value), None, None) for kernel, value in most.items()]
        label = "registers a thread, most of any plan"
        panels.append(bar_panel(f"registers-{target}", str(target), label, bars))
    note = (
        "Read from compiled binaries that never ran, the worst of every plan in the committed "
        f"budget of {rows[0].backend}. Widths are bytes a thread moves at once, least of "
        "any plan that is wide enough."
    )
    head = ("target", "kernel", "dtype", *[_with_unit(name, rows) for name in quantities])
    return [
        draft.picture(rows, "registers", "Registers by architecture", panels, note),
        draft.table(rows, "resources", "Resources by kernel and dtype", head, lines),
    ]
