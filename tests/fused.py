"""Small tensors for each family of plans, and calls whose activation has no element at a kink.

Where a derivative jumps, the rounding of z decides on which side an element falls, and with it
every sum that the element is in. The tests choose inputs without such elements rather than allow
for both sides: an allowance would have to be as large as dy, and would hide a lost activation. The
width to keep clear needs no choice: any z that keeps the budget of `tolerances.value_budget`, to
which the forward pass is held, lies within it of the exact one. Beta is moved, channel by channel,
by a few such widths, which changes nothing else.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from _pytest.mark import MarkDecorator
from torch import Tensor

from tests.checks import (
    Operands,
    check_backward,
    check_forward_and_mask,
    operands,
    torch_forward,
)
from tests.inputs import lay_out, values
from tests.tolerances import value_budget
from tritonbn._following import Activation
from tritonbn_bench.emulated import cooperative
from tritonbn_kernels import LaunchRecord, pinned_plan, record_launches
from tritonbn_kernels.activation_names import activation_of

__all__ = [
    "FAMILIES",
    "GROUPS",
    "ONE_READ",
    "TWO_READ",
    "Family",
    "clear_of_kinks",
    "families",
    "fused_call",
    "in_turn",
    "judge",
    "of_every_family",
    "of_every_one_read",
    "with_and_without_residual",
]

HALVES = (torch.float16, torch.bfloat16)
ALL = (torch.float32, *HALVES, torch.float64)
# one-read plans hold 32-bit words
WORDS = (torch.float32, *HALVES)
# where the derivative of an activation jumps; elu's does unless alpha is 1
KINKS: dict[str, tuple[float, ...]] = {
    "relu": (0.0,),
    "relu6": (0.0, 6.0),
    "leaky_relu": (0.0,),
    "elu": (0.0,),
    "hardswish": (-3.0, 3.0),
}
# shifts of beta that are tried, in widths: elements are a thousand widths apart
SHIFTS = torch.arange(0, 256, dtype=torch.float64) * 4


@dataclass(frozen=True)
class Family:
    """A shape and pins for which one family of plans is chosen in training; `members` programs
    share a block of channels."""

    name: str
    kernels: tuple[list[str], list[str]]
    shape: tuple[int, ...]
    pins: dict[str, int]
    layout: str = "contiguous"
    dtypes: tuple[torch.dtype, ...] = WORDS
    members: int = 1

    def values(self, dtype: torch.dtype, ratio: float = 0.0) -> Tensor:
        """Random values of this shape in this layout; `ratio` as for `tests.inputs.values`."""
        return lay_out(values(self.shape, dtype, ratio), self.layout)

    @contextmanager
    def plan(self, seed: int = 1, training: bool = True) -> Iterator[list[LaunchRecord]]:
        """Plans of this family; afterwards every launch must have been one of its kernels.

        Programs that share a channel run under the schedule of `seed`.
        """
        with ExitStack() as stack:
            stack.enter_context(pinned_plan(**self.pins))
            if self.members > 1:
                pytest.importorskip("greenlet", reason="cooperative schedules need greenlet")
                stack.enter_context(cooperative(seed))
            launches = stack.enter_context(record_launches())
            yield launches
        assert launches
        names = {name for names in self.expected(training) for name in names}
        assert {launch.kernel for launch in launches} <= names
        for launch in launches:
            assert launch.constants.get("GROUPED", False) == (training and self.members > 1)
            split = self.members == 1 and self.pins.get("splits", 1) > 1
            assert launch.constants.get("SPLIT", split) == split

    def expected(self, training: bool) -> tuple[list[str], list[str]]:
        """The kernels of one forward and of one backward that makes all gradients."""
        return self.kernels if training else (["normalize_kernel"], ["gradients_kernel"])


def _one_read(kind: str) -> tuple[list[str], list[str]]:
    return [f"{kind}_forward_kernel"], [f"{kind}_backward_kernel"]


_FUSED = (["statistics_kernel"], ["gradients_kernel"])
_SPLIT = (
    ["statistics_kernel", "normalize_kernel"],
    ["gradients_kernel", "input_gradient_kernel"],
)
_LAST = "channels_last"
# blocks of channels and tiles of which the last is partial, in a program and between programs
_TILES = {"resident": 0, "fused": 1, "block_c": 4, "block_v": 128}
_SPLITS = {"resident": 0, "fused": 0, "splits": 3, "block_c": 4, "block_v": 32}
_HELD = {"resident": 1, "splits": 1}
_THREE = {"resident": 1, "splits": 3}
_STREAM = {"block_n": 8, "stream": 2, "pieces": 3}
TWO_READ = [
    # vectors of one element, and whole vectors
    Family("planes-fused", _FUSED, (6, 5, 7, 9), _TILES, dtypes=ALL),
    Family("planes-split", _SPLIT, (6, 5, 8, 8), _SPLITS, dtypes=ALL),
    Family("rows-fused", _FUSED, (6, 24, 3, 7), {**_TILES, "block_c": 16}, _LAST, ALL),
    Family("rows-split", _SPLIT, (6, 5, 3, 7), _SPLITS, _LAST, ALL),
]
ONE_READ = [
    Family("resident", _one_read("resident"), (3, 5, 8, 8), {**_HELD, "block_v": 16}),
    Family("narrow", _one_read("rows"), (20, 24, 5), {**_HELD, "block_c": 16, "block_n": 8}),
    Family("channels-last", _one_read("rows"), (9, 24, 3, 5), {**_HELD, "block_n": 32}, _LAST),
    Family("hybrid", _one_read("rows"), (3, 16, 3, 5), {**_HELD, **_STREAM}, _LAST),
]
GROUPS = [
    Family(
        "resident-3",
        _one_read("resident"),
        (7, 3, 4, 8),
        {**_THREE, "block_c": 2, "block_v": 8, "programs": 4},
        members=3,
    ),
    Family(
        "narrow-3",
        _one_read("rows"),
        (25, 24, 3),
        {**_THREE, "block_c": 16, "block_n": 8, "programs": 5},
        members=3,
    ),
    Family(
        "channels-last-3",
        _one_read("rows"),
        (7, 16, 3, 4),
        {**_THREE, "block_c": 8, "block_n": 16, "programs": 5},
        _LAST,
        members=3,
    ),
    Family(
        "hybrid-3",
        _one_read("rows"),
        (5, 16, 4, 4),
        {**_THREE, "block_c": 16, "block_n": 8, "pieces": 2, "stream": 1, "programs": 3},
        _LAST,
        members=3,
    ),
]
FAMILIES = [*TWO_READ, *ONE_READ, *GROUPS]


def families(chosen: list[Family]) -> MarkDecorator:
    """Parametrise `family` over these."""
    return pytest.mark.parametrize("family", [pytest.param(f, id=f.name) for f in chosen])


def in_turn(names: str, every: Sequence[Any], turns: Sequence[Any]) -> MarkDecorator:
    """Parametrise `names`, the last over `turns`: each of `every` with the next of them, round and
    round. An item of either may be a tuple of values."""
    cases = []
    for place, one in enumerate(every):
        values = [*_several(one), *_several(turns[place % len(turns)])]
        words = (str(getattr(v, "name", getattr(v, "id", v))) for v in values)
        cases.append(pytest.param(*values, id="-".join(words).replace("torch.", "")))
    return pytest.mark.parametrize(names.split(), cases)


def _several(item: Any) -> tuple[Any, ...]:
    return item if isinstance(item, tuple) else (item,)


of_every_family = families(FAMILIES)
of_every_one_read = families([*ONE_READ, *GROUPS])
with_and_without_residual = pytest.mark.parametrize(
    "residual", [pytest.param(False, id="alone"), pytest.param(True, id="residual")]
)


def clear_of_kinks(call: Operands, training: bool = True) -> Operands:
    """`call` with a beta that leaves no element of z so near to a kink that rounding decides."""
    assert call.beta is not None
    name, parameter = activation_of(call.activation)
    kinks = () if (name, parameter) == ("elu", 1.0) else KINKS.get(name, ())
    if not kinks:
        return call
    shape = (1, -1, *[1] * (call.x.dim() - 2))
    beta = call.beta
    # the width depends a little on the beta that it moves
    for _ in range(4):
        call = replace(call, beta=beta)
        z, width = _before_activation(call, training)
        if all((z - kink).abs().min() > width for kink in kinks):
            return call
        for kink in kinks:
            near = (z.unsqueeze(0) + (SHIFTS * width).view(-1, *[1] * z.dim()) - kink).abs()
            distance = near.amin([dim for dim in range(1, near.dim()) if dim != 2])
            # (C,): the first shift that is clear by a margin of two
            first = (distance > 2 * width).to(torch.int8).argmax(0)
            z = z + (SHIFTS[first] * width).view(shape)
            beta = (beta.double() + SHIFTS[first] * width).to(beta.dtype)
    raise AssertionError(f"expected a shift that clears every kink of {name}, found none")


def _before_activation(call: Operands, training: bool) -> tuple[Tensor, float]:
    """z in float64, and by how much a result that keeps its budget may differ from it."""
    plain = replace(call, activation="identity")
    z = plain.oracle(training).y
    # in what kernels compute in, whatever they store
    x = call.x if call.x.dtype == torch.float64 else call.x.float()
    narrow = torch_forward(replace(plain, x=x).wide(), training)
    return z, value_budget(z, narrow, narrow.dtype).limit


def fused_call(
    x: Tensor, activation: Activation | None, residual: Tensor | None = None, training: bool = True
) -> Operands:
    """`x` with random parameters, clear of kinks."""
    call = replace(operands(x), activation=activation, residual=residual)
    return clear_of_kinks(call, training)


def judge(call: Operands, dy: Tensor, training: bool = True) -> None:
    """One forward and one backward, all results judged."""
    saved, mask = check_forward_and_mask(call, training)
    check_backward(call, dy, training, saved=saved, mask=mask)
