"""Plans that may be tried in a regime: those that can be pinned there, each once. Pure Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tritonbn_kernels.outlook import Device, Outlook, outlook
from tritonbn_kernels.plan import LaunchPlan, pinned_plan, pins_from, power_of_two_at_least
from tritonbn_kernels.plan_file import Regime, rows_in_use
from tritonbn_kernels.residency import ResidentPlan

from ..cases import Case
from .regimes import views_of

__all__ = ["TABLE", "Proposals", "expected_of", "proposals_for"]

# the plan of the table, by the name of its side in a round
TABLE = "table"
# wider programs than these are not on any device four times at once
_MOST_WARPS = 16
# factors on one field of the plan that a name alone gives
_FACTORS = (0.5, 2)
# on the width of rows, whose tiles keep their size: from half a line to four of them
_WIDTHS = (0.25, 0.5, 2, 4)
# kinds of plans in training by their names, and the fields of each that are varied
_FIELDS = {
    "one_read": ("block_c", "block_n", "block_v", "num_warps", "splits"),
    "hybrid": ("block_c", "block_n", "num_warps", "pieces", "stream"),
    "fused": ("block_c", "block_v", "num_warps"),
    "split": ("block_c", "block_v", "num_warps", "splits"),
}
_EVAL_FIELDS = {"two_read": ("block_c", "block_v", "num_warps", "splits")}


@dataclass(frozen=True)
class Proposals:
    """What may be tried.

    Attributes:
        plans: as TRITONBN_PLAN has them, each other than the table's and than one another
        refused: plans left out because a shape cannot have them
        same: plans left out because they are the table's, or one before them
    """

    plans: tuple[str, ...]
    refused: int
    same: int


def expected_of(regime: Regime, case: Case, device: Device, plan: str = "") -> Outlook:
    """What is planned for a case, and expected of it.

    Args:
        regime: of the case
        case: shape, layout and dtype
        device: where
        plan: as TRITONBN_PLAN has it; empty for the table's
    """
    with rows_in_use({}), pinned_plan(**pins_from(plan)):
        return outlook(case.mode, views_of(case), case.itemsize, device, regime.fused)


def proposals_for(regime: Regime, cases: Sequence[Case], device: Device) -> Proposals:
    """Plans to be tried in a regime.

    Each kind of plan as its name alone gives it, with one field halved or doubled, and with tiles
    of another shape; what a field decides else, such as how many programs share wider rows, follows
    as in the table.

    Args:
        regime: that the cases share
        cases: all must be able to have a plan
        device: where
    """
    seen = {tuple(expected_of(regime, case, device).plans for case in cases)}
    plans: list[str] = []
    refused = same = 0
    for plan in _varied(regime, cases[0], device):
        found = [expected_of(regime, case, device, plan) for case in cases]
        key = tuple(item.plans for item in found)
        if not all(_is_asked_for(plan, item) for item in found):
            refused += 1
        elif key in seen:
            same += 1
        else:
            seen.add(key)
            plans.append(plan)
    return Proposals(tuple(plans), refused, same)


def _varied(regime: Regime, case: Case, device: Device) -> Iterator[str]:
    kinds = _FIELDS if regime.mode.endswith("train") else _EVAL_FIELDS
    for name, fields in kinds.items():
        yield name
        found = _fields_of(expected_of(regime, case, device, name))
        for change in _changes(found, fields):
            values = {field: int(found[field] * factor) for field, factor in change.items()}
            if min(values.values()) < 1 or values.get("num_warps", 1) > _MOST_WARPS:
                continue
            if "splits" in values:
                # members are counted for rows of one width
                values = {"block_c": found["block_c"], **values}
            yield ",".join([name, *(f"{field}={value}" for field, value in values.items())])


def _changes(found: Mapping[str, int], fields: Sequence[str]) -> Iterator[dict[str, float]]:
    """Factors by field: one field at a time, then tiles of another shape or for more threads.

    A tile that grows alone spills: compiled, not timed, four times as many channels of planes keep
    4.6 KB of stack on sm_90.
    """
    for field in fields:
        if field in found:
            wide = field == "block_c" and "block_n" in found
            yield from ({field: factor} for factor in (_WIDTHS if wide else _FACTORS))
    if "block_v" in found:
        yield from ({"block_c": factor, "block_v": 1 / factor} for factor in _WIDTHS)
        yield from ({"block_v": factor, "num_warps": factor} for factor in _FACTORS)


def _fields_of(expected: Outlook) -> dict[str, int]:
    """Fields of a plan that can be pinned, by name."""
    plan = expected.plan
    found = {"num_warps": plan.num_warps, "splits": plan.splits}
    if isinstance(plan, LaunchPlan):
        return found | {"block_c": plan.block_c, "block_v": plan.block_v}
    if isinstance(plan, ResidentPlan):
        return found | {"block_c": plan.block_c, "block_v": plan.block_v, "pieces": plan.pieces}
    block_c = power_of_two_at_least(plan.block_channels)
    found |= {"block_c": block_c, "block_n": plan.block_n, "pieces": plan.pieces}
    return found | {"stream": plan.stream}


def _is_asked_for(plan: str, expected: Outlook) -> bool:
    """Whether the planner gave the kind of plan, and the fields, that were asked for."""
    pins = pins_from(plan)
    if pins.get("resident") and isinstance(expected.plan, LaunchPlan):
        return False
    if pins.get("stream") and expected.kind != "hybrid":
        return False
    given = _fields_of(expected)
    # what may give way to what the device holds
    return all(given[name] == pins.get(name, given[name]) for name in ("num_warps", "splits"))
