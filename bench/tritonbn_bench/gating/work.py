"""What a side is timed at: tritonbn's function or layer on the inputs of a case, judged first, and
beside it the rival and a copy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

import tritonbn

from ..accuracy import judge
from ..cases import Case
from ..inputs import Inputs, make_inputs
from ..providers import (
    PROVIDERS,
    Prepared,
    composed,
    poisoned_memory,
    prepare_function,
    results_of,
)

__all__ = ["VIAS", "fault_of", "fresh_inputs", "prepare_ours", "prepare_rivals"]

# how a user reaches tritonbn: `tritonbn.batch_norm`, or a layer
VIAS = ("function", "layer")


def fresh_inputs(case: Case, device: str, seed: int) -> Inputs:
    """As `make_inputs`, with gamma and beta that are parameters, as layers want them."""
    inputs = make_inputs(case, device, seed)
    gamma, beta = (nn.Parameter(leaf.detach()) for leaf in (inputs.gamma, inputs.beta))
    return replace(inputs, gamma=gamma, beta=beta)


def prepare_ours(case: Case, via: str, inputs: Inputs) -> Prepared:
    """tritonbn made ready for a case; also where it hands the input to torch, as on the CPU.

    Args:
        case: whose inputs they are
        via: one of VIAS
        inputs: left untouched
    """
    # looked up at each call, so that a planted function is found
    ours = prepare_function(
        lambda *operands, **fused: tritonbn.batch_norm(*operands, **fused),
        tritonbn.backend(inputs.x),
        case,
        inputs,
    )
    if via == "function":
        return ours
    held = _layer(case, inputs, inputs.running_mean.clone(), inputs.running_var.clone())
    operands = (inputs.x,) if inputs.residual is None else (inputs.x, inputs.residual)
    layer = prepare_function(lambda *_, **__: held(*operands), ours.backend, case, inputs)

    def fresh(x: Tensor, running_mean: Tensor, running_var: Tensor, *_: Any, **__: Any) -> Tensor:
        y: Tensor = _layer(case, inputs, running_mean, running_var)(*operands)
        return y

    return replace(layer, outputs=lambda: results_of(fresh, inputs, case.mode))


def prepare_rivals(case: Case, inputs: Inputs) -> dict[str, Prepared]:
    """torch's own BatchNorm, which is the reference, and the copy, by the name of the provider."""
    return {name: PROVIDERS[name].prepare(case, inputs) for name in ("torch", "copy")}


def fault_of(case: Case, inputs: Inputs, prepared: Prepared) -> str:
    """Why the results are wrong; empty if they keep the bounds of the accuracy table."""
    with poisoned_memory():
        torchs = results_of(composed(functional.batch_norm), inputs, case.mode)
        results = prepared.outputs()
    verdicts = judge(inputs, case.mode, results, torchs)
    return "; ".join(verdict.reason for verdict in verdicts if not verdict.passed)


def _layer(case: Case, inputs: Inputs, running_mean: Tensor, running_var: Tensor) -> nn.Module:
    """tritonbn's layer for a case, on parameters and buffers that are there already."""
    kinds = (tritonbn.BatchNorm1d, tritonbn.BatchNorm2d, tritonbn.BatchNorm3d)
    kind = kinds[max(len(case.plane), 1) - 1]
    activation = None if case.fused.activation == "identity" else case.fused.activation
    layer = kind(case.channels, eps=inputs.eps, momentum=inputs.momentum, activation=activation).to(
        inputs.x.device, inputs.gamma.dtype
    )
    # gradients are asked of the inputs' own leaves
    layer.register_parameter("weight", cast(nn.Parameter, inputs.gamma))
    layer.register_parameter("bias", cast(nn.Parameter, inputs.beta))
    layer.running_mean, layer.running_var = running_mean, running_var
    return layer.train(case.mode.endswith("train"))
