"""The guide's SimpleCNN, narrowed, trained on handwritten digits three times: with torch's layers,
with ours in their place, and with ours that hold the activations too.

All start from the same weights and see the same batches, so their losses may differ by rounding
only. That our kernels really ran, and with the activation in them, is asserted and counted, not
assumed.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

import tritonbn
import tritonbn_kernels
from tritonbn.blocks import SimpleCNN
from tritonbn_kernels import LaunchRecord
from tritonbn_kernels.activation_names import ACTIVATIONS

from .inputs import digits_images
from .results import Row
from .saved import operators_of, saved_bytes
from .summary import LARGEST_GAP, OURS, SAVED_BYTES, STEP_LAUNCHES, UNFUSED

__all__ = [
    "Outcome",
    "Trained",
    "activation_in",
    "assert_launched",
    "train_three",
    "training_rows",
]

STEPS = 25
_BATCH, _RATE, _MOMENTUM = 64, 0.05, 0.9
_WIDTHS, _HIDDEN = (8, 16, 32), 32
_KINDS = ("torch", UNFUSED, OURS)
# names of the activations, as constants of our kernels have them
_ACTIVATIONS = frozenset(ACTIVATIONS) - {"identity"}


@dataclass(frozen=True)
class Trained:
    """What one training came to.

    Attributes:
        losses: cross entropy of every step
        kernels: launches of ours in all steps by name, with the activation where one is in it
        saved_bytes: of tensors kept for the backward pass of a step, parameters left out
        step_launches: launches of BatchNorm and activation in a step: ours, and for torch its
            operators, each at least one launch
    """

    losses: tuple[float, ...]
    kernels: dict[str, int]
    saved_bytes: int
    step_launches: int


@dataclass(frozen=True)
class Outcome:
    """What three trainings from the same start came to.

    Attributes:
        torch, unfused, fused: torch's layers, ours with torch's activations, ours with their own
        layers: BatchNorm layers of the network
        backend: what `tritonbn.backend` said of the first layer's input
        differing_keys: state-dict keys that not all networks have
        restored: whether `revert(convert(network))` has the types and values of the network
    """

    torch: Trained
    unfused: Trained
    fused: Trained
    layers: int
    backend: str
    differing_keys: tuple[str, ...]
    restored: bool

    @property
    def trained(self) -> dict[str, Trained]:
        """The three by provider."""
        return dict(zip(_KINDS, (self.torch, self.unfused, self.fused), strict=True))

    def gap(self, provider: str) -> float:
        """Largest difference between the losses of a step and torch's; infinite if one is not
        finite."""
        pairs = zip(self.torch.losses, self.trained[provider].losses, strict=True)
        gaps = [abs(theirs - ours) for theirs, ours in pairs]
        # max() passes over a NaN
        return max(gaps) if all(map(math.isfinite, gaps)) else math.inf

    def fault(self, provider: str) -> str:
        """What is wrong with one of ours; empty if nothing is."""
        if self.differing_keys:
            return f"state-dict keys differ: {', '.join(self.differing_keys)}"
        if provider == UNFUSED and not self.restored:
            return "revert(convert(network)) is not the network"
        gap = self.gap(provider)
        if gap >= LARGEST_GAP:
            return f"the losses differ by {gap:.3g}, allowed is {LARGEST_GAP:g}"
        return ""


def train_three(
    device: str, steps: int = STEPS, *, on_step: Callable[[], None] = lambda: None
) -> Outcome:
    """Train the three, step by step.

    Args:
        device: "cuda" or "cpu"
        steps: optimiser steps
        on_step: called after each step of the three

    Raises:
        RuntimeError: tritonbn would not run its kernels here, launched none, or launched some
            without the activation that belongs into them
    """
    torch.manual_seed(0)
    unfused = SimpleCNN(1, widths=_WIDTHS, hidden=_HIDDEN, fused=False)
    # the block is made of our layers: torch's own stand in the copy that is the measure
    theirs = tritonbn.revert(unfused).to(device)
    converted = tritonbn.convert(copy.deepcopy(theirs))
    fused = SimpleCNN(1, widths=_WIDTHS, hidden=_HIDDEN, fused=True).to(device)
    networks = dict(zip(_KINDS, (theirs, converted, fused), strict=True))
    keys = _differing_keys(list(networks.values()))
    if not keys:
        fused.load_state_dict(theirs.state_dict())
    images, labels = (tensor.to(device) for tensor in digits_images())
    first = (images[:_BATCH], labels[:_BATCH])
    backends = [_backend_in(networks[kind], first[0]) for kind in (UNFUSED, OURS)]
    restored = _equal(tritonbn.revert(tritonbn.convert(copy.deepcopy(theirs))), theirs)
    measured = {kind: _measure(network, *first) for kind, network in networks.items()}
    trainers = {kind: _Trainer(network) for kind, network in networks.items()}
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).to(device)
    for step in range(steps):
        chosen = order[torch.arange(step * _BATCH, (step + 1) * _BATCH) % len(order)]
        for trainer in trainers.values():
            trainer.step(images[chosen], labels[chosen])
        on_step()
    layers = sum(
        isinstance(module, tritonbn.BatchNorm2d | tritonbn.BatchNorm1d)
        for module in converted.modules()
    )
    assert_launched({kind: one.records for kind, one in trainers.items()}, layers * steps)
    found = {kind: trainer.trained(steps, *measured[kind]) for kind, trainer in trainers.items()}
    return Outcome(
        found["torch"],
        found[UNFUSED],
        found[OURS],
        layers,
        backends[0],
        tuple(sorted(keys)),
        restored,
    )


def _measure(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[int, int]:
    """Bytes saved for backward in a step, and torch's operators of BatchNorm and activation."""
    # a copy, so that looking does not move the running statistics of what is trained
    spare = copy.deepcopy(network).train()

    made: list[Tensor] = []

    def loss() -> Tensor:
        made.append(functional.cross_entropy(spare(images), labels))
        return made[-1]

    return saved_bytes(loss, spare), operators_of(made[-1])


def assert_launched(
    launches: Mapping[str, Mapping[str, Sequence[LaunchRecord]]], calls: int
) -> None:
    """Raise unless ours launched a kernel in each call of a layer, forward and backward: with the
    activation in it where it belongs, and nowhere else.

    Args:
        launches: by provider and direction
        calls: of layers in each direction
    """
    for kind in (UNFUSED, OURS):
        for direction, records in launches[kind].items():
            with_activation = sum(activation_in(record) is not None for record in records)
            counted = with_activation if kind == OURS else len(records)
            what = "kernels with their activation" if kind == OURS else "kernels"
            if counted < calls:
                raise RuntimeError(
                    f"expected {calls} calls of {kind} layers to launch {what} {direction}, "
                    f"got {counted} launches"
                )
            if kind == UNFUSED and with_activation:
                raise RuntimeError(
                    f"expected {UNFUSED} layers to leave activations to torch, got "
                    f"{with_activation} launches with one {direction}"
                )
    if any(launches["torch"].values()):
        raise RuntimeError("expected torch's layers to launch none of our kernels, got some")


def activation_in(record: LaunchRecord) -> str | None:
    """The activation among the constants of a launch; None for the identity or none at all."""

    def names(values: Iterable[object]) -> Iterable[str]:
        for value in values:
            if isinstance(value, tuple):
                yield from names(value)
            elif isinstance(value, str):
                yield value

    return next((name for name in names(record.constants.values()) if name in _ACTIVATIONS), None)


@dataclass
class _Trainer:
    """A network, its optimiser, and what its steps left."""

    network: nn.Module
    losses: list[float] = field(default_factory=list)
    records: dict[str, list[LaunchRecord]] = field(
        default_factory=lambda: {"forward": [], "backward": []}
    )

    def __post_init__(self) -> None:
        parameters = self.network.train().parameters()
        self._optimizer = torch.optim.SGD(parameters, lr=_RATE, momentum=_MOMENTUM)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One optimiser step; keeps the loss before it and the launches."""
        self._optimizer.zero_grad()
        with tritonbn_kernels.record_launches() as forward:
            loss = functional.cross_entropy(self.network(images), labels)
        with tritonbn_kernels.record_launches() as backward:
            torch.autograd.backward(loss)
        self._optimizer.step()
        self.losses.append(float(loss.detach()))
        self.records["forward"] += forward
        self.records["backward"] += backward

    def trained(self, steps: int, saved: int, operators: int) -> Trained:
        """What it came to, with what `_measure` found."""
        records = [*self.records["forward"], *self.records["backward"]]
        kernels: Counter[str] = Counter()
        for record in records:
            activation = activation_in(record)
            kernels[record.kernel + (f" with {activation}" if activation else "")] += 1
        launches = len(records) // steps + operators
        return Trained(tuple(self.losses), dict(kernels), saved, launches)


def _differing_keys(networks: Sequence[nn.Module]) -> set[str]:
    counts = Counter(key for network in networks for key in network.state_dict())
    return {key for key, count in counts.items() if count < len(networks)}


def _backend_in(network: nn.Module, images: Tensor) -> str:
    """What `tritonbn.backend` says of the input of the first BatchNorm layer."""
    found: list[str] = []

    def look(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        found.append(tritonbn.backend(arguments[0]))

    # a copy, so that looking does not move the running statistics of what is trained
    spare = copy.deepcopy(network)
    first = next(m for m in spare.modules() if isinstance(m, tritonbn.BatchNorm2d))
    with first.register_forward_pre_hook(look):
        spare(images)
    if found[0] == "torch":
        raise RuntimeError("tritonbn hands this network to torch: nothing of ours to compare")
    return found[0]


def _equal(first: nn.Module, second: nn.Module) -> bool:
    """Whether two networks agree in the types of their modules and in their state, bit by bit."""
    if [type(m) for m in first.modules()] != [type(m) for m in second.modules()]:
        return False
    theirs = second.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in first.state_dict().items())


def training_rows(outcome: Outcome) -> list[Row]:
    """Rows of three trainings: every loss, then figures of each, then those of them all."""
    backends = {kind: "torch" if kind == "torch" else outcome.backend for kind in _KINDS}
    rows = [
        _row(kind, "loss", loss, backend=backends[kind], step=step)
        for kind, trained in outcome.trained.items()
        for step, loss in enumerate(trained.losses)
    ]
    for kind in (UNFUSED, OURS):
        fault = outcome.fault(kind)
        rows.append(
            _row(
                kind,
                "largest loss gap",
                outcome.gap(kind),
                backend=outcome.backend,
                bound=LARGEST_GAP,
                status="failed" if fault else "ok",
                reason=fault,
            )
        )
    for kind, trained in outcome.trained.items():
        rows.append(_row(kind, STEP_LAUNCHES, trained.step_launches, backend=backends[kind]))
        saved = _row(kind, SAVED_BYTES, trained.saved_bytes, backend=backends[kind], unit="bytes")
        rows.append(saved)
        rows += [
            _row(kind, f"launches of {name}", count, backend=backends[kind])
            for name, count in sorted(trained.kernels.items())
        ]
    counts = {
        "BatchNorm layers": outcome.layers,
        "differing state-dict keys": len(outcome.differing_keys),
        "revert(convert(network)) is the network, 1 = yes": int(outcome.restored),
    }
    return [*rows, *(_row(OURS, name, n, backend=outcome.backend) for name, n in counts.items())]


def _row(
    provider: str,
    quantity: str,
    value: float,
    *,
    backend: str,
    unit: str = "1",
    step: int | None = None,
    bound: float | None = None,
    status: str = "ok",
    reason: str = "",
) -> Row:
    return Row(
        job="training",
        kind="measured",
        case="SimpleCNN on digits",
        provider=provider,
        quantity=quantity,
        unit=unit,
        value=float(value) if math.isfinite(value) else None,
        bound=bound,
        dtype="fp32",
        data="digits",
        origin=f"widths {_WIDTHS}, hidden {_HIDDEN}, batch {_BATCH}, SGD {_RATE}",
        fusion="relu" if provider == OURS else "none",
        backend=backend,
        step=step,
        status=status,
        reason=reason,
    )
