"""Memory of a training step computed by accounting: shapes and rules, no tensors.

A network is a function of an `Operators`, which hands out `Value`s. `Accounts` implements them by
rules: what an operator allocates, what it keeps for its backward pass, and what gradients that
makes. Storages live as long as Python refers to them, as torch's do, so a network written as
torch's is has the lifetimes of torch's. Counted are activations, what is kept of them, and their
gradients; left out are parameters, their gradients, optimiser state, and workspaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Protocol, TypeVar

from tritonbn_kernels.activation_names import INVERTIBLE, TWO_SLOPES
from tritonbn_kernels.traffic import mask_bytes

from .cases import DTYPES

__all__ = ["WAYS", "Accounts", "Operators", "Usage", "Value", "Way", "resnet", "resnet50_usage"]

RESNET50_DEPTHS = (3, 4, 6, 3)
# what the derivative is computed from: the result where that is enough
_FROM_RESULT = ("relu", "relu6", "sigmoid", "tanh")
_FROM_RESULT_IN_PLACE = (*_FROM_RESULT, "leaky_relu", "elu")
_VECTOR_ITEMSIZE, _INDEX_ITEMSIZE = 4, 8


@dataclass(frozen=True)
class Way:
    """How BatchNorm and what follows it are computed.

    Attributes:
        name: as tables and pictures show it
        provider: whose it is
        fused: in one kernel of ours; else by torch's operators
        in_place: torch adds and activates in place where its backward pass lets it
        memory_efficient: where the activation can be inverted and nothing is added, BatchNorm keeps
            the result and not its input
    """

    name: str
    provider: str
    fused: bool = False
    in_place: bool = False
    memory_efficient: bool = False


WAYS = (
    Way("torch, in place", "torch", in_place=True),
    Way("torch, nothing in place", "torch out of place"),
    Way("tritonbn, fused", "tritonbn", fused=True),
    Way("tritonbn, fused, memory_efficient", "tritonbn memory_efficient", True, False, True),
)

_T = TypeVar("_T")


class Operators(Protocol[_T]):
    """What a convolutional network is made of."""

    def conv(self, x: _T, channels: int, kernel: int, stride: int) -> _T: ...

    def norm(self, x: _T, activation: str, residual: _T | None = None) -> _T: ...

    def max_pool(self, x: _T) -> _T: ...

    def mean(self, x: _T) -> _T: ...

    def linear(self, x: _T, features: int) -> _T: ...


def resnet(
    operators: Operators[_T],
    image: _T,
    depths: Sequence[int] = RESNET50_DEPTHS,
    *,
    width: int = 64,
    classes: int = 1000,
    activation: str = "relu",
) -> _T:
    """The logits of a ResNet of bottlenecks, its stride in the 3 x 3 convolution.

    Args:
        operators: what runs it
        image: `(N, 3, H, W)`
        depths: blocks of each stage; of ResNet-50 by default
        width: channels of the first convolution
        classes: logits
        activation: in place of ReLU
    """
    out = operators.conv(image, width, 7, 2)
    out = operators.norm(out, activation)
    out = operators.max_pool(out)
    for index, depth in enumerate(depths):
        for block in range(depth):
            stride = 2 if index and not block else 1
            out = _bottleneck(operators, out, width << index, stride, not block, activation)
    return operators.linear(operators.mean(out), classes)


def _bottleneck(
    operators: Operators[_T], x: _T, width: int, stride: int, widens: bool, activation: str
) -> _T:
    shortcut = x
    out = operators.norm(operators.conv(x, width, 1, 1), activation)
    out = operators.norm(operators.conv(out, width, 3, stride), activation)
    out = operators.conv(out, 4 * width, 1, 1)
    if widens:
        shortcut = operators.norm(operators.conv(x, 4 * width, 1, stride), "identity")
    return operators.norm(out, activation, shortcut)


class _Storage:
    """Bytes that are counted until nothing refers to them."""

    def __init__(self, accounts: Accounts, size: int) -> None:
        self.size = size
        self._accounts = accounts
        accounts.change(size)

    def __del__(self) -> None:
        self._accounts.change(-self.size)


@dataclass(eq=False)
class Value:
    """A tensor: its shape, its storage, which a result in place shares, and a number of its own."""

    shape: tuple[int, ...]
    storage: _Storage
    number: int


@dataclass
class _Node:
    """An operator's part in the backward pass.

    Attributes:
        output: number of its result
        inputs: for each that has a gradient its number, and its bytes, None where the gradient of
            the result is that of the input too
        saved: what it keeps
    """

    output: int
    inputs: list[tuple[int, int | None]]
    saved: list[_Storage]


@dataclass(frozen=True)
class Usage:
    """Bytes of a training step.

    Attributes:
        saved: kept for the backward pass when the forward pass ends, each storage once
        peak: at most, of activations and their gradients at once
    """

    saved: int
    peak: int


@dataclass
class Accounts:
    """`Operators` by rules.

    Attributes:
        way: how BatchNorm and what follows are computed
        itemsize: bytes of an element
        now, peak: bytes alive, and at most so far
    """

    way: Way
    itemsize: int
    now: int = 0
    peak: int = 0
    _nodes: list[_Node] = field(default_factory=list)
    _given: set[int] = field(default_factory=set)
    _count: int = 0

    def change(self, size: int) -> None:
        """Count bytes that come or go."""
        self.now += size
        self.peak = max(self.peak, self.now)

    def given(self, shape: tuple[int, ...]) -> Value:
        """A tensor that needs no gradient."""
        value = self._value(shape)
        self._given.add(value.number)
        return value

    def conv(self, x: Value, channels: int, kernel: int, stride: int) -> Value:
        """A padded convolution without bias; keeps x."""
        n, _, *plane = x.shape
        y = self._value((n, channels, *(-(-size // stride) for size in plane)))
        return self._record(y, [x.storage], (x, False))

    def norm(self, x: Value, activation: str, residual: Value | None = None) -> Value:
        """BatchNorm, addition, activation: as `way` has it."""
        if self.way.fused:
            return self._fused(x, activation, residual)
        # mean and inverse standard deviation of the batch
        y = self._record(self._value(x.shape), [x.storage, self._vectors(x, 2)], (x, False))
        if residual is not None:
            total = self._value(y.shape, y.storage if self.way.in_place else None)
            y = self._record(total, [], (y, True), (residual, True))
        return y if activation == "identity" else self._activate(y, activation)

    def _activate(self, z: Value, activation: str) -> Value:
        in_place = self.way.in_place and activation in _FROM_RESULT_IN_PLACE
        y = self._value(z.shape, z.storage if in_place else None)
        kept = y if in_place or activation in _FROM_RESULT else z
        return self._record(y, [kept.storage], (z, False))

    def _fused(self, x: Value, activation: str, residual: Value | None) -> Value:
        y = self._value(x.shape)
        invertible = activation in INVERTIBLE and residual is None
        kept = y if self.way.memory_efficient and invertible else x
        # mean in two words, and inverse standard deviation
        saved = [kept.storage, self._vectors(x, 3)]
        if residual is None:
            return self._record(y, saved, (x, False))
        if activation in TWO_SLOPES:
            saved.append(self._storage(mask_bytes(prod(x.shape), self.itemsize)))
        elif activation != "identity":
            saved.append(residual.storage)
        return self._record(y, saved, (x, False), (residual, activation == "identity"))

    def max_pool(self, x: Value) -> Value:
        """Of 3 x 3, halving; keeps x and the index of every maximum."""
        n, channels, *plane = x.shape
        y = self._value((n, channels, *(-(-size // 2) for size in plane)))
        indices = self._storage(prod(y.shape) * _INDEX_ITEMSIZE)
        return self._record(y, [x.storage, indices], (x, False))

    def mean(self, x: Value) -> Value:
        """Over the plane, `(N, C)`; keeps nothing."""
        return self._record(self._value(x.shape[:2]), [], (x, False))

    def linear(self, x: Value, features: int) -> Value:
        """`(N, features)`; keeps x."""
        return self._record(self._value((x.shape[0], features)), [x.storage], (x, False))

    def saved(self) -> int:
        """Bytes kept for the backward pass now."""
        kept = {id(storage): storage for node in self._nodes for storage in node.saved}
        return sum(storage.size for storage in kept.values())

    def backward(self, output: Value) -> None:
        """Go back from a result, giving up what is no longer needed. A second gradient of a value
        is added to the first in place, as autograd does."""
        gradients = {output.number: self._storage(self._bytes(output))}
        while self._nodes:
            node = self._nodes.pop()
            gradient = gradients.pop(node.output)
            for number, size in node.inputs:
                made = gradient if size is None else self._storage(size)
                gradients.setdefault(number, made)
                del made

    def _bytes(self, value: Value) -> int:
        return prod(value.shape) * self.itemsize

    def _storage(self, size: int) -> _Storage:
        return _Storage(self, size)

    def _vectors(self, x: Value, count: int) -> _Storage:
        return self._storage(count * x.shape[1] * _VECTOR_ITEMSIZE)

    def _value(self, shape: tuple[int, ...], storage: _Storage | None = None) -> Value:
        """A new tensor, in a storage of its own if None."""
        self._count += 1
        if storage is None:
            storage = self._storage(prod(shape) * self.itemsize)
        return Value(shape, storage, self._count)

    def _record(self, y: Value, saved: list[_Storage], *inputs: tuple[Value, bool]) -> Value:
        """Note an operator. Of each input: whether its gradient is that of y."""
        noted = [
            (x.number, None if same else self._bytes(x))
            for x, same in inputs
            if x.number not in self._given
        ]
        self._nodes.append(_Node(y.number, noted, saved))
        return y


def resnet50_usage(way: Way, batch: int, dtype: str, activation: str = "relu") -> Usage:
    """Memory of a training step of ResNet-50 on 224 x 224 images, up to its logits.

    Args:
        way: how BatchNorm and what follows are computed
        batch: N
        dtype: key of DTYPES, of all activations
        activation: in place of ReLU
    """
    accounts = Accounts(way, DTYPES[dtype])
    logits = resnet(accounts, accounts.given((batch, 3, 224, 224)), activation=activation)
    saved = accounts.saved()
    accounts.backward(logits)
    return Usage(saved, accounts.peak)
