"""Inputs of the numerical tests: each case with an id and the reason why it is there.

Sizes are small because the interpreter pays per program and operation; they are chosen so that
every branch of the kernels is reached, on a GPU as well, where the same cases run.
"""

import os
from dataclasses import dataclass
from math import prod

import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor

__all__ = [
    "CASES",
    "DEVICE",
    "DTYPES",
    "INTERPRETED",
    "LAYOUT_CASES",
    "RATIOS",
    "Case",
    "lay_out",
    "parameters",
    "values",
]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda")

DTYPES = [
    pytest.param(torch.float32, id="fp32"),
    pytest.param(torch.float16, id="fp16"),
    pytest.param(torch.bfloat16, id="bf16"),
    pytest.param(torch.float64, id="fp64"),
]
# mean over standard deviation: where E[x^2] - E[x]^2 is right, loses digits, loses all, and where
# the mean itself no longer fits into one fp32 word
RATIOS = [pytest.param(ratio, id=f"mean{ratio:g}") for ratio in (0.0, 1e2, 1e4, 1e6)]


@dataclass(frozen=True)
class Case:
    """A shape `(N, C, *S)` in a memory layout, and why it is tested."""

    shape: tuple[int, ...]
    layout: str
    why: str

    @property
    def id(self) -> str:
        """Name of the case: `n8-c3-s7x7-contiguous`."""
        space = "-s" + "x".join(map(str, self.shape[2:])) if len(self.shape) > 2 else ""
        return f"n{self.shape[0]}-c{self.shape[1]}{space}-{self.layout}"

    @property
    def count(self) -> int:
        """Values per channel."""
        return prod(self.shape) // self.shape[1]

    def tensor(self, dtype: torch.dtype = torch.float32, ratio: float = 0.0) -> Tensor:
        """Random values of this shape in this layout on the device under test."""
        return lay_out(values(self.shape, dtype, ratio), self.layout)


CASES = [
    Case((8, 3, 8, 8), "contiguous", "wide planes: 16-byte vectors in every dtype"),
    Case((5, 35, 7, 7), "contiguous", "odd planes: no vector; channels no multiple of a tile"),
    Case((3, 65, 5), "contiguous", "NCL; one channel past a power of two"),
    Case((3, 1, 129), "contiguous", "one channel; one element past a tile of 128"),
    Case((2, 5, 3, 4, 3), "contiguous", "NCDHW"),
    Case((2, 4, 1, 1), "contiguous", "two values per channel, the least there can be"),
    Case((67, 35), "contiguous", "(N, C): rows no multiple of a tile, odd channels"),
    Case((33, 1), "contiguous", "(N, 1): both families describe it"),
    Case((32, 64), "contiguous", "(N, C) in whole vectors and whole tiles"),
    Case((4, 65, 5, 3), "channels_last", "odd channels, ragged rows"),
    Case((4, 16, 8, 8), "channels_last", "whole vectors along the channels"),
    Case((2, 3, 3, 4, 3), "channels_last_3d", "fewer channels than a vector"),
    Case((1, 6, 9, 5), "contiguous", "a single image: the batch has no stride"),
]
LAYOUT_CASES = [
    Case((4, 8, 6), "transposed", "(N, L, C) seen as (N, C, L): channels along memory"),
    Case((9, 6), "transposed", "(C, N) seen as (N, C)"),
    Case((4, 6, 5, 4), "batch_slice", "every other image: the batch stride is no product of sizes"),
    Case((4, 6, 5, 4), "channel_slice", "channels 1 to C: an offset, and a gap after each image"),
    Case((3, 8, 4, 6), "space_slice", "columns 1 to W of wider rows: no family reads it in place"),
    Case((5, 6), "channel_slice", "a column block of a matrix: rows further apart than C"),
    Case((3, 4, 6, 5), "space_transposed", "W before H in memory: no family reads it in place"),
    Case((6, 5, 4, 3), "expanded", "the same image N times: batch stride 0"),
    Case((4, 6, 5, 4), "channels_last_slice", "channels 1 to C of channels_last: rows with gaps"),
]


def parameters(cases: list[Case]) -> list[ParameterSet]:
    """`cases` for `pytest.mark.parametrize`, by their ids."""
    return [pytest.param(case, id=case.id) for case in cases]


def values(shape: tuple[int, ...], dtype: torch.dtype, ratio: float = 0.0) -> Tensor:
    """Normal values, contiguous, rounded to `dtype`, each channel with a spread of its own.

    `ratio` is the mean of every channel in units of its standard deviation, its sign alternating.
    fp16 ends at 65504, so there a large ratio comes with a small spread. What is left of the
    spread after rounding to a 16-bit dtype may be one step or nothing: also an input.
    """
    channels = shape[1]
    per_channel = (1, channels, *[1] * (len(shape) - 2))
    spread = torch.linspace(0.5, 2.0, channels, dtype=torch.float64)
    sign = 1.0 - 2.0 * (torch.arange(channels) % 2)
    x = (torch.randn(shape, dtype=torch.float64) + ratio * sign.view(per_channel)) * spread.view(
        per_channel
    )
    if dtype == torch.float16:
        x = x / max(1.0, ratio / 1e4)
    return x.to(DEVICE, dtype)


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The values of contiguous `x` in another layout; `expanded` repeats the first image.

    Raises:
        ValueError: no such layout.
    """
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "channels_last_3d":
        return x.contiguous(memory_format=torch.channels_last_3d)
    if layout == "transposed":
        return (
            x.transpose(1, -1 if x.dim() == 3 else 0)
            .contiguous()
            .transpose(1, -1 if x.dim() == 3 else 0)
        )
    if layout == "space_transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "expanded":
        return x[:1].contiguous().expand(x.shape)
    return _inside_larger(x, layout)


def _inside_larger(x: Tensor, layout: str) -> Tensor:
    """`x` as a slice of a larger tensor whose other values are NaN: reading one of them shows."""
    sizes = list(x.shape)
    place: list[slice] = [slice(None)] * x.dim()
    if layout == "batch_slice":
        sizes[0], place[0] = 2 * sizes[0], slice(None, None, 2)
    elif layout in ("channel_slice", "channels_last_slice"):
        sizes[1], place[1] = sizes[1] + 2, slice(1, -1)
    elif layout == "space_slice":
        sizes[-1], place[-1] = sizes[-1] + 2, slice(1, -1)
    else:
        raise ValueError(f"expected a known layout, got {layout!r}")
    larger = torch.full(sizes, torch.nan, dtype=x.dtype, device=x.device)
    if layout == "channels_last_slice":
        larger = larger.contiguous(memory_format=torch.channels_last)
    view = larger[tuple(place)]
    view.copy_(x)
    return view
