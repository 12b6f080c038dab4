"""Calls of one launch: made at once they hand the kernel what their steps do, and where something
else has to be decided the steps are taken."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.inputs import DEVICE
from tritonbn_kernels import clear_cache, forward_call, pinned_plan
from tritonbn_kernels.forward import ForwardCall
from tritonbn_kernels.launch import Launch

SHAPE = (4, 8, 4, 4)
ALL = (True, True, True)
# gamma, beta, running mean and variance, count
Vectors = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
# plans of one launch, by the kernel that they take
PLANS: list[Any] = [
    pytest.param({"fused": 1, "resident": 0}, "statistics_kernel", id="two-read"),
    pytest.param({"resident": 1, "splits": 1, "block_c": 1}, "resident_forward_kernel", id="wide"),
]


class Seen(list[tuple[str, str, tuple[Any, ...]]]):
    """Launches instead of which nothing ran: by steps or at once, the kernel, its arguments."""

    @property
    def ways(self) -> list[str]:
        return [way for way, _, _ in self]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every launch notes its arguments and counts as compiled; nothing runs."""
    seen = Seen()

    def by_steps(self: Launch, tensors: tuple[Tensor | None, ...], *floats: float) -> None:
        name = self.kernel.fn.__name__
        self._start = lambda arguments: seen.append(("at once", name, arguments))
        addresses = (None if one is None else one.data_ptr() for one in tensors)
        seen.append(("by steps", name, (*addresses, *self._integers, *floats, *self._values)))

    clear_cache()
    monkeypatch.setattr(Launch, "__call__", by_steps)
    yield seen
    clear_cache()


def _vectors() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gamma, beta, mean, var = (torch.randn(SHAPE[1], device=DEVICE) for _ in range(4))
    return gamma, beta, mean, var, torch.tensor(0, device=DEVICE)


def _input(*shape: int) -> Tensor:
    return torch.randn(shape or SHAPE, device=DEVICE)


def backward(
    call: ForwardCall,
    dy: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    saved: Tensor,
    needs: tuple[bool, bool, bool] = ALL,
) -> tuple[Tensor | None, ...]:
    """The gradients of a plain call."""
    return call.backward((dy, x, gamma, None, saved, None), (*needs, False))


def _call(x: Tensor, vectors: Vectors, training: bool = True) -> ForwardCall:
    """A call that has been made before."""
    gamma, beta, mean, var, tracked = vectors
    call = forward_call(x, gamma, beta, mean, var, tracked, training, 0.25, 1e-3)
    call(x, gamma, beta, mean, var, tracked, 0.25, 1e-3)
    return call


@pytest.mark.parametrize("absent", [(), (0, 1), (2, 3, 4)], ids=["all", "plain", "untracked"])
@pytest.mark.parametrize(("pins", "kernel"), PLANS)
def test_forward_at_once_takes_the_arguments_of_its_steps(
    pins: dict[str, int], kernel: str, absent: tuple[int, ...], seen: Seen
) -> None:
    x = _input()
    vectors = cast(Vectors, tuple(None if i in absent else v for i, v in enumerate(_vectors())))
    with pinned_plan(**pins):
        y, saved = _call(x, vectors).bound(*vectors, 0.25, 1e-3)(x)
    (_, first, by_steps), (way, second, at_once) = seen
    assert (way, first, second) == ("at once", kernel, kernel)
    assert at_once == (*by_steps[:3], y.data_ptr(), saved.data_ptr(), *by_steps[5:])
    assert (y.shape, y.stride(), y.dtype) == (x.shape, x.stride(), x.dtype)
    assert (saved.shape, saved.dtype) == ((3, SHAPE[1]), torch.float32)


@pytest.mark.parametrize(("pins", "kernel"), PLANS)
def test_backward_at_once_takes_the_arguments_of_its_steps(
    pins: dict[str, int], kernel: str, seen: Seen
) -> None:
    x, dy, vectors, saved = _input(), _input(), _vectors(), _input(3, SHAPE[1])
    with pinned_plan(**pins):
        call = _call(x, vectors)
        backward(call, dy, x, vectors[0], saved)
        gradients = backward(call, dy, x, vectors[0], saved)
    (_, first, by_steps), (way, second, at_once) = seen[1:]
    assert way == "at once" and first == second != kernel
    addresses = [one.data_ptr() for one in gradients if one is not None]
    assert at_once == (*by_steps[:5], *addresses, *by_steps[8:])
    for gradient, like in zip(gradients[:3], (x, *vectors[:2]), strict=True):
        assert gradient is not None
        assert (gradient.stride(), gradient.dtype) == (like.stride(), like.dtype)


def _off(tensor: Tensor) -> Tensor:
    """`tensor` at an address that is no multiple of 16."""
    return torch.cat([tensor.flatten(), tensor.flatten()[:1]])[1:].view(tensor.shape)


@pytest.mark.parametrize("moved", range(5), ids=["gamma", "beta", "mean", "var", "count"])
def test_unaligned_vectors_are_launched_by_steps(moved: int, seen: Seen) -> None:
    x, vectors = _input(), list(_vectors())
    vectors[moved] = _off(vectors[moved].expand(1) if moved == 4 else vectors[moved])
    given = cast(Vectors, tuple(vectors))
    _call(x, given).bound(*given, 0.25, 1e-3)(x)
    assert seen.ways == ["by steps", "by steps"]


def test_unaligned_input_is_launched_by_steps(seen: Seen) -> None:
    x, vectors = _input(), _vectors()
    bound = _call(x, vectors).bound(*vectors, 0.25, 1e-3)
    bound(_off(x))
    bound(x)
    assert seen.ways == ["by steps", "by steps", "at once"]


@pytest.mark.parametrize(
    ("pins", "x", "training", "count"),
    [
        pytest.param({"fused": 0, "splits": 2, "resident": 0}, _input, True, 2, id="split"),
        pytest.param({"resident": 1, "splits": 2, "programs": 2}, _input, True, 1, id="waiting"),
        pytest.param({}, lambda: _input(4, 4, 8, 4).permute(0, 2, 1, 3), True, 1, id="copied"),
        pytest.param({}, _input, False, 1, id="evaluation"),
    ],
)
def test_what_is_not_one_ready_launch_goes_by_steps(
    pins: dict[str, int], x: Callable[[], Tensor], training: bool, count: int, seen: Seen
) -> None:
    made, vectors = x(), _vectors()
    with pinned_plan(**pins):
        _call(made, vectors, training).bound(*vectors, 0.25, 1e-3)(made)
    assert seen.ways == 2 * count * ["by steps"]


def _another_plan(call: ForwardCall, dy: Tensor, x: Tensor, gamma: Tensor, saved: Tensor) -> None:
    with pinned_plan(num_warps=8):
        backward(call, dy, x, gamma, saved)


@pytest.mark.parametrize(("pins", "kernel"), PLANS)
def test_a_cumulative_average_needs_counters_and_goes_by_steps(
    pins: dict[str, int], kernel: str, seen: Seen
) -> None:
    x, vectors = _input(), _vectors()
    with pinned_plan(**pins):
        call = forward_call(x, *vectors, True, None, 1e-3)
        call(x, *vectors, None, 1e-3)
        call.bound(*vectors, None, 1e-3)(x)
    assert [way[:2] for way in seen] == 2 * [("by steps", kernel)]


def _permuted(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


@pytest.mark.parametrize(
    ("x", "dy", "needs"),
    [
        pytest.param(_permuted, torch.clone, ALL, id="x-copied"),
        pytest.param(torch.clone, _permuted, ALL, id="dy-copied"),
        pytest.param(torch.clone, torch.clone, (True, True, False), id="no-dbeta"),
        pytest.param(torch.clone, torch.clone, (True, False, True), id="no-dgamma"),
        pytest.param(torch.clone, torch.clone, (False, True, True), id="no-dx"),
    ],
)
def test_backward_that_decides_something_goes_by_steps(
    x: Callable[[Tensor], Tensor],
    dy: Callable[[Tensor], Tensor],
    needs: tuple[bool, bool, bool],
    seen: Seen,
) -> None:
    given, gamma, saved = x(_input()), _vectors()[0], _input(3, SHAPE[1])
    call = _call(given, (gamma, None, None, None, None))
    for _ in range(2):
        gradients = backward(call, dy(_input()), given, gamma, saved, needs)
        assert tuple(one is not None for one in gradients) == (*needs, False)
    assert seen.ways == 3 * ["by steps"]


CHANGES: dict[str, Callable[[ForwardCall, Tensor, Tensor, Tensor, Tensor], object]] = {
    "plan": _another_plan,
    "dy-layout": lambda call, dy, x, gamma, saved: backward(
        call, dy.contiguous(memory_format=torch.channels_last), x, gamma, saved
    ),
    "x-layout": lambda call, dy, x, gamma, saved: backward(
        call, dy, x.contiguous(memory_format=torch.channels_last), gamma, saved
    ),
    "dy-address": lambda call, dy, x, gamma, saved: backward(call, _off(dy), x, gamma, saved),
    "x-address": lambda call, dy, x, gamma, saved: backward(call, dy, _off(x), gamma, saved),
    "gamma-address": lambda call, dy, x, gamma, saved: backward(call, dy, x, _off(gamma), saved),
    "gamma-dtype": lambda call, dy, x, gamma, saved: backward(call, dy, x, gamma.double(), saved),
    "saved-address": lambda call, dy, x, gamma, saved: backward(call, dy, x, gamma, _off(saved)),
    "needs": lambda call, dy, x, gamma, saved: backward(
        call, dy, x, gamma, saved, (False, True, True)
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_kind_of_backward_goes_by_steps(
    change: Callable[[ForwardCall, Tensor, Tensor, Tensor, Tensor], object], seen: Seen
) -> None:
    x, dy, gamma, saved = _input(), _input(), _vectors()[0], _input(3, SHAPE[1])
    call = _call(x, (gamma, None, None, None, None))
    for _ in range(2):
        backward(call, dy, x, gamma, saved)
    del seen[:2]
    change(call, dy, x, gamma, saved)
    assert seen.ways[0] == "at once" and set(seen.ways[1:]) == {"by steps"}


@pytest.mark.parametrize("which", [0, 1], ids=["x", "saved"])
def test_saved_tensors_of_another_dtype_are_refused(which: int, seen: Seen) -> None:
    dy, gamma = _input(), _vectors()[0]
    tensors = [_input(), _input(3, SHAPE[1])]
    call = _call(tensors[0], (gamma, None, None, None, None))
    for _ in range(2):
        backward(call, dy, tensors[0], gamma, tensors[1])
    tensors[which] = tensors[which].double()
    with pytest.raises(TypeError, match=r"expected saved dtypes .*float32.*, got .*float64"):
        backward(call, dy, tensors[0], gamma, tensors[1])
