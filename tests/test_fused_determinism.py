"""Fused calls repeat to the bit, whatever the order of programs, and write all of their results."""

from typing import Any

import pytest
import torch
from torch import Tensor

import tritonbn_kernels
from tests.checks import EPS, Operands
from tests.fused import (
    GROUPS,
    ONE_READ,
    TWO_READ,
    Family,
    fused_call,
    in_turn,
)
from tests.held import gradient_of
from tests.inputs import INTERPRETED, values
from tritonbn_bench.emulated import random_program_order
from tritonbn_kernels import pinned_plan
from tritonbn_kernels.activation_names import activation_of

interpreted = pytest.mark.skipif(not INTERPRETED, reason="a GPU draws its own order")
relu_and_silu = pytest.mark.parametrize("activation", ["relu", "silu"])


def _everything(call: Operands, dy: Tensor, training: bool = True) -> dict[str, Tensor]:
    """All results of one forward and one backward."""
    call, count = call.copy(), torch.tensor(4, device=dy.device)
    activation, keeps_mask = activation_of(call.activation), call.keeps_mask
    y, saved, mask = tritonbn_kernels.fused_forward(
        call.x, call.gamma, call.beta, call.running_mean, call.running_var, count, training,
        None, EPS, activation=activation, residual=call.residual, keeps_mask=keeps_mask,
    )  # fmt: skip
    dx, dgamma, dbeta, dresidual = tritonbn_kernels.fused_backward(
        dy, call.x, call.gamma, saved, training, True, True, True, activation=activation,
        bias=None if keeps_mask else call.beta, residual=None if keeps_mask else call.residual,
        mask=mask, need_dresidual=call.residual is not None,
    )  # fmt: skip
    named = {
        "y": y,
        "saved": saved,
        "mask": mask,
        "running_mean": call.running_mean,
        "running_var": call.running_var,
        "count": count,
        "dx": dx,
        "dgamma": dgamma,
        "dbeta": dbeta,
        "dresidual": dresidual,
    }
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def _differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Names of the results that are not the same to the bit."""
    assert found.keys() == expected.keys()
    return [name for name, value in found.items() if not torch.equal(value, expected[name])]


def _call(family: Family, activation: str, residual: bool = True) -> tuple[Operands, Tensor]:
    x = family.values(torch.bfloat16)
    call = fused_call(x, activation, family.values(x.dtype) if residual else None)
    return call, gradient_of(x)


@relu_and_silu
@in_turn("family residual", [*TWO_READ, *ONE_READ], [True, True, False])
def test_two_runs_agree_to_the_bit(family: Family, activation: str, residual: bool) -> None:
    call, dy = _call(family, activation, residual)
    with family.plan():
        first = _everything(call, dy)
        assert _differences(_everything(call, dy), first) == []
    assert len(first) == 8 + residual + (residual and activation == "relu")


@interpreted
@in_turn(
    "family activation",
    [TWO_READ[0], TWO_READ[1], TWO_READ[3], ONE_READ[1], ONE_READ[3], TWO_READ[1]],
    ["silu", "relu", "silu", "relu", "silu"],
)
def test_program_order_changes_no_bit(family: Family, activation: str) -> None:
    call, dy = _call(family, activation)
    with family.plan():
        in_index_order = _everything(call, dy)
        for seed in range(3):
            with random_program_order(seed):
                assert _differences(_everything(call, dy), in_index_order) == [], seed


@interpreted
@in_turn("family activation", [*GROUPS, GROUPS[1]], ["relu", "silu", "relu", "silu", "relu"])
def test_schedule_changes_no_bit(family: Family, activation: str) -> None:
    call, dy = _call(family, activation)
    first = None
    # the counters of the barrier go on from where the launch before left them
    for seed in (0, 1, 1, 2):
        with family.plan(seed):
            results = _everything(call, dy)
        first = first or results
        assert _differences(results, first) == [], seed


@relu_and_silu
def test_evaluation_repeats_to_the_bit_and_changes_no_statistic(activation: str) -> None:
    call, dy = _call(TWO_READ[0], activation)
    first = _everything(call, dy, training=False)
    assert _differences(_everything(call, dy, training=False), first) == []
    assert call.running_mean is not None
    assert torch.equal(first["running_mean"], call.running_mean) and int(first["count"]) == 4


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The tensors of each launch, by argument; no kernel runs."""
    from triton.runtime import interpreter

    launches: list[dict[str, Tensor]] = []

    def launch(executor: Any, *args: Any, **kwargs: Any) -> None:
        named = {**dict(zip(executor.arg_names, args, strict=False)), **kwargs}
        launches.append({name: t.clone() for name, t in named.items() if isinstance(t, Tensor)})

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)
    return launches


def _is_poison(tensor: Tensor) -> bool:
    if tensor.is_floating_point():
        return bool(tensor.isnan().all())
    return bool((tensor == torch.iinfo(tensor.dtype).max).all())


@pytest.mark.skipif(not INTERPRETED, reason="looks into the interpreter's launches")
@pytest.mark.parametrize(
    "pins",
    [
        {"resident": 1, "splits": 1},
        {"resident": 1, "splits": 3, "block_c": 2, "programs": 9},
        {"resident": 0, "fused": 1},
        {"resident": 0, "fused": 0, "splits": 3, "block_c": 2, "block_v": 32},
    ],
    ids=["one-read", "groups", "fused", "split"],
)
@relu_and_silu
def test_a_kernel_that_never_ran_leaves_poison_in_every_result(
    activation: str, pins: dict[str, int], idle: list[dict[str, Tensor]]
) -> None:
    x, residual = (values((4, 5, 64), torch.float32) for _ in range(2))
    name = activation_of(activation)
    tritonbn_kernels.clear_cache()
    with pinned_plan(**pins):
        y, saved, mask = tritonbn_kernels.fused_forward(
            x, None, None, None, None, None, True, 0.1, EPS,
            activation=name, residual=residual, keeps_mask=activation == "relu",
        )  # fmt: skip
        results = tritonbn_kernels.fused_backward(
            x, x, None, saved, True, True, True, True, activation=name,
            residual=None if activation == "relu" else residual, mask=mask, need_dresidual=True,
        )  # fmt: skip
    tritonbn_kernels.clear_cache()
    assert (mask is not None) == (activation == "relu")
    assert idle and len(results) == 4
    for result in (y, saved, *results, *([] if mask is None else [mask])):
        assert result is not None and _is_poison(result)
    # scratch too, but for the counters, which are zero
    given = {"x_ptr", "dy_ptr", "residual_ptr", *(["side_ptr"] if activation == "silu" else [])}
    for launch in idle:
        for argument, tensor in launch.items():
            if argument not in given:
                assert _is_poison(tensor) or not tensor.any(), argument
