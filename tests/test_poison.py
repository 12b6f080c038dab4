"""Fresh memory is poisoned: the outputs and the scratch of every launcher, before a kernel runs."""

from typing import Any

import pytest
import torch
from torch import Tensor

import tritonbn_kernels
from tests.checks import EPS
from tests.inputs import DEVICE, DTYPES, INTERPRETED, values

SPLIT = {"fused": 0, "splits": 3, "block_c": 2, "block_v": 32}
GROUPS = {"resident": 1, "splits": 3, "block_c": 2, "programs": 9}
RESULTS = {"y_ptr", "dx_ptr", "dgamma_ptr", "dbeta_ptr"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_allocator_returns_nan(dtype: torch.dtype) -> None:
    like = torch.zeros(2, 3, 4, 5, dtype=dtype, device=DEVICE)
    channels_last = like.to(memory_format=torch.channels_last)
    fresh = [
        torch.empty(7, dtype=dtype, device=DEVICE),
        torch.empty_like(like),
        torch.empty_like(channels_last),
        torch.empty_strided((3, 4), (4, 1), dtype=dtype, device=DEVICE),
        like.new_empty(5),
        like.new_empty_strided((3, 4), (1, 3)),
    ]
    for tensor in fresh:
        assert tensor.isnan().all()


def test_fresh_integers_are_the_largest() -> None:
    counters = torch.empty(5, dtype=torch.int32, device=DEVICE)
    assert (counters == torch.iinfo(torch.int32).max).all()


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Copies of all tensors that kernels are launched with, by argument; no kernel runs."""
    from triton.runtime import interpreter

    tensors: dict[str, Tensor] = {}

    def launch(executor: Any, *args: Any, **kwargs: Any) -> None:
        named = {**dict(zip(executor.arg_names, args, strict=False)), **kwargs}
        for name, value in named.items():
            if isinstance(value, Tensor):
                tensors[name] = value.clone()

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)
    return tensors


@pytest.mark.skipif(not INTERPRETED, reason="looks into the interpreter's launches")
@pytest.mark.parametrize(
    ("plan", "scratch", "counters"),
    [
        pytest.param(SPLIT, {"partials_ptr", "sums_ptr"}, {"arrivals_ptr"}, id="split"),
        pytest.param(GROUPS, {"partials_ptr"}, {"barriers_ptr"}, id="groups"),
    ],
)
def test_outputs_and_scratch_reach_the_kernels_as_nan(
    plan: dict[str, int], scratch: set[str], counters: set[str], handed_over: dict[str, Tensor]
) -> None:
    x = values((4, 5, 64), torch.float32)
    gamma, beta, mean, var = torch.rand(4, 5)
    tritonbn_kernels.clear_cache()
    with tritonbn_kernels.pinned_plan(**plan):
        _, saved = tritonbn_kernels.batch_norm_forward(
            x, gamma, beta, mean, var, torch.tensor(0), True, 0.1, EPS
        )
        tritonbn_kernels.batch_norm_backward(x, x, gamma, saved.zero_(), True, True, True, True)
    given = {
        "x_ptr",
        "dy_ptr",
        "gamma_ptr",
        "beta_ptr",
        "running_mean_ptr",
        "running_var_ptr",
        "tracked_ptr",
    }
    for name in counters:
        assert not handed_over.pop(name).any()
    # zeroed above, so that backward has something to read
    handed_over.pop("saved_ptr")
    fresh = handed_over.keys() - given
    assert fresh == RESULTS | scratch
    for name in fresh:
        assert handed_over[name].isnan().all(), name
    tritonbn_kernels.clear_cache()


@pytest.mark.skipif(not INTERPRETED, reason="looks into the interpreter's launches")
@pytest.mark.parametrize("resident", [0, 1], ids=["two-read", "one-read"])
def test_a_kernel_that_never_ran_leaves_nan_in_every_result(
    resident: int, handed_over: dict[str, Tensor]
) -> None:
    x = values((4, 5, 64), torch.float32)
    with tritonbn_kernels.pinned_plan(resident=resident):
        y, saved = tritonbn_kernels.batch_norm_forward(
            x, None, None, None, None, None, True, 0.1, EPS
        )
        results: list[Tensor | None] = [y, saved, *tritonbn_kernels.batch_statistics(x)]
        results += tritonbn_kernels.batch_norm_backward(x, x, None, saved, True, True, True, True)
    assert handed_over
    for result in results:
        assert result is not None and result.isnan().all()
