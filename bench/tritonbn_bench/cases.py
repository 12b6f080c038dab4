"""What is measured: declared shapes with their origin. Pure Python: no torch, no device.

A case is one BatchNorm call with what follows it: mode, dtype, layout, shape and fusion. The suites
declared here: "sweep", two lines through the batch x channels plane, one of them with activation
and residual too and in every mode, a grid over the plane, and shapes without a plane (fully
connected layers, point clouds, real activations); "resnet50", its BatchNorm layers, alone and with
what follows them there; "networks", the layers of every network that the planner knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .fusions import NONE, Fusion, fusion_of
from .networks import NETWORKS, RESNET50, Layer

__all__ = [
    "DTYPES",
    "LAYOUTS",
    "MODES",
    "RESNET50",
    "RESNET50_BATCH",
    "Case",
    "Layer",
    "fused_sweep_cases",
    "grid_cases",
    "network_cases",
    "resnet50_cases",
    "resnet50_fused_cases",
    "suite",
    "sweep_cases",
    "vector_cases",
]

# both_train is a forward and its backward pass in one call, as a training step has them
MODES = ("forward_train", "backward_train", "forward_eval", "backward_eval", "both_train")
DTYPES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp64": 8}
LAYOUTS = ("nc", "ncl", "nlc", "nchw", "nhwc", "ncdhw", "ndhwc")

TRAINING_MODES = ("forward_train", "backward_train")
SWEEP_DTYPES = ("fp32", "fp16", "bf16")
SWEEP_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SWEEP_CHANNELS = (3, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
# both lines cross at the shape of ResNet-50's third stage
SWEEP_BATCH, SWEEP_CHANNEL, SWEEP_PLANE = 32, 256, (28, 28)
RESNET50_BATCH = 64
LINE, DIGITS = "line of batch sizes", "digits through the first convolution of SimpleCNN"
# a grid over the plane for pictures: far ends, powers of four, odd counts, and the batch size of
# the other line, which would leave holes
GRID_BATCHES = (1, 4, 16, SWEEP_BATCH, 64, 256, 1024)
GRID_CHANNELS = (3, 17, 64, 250, 256, 1024, 4096)
GRID_DTYPES = ("fp32", "bf16")
# of one activation: beyond it a case says no more than the one before it, and takes longer
GRID_BYTES = 512 * 1024 * 1024
NETWORK_BATCH = 32
# of the fused line: the two that networks have most, and one activation without a kink
SWEEP_FUSIONS = ("relu", "add_relu", "silu")

# (batch, channels, origin) of inputs without a plane
VECTORS = (
    (256, 128, "the head of SimpleCNN"),
    (4096, 1024, "a wide perceptron"),
    (65536, 64, "points of a point cloud"),
)
# (batch, channels, points, origin) of point clouds
POINTS = tuple(
    (32, channels, 1024, "PointNet (Qi et al. 2017, figure 2): shared perceptrons on 1024 points")
    for channels in (64, 128, 1024)
)


@dataclass(frozen=True)
class Case:
    """One call to be measured: BatchNorm, and what follows it.

    Attributes:
        mode: one of MODES
        dtype: key of DTYPES, the dtype of the activations; parameters and statistics are fp32
            (fp64 for fp64 activations)
        layout: one of LAYOUTS, the order of the axes in memory
        batch: N
        channels: C
        plane: sizes of the axes after the channel, () for (N, C)
        suite: the declared set to which the case belongs
        origin: where the shape comes from
        count: how many layers of the origin have it
        data: "normal" (random, mean away from zero) or "digits" (real activations)
        fusion: key of `fusions.FUSIONS`, what follows BatchNorm in the call
    """

    mode: str
    dtype: str
    layout: str
    batch: int
    channels: int
    plane: tuple[int, ...]
    suite: str
    origin: str
    count: int = 1
    data: str = "normal"
    fusion: str = NONE

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("mode", self.mode, MODES),
            ("dtype", self.dtype, tuple(DTYPES)),
            ("layout", self.layout, LAYOUTS),
        ):
            if value not in allowed:
                raise ValueError(f"expected {name} to be one of {', '.join(allowed)}, got {value}")
        fusion_of(self.fusion)
        if len(self.layout) != len(self.plane) + 2:
            raise ValueError(f"expected {len(self.layout) - 2} axes after C, got {self.plane}")

    @property
    def fused(self) -> Fusion:
        """What follows BatchNorm."""
        return fusion_of(self.fusion)

    @property
    def columns(self) -> dict[str, Any]:
        """What a row of results says of its case besides the id."""
        return {
            "mode": self.mode,
            "dtype": self.dtype,
            "layout": self.layout,
            "batch": self.batch,
            "channels": self.channels,
            "space": self.space,
            "data": self.data,
            "origin": self.origin,
            "count": self.count,
            "fusion": self.fusion,
        }

    @property
    def training(self) -> bool:
        """Whether the statistics are those of the batch."""
        return self.mode.endswith("train")

    @property
    def passes(self) -> tuple[str, ...]:
        """The modes of which the call is made: one, or a forward and a backward pass."""
        both = self.mode == "both_train"
        return ("forward_train", "backward_train") if both else (self.mode,)

    def moved(self, formula: Callable[..., int]) -> int:
        """Bytes by a formula of `tritonbn_kernels.traffic`, summed over the passes."""
        sizes = (self.numel, self.channels, self.itemsize)
        return sum(formula(mode, *sizes, **self.fused.formula) for mode in self.passes)

    @property
    def space(self) -> int:
        """Values per sample and channel."""
        return math.prod(self.plane)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes in index order `(N, C, *S)`, whatever the layout."""
        return (self.batch, self.channels, *self.plane)

    @property
    def numel(self) -> int:
        """Elements of the activation."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes per element of the activation."""
        return DTYPES[self.dtype]

    @property
    def id(self) -> str:
        """Name that results, baselines and pictures share."""
        size = f"N{self.batch}C{self.channels}S{self.space}"
        behind = "" if self.fusion == NONE else f"/{self.fusion}"
        return f"{self.mode}/{self.dtype}/{self.layout}/{size}{behind}"


def sweep_cases(
    batches: Sequence[int] = SWEEP_BATCHES,
    channels: Sequence[int] = SWEEP_CHANNELS,
    dtypes: Sequence[str] = SWEEP_DTYPES,
    layouts: Sequence[str] = ("nchw", "nhwc"),
) -> tuple[Case, ...]:
    """Cases along a line of batch sizes and a line of channel counts; the crossing is not repeated.

    Args:
        batches: batch sizes, measured at 256 channels
        channels: channel counts, measured at a batch of 32
        dtypes: keys of DTYPES
        layouts: of four axes
    """
    points = [(batch, SWEEP_CHANNEL, LINE) for batch in batches]
    points += [(SWEEP_BATCH, count, "line of channel counts") for count in channels]
    return _unique(
        Case(mode, dtype, layout, batch, count, SWEEP_PLANE, "sweep", origin)
        for layout in layouts
        for dtype in dtypes
        for mode in TRAINING_MODES
        for batch, count, origin in points
    )


def mode_cases(
    batches: Sequence[int], dtypes: Sequence[str], layouts: Sequence[str]
) -> tuple[Case, ...]:
    """Cases along the line of batch sizes in the modes that the lines have not."""
    return tuple(
        Case(mode, dtype, layout, batch, SWEEP_CHANNEL, SWEEP_PLANE, "sweep", LINE)
        for layout in layouts
        for dtype in dtypes
        for mode in MODES
        if mode not in TRAINING_MODES
        for batch in batches
    )


def grid_cases(
    batches: Sequence[int] = GRID_BATCHES,
    channels: Sequence[int] = GRID_CHANNELS,
    dtypes: Sequence[str] = GRID_DTYPES,
    layouts: Sequence[str] = ("nchw", "nhwc"),
    most_bytes: int = GRID_BYTES,
) -> tuple[Case, ...]:
    """Cases over the batch x channels plane for pictures of it, activations of `most_bytes` at
    most."""
    cases = (
        Case(mode, dtype, layout, batch, count, SWEEP_PLANE, "sweep", "grid")
        for layout in layouts
        for dtype in dtypes
        for mode in TRAINING_MODES
        for batch in batches
        for count in channels
    )
    return tuple(case for case in cases if case.numel * case.itemsize <= most_bytes)


def fused_sweep_cases(
    batches: Sequence[int] = SWEEP_BATCHES,
    dtypes: Sequence[str] = SWEEP_DTYPES,
    layouts: Sequence[str] = ("nchw", "nhwc"),
) -> tuple[Case, ...]:
    """Cases along the line of batch sizes with each of SWEEP_FUSIONS behind BatchNorm; arguments as
    `sweep_cases`."""
    return tuple(
        Case(mode, dtype, layout, batch, SWEEP_CHANNEL, SWEEP_PLANE, "sweep", LINE, fusion=fusion)
        for layout in layouts
        for dtype in dtypes
        for mode in TRAINING_MODES
        for fusion in SWEEP_FUSIONS
        for batch in batches
    )


def resnet50_cases(
    batch: int = RESNET50_BATCH,
    dtypes: Sequence[str] = SWEEP_DTYPES,
    layouts: Sequence[str] = ("nchw", "nhwc"),
    modes: Sequence[str] = TRAINING_MODES,
) -> tuple[Case, ...]:
    """Cases of ResNet-50's 53 BatchNorm layers, in 12 shapes, at a batch of 224 x 224 images."""
    return tuple(
        Case(
            mode,
            dtype,
            layout,
            batch,
            layer.channels,
            layer.plane,
            "resnet50",
            f"ResNet-50: {layer.names}",
            layer.count,
        )
        for layout in layouts
        for dtype in dtypes
        for mode in modes
        for layer in RESNET50
    )


def resnet50_fused_cases(
    batch: int = RESNET50_BATCH,
    dtypes: Sequence[str] = SWEEP_DTYPES,
    layouts: Sequence[str] = ("nchw", "nhwc"),
    modes: Sequence[str] = TRAINING_MODES,
) -> tuple[Case, ...]:
    """The layers of `resnet50_cases` that something follows, each with what follows it there."""
    return tuple(
        replace(case, fusion=fusion, count=count)
        for case in resnet50_cases(batch, dtypes, layouts, modes)
        for layer in RESNET50
        if (layer.channels, layer.plane) == (case.channels, case.plane)
        for fusion, count in layer.followed
        if fusion != NONE
    )


def network_cases(
    batch: int = NETWORK_BATCH,
    dtypes: Sequence[str] = ("bf16",),
    channels_last: bool = True,
) -> tuple[Case, ...]:
    """Cases of the BatchNorm layers of every network of `networks.NETWORKS`.

    Networks that share a shape share a case: its origin names them all, its count sums them.

    Args:
        batch: N
        dtypes: keys of DTYPES
        channels_last: whether images and volumes are measured with the channel last too
    """
    origins: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    counts: dict[tuple[int, tuple[int, ...]], int] = {}
    for network in NETWORKS.values():
        for layer in network.layers:
            shape = (layer.channels, layer.plane)
            origins.setdefault(shape, []).append(f"{network.name}: {layer.names}")
            counts[shape] = counts.get(shape, 0) + layer.count
    layouts = {0: ("nc",), 2: ("nchw", "nhwc"), 3: ("ncdhw", "ndhwc")}
    return _unique(
        Case(
            mode,
            dtype,
            layout,
            batch,
            channels,
            plane,
            "networks",
            "; ".join(origins[channels, plane]),
            counts[channels, plane],
        )
        for dtype in dtypes
        for mode in TRAINING_MODES
        for channels, plane in origins
        for layout in layouts[len(plane)][: 2 if channels_last else 1]
    )


def vector_cases(dtypes: Sequence[str] = SWEEP_DTYPES) -> tuple[Case, ...]:
    """Cases of shape (N, C), which never reach cuDNN, of point clouds (N, C, L), and of real
    activations of 8 x 8 digits."""
    vectors = (
        Case(mode, dtype, "nc", batch, channels, (), "vectors", origin)
        for dtype in dtypes
        for mode in TRAINING_MODES
        for batch, channels, origin in VECTORS
    )
    points = (
        Case(mode, dtype, "ncl", batch, channels, (length,), "vectors", origin)
        for dtype in dtypes
        for mode in TRAINING_MODES
        for batch, channels, length, origin in POINTS
    )
    digits = (
        Case(mode, dtype, "nchw", 1797, 16, (8, 8), "vectors", DIGITS, data="digits")
        for dtype in dtypes
        for mode in TRAINING_MODES
    )
    return (*vectors, *points, *digits)


def suite(name: str, *, quick: bool = False) -> tuple[Case, ...]:
    """The cases of a suite that is measured on a GPU.

    Args:
        name: "sweep" (with the vectors), "resnet50" or "networks"
        quick: fewer points, fp32 and bf16 only, channels first

    Raises:
        ValueError: for another name
    """
    dtypes = ("fp32", "bf16") if quick else SWEEP_DTYPES
    layouts = ("nchw",) if quick else ("nchw", "nhwc")
    if name == "sweep":
        step = 3 if quick else 1
        batches = SWEEP_BATCHES[::step]
        lines = sweep_cases(batches, SWEEP_CHANNELS[::step], dtypes, layouts)
        # four batch sizes with each fusion are enough to see a slope
        fused = fused_sweep_cases(SWEEP_BATCHES[::3], dtypes, layouts)
        modes = mode_cases(SWEEP_BATCHES[::3], dtypes, layouts)
        grid = () if quick else grid_cases()
        return _unique((*lines, *fused, *modes, *grid, *vector_cases(dtypes)))
    if name == "resnet50":
        options: dict[str, Any] = {"dtypes": dtypes, "layouts": layouts}
        return (*resnet50_cases(**options), *resnet50_fused_cases(**options))
    if name == "networks":
        return network_cases(channels_last=not quick)
    raise ValueError(f"expected a suite to be sweep, resnet50 or networks, got {name}")


def _unique(cases: Iterable[Case]) -> tuple[Case, ...]:
    found: dict[str, Case] = {}
    for case in cases:
        # the first says where it comes from
        found.setdefault(case.id, case)
    return tuple(found.values())
