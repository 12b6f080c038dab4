"""Budgets turned into assertions. `bench/tritonbn_bench/budget.py` derives how wrong a result may
be, once, for these tests and for the report."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from tritonbn_bench.budget import Budget, error, mean_budget, sum_budget, value_budget

__all__ = [
    "Budget",
    "assert_float64_close",
    "assert_within",
    "cancelling_budget",
    "error",
    "mean_budget",
    "sum_budget",
    "value_budget",
]


def assert_within(name: str, value: Tensor, oracle: Tensor, budget: Budget) -> None:
    """Fail, with the figures, if `value` is further from `oracle` than `budget` allows."""
    assert value.shape == oracle.shape, f"{name}: expected shape {oracle.shape}, got {value.shape}"
    assert math.isfinite(budget.limit), f"{name}: torch's own result is no measure here: {budget}"
    found = error(value, oracle, budget.unit)
    figures = (
        f"{name}: error {found:.3e}, budget {budget.limit:.3e} = 2 * "
        f"(torch {budget.torch_error:.3e} + rounding {budget.rounding:.3e} "
        f"+ summation {budget.summation:.3e})"
    )
    print(figures)
    assert found <= budget.limit, figures


def cancelling_budget(
    oracle: Tensor, torch_value: Tensor, dtype: torch.dtype, term: Tensor
) -> Budget:
    """Budget of a difference whose terms cancel, by the data and not by chance.

    With two values per channel, or with one dy for all of them, the exact dx is 0 but for eps,
    while each term is of the size of `term`, gamma * inv_std * dy: a rounding of those is what any
    arithmetic in `dtype` leaves. For every other dx `value_budget` holds.
    """
    plain = value_budget(oracle, torch_value, dtype)
    return replace(plain, rounding=value_budget(term, term, dtype).rounding)


def assert_float64_close(value: Tensor | None, expected: Tensor | None, terms: int = 64) -> None:
    """Fail if two float64 results, of sums of at most `terms` terms of order one, differ by more
    than one rounding per term: two orders of the same additions cannot differ by more."""
    bound = terms * torch.finfo(torch.float64).eps
    torch.testing.assert_close(value, expected, rtol=bound, atol=bound)
