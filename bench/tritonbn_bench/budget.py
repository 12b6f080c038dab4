"""How wrong a result may be, and why: the bound that the report prints and the tests keep.

Every result is judged against the float64 oracle (`tritonbn.reference`) on the same dtype-rounded
inputs. The budget is not chosen but derived from the data:

    budget = 2 * (torch's own error on this device + eps * max|oracle|)

- torch's own error is the largest deviation of torch's eager result, same dtype and device, from
  the same oracle: nobody who changes to tritonbn shall lose more than a factor of two.
- `eps * max|oracle|`, with eps of the dtype that stores the result, is one rounding at the tensor's
  largest value: where torch happens to be exact, that much is still allowed.

A sum of m terms that is accumulated in fp32 (fp64 for fp64) carries m roundings. Taken as
independent they grow as a random walk, eps * sqrt(m) * rms(summand), so for dgamma and dbeta

    budget += 2 * eps_accumulation * sqrt(m) * rms(summand)

and for a mean of m terms, such as the batch statistics, that divided by m. The summand of a mean is
`x - mean` and not x: moments are centred, so a large mean must not buy a larger error.

The mean of a channel is judged in units of the channel's standard deviation, because that is the
scale on which its error shifts the normalised output: error, oracle and torch's error are each
divided by it, channel by channel, before the maximum is taken. One rounding of a value of that
scale, eps times the batch's share in the mean, is allowed even where the mean happens to be near
zero. A constant channel has no such scale and is judged in absolute terms.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Budget", "error", "mean_budget", "sum_budget", "value_budget"]


@dataclass(frozen=True)
class Budget:
    """The largest error allowed, in its parts; `unit`, `(C,)`, is what each channel counts in."""

    torch_error: float
    rounding: float
    summation: float = 0.0
    unit: Tensor | None = None

    @property
    def limit(self) -> float:
        """The bound itself."""
        return 2 * (self.torch_error + self.rounding + self.summation)


def value_budget(oracle: Tensor, torch_value: Tensor, dtype: torch.dtype) -> Budget:
    """Budget of a result stored in `dtype` that is no sum: y and dx."""
    return Budget(error(torch_value, oracle), torch.finfo(dtype).eps * _largest(oracle))


def sum_budget(
    oracle: Tensor, torch_value: Tensor, dtype: torch.dtype, summand: Tensor, x_dtype: torch.dtype
) -> Budget:
    """Budget of a sum per channel stored in `dtype`: dgamma and dbeta.

    Args:
        oracle: `(C,)`, float64.
        torch_value: `(C,)`, eager torch's sum on this device.
        dtype: what the result is stored in.
        summand: `(N, C, *S)`, float64, the terms.
        x_dtype: dtype of the input, which decides what the sum is accumulated in.
    """
    plain = value_budget(oracle, torch_value, dtype)
    count = summand.numel() // summand.shape[1]
    walk = _accumulation_eps(x_dtype) * math.sqrt(count) * _largest(_rms(summand))
    return Budget(plain.torch_error, plain.rounding, walk)


def mean_budget(
    oracle: Tensor,
    torch_value: Tensor,
    dtype: torch.dtype,
    summand: Tensor,
    x_dtype: torch.dtype,
    *,
    std: Tensor | None = None,
) -> Budget:
    """Budget of a mean per channel stored in `dtype`: batch and running statistics.

    Args as for `sum_budget`; `std`, `(C,)`, makes the channel's standard deviation the unit.
    """
    unit = None if std is None else torch.where(std > 0, std, 1.0)
    rms = _rms(summand) if unit is None else _rms(summand) / unit
    scaled = oracle if unit is None else oracle / unit
    count = summand.numel() // summand.shape[1]
    walk = _accumulation_eps(x_dtype) * _largest(rms) / math.sqrt(count)
    largest = _largest(scaled) if unit is None else max(_largest(scaled), _largest(rms))
    rounding = torch.finfo(dtype).eps * largest
    return Budget(error(torch_value, oracle, unit), rounding, walk, unit)


def error(value: Tensor, oracle: Tensor, unit: Tensor | None = None) -> float:
    """Largest deviation of `value` from `oracle`, infinite if one of them is NaN or infinite."""
    deviation = (value.detach().double() - oracle.detach()).abs()
    if unit is not None:
        deviation = deviation / unit
    return _largest(deviation.nan_to_num(nan=math.inf))


def _accumulation_eps(x_dtype: torch.dtype) -> float:
    """eps of what sums over a tensor of `x_dtype` are accumulated in."""
    return torch.finfo(torch.float64 if x_dtype == torch.float64 else torch.float32).eps


def _rms(summand: Tensor) -> Tensor:
    """Root mean square per channel of `(N, C, *S)`, `(C,)`."""
    dims = [dim for dim in range(summand.dim()) if dim != 1]
    return summand.detach().double().square().mean(dims).sqrt()


def _largest(values: Tensor) -> float:
    """Largest magnitude in `values`, 0 for none."""
    return float(values.detach().abs().max()) if values.numel() else 0.0
