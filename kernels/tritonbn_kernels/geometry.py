"""From tensors to the numbers and constants that a kernel is launched with: shared by forward and
backward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton.language as tl

from tritonbn_kernels.layout import CHANNELS_LAST, ChannelView, channel_view, empty_like_in_family
from tritonbn_kernels.plan import (
    ACCESS_BYTES,
    LIMIT_32,
    VECTOR_LIMIT_32,
    LaunchPlan,
    division_by,
    vectors_of,
)
from tritonbn_kernels.residency import ResidentPlan


@dataclass(frozen=True)
class Geometry:
    """The views of the tensors of one launch, which all group their elements alike."""

    views: tuple[ChannelView, ...]
    itemsize: int
    # whether every tensor begins at a multiple of 16 bytes
    aligned: bool = True

    @property
    def first(self) -> ChannelView:
        return self.views[0]

    @property
    def vector(self) -> int:
        """Elements of one access: what every view allows, at most 16 bytes."""
        return min(view.vector(ACCESS_BYTES // self.itemsize) for view in self.views)

    @property
    def offsets_64(self) -> bool:
        """Whether an element offset of some view needs 64 bits."""
        return max(view.extent for view in self.views) >= LIMIT_32

    def sizes(self, plan: LaunchPlan | ResidentPlan) -> tuple[int, ...]:
        """n_channels, n_vectors, inner_vectors, magic, shift, vectors_per_split."""
        view = self.first
        inner = max(view.n_inner // plan.vector, 1)
        return (
            view.n_channels,
            vectors_of(view, plan.vector),
            inner,
            *division_by(inner),
            plan.vectors_per_split,
        )

    def strides(self, plan: LaunchPlan | ResidentPlan) -> tuple[int, ...]:
        """(stride_outer, stride_channel) of each view in units of vectors.

        A stride that no index above 0 multiplies need not be a multiple of the vector.
        """
        result: list[int] = []
        for view in self.views:
            result += [view.stride_outer // plan.vector, view.stride_channel // plan.vector]
        return tuple(result)

    def constants(self, plan: LaunchPlan, accumulate: torch.dtype) -> dict[str, object]:
        """Compile-time constants that all kernels share, those of the tile last."""
        last = self.first.family == CHANNELS_LAST
        return {
            "CHANNELS_LAST": last,
            "OFFSETS_64": self.offsets_64,
            "VECTORS_64": vectors_of(self.first, plan.vector) >= VECTOR_LIMIT_32,
            "ACCUMULATE": tl.float64 if accumulate == torch.float64 else tl.float32,
            "VECTOR": plan.vector,
            "LANES": 1 if last else plan.vector,
            "BLOCK_C": plan.block_c,
            "BLOCK_V": plan.block_v,
        }


def accumulation_dtype(x: torch.Tensor) -> torch.dtype:
    """fp64 for fp64, else fp32: the dtype of saved statistics and of every sum."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def readable(x: torch.Tensor) -> tuple[torch.Tensor, ChannelView]:
    """`x` and its view, or a dense copy that the kernels can read.

    A view whose output would group its elements otherwise is copied too.
    """
    view = channel_view(x)
    if view is not None:
        like = channel_view(torch.empty_like(x, device="meta"))
        if like is not None and view.same_grouping(like):
            return x, view
    dense = empty_like_in_family(x)
    dense.copy_(x)
    return dense, _view(dense)


def like_grouped(tensor: torch.Tensor, model: torch.Tensor, view: ChannelView) -> torch.Tensor:
    """`tensor` itself if its elements are grouped as in `view`, else a dense copy that is grouped
    as `model`, which may itself be expanded."""
    own = channel_view(tensor)
    if own is not None and own.same_grouping(view):
        return tensor
    return torch.empty_like(model, dtype=tensor.dtype).copy_(tensor)


def lies_as_output(tensor: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether the elements of `tensor` lie as those of an output made for the readable `x`."""
    return channel_view(tensor) == output_view(x)


def output_view(x: torch.Tensor) -> ChannelView:
    """The view of an output made for `x`, which `readable` returned."""
    return _view(torch.empty_like(x, device="meta"))


def _view(x: torch.Tensor) -> ChannelView:
    view = channel_view(x)
    assert view is not None, (x.shape, x.stride())
    return view
