"""Small tensors that get one-read plans: what of the kernels each of them reaches.

The interpreter takes its time by programs and by tiles of each, so there are few of either.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from _pytest.mark import MarkDecorator
from torch import Tensor

from tests.checks import Operands, check_backward, check_forward
from tests.inputs import DTYPES, lay_out, values
from tritonbn_kernels import LaunchRecord, pinned_plan, record_launches
from tritonbn_kernels.geometry import Geometry
from tritonbn_kernels.layout import channel_view
from tritonbn_kernels.one_read import ResidentBackwardStep, ResidentForwardStep

__all__ = [
    "HALVES",
    "HELD",
    "Held",
    "gradient_of",
    "judge",
    "of_every_dtype",
    "of_every_kernel",
    "pieces_of",
    "with_dtypes",
]

_FULL = (torch.float32, torch.float16, torch.bfloat16)
HALVES = (torch.float16, torch.bfloat16)
_DTYPES = [dtype for dtype in DTYPES if dtype.values[0] in _FULL]


@dataclass(frozen=True)
class Held:
    """A shape and pins that give a one-read plan in some dtypes, and why they are tested; `vector`
    is the bytes of one access."""

    kernels: str
    shape: tuple[int, ...]
    why: str
    vector: int = 16
    pins: dict[str, int] = field(default_factory=dict)
    dtypes: tuple[torch.dtype, ...] = _FULL
    layout: str = "contiguous"

    @property
    def id(self) -> str:
        """Name of the case: `resident-n3-c5-s8x8-contiguous-16B-block_v8`."""
        space = "x".join(map(str, self.shape[2:]))
        pins = "".join(f"-{name}{value}" for name, value in self.pins.items())
        n, c = self.shape[:2]
        return f"{self.kernels}-n{n}-c{c}-s{space}-{self.layout}-{self.vector}B{pins}"

    @property
    def names(self) -> list[str]:
        """The kernels of one forward and one backward launch."""
        return [f"{self.kernels}_forward_kernel", f"{self.kernels}_backward_kernel"]

    def values(self, dtype: torch.dtype, ratio: float = 0.0) -> Tensor:
        """Random values of this shape in this layout; `ratio` as for `tests.inputs.values`."""
        return lay_out(values(self.shape, dtype, ratio), self.layout)

    @contextmanager
    def plan(self) -> Iterator[list[LaunchRecord]]:
        """Plans with these pins and one member a group; afterwards every launch must have been one
        of these kernels."""
        with pinned_plan(resident=1, splits=1, **self.pins), record_launches() as launches:
            yield launches
        assert launches
        for launch in launches:
            assert launch.kernel in self.names
            words = launch.constants.get("WORDS", launch.constants.get("VECTOR_WORDS"))
            assert words == self.vector // 4
            assert not launch.constants["GROUPED"]


_LAST = "channels_last"
# tiles of 8 rows, of which 3 are held; 2 are read at a time
_HYBRID = {"block_n": 8, "stream": 2, "pieces": 3}
_HYBRID_IMAGES = {"block_n": 2, "stream": 1, "pieces": 2}
HELD = [
    Held("resident", (3, 5, 8, 8), "NCHW in one piece, a block of channels"),
    Held("resident", (3, 5, 8, 8), "pieces: the last ragged", 16, {"block_v": 16}),
    Held("resident", (7, 3, 16), "NCL; channels no multiple of the block", 16, {"block_c": 2}),
    Held("resident", (2, 3, 2, 4, 5), "NCDHW; ragged tile", 16, dtypes=(torch.float32,)),
    Held("resident", (2, 3, 4, 4, 2), "NCDHW in whole tiles", 16, {"block_v": 8}),
    Held("resident", (5, 3, 2, 3), "8 bytes: two fp32", 8, {}, (torch.float32,)),
    Held("resident", (9, 3, 4, 3), "8 bytes: four halves", 8, {"block_v": 16}, HALVES),
    Held("resident", (7, 3, 5, 3), "4 bytes: one fp32", 4, {"block_v": 64}, (torch.float32,)),
    Held("resident", (7, 3, 2, 5), "4 bytes: two halves", 4, {"block_v": 16}, HALVES),
    Held("resident", (1, 6, 4, 4), "a single image: the batch has no stride"),
    Held("rows", (5, 8, 7, 7), "odd planes, rows no multiple of the tile"),
    Held("rows", (4, 24, 5, 3), "blocks of channels", 16, {"block_c": 8}),
    Held(
        "rows", (20, 24, 5), "NCL; pieces; a smaller last block", 16, {"block_c": 16, "block_n": 8}
    ),
    Held("rows", (3, 16, 1, 3, 3), "NCDHW"),
    Held("rows", (1, 8, 7, 7), "a single image"),
    Held("rows", (6, 16, 2), "more channels than columns of one"),
    Held("rows", (4, 16, 8, 8), "in one tile", layout="channels_last"),
    Held("rows", (9, 24, 3, 5), "pieces; 24 of 32 channels", 16, {"block_n": 32}, layout=_LAST),
    Held("rows", (9, 24, 3, 5), "a smaller last block", 16, {"block_c": 16}, layout=_LAST),
    Held("rows", (67, 64), "(N, C)", 16, {"block_n": 16}),
    Held("rows", (4, 8, 6), "(N, L, C) seen as (N, C, L)", 16, layout="transposed"),
    Held("rows", (2, 6, 3, 4, 3), "8 bytes", 8, {}, (torch.float32,), "channels_last_3d"),
    Held("rows", (2, 6, 3, 4, 3), "4 bytes", 4, {"block_n": 16}, HALVES, "channels_last_3d"),
    Held("rows", (7, 3, 5, 3), "4 bytes: one fp32", 4, {"block_n": 64}, (torch.float32,), _LAST),
    Held("rows", (3, 16, 3, 5), "hybrid: ragged steps", 16, _HYBRID, layout=_LAST),
    Held("rows", (2, 16, 4, 8), "hybrid: whole steps", 16, {**_HYBRID, "pieces": 4}, layout=_LAST),
    Held(
        "rows",
        (3, 16, 4, 4),
        "hybrid: nothing to stream",
        16,
        {**_HYBRID, "pieces": 6},
        layout=_LAST,
    ),
    Held("rows", (7, 8, 7, 7), "hybrid of images: the last step ragged", 16, _HYBRID_IMAGES),
]


def _one(why: str, kernels: str) -> Held:
    return next(held for held in HELD if held.why.startswith(why) and held.kernels == kernels)


_ONE_OF_EACH = [
    pytest.param(_one("pieces", "resident"), id="resident"),
    pytest.param(_one("NCL; pieces", "rows"), id="narrow"),
    pytest.param(_one("pieces", "rows"), id="channels-last"),
    pytest.param(_one("hybrid: ragged", "rows"), id="hybrid"),
]
of_every_kernel = pytest.mark.parametrize("held", _ONE_OF_EACH)
of_every_dtype = pytest.mark.parametrize("dtype", _DTYPES)


def gradient_of(x: Tensor) -> Tensor:
    """A random dy with the dtype and layout of `x`."""
    return torch.empty_like(x).copy_(values(tuple(x.shape), x.dtype))


def judge(call: Operands, dy: Tensor) -> Tensor:
    """One forward and one backward, judged; what the forward saved."""
    saved = check_forward(call, training=True)
    check_backward(call, dy, training=True, saved=saved)
    return saved


def with_dtypes(
    name: str, fp32: Sequence[float], fp16: Sequence[float], bf16: Sequence[float]
) -> MarkDecorator:
    """Parametrise over values of `name`, with the dtypes each is worth its time in."""
    cases = [(value, torch.float32) for value in fp32]
    cases += [(value, torch.float16) for value in fp16]
    cases += [(value, torch.bfloat16) for value in bf16]
    ids = [f"{value:g}-{str(dtype).removeprefix('torch.')}" for value, dtype in cases]
    return pytest.mark.parametrize((name, "dtype"), cases, ids=ids)


def pieces_of(x: Tensor) -> set[tuple[str, bool]]:
    """Of the one-read launches that `x` gets: the kernel, and whether it holds several tiles."""
    view, reached = channel_view(x), set()
    assert view is not None
    steps = ((ResidentForwardStep, 2), (ResidentBackwardStep, 3))
    for step, tensors in steps:
        arguments = step.arguments_for(x, Geometry((view,) * tensors, x.element_size()))
        assert arguments is not None
        reached.add((str(arguments.kernel.fn.__name__), arguments.plan.pieces != 1))
    return reached
