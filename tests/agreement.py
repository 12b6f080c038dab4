"""What the tests of the layers share: the device, errors as texts, agreement with torch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import tritonbn

from .tolerances import assert_within, value_budget

__all__ = ["DEVICE", "assert_agreement", "kernels_run_on", "outcome"]

# where the kernels run: on the GPU, or on the CPU in the interpreter
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def outcome(function: Callable[..., object], *args: Any, **kwargs: Any) -> tuple[str, str]:
    """Name and text of the error that a call raises, `("", "")` if it raises none."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def assert_agreement(name: str, value: Tensor, torchs: Tensor, oracle: Tensor) -> None:
    """Fail unless `value` is as near to `oracle` as design section 4 demands, NaN where torch is.

    Args:
        name: what the figures are printed under.
        value: our result.
        torchs: eager torch's result, of the same dtype and shape.
        oracle: the same computation by torch in float64.
    """
    assert value.dtype == torchs.dtype, f"{name}: expected {torchs.dtype}, got {value.dtype}"
    if not value.is_floating_point():
        assert torch.equal(value, torchs), f"{name}: expected {torchs}, got {value}"
        return
    missing = torchs.isnan()
    assert torch.equal(value.isnan(), missing), f"{name}: expected NaN at {missing}, got {value}"
    value, torchs = value.masked_fill(missing, 0.0), torchs.masked_fill(missing, 0.0)
    wide = oracle.detach().double().masked_fill(missing, 0.0)
    assert_within(name, value, wide, value_budget(wide, torchs, value.dtype))


def kernels_run_on(x: Tensor) -> bool:
    """Whether `batch_norm` runs our kernels for `x`, on the GPU or in the interpreter."""
    return tritonbn.backend(x) in ("triton", "interpreter")
