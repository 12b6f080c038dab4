"""Plan files: rows that replace the table's choice on one GPU. Pure Python.

A row says which fields are pinned, in the language of TRITONBN_PLAN, for calls of one regime. No
file is read unless somebody asks: by `use`, or by the environment variable TRITONBN_PLAN_FILE, read
once when the first plan is made.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tritonbn_kernels.layout import CHANNELS_FIRST, CHANNELS_LAST, ChannelView
from tritonbn_kernels.plan import (
    ACCESS_BYTES,
    clear_plan_caches,
    pins_from,
    power_of_two_at_least,
    row_pins,
)
from tritonbn_kernels.traffic import MODES

# to be raised when pins or regimes come to mean something else
SCHEMA = "tritonbn.plans/1"
# whether an access takes 16 bytes, several elements, or one: planes are read once by whole
# accesses, images and rows else, and tiles of single elements are smaller
ACCESSES = ("whole", "part", "single")
# what follows BatchNorm in the launch: a thread holds more for an activation, and the tiles of a
# two-read backward pass are half as large where a residual or a mask is read besides
FUSED = ("nothing", "activation", "residual")


@dataclass(frozen=True)
class Regime:
    """Calls that get the same row of a plan file.

    The coarsest classes that the table's thresholds allow: it compares the bytes of a channel with
    what a program, a group and the device hold (how many share a channel), and the channels with
    the programs that fill the device (how many channels share a tile), and its tiles change with
    each doubling of either. `(N, C)` and channels_last are one family: rows.

    mode: one of `traffic.MODES`. family: of the layout. access: one of ACCESSES. itemsize: bytes.
    fused: one of FUSED. channels, channel_bytes: powers of two, not below the number of channels
    and the bytes of one.
    """

    mode: str
    family: str
    access: str
    itemsize: int
    fused: str
    channels: int
    channel_bytes: int

    def __post_init__(self) -> None:
        for name, allowed in (
            ("mode", MODES),
            ("family", (CHANNELS_FIRST, CHANNELS_LAST)),
            ("access", ACCESSES),
            ("itemsize", (2, 4, 8)),
            ("fused", FUSED),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"expected {name} to be one of {', '.join(map(str, allowed))}, got {value!r}"
                )
        for name in ("channels", "channel_bytes"):
            value = getattr(self, name)
            # a bool is an int too
            if type(value) is not int or value < 1 or value & (value - 1):
                raise ValueError(f"expected {name} to be a power of two, got {value!r}")

    def __str__(self) -> str:
        behind = "" if self.fused == "nothing" else f" + {self.fused}"
        return (
            f"{self.mode}{behind}, {self.family}, {self.access} accesses, {self.itemsize} bytes, "
            f"up to {self.channels} channels of {self.channel_bytes} bytes"
        )


def fused_name(activation: str, beside: bool) -> str:
    """One of FUSED for an activation; beside: whether a residual or a mask is read."""
    if beside:
        return "residual"
    return "nothing" if activation == "identity" else "activation"


def regime_of(mode: str, views: tuple[ChannelView, ...], itemsize: int, fused: str) -> Regime:
    """The regime of a call.

    Args:
        mode: one of `traffic.MODES`.
        views: of the tensors read and written, which group their elements alike.
        itemsize: bytes per element.
        fused: one of FUSED.
    """
    view = views[0]
    vector = min(one.vector(ACCESS_BYTES // itemsize) for one in views)
    access = "whole" if vector * itemsize == ACCESS_BYTES else "part" if vector > 1 else "single"
    return Regime(
        mode,
        view.family,
        access,
        itemsize,
        fused,
        power_of_two_at_least(view.n_channels),
        power_of_two_at_least(view.count * itemsize),
    )


@dataclass(frozen=True)
class PlanFile:
    """What a plan file says.

    path: where it was read, "" if nowhere. gpu: name and SMs of the GPU that it is for, None for
    any. rows: plans by regime, as TRITONBN_PLAN has them. notes: of each regime, what its row rests
    on. origin: how the file was made.
    """

    path: str
    gpu: tuple[str, int] | None
    rows: Mapping[Regime, str]
    notes: Mapping[Regime, object] = field(default_factory=dict)
    origin: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        name, sms = self.gpu or ("any GPU", 0)
        return f"{self.path}: {len(self.rows)} rows for {name}" + (f" ({sms} SMs)" if sms else "")

    def check(self, gpu: tuple[str, int]) -> None:
        """That the file is for a GPU of this name and number of SMs.

        Raises:
            ValueError: it is for another.
        """
        if self.gpu not in (None, gpu):
            raise ValueError(
                f"expected plans for {gpu[0]} with {gpu[1]} SMs, got {self}; "
                "search there: tritonbn-bench search --write FILE"
            )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all.

        Raises:
            ValueError: it is for no one GPU.
        """
        if self.gpu is None:
            raise ValueError("expected the name and SMs of a GPU, got none")
        rows = [
            {"regime": asdict(regime), "plan": plan, "measured": self.notes.get(regime)}
            for regime, plan in self.rows.items()
        ]
        content = {
            "schema": SCHEMA,
            "gpu": {"name": self.gpu[0], "sm_count": self.gpu[1]},
            "origin": dict(self.origin),
            "rows": rows,
        }
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, target)


def read(path: str | os.PathLike[str]) -> PlanFile:
    """The plan file at `path`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no plan file of this schema, or a row of it is none.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        return _parsed(json.loads(text), str(path))
    except (ValueError, TypeError, KeyError) as error:
        missing = f"expected {error}, got none" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: {missing}") from error


def _parsed(content: Any, path: str) -> PlanFile:
    found = content.get("schema") if isinstance(content, dict) else None
    if found != SCHEMA:
        raise ValueError(f"expected a plan file of schema {SCHEMA}, got {found!r}")
    name, sms = content["gpu"]["name"], content["gpu"]["sm_count"]
    if not isinstance(name, str) or type(sms) is not int:
        raise ValueError(f"expected name and sm_count of a GPU, got {content['gpu']}")
    rows: dict[Regime, str] = {}
    notes: dict[Regime, object] = {}
    expected = {item.name for item in fields(Regime)}
    for number, row in enumerate(content["rows"], 1):
        try:
            if set(row["regime"]) != expected:
                raise ValueError(f"expected a regime of {sorted(expected)}, got {row['regime']}")
            regime, plan = Regime(**row["regime"]), row["plan"]
            if not isinstance(plan, str) or not pins_from(plan):
                raise ValueError(f"expected a plan such as 'one_read,block_c=64', got {plan!r}")
            if regime in rows:
                raise ValueError(f"expected one row for {regime}, got two")
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"row {number}: {error}") from error
        rows[regime], notes[regime] = plan, row.get("measured")
    return PlanFile(path, (name, sms), rows, notes, content.get("origin", {}))


# what `use` was given; None for what the environment names
_given: list[PlanFile | None] = [None]


def use(plans: PlanFile | None) -> None:
    """Plans made from now on follow these rows; None: those of the environment, if it names any."""
    _given[0] = plans
    clear_plan_caches()


@contextmanager
def rows_in_use(rows: Mapping[Regime, str]) -> Iterator[None]:
    """Plans made inside follow these rows and no others, on any GPU. Not for several threads."""
    before = _given[0]
    use(PlanFile("", None, rows))
    try:
        yield
    finally:
        use(before)


@functools.cache
def environment_file() -> PlanFile | None:
    """The file that TRITONBN_PLAN_FILE names, read once: a plan must not change amid a training.
    `tritonbn_kernels.clear_cache` lets it be read again.

    Raises:
        ValueError: it cannot be read, or as `read`.
    """
    path = os.environ.get("TRITONBN_PLAN_FILE", "")
    try:
        return read(path) if path else None
    except (OSError, ValueError) as error:
        raise ValueError(f"TRITONBN_PLAN_FILE: {error}") from error


def in_use() -> PlanFile | None:
    """The plan file that plans follow, if any; what `use` was given precedes the environment.

    Raises:
        ValueError: as `environment_file`.
    """
    return _given[0] or environment_file()


def planned_by_file(
    mode: str,
    views: tuple[ChannelView, ...],
    itemsize: int,
    fused: str,
    gpu: Callable[[], tuple[str, int]],
    strict: bool = True,
) -> AbstractContextManager[None]:
    """A context in which plans follow the row of the file in use for such a call, if there is one.

    Args:
        mode, views, itemsize, fused: as `regime_of`.
        gpu: name and SMs of the GPU that is planned for.
        strict: whether a file for another GPU is an error; it is not followed else.

    Raises:
        ValueError: as `environment_file` and `PlanFile.check`.
    """
    plans = in_use()
    if plans is None:
        return nullcontext()
    if strict:
        plans.check(gpu())
    elif plans.gpu not in (None, gpu()):
        return nullcontext()
    return row_pins(pins_from(plans.rows.get(regime_of(mode, views, itemsize, fused), "")))
