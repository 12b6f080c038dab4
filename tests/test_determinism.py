"""Bitwise repeatability: same inputs and plan, same bits, whatever the order of the programs."""

from typing import Any

import pytest
import torch
from torch import Tensor

import tritonbn_kernels
from tests.checks import EPS, Operands, operands
from tests.inputs import DTYPES, INTERPRETED, Case, parameters, values
from tritonbn_bench.emulated import random_program_order

TRAINING = [pytest.param(True, id="train"), pytest.param(False, id="eval")]
VIEWS = parameters(
    [
        Case((6, 5, 7, 9), "contiguous", "channels first"),
        Case((6, 5, 7, 9), "channels_last", "channels last"),
    ]
)
PLANS = [
    pytest.param({"fused": 1, "block_c": 2, "block_v": 128}, id="fused"),
    pytest.param({"fused": 0, "splits": 3, "block_c": 2, "block_v": 64}, id="split"),
]


def _everything(call: Operands, dy: Tensor, training: bool) -> list[Tensor]:
    """All results of one forward and one backward: y, saved, statistics, count, gradients."""
    call, count = call.copy(), torch.tensor(4, device=dy.device)
    y, saved = tritonbn_kernels.batch_norm_forward(
        call.x,
        call.gamma,
        call.beta,
        call.running_mean,
        call.running_var,
        count,
        training,
        0.1,
        EPS,
    )
    gradients = tritonbn_kernels.batch_norm_backward(
        dy, call.x, call.gamma, saved, training, True, True, True
    )
    results = [y, saved, call.running_mean, call.running_var, count, *gradients]
    return [result for result in results if result is not None]


def _assert_same_bits(results: list[Tensor], expected: list[Tensor], when: Any) -> None:
    assert len(results) == len(expected) == 8
    for result, other in zip(results, expected, strict=True):
        assert torch.equal(result, other), when


@pytest.mark.parametrize("training", TRAINING)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", VIEWS)
def test_two_runs_agree_to_the_bit(case: Case, dtype: torch.dtype, training: bool) -> None:
    call = operands(case.tensor(dtype))
    dy = values(case.shape, dtype)
    first = _everything(call, dy, training)
    _assert_same_bits(_everything(call, dy, training), first, "second run")


@pytest.mark.parametrize("training", TRAINING)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", VIEWS)
def test_a_forgotten_plan_is_made_again_the_same(
    case: Case, plan: dict[str, int], training: bool
) -> None:
    call, dy = operands(case.tensor()), values(case.shape, torch.float32)
    with tritonbn_kernels.pinned_plan(**plan):
        first = _everything(call, dy, training)
        tritonbn_kernels.clear_cache()
        _assert_same_bits(_everything(call, dy, training), first, "after clear_cache")


@pytest.mark.skipif(not INTERPRETED, reason="a GPU draws its own order")
@pytest.mark.parametrize("training", TRAINING)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", VIEWS)
def test_program_order_changes_no_bit(case: Case, plan: dict[str, int], training: bool) -> None:
    call, dy = operands(case.tensor()), values(case.shape, torch.float32)
    with tritonbn_kernels.pinned_plan(**plan):
        in_index_order = _everything(call, dy, training)
        for seed in range(8):
            with random_program_order(seed):
                results = _everything(call, dy, training)
            _assert_same_bits(results, in_index_order, f"seed {seed}")


@pytest.mark.parametrize("case", VIEWS)
def test_counters_of_the_last_arriver_are_ready_for_the_next_launch(case: Case) -> None:
    call, dy = operands(case.tensor()), values(case.shape, torch.float32)
    plan = {"fused": 0, "splits": 3, "block_c": 2, "block_v": 64}
    with tritonbn_kernels.pinned_plan(**plan):
        first = _everything(call, dy, training=True)
        for repetition in range(3):
            _assert_same_bits(_everything(call, dy, training=True), first, repetition)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("layout", "pins"),
    [
        pytest.param("contiguous", {}, id="groups"),
        pytest.param("contiguous", {"resident": 0}, id="split-planes"),
        pytest.param("channels_last", {}, id="split-rows"),
    ],
)
def test_many_concurrent_programs_agree_over_a_hundred_runs(
    layout: str, pins: dict[str, int]
) -> None:
    # 8 channels of 0.8 million values: every block is shared by many programs
    call = operands(Case((64, 8, 112, 112), layout, "shared").tensor(torch.bfloat16))
    dy = values(tuple(call.x.shape), torch.bfloat16)
    with tritonbn_kernels.pinned_plan(**pins):
        first = _everything(call, dy, training=True)
        for repetition in range(100):
            _assert_same_bits(_everything(call, dy, training=True), first, repetition)
