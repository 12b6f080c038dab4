"""Which cases are counted: given by id, the slowest of a sweep, or a fixed few."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..cases import Case
from ..results import SHARE, Row
from ..summary import LARGE, OURS, speedups

__all__ = ["FIXED", "case_of", "worst"]

# layers of ResNet-50: planes and rows, each pass in each dtype once
FIXED = (
    "forward_train/fp32/nchw/N64C256S3136",
    "forward_train/bf16/nchw/N256C64S3136",
    "forward_train/fp32/nhwc/N128C512S784",
    "forward_train/bf16/nhwc/N256C256S3136",
    "backward_train/fp32/nchw/N64C64S12544",
    "backward_train/bf16/nchw/N128C1024S196",
    "backward_train/fp32/nhwc/N64C256S3136",
    "backward_train/bf16/nhwc/N256C128S784",
)
_ID = re.compile(r"(\w+)/(\w+)/(\w+)/N(\d+)C(\d+)S(\d+)(?:/(\w+))?")


def case_of(identifier: str) -> Case:
    """The case of an id as results have it; its plane is as square as its size allows.

    Raises:
        ValueError: no id, or one of a case that there cannot be
    """
    found = _ID.fullmatch(identifier)
    if found is None:
        raise ValueError(f"expected an id such as {FIXED[0]}, got {identifier}")
    mode, dtype, layout, batch, channels, space, fusion = found.groups()
    plane = _plane(int(space), len(layout) - 2)
    sizes = (int(batch), int(channels), plane)
    return Case(mode, dtype, layout, *sizes, "counters", "chosen", fusion=fusion or "none")


def _plane(space: int, axes: int) -> tuple[int, ...]:
    """So many sizes, as equal as can be, of so many values."""
    sides = []
    for left in range(axes, 1, -1):
        most = round(space ** (1 / left))
        sides.append(max(side for side in range(1, most + 1) if space % side == 0))
        space //= sides[-1]
    return (*sides, space) if axes else ()


def worst(rows: Sequence[Row], count: int) -> tuple[str, ...]:
    """Ids of the cases of the sweep that must move LARGE bytes in which tritonbn is slowest.

    Args:
        rows: of a report
        count: cases of the lowest share of the speed of a copy; half as many follow in which
            tritonbn is slowest against its best rival
    """
    shares = {
        row.case: row.value
        for row in rows
        if _counts(row) and row.quantity == SHARE and row.value is not None
    }
    chosen = sorted(shares, key=lambda case: (shares[case], case))[:count]
    against: dict[str, float] = {}
    for item in speedups(rows):
        # tritonbn with torch's operators behind it is no rival
        if _counts(item.case) and not item.rival.startswith(OURS):
            case = item.case.case
            against[case] = min(item.ratio, against.get(case, item.ratio))
    left = sorted(against.keys() - set(chosen), key=lambda case: (against[case], case))
    return (*chosen, *left[: count // 2])


def _counts(row: Row) -> bool:
    """Whether a row is one of ours, of a case that can be chosen."""
    large = row.floor_bytes is not None and row.floor_bytes >= LARGE
    measured = row.kind == "measured" and row.status == "ok"
    return row.job == "sweep" and row.provider == OURS and large and measured
