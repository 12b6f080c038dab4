"""The plan of every BatchNorm layer of a network, or of one shape, and what it is expected to do.

Modelled by `tritonbn_kernels.outlook`, not measured; no GPU is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from tritonbn_kernels.layout import ChannelView, view_of
from tritonbn_kernels.outlook import DEVICES, H200, Device, Outlook, Plan, outlook, scaled_to
from tritonbn_kernels.plan import LaunchPlan, environment_pins
from tritonbn_kernels.plan_file import PlanFile, in_use
from tritonbn_kernels.residency import ResidentPlan
from tritonbn_kernels.row_plans import RowsPlan

from .cases import DTYPES
from .networks import NETWORKS, Layer

__all__ = [
    "LAYOUTS",
    "MODELLED",
    "PASSES",
    "Request",
    "aligned",
    "as_json",
    "as_text",
    "device_of",
    "expected_of",
    "heading",
    "preamble",
    "request",
    "view_in",
]

# order of the axes in memory, by number of axes; the first is what torch makes
LAYOUTS = {
    2: ("nc",),
    3: ("ncl", "nlc"),
    4: ("nchw", "nhwc"),
    5: ("ncdhw", "ndhwc"),
}
# mode and number of tensors read and written
PASSES = {"forward": ("forward_train", 2), "backward": ("backward_train", 3)}
MODELLED = "modelled, not measured"
LEGEND = (
    "in flight: groups of programs at work together. held: stays on the chip between its uses.",
    "asked: tensors that programs read and write. memory, MB: of it, what no L2 cache serves.",
    "two reads: one launch that reads twice, without help of a cache. floor: a copy of the least.",
    "filled: share of the memory's speed that so few programs can draw.",
)


@dataclass(frozen=True)
class Request:
    """What is to be planned.

    Attributes:
        title: network, or shape
        layers: shapes without the batch
        batch: N
        dtype: key of DTYPES
        layout: one of LAYOUTS
        device: where
    """

    title: str
    layers: tuple[Layer, ...]
    batch: int
    dtype: str
    layout: str
    device: Device


def request(
    what: Sequence[str], batch: int | None, dtype: str, layout: str | None, device: Device
) -> Request:
    """What a command line asks for.

    Args:
        what: key of a network, or sizes `N C [*S]`
        batch: N of a network, 32 if None; belongs to the sizes otherwise
        dtype: key of DTYPES
        layout: one of LAYOUTS for so many axes, what torch makes if None
        device: where

    Raises:
        ValueError: unknown network, wrong number of sizes, sizes below 1, or a layout of other axes
    """
    if not _is_size(what[0]):
        network = NETWORKS.get(what[0])
        if network is None or len(what) > 1:
            raise ValueError(
                f"expected a network of {', '.join(NETWORKS)}, or sizes N C [D] [H W], "
                f"got {' '.join(what)}"
            )
        batch = 32 if batch is None else batch
        axes = 2 + len(network.input_size)
        size = " x ".join(map(str, network.input_size))
        title = f"{network.name} ({network.origin}){f', input {size}' if size else ''}"
        layers = network.layers
    else:
        if not all(map(_is_size, what)) or len(what) not in LAYOUTS:
            raise ValueError(f"expected 2 to 5 sizes N C [D] [H W], got {' '.join(what)}")
        if batch is not None:
            raise ValueError(f"expected --batch with a network only, got sizes {' '.join(what)}")
        batch, channels, *plane = map(int, what)
        if min(channels, *plane, 1) < 1:
            raise ValueError(f"expected positive sizes, got {' '.join(what)}")
        axes = len(what)
        title = "one layer"
        layers = (Layer("", channels, tuple(plane), 1),)
    if batch < 1:
        raise ValueError(f"expected a positive batch size, got {batch}")
    allowed = LAYOUTS[axes]
    if layout is not None and layout not in allowed:
        raise ValueError(f"expected a layout of {axes} axes, {' or '.join(allowed)}, got {layout}")
    return Request(title, layers, batch, dtype, layout or allowed[0], device)


def _is_size(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def device_of(name: str | None) -> tuple[Device, str]:
    """A device by its key, and a remark on the choice.

    Args:
        name: key of `outlook.DEVICES`, "local", or None for the GPU of this machine if it has one

    Raises:
        ValueError: "local" without a GPU
    """
    if name in DEVICES:
        return DEVICES[name], ""
    try:
        return _local_device()
    except LookupError as reason:
        if name is None:
            return H200, f"{reason}: planned for an H200 (see --device)"
        raise ValueError(
            f"expected a GPU for --device local, got none ({reason}); "
            f"choose one of {', '.join(DEVICES)}"
        ) from reason


def _local_device() -> tuple[Device, str]:
    """The GPU of this machine as its driver describes it, with the speeds of the row that bears its
    name.

    Raises:
        LookupError: no GPU is visible, or kernels are interpreted
    """
    import torch

    from tritonbn_kernels.launch import device_profile, interpreted
    from tritonbn_kernels.normalize import normalize_kernel

    if not torch.cuda.is_available():
        raise LookupError("no GPU is visible")
    if interpreted(normalize_kernel):
        raise LookupError("TRITON_INTERPRET=1 is set")
    profile = device_profile(normalize_kernel, torch.cuda.current_device())
    name = torch.cuda.get_device_name()
    known = [row for row in DEVICES.values() if row.name in name]
    whole = known[0] if known else H200
    if profile.sm_count == whole.profile.sm_count and known:
        return replace(whole, name=name, profile=profile), ""
    return scaled_to(profile, whole, name), (
        f"speeds of {name}: those of an {whole.name} in proportion to its SMs"
    )


def view_in(shape: Sequence[int], layout: str) -> ChannelView:
    """The view of a dense tensor.

    Args:
        shape: `(N, C, *S)`, whatever the layout
        layout: one of LAYOUTS
    """
    n, channels, *plane = shape
    space = prod(plane)
    # (N, C, H*W): what follows the channel is dense
    last = layout.endswith("c")
    strides = (channels * space, 1, channels) if last else (channels * space, space, 1)
    view = view_of((n, channels, space), strides)
    assert view is not None, (shape, layout)
    return view


def expected_of(wanted: Request, layer: Layer, mode: str, tensors: int) -> Outlook:
    """What is expected of one layer.

    Args:
        wanted: batch, dtype, layout and device are read
        layer: shape without the batch
        mode, tensors: as in PASSES
    """
    view = view_in((wanted.batch, layer.channels, *layer.plane), wanted.layout)
    return outlook(mode, (view,) * tensors, DTYPES[wanted.dtype], wanted.device)


def _outlooks(wanted: Request, mode: str, tensors: int) -> list[tuple[Layer, Outlook]]:
    return [(layer, expected_of(wanted, layer, mode, tensors)) for layer in wanted.layers]


def _total(pairs: Iterable[tuple[Layer, Outlook]], name: str) -> float:
    return sum(layer.count * float(getattr(expected, name)) for layer, expected in pairs)


def heading(wanted: Request, remark: str) -> list[str]:
    """What a plan is of, and what it rests on: the first lines of a text."""
    device = wanted.device
    sms = device.profile.sm_count
    lines = [
        f"{wanted.title}, N = {wanted.batch}, {wanted.dtype}, {wanted.layout}",
        f"{device.name}: {sms} SMs, copy {device.copy_speed / 1e12:.2f} TB/s, "
        f"L2 {device.profile.l2_bytes / 1e6:.0f} MB; {MODELLED}",
    ]
    if remark:
        lines.append(remark)
    if pins := environment_pins():
        fields = ", ".join(f"{field}={value}" for field, value in pins.items())
        lines.append(f"TRITONBN_PLAN pins {fields}")
    if plans := in_use():
        lines.append(f"plan file {plans}{_unused(plans, device)}")
    return lines


def _unused(plans: PlanFile, device: Device) -> str:
    """Why plans for a device do not follow a plan file; empty where they do."""
    if environment_pins():
        return ", not followed: TRITONBN_PLAN precedes it"
    if plans.gpu not in (None, (device.name, device.profile.sm_count)):
        return f", not followed for {device.name}"
    return ""


def as_text(wanted: Request, remark: str = "") -> str:
    """Two tables, forward and backward, with what they rest on.

    Args:
        wanted: what is to be planned
        remark: on the choice of the device
    """
    lines = heading(wanted, remark)
    for name, (mode, tensors) in PASSES.items():
        pairs = _outlooks(wanted, mode, tensors)
        lines += ["", f"{name}, {MODELLED}", *_table(wanted, pairs)]
    lines += ["", *LEGEND]
    return "\n".join(lines)


_HEAD = (
    *("shape", "layers", "plan", "groups", "in flight", "held", "asked", "memory", "MB"),
    *("us", "two reads, us", "floor, us", "gain"),
)
_LEFT = {"shape", "plan"}


def _table(wanted: Request, pairs: Sequence[tuple[Layer, Outlook]]) -> list[str]:
    """Aligned lines: one for each shape, times of one layer, then the total of all layers."""
    rows: list[tuple[str, ...]] = [_HEAD]
    for layer, expected in pairs:
        shape = "x".join(map(str, (wanted.batch, layer.channels, *layer.plane)))
        numbers = (expected.seconds, expected.two_read_seconds, expected.floor_seconds)
        rows.append(
            (
                shape,
                str(layer.count),
                plan_text(expected),
                str(expected.groups),
                f"{expected.in_flight:.1f}",
                f"{expected.held_share:.0%}",
                f"{expected.reads:.3g}R+1W",
                f"{expected.memory_reads:.3g}R+1W",
                f"{expected.memory_bytes / 1e6:.1f}",
                *(f"{1e6 * seconds:.1f}" for seconds in numbers),
                f"x{expected.two_read_seconds / expected.seconds:.2f}",
            )
        )
    if len(pairs) > 1:
        sums = [_total(pairs, name) for name in ("seconds", "two_read_seconds", "floor_seconds")]
        rows.append(
            (
                "all layers",
                str(sum(layer.count for layer, _ in pairs)),
                *[""] * 6,
                f"{_total(pairs, 'memory_bytes') / 1e6:.0f}",
                *(f"{1e6 * seconds:.0f}" for seconds in sums),
                f"x{sums[1] / sums[0]:.2f}",
            )
        )
    return aligned(rows, _LEFT)


def aligned(rows: Sequence[Sequence[str]], left: set[str]) -> list[str]:
    """Lines of cells in columns; `rows[0]` are the heads, those in `left` of words."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if name in left else cell.rjust(width)
            for name, cell, width in zip(rows[0], row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def plan_text(expected: Outlook) -> str:
    """Kernels, tile, pieces and members of a plan."""
    plan = expected.plan
    parts = [f"{expected.family} {_tile(plan)}"]
    if not isinstance(plan, LaunchPlan):
        parts.append(f"{plan.pieces} pieces")
        if isinstance(plan, RowsPlan) and plan.stream:
            parts.append(f"streams {plan.stream}")
    parts.append(f"{expected.members} members" if expected.members > 1 else "alone")
    if expected.launches > 1:
        parts.append(f"{expected.launches} launches")
    if expected.filled < 1:
        parts.append(f"{expected.filled:.0%} filled")
    return ", ".join(parts)


def _tile(plan: Plan) -> str:
    """Channels x vectors x elements of a vector; rows x words of a tile of rows."""
    if isinstance(plan, LaunchPlan | ResidentPlan):
        return f"{plan.block_c}x{plan.block_v}x{plan.vector}"
    return f"{plan.block_channels}ch {plan.block_n}x{plan.block_w}w"


def preamble(wanted: Request, remark: str) -> dict[str, Any]:
    """`heading` for a program."""
    device = wanted.device
    return {
        "note": MODELLED,
        "remark": remark,
        "title": wanted.title,
        "batch": wanted.batch,
        "dtype": wanted.dtype,
        "layout": wanted.layout,
        "device": {
            "name": device.name,
            "sm_count": device.profile.sm_count,
            "copy_speed": device.copy_speed,
            "l2_speed": device.l2_speed,
            "l2_bytes": device.profile.l2_bytes,
        },
        "pins": environment_pins(),
        "plan_file": str(plans) if (plans := in_use()) else None,
    }


def as_json(wanted: Request, remark: str = "") -> str:
    """The same figures for a program: seconds and bytes.

    Args:
        wanted: what is to be planned
        remark: on the choice of the device
    """
    record = preamble(wanted, remark)
    for name, (mode, tensors) in PASSES.items():
        pairs = _outlooks(wanted, mode, tensors)
        sums = ("requested_bytes", "memory_bytes", "floor_bytes", "two_read_bytes", *_SECONDS)
        record[name] = {
            "layers": [_layer_record(layer, expected) for layer, expected in pairs],
            "total": {name: _total(pairs, name) for name in sums},
        }
    return json.dumps(record, indent=1)


_SECONDS = ("seconds", "two_read_seconds", "floor_seconds")


def _layer_record(layer: Layer, expected: Outlook) -> dict[str, Any]:
    record = {
        "names": layer.names,
        "channels": layer.channels,
        "plane": layer.plane,
        "count": layer.count,
        **{name: value for name, value in vars(expected).items() if name != "plans"},
        "held_share": expected.held_share,
        "launches": expected.launches,
        "programs": expected.programs,
    }
    record["plans"] = [vars(plan) for plan in expected.plans]
    return record
