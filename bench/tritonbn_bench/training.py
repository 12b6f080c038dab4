"""The guide's SimpleCNN, narrowed, trained on handwritten digits: converted beside unconverted.

Both copies start from the same weights and see the same batches, so their losses may differ by
rounding only. That our kernels really ran is asserted and counted, not assumed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import tritonbn
import tritonbn_kernels
from tritonbn.blocks import SimpleCNN

from .inputs import digits_images
from .results import Row
from .summary import LARGEST_GAP

__all__ = ["Outcome", "train_pair", "training_rows"]

STEPS = 25
_BATCH, _RATE, _MOMENTUM = 64, 0.05, 0.9
_WIDTHS, _HIDDEN = (8, 16, 32), 32


@dataclass(frozen=True)
class Outcome:
    """What two trainings from the same start came to.

    Attributes:
        torch_losses, losses: cross entropy of every step, torch's layers and ours
        launches: kernel launches of ours in all steps, forward and backward
        layers: BatchNorm layers of the network
        backend: what `tritonbn.backend` said of the first layer's input
        differing_keys: state-dict keys that only one of the two networks has
        restored: whether `revert(convert(network))` has the types and values of the network
    """

    torch_losses: tuple[float, ...]
    losses: tuple[float, ...]
    launches: int
    layers: int
    backend: str
    differing_keys: tuple[str, ...]
    restored: bool

    @property
    def gap(self) -> float:
        """Largest difference between the losses of a step; infinite if one is not finite."""
        pairs = zip(self.torch_losses, self.losses, strict=True)
        gaps = [abs(theirs - ours) for theirs, ours in pairs]
        # max() passes over a NaN
        return max(gaps) if all(map(math.isfinite, gaps)) else math.inf

    @property
    def fault(self) -> str:
        """What is wrong with it; empty if nothing is."""
        if self.differing_keys:
            return f"state-dict keys differ: {', '.join(self.differing_keys)}"
        if not self.restored:
            return "revert(convert(network)) is not the network"
        if self.gap >= LARGEST_GAP:
            return f"the losses differ by {self.gap:.3g}, allowed is {LARGEST_GAP:g}"
        return ""


def train_pair(
    device: str, steps: int = STEPS, *, on_step: Callable[[], None] = lambda: None
) -> Outcome:
    """Train both copies, step by step.

    Args:
        device: "cuda" or "cpu"
        steps: optimiser steps
        on_step: called after each step of the two

    Raises:
        RuntimeError: tritonbn would not run its kernels here, or launched none
    """
    torch.manual_seed(0)
    network = SimpleCNN(1, widths=_WIDTHS, hidden=_HIDDEN)
    # the block is made of our layers: torch's own stand in the copy that is the measure
    theirs = tritonbn.revert(network).to(device)
    ours = tritonbn.convert(copy.deepcopy(theirs))
    images, labels = (tensor.to(device) for tensor in digits_images())
    backend = _backend_in(ours, images[:_BATCH])
    keys = set(theirs.state_dict()) ^ set(ours.state_dict())
    restored = _equal(tritonbn.revert(tritonbn.convert(copy.deepcopy(theirs))), theirs)
    trainer, rival = _Trainer(ours), _Trainer(theirs)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).to(device)
    losses, torch_losses, launches = [], [], 0
    for step in range(steps):
        chosen = order[torch.arange(step * _BATCH, (step + 1) * _BATCH) % len(order)]
        torch_losses.append(rival.step(images[chosen], labels[chosen]))
        with tritonbn_kernels.record_launches() as records:
            losses.append(trainer.step(images[chosen], labels[chosen]))
        launches += len(records)
        on_step()
    layers = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in ours.modules())
    if launches < 2 * layers * steps:
        raise RuntimeError(f"{layers} layers launched {launches} kernels in {steps} steps")
    return Outcome(
        tuple(torch_losses), tuple(losses), launches, layers, backend, tuple(sorted(keys)), restored
    )


class _Trainer:
    """A network and its optimiser."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network.train()
        self._optimizer = torch.optim.SGD(network.parameters(), lr=_RATE, momentum=_MOMENTUM)

    def step(self, images: Tensor, labels: Tensor) -> float:
        """One optimiser step; the loss before it."""
        self._optimizer.zero_grad()
        loss = functional.cross_entropy(self._network(images), labels)
        torch.autograd.backward(loss)
        self._optimizer.step()
        return float(loss.detach())


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
    """Rows of two trainings: each loss of either, the largest gap, the launches."""
    rows = [
        _row(provider, "loss", loss, backend=backend, step=step)
        for provider, backend, losses in (
            ("torch", "torch", outcome.torch_losses),
            ("tritonbn", outcome.backend, outcome.losses),
        )
        for step, loss in enumerate(losses)
    ]
    fault = outcome.fault
    gap = _row(
        "tritonbn",
        "largest loss gap",
        outcome.gap,
        backend=outcome.backend,
        bound=LARGEST_GAP,
        status="failed" if fault else "ok",
        reason=fault,
    )
    counts = {
        "kernel launches": outcome.launches,
        "BatchNorm layers": outcome.layers,
        "differing state-dict keys": len(outcome.differing_keys),
        "revert(convert(network)) is the network, 1 = yes": int(outcome.restored),
    }
    others = [
        _row("tritonbn", quantity, float(count), backend=outcome.backend)
        for quantity, count in counts.items()
    ]
    return [*rows, gap, *others]


def _row(
    provider: str,
    quantity: str,
    value: float,
    *,
    backend: str,
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
        value=value if math.isfinite(value) else None,
        bound=bound,
        dtype="fp32",
        data="digits",
        origin=f"widths {_WIDTHS}, hidden {_HIDDEN}, batch {_BATCH}, SGD {_RATE}",
        backend=backend,
        step=step,
        status=status,
        reason=reason,
    )
