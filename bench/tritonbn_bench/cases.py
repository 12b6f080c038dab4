"""What is measured: declared shapes with their origin. Pure Python: no torch, no device.

A case is one BatchNorm call with what follows it: mode, dtype, layout, shape and fusion. The suites
declared here: two lines through the batch x channels plane, one of them with activation and
residual too, the BatchNorm layers of ResNet-50, alone and with what follows them there, and shapes
without a plane (fully connected layers, real activations).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .fusions import NONE, Fusion, fusion_of
from .networks import RESNET50, Layer

__all__ = [
    "DTYPES",
    "LAYOUTS",
    "MODES",
    "RESNET50",
    "RESNET50_BATCH",
    "Case",
    "Layer",
    "fused_sweep_cases",
    "resnet50_cases",
    "resnet50_fused_cases",
    "suite",
    "sweep_cases",
    "vector_cases",
]

MODES = ("forward_train", "backward_train", "forward_eval", "backward_eval")
DTYPES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp64": 8}
LAYOUTS = ("nc", "ncl", "nlc", "nchw", "nhwc", "ncdhw", "ndhwc")

TRAINING_MODES = ("forward_train", "backward_train")
SWEEP_DTYPES = ("fp32", "fp16", "bf16")
SWEEP_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SWEEP_CHANNELS = (3, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
# both lines cross at the shape of ResNet-50's third stage
SWEEP_BATCH, SWEEP_CHANNEL, SWEEP_PLANE = 32, 256, (28, 28)
RESNET50_BATCH = 64
# of the fused line: the two that networks have most, and one activation without a kink
SWEEP_FUSIONS = ("relu", "add_relu", "silu")

# (batch, channels, origin) of inputs without a plane
VECTORS = (
    (256, 128, "the head of SimpleCNN"),
    (4096, 1024, "a wide perceptron"),
    (65536, 64, "points of a point cloud"),
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
    points = [(batch, SWEEP_CHANNEL, "line of batch sizes") for batch in batches]
    points += [(SWEEP_BATCH, count, "line of channel counts") for count in channels]
    return _unique(
        Case(mode, dtype, layout, batch, count, SWEEP_PLANE, "sweep", origin)
        for layout in layouts
        for dtype in dtypes
        for mode in TRAINING_MODES
        for batch, count, origin in points
    )


def fused_sweep_cases(
    batches: Sequence[int] = SWEEP_BATCHES,
    dtypes: Sequence[str] = SWEEP_DTYPES,
    layouts: Sequence[str] = ("nchw", "nhwc"),
) -> tuple[Case, ...]:
    """Cases along the line of batch sizes with each of SWEEP_FUSIONS behind BatchNorm; arguments as
    `sweep_cases`."""
    return tuple(
        Case(
            mode,
            dtype,
            layout,
            batch,
            SWEEP_CHANNEL,
            SWEEP_PLANE,
            "sweep",
            "line of batch sizes",
            fusion=fusion,
        )
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


def vector_cases(dtypes: Sequence[str] = SWEEP_DTYPES) -> tuple[Case, ...]:
    """Cases of shape (N, C), which never reach cuDNN, and of real activations of 8 x 8 digits."""
    vectors = (
        Case(mode, dtype, "nc", batch, channels, (), "vectors", origin)
        for dtype in dtypes
        for mode in TRAINING_MODES
        for batch, channels, origin in VECTORS
    )
    digits = (
        Case(
            mode,
            dtype,
            "nchw",
            1797,
            16,
            (8, 8),
            "vectors",
            "digits through the first convolution of SimpleCNN",
            data="digits",
        )
        for dtype in dtypes
        for mode in TRAINING_MODES
    )
    return (*vectors, *digits)


def suite(name: str, *, quick: bool = False) -> tuple[Case, ...]:
    """The cases of a suite that is measured on a GPU.

    Args:
        name: "sweep" (with the vectors) or "resnet50"
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
        return (*lines, *fused, *vector_cases(dtypes))
    if name == "resnet50":
        options: dict[str, Any] = {"dtypes": dtypes, "layouts": layouts}
        return (*resnet50_cases(**options), *resnet50_fused_cases(**options))
    raise ValueError(f"expected a suite to be sweep or resnet50, got {name}")


def _unique(cases: Iterable[Case]) -> tuple[Case, ...]:
    return tuple({case.id: case for case in cases}.values())
