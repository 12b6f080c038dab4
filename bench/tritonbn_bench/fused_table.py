"""BatchNorm layers with what follows them: bytes and times of operators and of one kernel.

Modelled, not measured. Bytes are those of `tritonbn_kernels.traffic`. Expected times rest on
`tritonbn_kernels.outlook`: what an addition or an activation moves as an operator of its own takes
a launch and streams at the share of a plain kernel; what a fused call moves more than BatchNorm
alone streams at the share of a one-read plan. No cache helps between operators.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from tritonbn_kernels.outlook import LAUNCH_SECONDS, ONE_READ_SHARE, TWO_READ_SHARE, Outlook
from tritonbn_kernels.traffic import floor_bytes, two_read_bytes, unfused_bytes

from .cases import DTYPES
from .fusions import FUSIONS, Fusion
from .networks import Layer
from .plan_table import MODELLED, PASSES, Request, aligned, expected_of, heading, preamble

__all__ = ["WAYS", "Chain", "as_json", "as_text", "chains", "total_seconds"]

# ways to compute BatchNorm and what follows, by their bytes
WAYS: dict[str, Callable[..., int]] = {
    "two reads, operators": unfused_bytes,
    "one read, operators": partial(unfused_bytes, one_read=True),
    "two reads, fused": two_read_bytes,
    "one read, fused": floor_bytes,
}
# what is printed of a shape without a network
_ANY = (("relu", 1), ("add_relu", 1), ("silu", 1))
LEGEND = (
    "torch: a BatchNorm that reads twice, then an operator each for addition and activation.",
    "unfused: tritonbn's plan, then the same operators. fused: tritonbn's plan with both in it.",
    "floor: a copy of the least bytes of the fused call. gain: torch / fused.",
)


@dataclass(frozen=True)
class Chain:
    """One pass through one layer and what follows it. Bytes and seconds of one layer.

    Attributes:
        layer: shape and names
        fusion: what follows
        count: layers of this shape that it follows
        torch_bytes, unfused_bytes, fused_bytes, floor_bytes: moved through memory
        torch_seconds, unfused_seconds, fused_seconds, floor_seconds: expected
    """

    layer: Layer
    fusion: Fusion
    count: int
    torch_bytes: int
    unfused_bytes: int
    fused_bytes: int
    floor_bytes: int
    torch_seconds: float
    unfused_seconds: float
    fused_seconds: float
    floor_seconds: float


def chains(wanted: Request, mode: str, tensors: int) -> list[Chain]:
    """Every layer with everything that follows it.

    Args:
        wanted: layers, batch, dtype, layout and device
        mode, tensors: as in PASSES
    """
    return [
        _chain(wanted, layer, FUSIONS[name], count, mode, tensors)
        for layer in wanted.layers
        for name, count in layer.followed or _ANY
    ]


def _chain(
    wanted: Request, layer: Layer, fusion: Fusion, count: int, mode: str, tensors: int
) -> Chain:
    expected = expected_of(wanted, layer, mode, tensors)
    copy_speed = wanted.device.copy_speed
    sizes = _sizes(wanted, layer)
    formula = fusion.formula
    operators = unfused_bytes(mode, *sizes, **formula) - expected.two_read_bytes
    started = int(fusion.activation != "identity")
    if mode.startswith("forward"):
        started += fusion.residual
    behind = operators / (TWO_READ_SHARE * copy_speed) + started * LAUNCH_SECONDS
    more = _more_bytes(expected, mode, tensors, sizes, formula)
    floor = floor_bytes(mode, *sizes, **formula)
    return Chain(
        layer=layer,
        fusion=fusion,
        count=count,
        torch_bytes=expected.two_read_bytes + operators,
        unfused_bytes=expected.memory_bytes + operators,
        fused_bytes=expected.memory_bytes + more,
        floor_bytes=floor,
        torch_seconds=expected.two_read_seconds + behind,
        unfused_seconds=expected.seconds + behind,
        fused_seconds=expected.seconds + more / (ONE_READ_SHARE * copy_speed * expected.filled),
        floor_seconds=floor / copy_speed,
    )


def _more_bytes(
    expected: Outlook, mode: str, tensors: int, sizes: tuple[int, int, int], formula: dict[str, Any]
) -> int:
    """What a fused call moves more than BatchNorm alone by the same plan: of residual and mask too
    the plan reads again what it reads again of x."""
    once = floor_bytes(mode, *sizes, **formula) - expected.floor_bytes
    twice = two_read_bytes(mode, *sizes, **formula) - expected.two_read_bytes
    missed = expected.memory_reads / (tensors - 1) - 1
    return once + int(missed * (twice - once))


def _sizes(wanted: Request, layer: Layer) -> tuple[int, int, int]:
    """Elements, channels and bytes of an element, as the formulas take them."""
    numel = wanted.batch * layer.channels * prod(layer.plane)
    return numel, layer.channels, DTYPES[wanted.dtype]


def total_seconds(wanted: Request, way: str, mode: str) -> float:
    """Seconds of all layers and what follows them if every byte moved at the speed of a copy.

    Args:
        wanted: layers, batch, dtype and device
        way: key of WAYS
        mode: one of `traffic.MODES`
    """
    moved = sum(
        count * WAYS[way](mode, *_sizes(wanted, layer), **FUSIONS[name].formula)
        for layer in wanted.layers
        for name, count in layer.followed or _ANY
    )
    return moved / wanted.device.copy_speed


_HEAD = (
    *("shape", "layers", "followed by", "torch, MB", "unfused, MB", "fused, MB"),
    *("torch, us", "unfused, us", "fused, us", "floor, us", "gain"),
)
_LEFT = {"shape", "followed by", "way"}
_BYTES = ("torch_bytes", "unfused_bytes", "fused_bytes")
_SECONDS = ("torch_seconds", "unfused_seconds", "fused_seconds", "floor_seconds")


def as_text(wanted: Request, remark: str = "") -> str:
    """A table of each pass, and totals; arguments as `plan_table.as_text`."""
    lines = heading(wanted, remark)
    for name, (mode, tensors) in PASSES.items():
        found = chains(wanted, mode, tensors)
        lines += ["", f"{name} with what follows, {MODELLED}", *_table(wanted, found)]
    if len(wanted.layers) > 1:
        lines += ["", f"share of the bytes of BatchNorm by what follows: {_shares(wanted)}"]
        lines += ["", f"all layers, ms, {MODELLED}", *_totals(wanted)]
    lines += ["", *LEGEND]
    return "\n".join(lines)


def _table(wanted: Request, found: Sequence[Chain]) -> list[str]:
    rows: list[tuple[str, ...]] = [_HEAD]
    for chain in found:
        shape = "x".join(map(str, (wanted.batch, chain.layer.channels, *chain.layer.plane)))
        rows.append((shape, str(chain.count), chain.fusion.words, *_figures([chain], 1)))
    if len(wanted.layers) > 1:
        layers = sum(chain.count for chain in found)
        rows.append(("all layers", str(layers), "", *_figures(found, 0)))
    return aligned(rows, _LEFT)


def _figures(found: Sequence[Chain], digits: int) -> list[str]:
    """Cells of the columns of bytes and times; of one layer, or of all with their counts."""
    alone = len(found) == 1
    sums = {
        name: sum(getattr(chain, name) * (1 if alone else chain.count) for chain in found)
        for name in (*_BYTES, *_SECONDS)
    }
    return [
        *(f"{sums[name] / 1e6:.{digits}f}" for name in _BYTES),
        *(f"{1e6 * sums[name]:.{digits}f}" for name in _SECONDS),
        f"x{sums['torch_seconds'] / sums['fused_seconds']:.2f}",
    ]


def _shares(wanted: Request) -> str:
    """Of the elements of all BatchNorm layers."""
    elements: dict[str, int] = {}
    for layer in wanted.layers:
        for name, count in layer.followed:
            size = count * layer.channels * prod(layer.plane)
            elements[name] = elements.get(name, 0) + size
    whole = sum(elements.values())
    return ", ".join(f"{FUSIONS[name].words} {n / whole:.0%}" for name, n in elements.items())


def _totals(wanted: Request) -> list[str]:
    """Forward, backward and both: expected, then bytes at the speed of a copy."""
    rows: list[tuple[str, ...]] = [("way", "forward", "backward", "sum")]
    for way, pair in _total_pairs(wanted).items():
        rows.append((way, *(f"{1e3 * value:.2f}" for value in (*pair, sum(pair)))))
    return aligned(rows, _LEFT)


def _total_pairs(wanted: Request) -> dict[str, tuple[float, float]]:
    """Seconds forward and backward by what they are of."""
    found = {name: chains(wanted, *of) for name, of in PASSES.items()}

    def expected(name: str) -> tuple[float, float]:
        forward, backward = (
            sum(chain.count * float(getattr(chain, name)) for chain in one)
            for one in found.values()
        )
        return forward, backward

    pairs = {
        "torch, expected": expected("torch_seconds"),
        "unfused, expected": expected("unfused_seconds"),
        "fused, expected": expected("fused_seconds"),
    }
    for way in WAYS:
        forward, backward = (total_seconds(wanted, way, mode) for mode, _ in PASSES.values())
        pairs[f"{way}, at the speed of a copy"] = forward, backward
    return pairs


def as_json(wanted: Request, remark: str = "") -> str:
    """The same figures for a program: seconds and bytes; arguments as `plan_table.as_json`."""
    record = preamble(wanted, remark)
    for name, (mode, tensors) in PASSES.items():
        found = chains(wanted, mode, tensors)
        record[name] = {
            "layers": [_record(chain) for chain in found],
            "total": {figure: _total(found, figure) for figure in (*_BYTES, *_SECONDS)},
            "at_copy_speed": {way: total_seconds(wanted, way, mode) for way in WAYS},
        }
    return json.dumps(record, indent=1)


def _total(found: Iterable[Chain], figure: str) -> float:
    return sum(chain.count * float(getattr(chain, figure)) for chain in found)


def _record(chain: Chain) -> dict[str, Any]:
    return {
        "names": chain.layer.names,
        "channels": chain.layer.channels,
        "plane": chain.layer.plane,
        "count": chain.count,
        "followed_by": chain.fusion.name,
        **{name: getattr(chain, name) for name in (*_BYTES, "floor_bytes", *_SECONDS)},
    }
