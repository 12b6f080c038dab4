"""Error of every output against the float64 oracle, beside torch's own error and the bound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

import tritonbn
from tritonbn import reference

from .budget import Budget, error, mean_budget, sum_budget, value_budget
from .cases import MODES, Case
from .inputs import Inputs, make_inputs
from .providers import composed, poisoned_memory, results_of, torch_backend
from .results import Row

__all__ = ["DATA", "Verdict", "accuracy_cases", "accuracy_rows", "judge"]

# from well to badly conditioned; at mean/std = 1e6 half of fp32's digits hold the mean
DATA = ("digits", "mean/std=0", "mean/std=100", "mean/std=1e4", "mean/std=1e6", "constant")
_PLANES = {"nchw": (8, 8), "nhwc": (8, 8), "nc": ()}
_BATCH, _CHANNELS = 32, 8
# what follows BatchNorm in the fused cases, and their data: conditioning is BatchNorm's own matter
FUSED = ("relu", "add_relu", "silu", "add_silu")
FUSED_DATA = ("mean/std=0", "mean/std=100")


@dataclass(frozen=True)
class Verdict:
    """One result judged: its error, torch's own and the bound, all in the unit of the bound."""

    name: str
    error: float
    torch_error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the error keeps the bound; never where torch's own result is not finite."""
        return self.error <= self.limit < math.inf

    @property
    def reason(self) -> str:
        """Why it did not pass."""
        if self.passed:
            return ""
        if not self.limit < math.inf:
            return f"{self.name}: torch's own result is not finite"
        return f"{self.name}: error {self.error:.3g} is above the bound {self.limit:.3g}"


def accuracy_cases(*, quick: bool = False) -> tuple[Case, ...]:
    """Small cases in every dtype and layout, well and badly conditioned, then with each fusion.

    Args:
        quick: training in fp32 and bf16 only
    """
    # both passes in one call have the results of each
    modes = MODES[:2] if quick else [mode for mode in MODES if not mode.startswith("both")]
    dtypes = ("fp32", "bf16") if quick else ("fp32", "fp16", "bf16", "fp64")
    plain = [
        Case(
            mode,
            dtype,
            layout,
            _BATCH,
            _CHANNELS,
            plane,
            "accuracy",
            "first convolution of SimpleCNN on digits" if data == "digits" else "ill-conditioned",
            data=data,
        )
        for dtype in dtypes
        for data in DATA
        for layout, plane in _PLANES.items()
        for mode in modes
        if not (data == "digits" and layout == "nc")
    ]
    fused = [
        replace(case, fusion=fusion)
        for case in plain
        for fusion in FUSED
        if case.data in FUSED_DATA and case.layout != "nc"
    ]
    return (*plain, *fused)


def judge(
    inputs: Inputs, mode: str, results: Mapping[str, Tensor], torch_results: Mapping[str, Tensor]
) -> list[Verdict]:
    """Each result against the oracle, with the bound that torch's own error allows.

    Args:
        inputs: what both were computed from
        mode: one of `cases.MODES`
        results, torch_results: as `providers.results_of` returns them
    """
    oracle, budgets = _oracle(inputs, mode, torch_results)
    return [
        Verdict(
            name,
            error(results[name], oracle[name], budget.unit),
            budget.torch_error,
            budget.limit,
        )
        for name, budget in budgets.items()
    ]


def _oracle(
    inputs: Inputs, mode: str, torch_results: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Budget]]:
    """Exact results by name, and the budget of each."""
    training = mode.endswith("train")
    with torch.no_grad():
        x, gamma, beta = inputs.x, inputs.gamma, inputs.beta
        running = (inputs.running_mean, inputs.running_var)
        exact = reference.forward(
            x,
            gamma,
            beta,
            *running,
            training,
            inputs.momentum,
            inputs.eps,
            residual=inputs.residual,
            activation=inputs.fusion.activation,
        )
        per_channel = (1, -1, *[1] * (x.dim() - 2))
        centred = x.double() - exact.mean.view(per_channel)
        gradients: tuple[dict[str, Tensor], dict[str, Budget]] = ({}, {})
        if not mode.startswith("forward"):
            gradients = _gradients(inputs, exact, centred, training, torch_results)
        if mode.startswith("backward"):
            return gradients
        oracle = {"y": exact.y}
        budgets = {"y": value_budget(exact.y, torch_results["y"], x.dtype)}
        if training and exact.running_mean is not None and exact.running_var is not None:
            dtype = inputs.running_mean.dtype
            shift = inputs.momentum * centred
            oracle |= {"running_mean": exact.running_mean, "running_var": exact.running_var}
            budgets["running_mean"] = mean_budget(
                exact.running_mean,
                torch_results["running_mean"],
                dtype,
                shift,
                x.dtype,
                std=exact.var.sqrt(),
            )
            budgets["running_var"] = mean_budget(
                exact.running_var, torch_results["running_var"], dtype, shift * centred, x.dtype
            )
    return oracle | gradients[0], budgets | gradients[1]


def _gradients(
    inputs: Inputs,
    exact: reference.Forward,
    centred: Tensor,
    training: bool,
    torch_results: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Budget]]:
    x, gamma = inputs.x, inputs.gamma
    # one of zeros too has a gradient, which is that before the activation
    residual = torch.zeros_like(x) if inputs.residual is None else inputs.residual
    gradients = reference.backward(
        inputs.dy,
        x,
        gamma,
        exact.mean,
        exact.inv_std,
        training,
        beta=inputs.beta,
        residual=residual,
        activation=inputs.fusion.activation,
    )
    dz = gradients.dresidual
    assert dz is not None
    oracle = gradients._asdict()
    xhat = centred * exact.inv_std.view(1, -1, *[1] * (x.dim() - 2))
    budgets: dict[str, Budget] = {}
    for name in inputs.leaves.keys() & {"dx", "dresidual"}:
        budgets[name] = value_budget(oracle[name], torch_results[name], x.dtype)
    for name, summand in (("dgamma", dz * xhat), ("dbeta", dz)):
        budgets[name] = sum_budget(oracle[name], torch_results[name], gamma.dtype, summand, x.dtype)
    return oracle, {name: budgets[name] for name in inputs.leaves}


def accuracy_rows(case: Case, device: str) -> list[Row]:
    """Rows of one case: for each result tritonbn's error with its bound, then torch's.

    Raises:
        RuntimeError: tritonbn would hand the input to torch, and nothing of ours would be measured
    """
    inputs = make_inputs(case, device)
    backend = tritonbn.backend(inputs.x)
    if backend == "torch":
        raise RuntimeError(f"tritonbn hands {case.id} to torch: nothing of ours to measure")
    with poisoned_memory():
        ours = results_of(tritonbn.batch_norm, inputs, case.mode)
        theirs = results_of(composed(functional.batch_norm), inputs, case.mode)
    rival = torch_backend(inputs, case.mode.endswith("train"))
    rows: list[Row] = []
    for verdict in judge(inputs, case.mode, ours, theirs):
        rows.append(_row(case, verdict, "tritonbn", backend))
        rows.append(_row(case, verdict, "torch", rival))
    return rows


def _row(case: Case, verdict: Verdict, provider: str, backend: str) -> Row:
    ours = provider == "tritonbn"
    value = verdict.error if ours else verdict.torch_error
    failed = ours and not verdict.passed
    return Row(
        job="accuracy",
        kind="measured",
        case=case.id,
        provider=provider,
        quantity=f"error of {verdict.name}",
        value=value if math.isfinite(value) else None,
        bound=verdict.limit if ours and math.isfinite(verdict.limit) else None,
        mode=case.mode,
        dtype=case.dtype,
        layout=case.layout,
        batch=case.batch,
        channels=case.channels,
        space=case.space,
        data=case.data,
        origin=case.origin,
        fusion=case.fusion,
        backend=backend,
        status="failed" if failed else "ok",
        reason=verdict.reason if failed else "",
    )
