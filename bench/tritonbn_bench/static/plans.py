"""The launchers' real calls over a list of shapes, under a driver that has no device.

The shapes are chosen to reach every kernel with every kind of tile: whole and ragged planes, few
and many channels, one program or several for a channel, both families, offsets beyond 32 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

import tritonbn_kernels
from tritonbn_kernels import LaunchRecord
from tritonbn_kernels.activation_names import activation_of

from .driver import FakeDriver, Target, active_driver

CHANNELS_FIRST = "channels_first"
CHANNELS_LAST = "channels_last"
DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}
EPS = 1e-5


@dataclass(frozen=True)
class Case:
    """One kind of input: shape `(N, C, *S)`, layout, dtype by its short name, what goes with it.

    affine: dtype of gamma and beta, None for neither; statistics: dtype of the running statistics,
    None for none of them; momentum None is the cumulative average. activation,
    residual: what is fused.
    """

    shape: tuple[int, ...]
    layout: str
    dtype: str
    affine: str | None = "fp32"
    statistics: str | None = "fp32"
    momentum: float | None = 0.1
    activation: str | None = None
    residual: bool = False

    @property
    def name(self) -> str:
        """Identifies the case in tables."""
        parts = ["x".join(str(size) for size in self.shape), self.layout, self.dtype]
        if (self.affine, self.statistics, self.momentum) != ("fp32", "fp32", 0.1):
            parts.append(f"affine={self.affine} stats={self.statistics} momentum={self.momentum}")
        if self.fused:
            parts.append(f"{'add ' if self.residual else ''}{self.activation}")
        return " ".join(parts)

    @property
    def fused(self) -> bool:
        """Whether the launches do more than normalise."""
        return self.activation is not None or self.residual

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return DTYPES[self.dtype].itemsize

    @property
    def run_bytes(self) -> int:
        """Bytes that lie consecutively in memory for one image and channel, or for one row."""
        inner = math.prod(self.shape[2:])
        elements = self.shape[1] if self.layout == CHANNELS_LAST else inner
        return elements * self.itemsize

    @property
    def tensor_bytes(self) -> int:
        """Bytes of x."""
        return math.prod(self.shape) * self.itemsize

    def make(self) -> torch.Tensor:
        """An uninitialised tensor of this kind: its memory is never touched."""
        n, c, *space = self.shape
        dtype = DTYPES[self.dtype]
        if self.layout == CHANNELS_FIRST:
            return torch.empty(self.shape, dtype=dtype)
        return torch.empty((n, *space, c), dtype=dtype).movedim(-1, 1)


ALL = ("bf16", "fp16", "fp32", "fp64")
WIDTHS = ("bf16", "fp32")
# (shape, layout, dtypes): what it reaches
SHAPES: tuple[tuple[tuple[int, ...], str, tuple[str, ...]], ...] = (
    # whole 16-byte vectors in every plane; channels shared by several programs
    ((32, 64, 56, 56), CHANNELS_FIRST, ALL),
    # enough channels for one program each
    ((32, 1024, 14, 14), CHANNELS_FIRST, WIDTHS),
    # odd plane: single elements, whatever the dtype
    ((32, 2048, 7, 7), CHANNELS_FIRST, WIDTHS),
    # few channels, large planes: many programs a channel
    ((2, 3, 224, 224), CHANNELS_FIRST, ALL),
    # volumes, and one tile a channel
    ((2, 256, 4, 8, 8), CHANNELS_FIRST, WIDTHS),
    # held by one program: no barrier, planes and rows
    ((8, 512, 28, 28), CHANNELS_FIRST, ("bf16",)),
    ((2, 2048, 7, 7), CHANNELS_FIRST, ("bf16",)),
    # more narrow planes than a grid holds: a part is streamed
    ((4096, 512, 7, 7), CHANNELS_FIRST, ("bf16",)),
    # as much as one program may hold
    ((256, 64, 112, 112), CHANNELS_FIRST, WIDTHS),
    # less than a warp has threads
    ((2, 2, 1, 1), CHANNELS_FIRST, ("fp32",)),
    # offsets beyond 32 bits
    ((70_000, 32, 32, 32), CHANNELS_FIRST, ("bf16",)),
    ((32, 64, 56, 56), CHANNELS_LAST, ALL),
    ((32, 2048, 7, 7), CHANNELS_LAST, WIDTHS),
    # rows of a line, of half a line and of a sector, and more of them than a grid holds
    ((64, 1024, 14, 14), CHANNELS_LAST, WIDTHS),
    ((64, 512, 28, 28), CHANNELS_LAST, ("bf16",)),
    ((128, 512, 28, 28), CHANNELS_LAST, ("bf16",)),
    ((256, 64, 56, 56), CHANNELS_LAST, WIDTHS),
    # a row that no vector divides, in one program and in many
    ((8, 35, 17, 19), CHANNELS_LAST, ALL),
    ((2, 3, 224, 224), CHANNELS_LAST, WIDTHS),
    # features without space: few and many rows
    ((64, 4096), CHANNELS_LAST, ALL),
    ((65_536, 256), CHANNELS_LAST, ("bf16",)),
    ((70_000, 32, 32, 32), CHANNELS_LAST, ("bf16",)),
)
# kernels differ by what they are given too; one shape of each family stands for all
VARIANT_SHAPES = (((32, 64, 28, 28), CHANNELS_FIRST), ((32, 64, 28, 28), CHANNELS_LAST))
# what is fused, by shape, layout and dtype: a mask of two slopes and the most arithmetic for every
# kernel, a residual that is read again and a mere recomputation for the wide ones
MOST, LEAST = (("relu", True), ("gelu", False)), (("silu", True), ("relu", False))
FUSED_SHAPES: tuple[tuple[tuple[int, ...], str, str, tuple[tuple[str, bool], ...]], ...] = (
    ((32, 64, 56, 56), CHANNELS_FIRST, "bf16", MOST + LEAST),
    ((32, 64, 56, 56), CHANNELS_FIRST, "fp32", MOST),
    ((32, 2048, 7, 7), CHANNELS_FIRST, "bf16", MOST),
    ((32, 64, 56, 56), CHANNELS_LAST, "bf16", MOST + LEAST),
    ((32, 64, 56, 56), CHANNELS_LAST, "fp32", MOST),
    ((256, 64, 56, 56), CHANNELS_LAST, "bf16", MOST),
    ((8, 35, 17, 19), CHANNELS_LAST, "bf16", MOST),
    ((8, 64, 17, 16), CHANNELS_FIRST, "fp64", MOST),
)
# wide and ragged in both families, and what no grid holds
QUICK_SHAPES = ((32, 64, 56, 56), (32, 2048, 7, 7), (8, 35, 17, 19), (256, 64, 56, 56))


def cases() -> Iterator[Case]:
    """Every case that is checked."""
    for shape, layout, dtypes in SHAPES:
        for dtype in dtypes:
            yield Case(shape, layout, dtype)
    for shape, layout in VARIANT_SHAPES:
        yield Case(shape, layout, "bf16", affine=None, statistics=None)
        yield Case(shape, layout, "bf16", momentum=None)
        yield Case(shape, layout, "fp16", affine="fp16", statistics="fp16")
    for shape, layout, dtype, fusions in FUSED_SHAPES:
        for activation, residual in fusions:
            yield Case(shape, layout, dtype, activation=activation, residual=residual)


def quick_cases() -> Iterator[Case]:
    """Some of them, for a check of a target in half a minute: the dtype most used in training."""
    for case in cases():
        mask = case.activation == "relu" and case.residual
        if case.shape in QUICK_SHAPES and case.dtype == "bf16" and (mask or not case.fused):
            yield case


def is_chosen(name: str, only: Sequence[str]) -> bool:
    """Whether a case of this name is looked at: it contains one of `only`, or that is empty."""
    return not only or any(words in name for words in only)


@dataclass(frozen=True)
class Planned:
    """One launch that a launcher asked for."""

    case: Case
    operation: str
    record: LaunchRecord


def _operations(case: Case) -> dict[str, Callable[[], object]]:
    """Calls of the launchers that fit `case`, by name."""
    x, dy = case.make(), case.make()
    c = case.shape[1]
    gamma = beta = mean = var = count = None
    if case.affine is not None:
        gamma, beta = (torch.empty(c, dtype=DTYPES[case.affine]) for _ in range(2))
    if case.statistics is not None:
        mean, var = (torch.empty(c, dtype=DTYPES[case.statistics]) for _ in range(2))
        count = torch.zeros((), dtype=torch.int64)
    saved = torch.empty((3, c), dtype=torch.float64 if case.dtype == "fp64" else torch.float32)
    wants_affine = case.affine is not None

    def forward(training: bool) -> object:
        return tritonbn_kernels.batch_norm_forward(
            x, gamma, beta, mean, var, count, training, case.momentum, EPS
        )

    def backward(training: bool, need_dx: bool = True, need_affine: bool = wants_affine) -> object:
        return tritonbn_kernels.batch_norm_backward(
            dy, x, gamma, saved, training, need_dx, need_affine, need_affine
        )

    calls: dict[str, Callable[[], object]] = {
        "forward train": lambda: forward(True),
        "backward train": lambda: backward(True),
        "backward eval": lambda: backward(False),
        "statistics": lambda: tritonbn_kernels.batch_statistics(x),
    }
    if mean is not None:
        calls["forward eval"] = lambda: forward(False)
    if case.momentum is None:
        # beside the cumulative average: gradients of the parameters alone
        calls["backward parameters"] = lambda: backward(True, need_dx=False)
    return calls


def _fused_operations(case: Case) -> dict[str, Callable[[], object]]:
    """Calls with what `case` fuses: both passes of training, and of evaluation with a mask."""
    x, dy = case.make(), case.make()
    residual = case.make() if case.residual else None
    activation = activation_of(case.activation)
    wide = torch.float64 if case.dtype == "fp64" else torch.float32
    gamma, beta, mean, var = (torch.empty(case.shape[1], dtype=wide) for _ in range(4))

    def both(training: bool) -> object:
        _, saved, mask = tritonbn_kernels.fused_forward(
            x, gamma, beta, mean, var, None, training, 0.1, EPS, activation, residual, True
        )
        return tritonbn_kernels.fused_backward(
            dy, x, gamma, saved, training, True, True, True,
            activation, beta, residual, mask, case.residual,
        )  # fmt: skip

    calls: dict[str, Callable[[], object]] = {"train": lambda: both(True)}
    if case.residual and case.activation == "relu":
        calls["eval"] = lambda: both(False)
    return calls


def planned_launches(case: Case, target: Target) -> Iterator[Planned]:
    """Every launch that the calls for `case` make on `target`, compiled but not run."""
    with active_driver(FakeDriver(target)):
        # plans and compiled kernels of the driver before this one
        tritonbn_kernels.clear_cache()
        try:
            operations = _fused_operations(case) if case.fused else _operations(case)
            for operation, call in operations.items():
                with tritonbn_kernels.record_launches() as records:
                    call()
                for record in records:
                    yield Planned(case, operation, record)
        finally:
            tritonbn_kernels.clear_cache()
