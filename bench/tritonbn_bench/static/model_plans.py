"""The plans of the BatchNorm layers of a user's model, compared with a file that the user keeps.

Modelled by `tritonbn_kernels.outlook`, not measured: a layer that a change of the model, of its
layout or of tritonbn sends to a plan that moves more bytes, or takes more launches, is seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonbn_kernels.outlook import DEVICES, Device
from tritonbn_kernels.plan import environment_pins

from ..fused_table import chains
from ..model_layers import LayerCall
from ..networks import Layer
from ..plan_table import MODELLED, Request, aligned, expected_of, plan_text

__all__ = ["PlanLine", "Verdict", "as_markdown", "as_text", "compare", "plans_of", "read", "write"]

SCHEMA = "tritonbn.plans/1"
# pass and number of tensors read and written
PASSES = (("forward", 2), ("backward", 3))
# less of each is better
NUMBERS = ("launches", "asked_bytes", "moved_bytes")
HEADS = ("layer", "input", "pass", "plan", "launches", "MB", "over floor")


@dataclass(frozen=True)
class PlanLine:
    """One pass through one layer; bytes are modelled, those of what is fused included.

    asked_bytes: that programs read and write; moved_bytes: of them, what no cache serves. Where
    there is no plan, `plan` says why and the figures are 0.
    """

    layer: str
    call: str
    mode: str
    plan: str
    launches: int
    asked_bytes: int
    moved_bytes: int
    floor_bytes: int

    @property
    def key(self) -> str:
        """Identifies the line in a file."""
        return f"{self.layer} | {self.call} | {self.mode}"

    @property
    def figures(self) -> dict[str, Any]:
        """What a file keeps."""
        numbers = {name: getattr(self, name) for name in NUMBERS}
        return {"plan": self.plan, **numbers}


@dataclass(frozen=True)
class Verdict:
    """Lines on plans that became worse, and on what else changed; absent: nothing to compare."""

    worse: tuple[str, ...]
    changed: tuple[str, ...]
    absent: bool


def plans_of(calls: Sequence[LayerCall], device: Device) -> list[PlanLine]:
    """Forward and backward of every call of a layer, in their order; a layer that is called several
    times has a number from the second on."""
    lines = []
    seen: dict[str, int] = {}
    for call in calls:
        seen[call.path] = seen.get(call.path, 0) + 1
        again = f" #{seen[call.path]}" if seen[call.path] > 1 else ""
        lines += list(_lines(call, f"{call.path}{again}", device))
    return lines


def _lines(call: LayerCall, layer: str, device: Device) -> Iterator[PlanLine]:
    size = "x".join(map(str, call.shape))
    behind = "" if call.fusion == "none" else f" {call.fusion}"
    words = f"{size} {call.layout} {call.dtype}{behind}"
    for name, tensors in PASSES:
        mode = f"{name}_{'train' if call.training else 'eval'}"
        shown = mode.replace("_", " ")
        if call.unmeasured:
            yield PlanLine(layer, words, shown, f"none: {call.unmeasured}", 0, 0, 0, 0)
            continue
        batch, channels, *plane = call.shape
        one = Layer(layer, channels, tuple(plane), 1, ((call.fusion, 1),))
        wanted = Request(layer, (one,), batch, call.dtype, call.layout, device)
        expected = expected_of(wanted, one, mode, tensors)
        (chain,) = chains(wanted, mode, tensors)
        yield PlanLine(
            layer,
            words,
            shown,
            f"{expected.kind}: {plan_text(expected)}",
            expected.launches,
            chain.fused_bytes - expected.memory_bytes + expected.requested_bytes,
            chain.fused_bytes,
            chain.floor_bytes,
        )


def read(path: Path, device: str) -> dict[str, dict[str, Any]] | None:
    """The plans in `path` for a device of this name, None where there are none.

    Raises:
        ValueError: the file is none of ours
    """
    if not path.exists():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        schema, devices = kept["schema"], kept["devices"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"expected plans in {path}, got something else: {error!r}") from error
    if schema != SCHEMA:
        raise ValueError(f"expected {path} of schema {SCHEMA}, got {schema}")
    found: dict[str, dict[str, Any]] | None = devices.get(device)
    return found


def write(path: Path, device: str, lines: Iterable[PlanLine]) -> None:
    """Keep `lines` for a device; those for others stay.

    Raises:
        ValueError: the file that is there is none of ours
    """
    devices = {each.name: read(path, each.name) for each in DEVICES.values()}
    devices[device] = {line.key: line.figures for line in lines}
    kept = {name: found for name, found in sorted(devices.items()) if found is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"schema": SCHEMA, "devices": kept}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def compare(before: dict[str, dict[str, Any]] | None, lines: Sequence[PlanLine]) -> Verdict:
    """What became of the plans. Worse: more launches or more bytes for the same input of the same
    layer; what was not there before is no worse."""
    if before is None:
        return Verdict((), (), absent=True)
    worse: list[str] = []
    changed: list[str] = []
    for line in lines:
        old, new = before.get(line.key), line.figures
        if old is None:
            changed.append(f"{_words(line.key)}: new, {line.plan}")
        elif said := [
            f"{name.replace('_', ' ')} {old.get(name, 0)} -> {new[name]}"
            for name in new
            if old.get(name, 0) != new[name]
        ]:
            grew = any(new[name] > old.get(name, 0) for name in NUMBERS)
            (worse if grew else changed).append(f"{_words(line.key)}: {', '.join(said)}")
    gone = set(before) - {line.key for line in lines}
    changed += [f"{_words(key)}: gone" for key in before if key in gone]
    return Verdict(tuple(worse), tuple(changed), absent=False)


def _words(key: str) -> str:
    layer, call, mode = key.split(" | ")
    return f"{mode} of {layer}, {call}"


def _head(model: str, device: Device, lines: Sequence[PlanLine]) -> str:
    layers = len({line.layer for line in lines})
    pins = ", ".join(f"{field}={value}" for field, value in environment_pins().items())
    pinned = f", TRITONBN_PLAN pins {pins}" if pins else ""
    return f"{model} on {device.name}: {layers} BatchNorm layers; {MODELLED}{pinned}"


def _sentences(verdict: Verdict, written: str) -> list[str]:
    labels = ("accepted", "accepted") if written else ("WORSE", "changed")
    said = [f"{labels[0]} {line}" for line in verdict.worse]
    said += [f"{labels[1]} {line}" for line in verdict.changed]
    if written:
        return [*said, f"check --static: plans written to {written}"]
    if verdict.absent:
        return ["check --static: NO BASELINE, nothing compared; keep these plans with --update"]
    if verdict.worse:
        return [*said, "check --static: FAILED; if it is meant, accept it with --update"]
    return [*said, "check --static: passed"]


def _rows(lines: Sequence[PlanLine]) -> list[tuple[str, ...]]:
    return [
        (
            line.layer,
            line.call,
            line.mode,
            line.plan,
            str(line.launches),
            f"{line.moved_bytes / 1e6:.2f}",
            f"x{line.moved_bytes / line.floor_bytes:.2f}" if line.floor_bytes else "-",
        )
        for line in lines
    ]


def as_text(
    model: str, device: Device, lines: Sequence[PlanLine], verdict: Verdict, written: str
) -> str:
    """A table, what is to be said and the verdict; `written`: the file, if it was renewed."""
    rows = [HEADS, *_rows(lines)]
    table = aligned(rows, {*HEADS[:4]})
    return "\n".join([_head(model, device, lines), *table, *_sentences(verdict, written)])


def as_markdown(
    model: str, device: Device, lines: Sequence[PlanLine], verdict: Verdict, written: str
) -> str:
    """The same as a page."""
    *said, last = _sentences(verdict, written)
    rows = [HEADS, ("---",) * len(HEADS), *_rows(lines)]
    table = [f"| {' | '.join(row)} |" for row in rows]
    bullets = [f"- {line}" for line in said]
    parts = [f"## {last}", "", _head(model, device, lines), "", *bullets, "", *table, ""]
    return "\n".join(parts)
