"""What was counted of one call, summed over its kernels, beside what the plan expects."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tritonbn_kernels.outlook import Device
from tritonbn_kernels.traffic import floor_bytes

from ..cases import Case
from ..environment import Environment
from ..files import write_whole
from ..fused_table import chains
from ..networks import Layer
from ..plan_table import Request, expected_of, plan_text
from ..summary import OURS
from .ncu import Kernel

__all__ = ["DEVIATION", "Expected", "Record", "expected_of_case", "load", "save"]

SCHEMA = "tritonbn.counters/1"
NAME = "counters.json"
SECTOR_BYTES = 32
# share of the plan's bytes by which what was counted may differ from them unmentioned
DEVIATION = 0.1
# reasons of stalls that are shown
LARGEST = 3


@dataclass(frozen=True)
class Expected:
    """What a plan is expected to move: modelled, not measured.

    Attributes:
        plan: of each pass, in words
        plan_bytes: from and to memory
        floor_bytes: least bytes that any algorithm moves
    """

    plan: str
    plan_bytes: int
    floor_bytes: int


@dataclass(frozen=True)
class Record:
    """One call of one provider.

    Attributes:
        case: id
        provider: key of `providers.PROVIDERS`
        backend: what really ran
        kernels: its launches, in order
        expected: of tritonbn's plan; the floor is everybody's
        reason: why nothing was counted, empty where something was
    """

    case: str
    provider: str
    backend: str
    kernels: tuple[Kernel, ...]
    expected: Expected
    reason: str = ""

    def total(self, *names: str, of: Callable[..., float] = sum) -> float | None:
        """Figures of each kernel combined by `of`, summed; None where one is missing."""
        if not self.kernels or any(
            name not in one.figures for one in self.kernels for name in names
        ):
            return None
        return sum(of([one.figures[name] for name in names]) for one in self.kernels)

    @property
    def l2_written(self) -> float | None:
        """Bytes that programs wrote to the L2 cache."""
        sectors = self.total("l2_sectors_written")
        return None if sectors is None else SECTOR_BYTES * sectors

    @property
    def moved(self) -> float | None:
        """Bytes read from memory and written for it.

        What a kernel wrote last is still in the L2 cache when it ends, and ncu counts it nowhere
        as written to memory: of each kernel the larger of the two counts.
        """
        read = self.total("dram_read")
        written = self.total(
            "dram_written",
            "l2_sectors_written",
            of=lambda pair: max(pair[0], SECTOR_BYTES * pair[1]),
        )
        return None if read is None or written is None else read + written

    @property
    def of_plan(self) -> float | None:
        """Bytes moved over those that tritonbn's plan expects; None of another provider."""
        if self.moved is None or self.provider != OURS:
            return None
        return self.moved / self.expected.plan_bytes

    @property
    def of_floor(self) -> float | None:
        """Bytes moved over the least that there can be."""
        return None if self.moved is None else self.moved / self.expected.floor_bytes

    @property
    def deviates(self) -> bool:
        """Whether the bytes differ from the plan's by more than DEVIATION."""
        return self.of_plan is not None and abs(self.of_plan - 1) > DEVIATION

    @property
    def l2_hit_percent(self) -> float | None:
        """Hits in the L2 cache of all its accesses."""
        sectors = self.total("l2_sectors")
        hits = self.total("l2_sectors", "l2_hit_percent", of=lambda pair: pair[0] * pair[1])
        return hits / sectors if hits is not None and sectors else None

    @property
    def stalls(self) -> list[tuple[str, float]]:
        """The largest reasons of stalls, each the mean of the kernels by their time."""
        total = self.total("ns")
        if not total:
            return []
        means: dict[str, float] = {}
        for one in self.kernels:
            for reason, warps in one.stalls.items():
                means[reason] = means.get(reason, 0.0) + warps * one.figures["ns"] / total
        return sorted(means.items(), key=lambda item: -item[1])[:LARGEST]


def expected_of_case(case: Case, device: Device) -> Expected:
    """What the planner expects of a case: the sum of its passes."""
    layer = Layer("", case.channels, case.plane, 1, ((case.fusion, 1),))
    wanted = Request(case.id, (layer,), case.batch, case.dtype, case.layout, device)
    plans, planned = [], 0
    for mode in case.passes:
        tensors = 2 if mode.startswith("forward") else 3
        plans.append(plan_text(expected_of(wanted, layer, mode, tensors)))
        planned += sum(chain.fused_bytes for chain in chains(wanted, mode, tensors))
    return Expected("; ".join(plans), planned, case.moved(floor_bytes))


def save(folder: Path, environment: Environment, records: Iterable[Record]) -> None:
    """Write counters.json, whole or not at all, with the sums beside what they are made of."""
    content = {
        "schema": SCHEMA,
        "environment": environment,
        "calls": [{**asdict(record), "sums": _sums(record)} for record in records],
    }
    write_whole(folder / NAME, json.dumps(content, indent=1) + "\n")


def _sums(record: Record) -> dict[str, Any]:
    return {
        "kernels": len(record.kernels),
        "ns": record.total("ns"),
        "dram_read": record.total("dram_read"),
        "dram_written": record.total("dram_written"),
        "l2_written": record.l2_written,
        "moved": record.moved,
        "of_plan": record.of_plan,
        "of_floor": record.of_floor,
        "l2_hit_percent": record.l2_hit_percent,
        "stalls": dict(record.stalls),
    }


def load(folder: Path) -> tuple[Environment, list[Record]]:
    """What `save` wrote; nothing where there is nothing.

    Raises:
        ValueError: the file is none of this version
    """
    path = folder / NAME
    if not path.exists():
        return {}, []
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("schema") != SCHEMA:
        raise ValueError(f"expected {path} to have the schema {SCHEMA}")
    return content["environment"], [_record(call) for call in content["calls"]]


def _record(call: dict[str, Any]) -> Record:
    kernels: Sequence[dict[str, Any]] = call["kernels"]
    return Record(
        call["case"],
        call["provider"],
        call["backend"],
        tuple(Kernel(**kernel) for kernel in kernels),
        Expected(**call["expected"]),
        call["reason"],
    )
