"""How a tensor of shape `(N, C, *S)` lies in memory, said in the few numbers that a kernel needs.

Every layout that the kernels read without a copy is one of two families:

- channels_first: each channel is `n_outer` planes of `n_inner` consecutive elements
  (contiguous NCL, NCHW, NCDHW; channel or batch slices of them; a transposed `(N, C)`);
- channels_last: each of `n_outer` rows holds its channels consecutively
  (contiguous `(N, C)`, channels_last, channels_last_3d, `(N, L, C)` given as `(N, C, L)`).

Pure Python over shapes and strides: nothing here touches data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import torch

CHANNELS_FIRST = "channels_first"
CHANNELS_LAST = "channels_last"


@dataclass(frozen=True)
class ChannelView:
    """One family's reading of a tensor; strides count elements.

    Element `(c, o, i)` lies at `o * stride_outer + c * stride_channel + i`, with `o < n_outer` and
    `i < n_inner`; in channels_last `n_inner` is 1 and `stride_channel` is 1.
    """

    family: str
    n_channels: int
    n_outer: int
    n_inner: int
    stride_outer: int
    stride_channel: int

    @property
    def count(self) -> int:
        """Values per channel."""
        return self.n_outer * self.n_inner

    @property
    def extent(self) -> int:
        """One more than the largest offset, in elements."""
        return (
            (self.n_outer - 1) * self.stride_outer
            + (self.n_channels - 1) * self.stride_channel
            + self.n_inner
        )

    def same_grouping(self, other: ChannelView) -> bool:
        """Whether one index `(c, o, i)` means the same element of both tensors."""
        return (self.family, self.n_channels, self.n_outer, self.n_inner) == (
            other.family,
            other.n_channels,
            other.n_outer,
            other.n_inner,
        )

    def vector(self, limit: int) -> int:
        """Longest power-of-two run of elements, at most `limit`, that starts at multiples of
        itself in every plane or row."""
        length = limit
        if self.family == CHANNELS_FIRST:
            length = gcd(length, self.n_inner)
            if self.n_channels > 1:
                length = gcd(length, self.stride_channel)
        else:
            length = gcd(length, self.n_channels)
        if self.n_outer > 1:
            length = gcd(length, self.stride_outer)
        return length


def _collapse(sizes: Sequence[int], strides: Sequence[int]) -> tuple[int, int] | None:
    """Merge dimensions into one `(size, stride)`, or None if their strides do not nest."""
    size, stride = 1, 1
    first = True
    for n, step in zip(reversed(sizes), reversed(strides), strict=True):
        if n == 1:
            continue
        if first:
            size, stride, first = n, step, False
        elif step == stride * size:
            size *= n
        else:
            return None
    return size, stride


def view_of(sizes: Sequence[int], strides: Sequence[int]) -> ChannelView | None:
    """The `ChannelView` of a non-empty `(N, C, *S)` shape with these strides, or None where the
    kernels cannot read it in place."""
    n, channels = sizes[0], sizes[1]
    stride_n = strides[0] if n > 1 else 0
    stride_c = strides[1] if channels > 1 else 1
    space = _collapse(sizes[2:], strides[2:])
    if space is None:
        return None
    n_space, stride_s = space
    if n_space > 1:
        if stride_s == 1:
            return ChannelView(CHANNELS_FIRST, channels, n, n_space, stride_n, stride_c)
        if stride_c == 1 and (n == 1 or stride_n == n_space * stride_s):
            return ChannelView(CHANNELS_LAST, channels, n * n_space, 1, stride_s, 1)
        return None
    if n > 1 and stride_n == 1 and (channels == 1 or stride_c != 1):
        return ChannelView(CHANNELS_FIRST, channels, 1, n, 0, stride_c)
    if stride_c == 1:
        return ChannelView(CHANNELS_LAST, channels, n, 1, stride_n, 1)
    return None


def channel_view(x: torch.Tensor) -> ChannelView | None:
    """`view_of` a tensor of shape `(N, C, *S)`."""
    return view_of(x.shape, x.stride())


def empty_like_in_family(x: torch.Tensor) -> torch.Tensor:
    """An uninitialised tensor with the shape and dtype of `x` (shape `(N, C, *S)`): the strides of
    a dense `x` that the kernels can read, else torch's choice, else contiguous.

    The memory format of every output: real kernels and fake implementations both call this.
    """
    y = torch.empty_like(x)
    if channel_view(y) is None:
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y
