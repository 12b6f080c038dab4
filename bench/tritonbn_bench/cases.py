"""What is measured: declared shapes with their origin. Pure Python: no torch, no device.

A case is one BatchNorm call: mode, dtype, layout and shape. Three suites are declared here: two
lines through the batch x channels plane, the BatchNorm layers of ResNet-50, and shapes without a
plane (fully connected layers, real activations).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .networks import RESNET50, Layer

__all__ = [
    "DTYPES",
    "LAYOUTS",
    "MODES",
    "RESNET50",
    "Case",
    "Layer",
    "resnet50_cases",
    "suite",
    "sweep_cases",
    "vector_cases",
]

MODES = ("forward_train", "backward_train", "forward_eval", "backward_eval")
DTYPES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp64": 8}
LAYOUTS = ("nc", "ncl", "nchw", "nhwc", "ncdhw", "ndhwc")

TRAINING_MODES = ("forward_train", "backward_train")
SWEEP_DTYPES = ("fp32", "fp16", "bf16")
SWEEP_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SWEEP_CHANNELS = (3, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
# both lines cross at the shape of ResNet-50's third stage
SWEEP_BATCH, SWEEP_CHANNEL, SWEEP_PLANE = 32, 256, (28, 28)
RESNET50_BATCH = 64


# (batch, channels, origin) of inputs without a plane
VECTORS = (
    (256, 128, "the head of SimpleCNN"),
    (4096, 1024, "a wide perceptron"),
    (65536, 64, "points of a point cloud"),
)


@dataclass(frozen=True)
class Case:
    """One BatchNorm call to be measured.

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

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("mode", self.mode, MODES),
            ("dtype", self.dtype, tuple(DTYPES)),
            ("layout", self.layout, LAYOUTS),
        ):
            if value not in allowed:
                raise ValueError(f"expected {name} to be one of {', '.join(allowed)}, got {value}")
        if len(self.layout) != len(self.plane) + 2:
            raise ValueError(f"expected {len(self.layout) - 2} axes after C, got {self.plane}")

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
        return f"{self.mode}/{self.dtype}/{self.layout}/{size}"


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
        lines = sweep_cases(SWEEP_BATCHES[::step], SWEEP_CHANNELS[::step], dtypes, layouts)
        return (*lines, *vector_cases(dtypes))
    if name == "resnet50":
        return resnet50_cases(dtypes=dtypes, layouts=layouts)
    raise ValueError(f"expected a suite to be sweep or resnet50, got {name}")


def _unique(cases: Iterable[Case]) -> tuple[Case, ...]:
    return tuple({case.id: case for case in cases}.values())
