"""Who computes a BatchNorm and what follows it: tritonbn in one kernel, tritonbn with torch's
operators behind it, its rivals, and a copy that shows the machine's ceiling.

Every provider gets the same inputs and says which implementation really runs for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import deterministic

import tritonbn
from tritonbn_kernels.traffic import floor_bytes, two_read_bytes, unfused_bytes

from .cases import Case
from .fusions import NONE, PLAIN
from .inputs import Inputs
from .timer import Work

__all__ = [
    "ACTIVATIONS",
    "PROVIDERS",
    "BatchNorm",
    "Prepared",
    "Provider",
    "composed",
    "poisoned_memory",
    "prepare_function",
    "results_of",
    "torch_backend",
]

# signature of torch.nn.functional.batch_norm; with a fusion residual= and activation= too
BatchNorm = Callable[..., Tensor]
# torch's own, in place where its backward pass lets it
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "relu": torch.relu_,
    "relu6": lambda z: functional.relu6(z, inplace=True),
    # needs its argument again, and in place it would copy it first
    "silu": functional.silu,
    "sigmoid": torch.sigmoid_,
}


@dataclass(frozen=True)
class Prepared:
    """A provider made ready for one case.

    Attributes:
        backend: the implementation that really runs
        call: what is timed; gets what `setup` returned
        setup: run untimed before each call
        outputs: a fresh run from untouched buffers, every result by name
        moved_bytes: bytes moved by the formula of this provider's algorithm
        graph: the forward pass that keeps what the backward pass needs; None where there is none
        produce: writes the call's main operand anew, as the operator before it does
    """

    backend: str
    call: Callable[[Any], object]
    setup: Callable[[], Any]
    outputs: Callable[[], dict[str, Tensor]]
    moved_bytes: int
    graph: Callable[[], Tensor] | None = None
    produce: Callable[[], object] = lambda: None

    @property
    def work(self) -> Work:
        """What a stopwatch times."""
        return Work(self.call, self.setup, self.moved_bytes, self.produce)


@dataclass(frozen=True)
class Provider:
    """A way to compute a case.

    Attributes:
        name: as tables and pictures show it
        takes: whether the case is one for this provider
        prepare: makes it ready; may compile
        slow: preparing takes seconds, so these come last
    """

    name: str
    takes: Callable[[Case], bool]
    prepare: Callable[[Case, Inputs], Prepared]
    slow: bool = False


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill what torch allocates inside with NaN: a result nobody wrote cannot look right."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    switch: Any = deterministic
    filled = switch.fill_uninitialized_memory
    # the public switch imports inductor to tell it, which takes longer than importing torch
    set_deterministic: Any = torch._C._set_deterministic_algorithms
    set_deterministic(True, warn_only=True)
    switch.fill_uninitialized_memory = True
    try:
        yield
    finally:
        switch.fill_uninitialized_memory = filled
        set_deterministic(enabled, warn_only=warn_only)


def torch_backend(inputs: Inputs, training: bool) -> str:
    """The implementation behind `torch.nn.functional.batch_norm` for these inputs.

    cuDNN takes neither bf16 nor (N, C); torch's own choice is asked, not guessed.
    """
    if inputs.x.device.type == "cpu":
        return "torch CPU"
    chosen = torch._C._select_batch_norm_backend(
        inputs.x,
        inputs.gamma,
        inputs.beta,
        inputs.running_mean,
        inputs.running_var,
        training,
        inputs.eps,
    )
    return {"Cudnn": "cuDNN", "Miopen": "MIOpen"}.get(chosen.name, "ATen native")


def composed(batch_norm: BatchNorm) -> BatchNorm:
    """`activation(batch_norm(...) + residual)` by torch's operators behind a BatchNorm, as
    torchvision's networks have it: addition and ReLU in place."""

    def function(
        *arguments: Any, residual: Tensor | None = None, activation: str = "identity"
    ) -> Tensor:
        y = batch_norm(*arguments)
        if residual is not None:
            y += residual
        return ACTIVATIONS[activation](y)

    return function


def results_of(function: BatchNorm, inputs: Inputs, mode: str) -> dict[str, Tensor]:
    """Every result of one call by name, from copies of the running statistics.

    Args:
        function: takes the arguments of `torch.nn.functional.batch_norm`, and of a fusion residual
            and activation by name
        inputs: left untouched
        mode: one of `cases.MODES`

    Returns:
        forward: y, and in training running_mean and running_var; backward: dx, dgamma, dbeta and,
        where there is a residual, dresidual; both: all of them
    """
    training = mode.endswith("train")
    running = (inputs.running_mean.clone(), inputs.running_var.clone())
    with torch.set_grad_enabled(mode != "forward_eval"):
        y = _forward(function, inputs, running, training)
    results: dict[str, Tensor] = {}
    if not mode.startswith("backward"):
        results["y"] = y.detach()
        if training:
            results |= {"running_mean": running[0], "running_var": running[1]}
    if not mode.startswith("forward"):
        gradients = torch.autograd.grad(y, list(inputs.leaves.values()), inputs.dy)
        results |= dict(zip(inputs.leaves, gradients, strict=True))
    return results


def _forward(
    function: BatchNorm, inputs: Inputs, running: tuple[Tensor, Tensor], training: bool
) -> Tensor:
    fused: dict[str, Any] = {}
    if inputs.fusion != PLAIN:
        fused = {"residual": inputs.residual, "activation": inputs.fusion.activation}
    operands = (inputs.x, *running, inputs.gamma, inputs.beta)
    return function(*operands, training, inputs.momentum, inputs.eps, **fused)


def prepare_function(
    function: BatchNorm,
    backend: str,
    case: Case,
    inputs: Inputs,
    formula: Callable[..., int] = unfused_bytes,
) -> Prepared:
    """A function with the arguments of torch's, timed as autograd runs it."""
    running = (inputs.running_mean.clone(), inputs.running_var.clone())

    def forward(_: object = None) -> Tensor:
        return _forward(function, inputs, running, case.training)

    def inference(_: object = None) -> Tensor:
        with torch.no_grad():
            return forward()

    leaves = list(inputs.leaves.values())

    def backward(y: Tensor) -> Sequence[Tensor]:
        return torch.autograd.grad(y, leaves, inputs.dy)

    calls: dict[str, Callable[[Any], object]] = {
        "forward_train": forward,
        "forward_eval": inference,
        "both_train": lambda _: backward(forward()),
    }
    return Prepared(
        backend=backend,
        call=calls.get(case.mode, backward),
        setup=(lambda: None) if case.mode in calls else forward,
        outputs=lambda: results_of(function, inputs, case.mode),
        moved_bytes=case.moved(formula),
        graph=None if case.mode == "forward_eval" else forward,
        produce=_produced(inputs.dy if case.mode.startswith("backward") else inputs.x),
    )


def _produced(operand: Tensor) -> Callable[[], object]:
    """Writes an operand anew with what it holds."""

    def produce() -> None:
        with torch.no_grad():
            operand.copy_(source())

    kept: list[Tensor] = []

    def source() -> Tensor:
        # of use in one state of the caches only, so made when it is asked for
        if not kept:
            kept.append(operand.detach().clone())
        return kept[0]

    return produce


def _our_backend(inputs: Inputs) -> str:
    backend = tritonbn.backend(inputs.x)
    if backend == "torch":
        raise RuntimeError("tritonbn would hand this input to torch: nothing of ours to measure")
    return backend


def _prepare_tritonbn(case: Case, inputs: Inputs) -> Prepared:
    backend = _our_backend(inputs)
    return prepare_function(tritonbn.batch_norm, backend, case, inputs, two_read_bytes)


def _prepare_unfused(case: Case, inputs: Inputs) -> Prepared:
    backend = f"{_our_backend(inputs)}, then torch"
    return prepare_function(composed(tritonbn.batch_norm), backend, case, inputs)


def _prepare_torch(case: Case, inputs: Inputs) -> Prepared:
    backend = torch_backend(inputs, case.training)
    return prepare_function(composed(functional.batch_norm), backend, case, inputs)


def _prepare_compiled(case: Case, inputs: Inputs) -> Prepared:
    # what earlier cases compiled must not count against this one's limit of recompilations
    torch._dynamo.reset()

    compiled = torch.compile(composed(functional.batch_norm), dynamic=False, fullgraph=True)
    return prepare_function(compiled, "Inductor", case, inputs, two_read_bytes)


def _prepare_copy(case: Case, inputs: Inputs) -> Prepared:
    """A copy that reads and writes half of the case's floor bytes each."""
    moved = case.moved(floor_bytes)
    # a generator of its own: a graph that could not be captured spoils the default one
    random = torch.Generator(inputs.x.device).manual_seed(0)
    source = torch.randn(moved // 8, device=inputs.x.device, generator=random)
    target = torch.empty_like(source)

    def copy(_: object = None) -> Tensor:
        return target.copy_(source)

    return Prepared(
        backend="copy_",
        call=copy,
        setup=lambda: None,
        outputs=lambda: {"wrong": (copy() != source).sum()},
        moved_bytes=8 * source.numel(),
        produce=_produced(source),
    )


def _any(_: Case) -> bool:
    return True


PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        Provider("tritonbn", _any, _prepare_tritonbn),
        Provider("tritonbn unfused", lambda case: case.fusion != NONE, _prepare_unfused),
        Provider("torch", lambda case: "hwc" not in case.layout, _prepare_torch),
        # the rival of channels_last cases, under a name of its own
        Provider("torch channels_last", lambda case: "hwc" in case.layout, _prepare_torch),
        Provider("copy", _any, _prepare_copy),
        Provider("torch.compile", _any, _prepare_compiled, slow=True),
    )
}
