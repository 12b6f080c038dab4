"""Claims about the activations and their derivatives: values, accuracy, names, compiled code.

The oracle is torch in float64; where a bound is in ulp, mpmath with 200 bits.
"""

import json
import math
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
import triton
from torch import Tensor

from tests.activation_kernels import activation_kernel, expm1_kernel
from tests.eager import CHOICES, TORCHS
from tests.inputs import DEVICE, INTERPRETED
from tests.test_static import run_outside_interpreter
from tritonbn_kernels import activations
from tritonbn_kernels.activation_names import ACTIVATIONS, activation_of

Function = Callable[[Tensor], Tensor]
BLOCK = 1 << 18
INF, NAN = math.inf, math.nan
FLOATS = [pytest.param(torch.float32, id="fp32"), pytest.param(torch.float64, id="fp64")]
# what a 2-ulp exp2 and a square root of 2**-22.9 may add, in eps
ON_GPU = 0.0 if INTERPRETED else 4.0

# in eps of fp32 relative to max(|value|, eps): four roundings at most, and, where an exponent w is
# rounded, 0.6 |w| of each rounding: |w| is 16 where sigmoid is eps, 18 where silu is; 12 for gelu,
# whose square is rounded as well; 18 for gelu_tanh, rounded three times before
TAIL_LIMITS = {"sigmoid": 4 + 0.6 * 16, "silu": 4 + 0.6 * 18}
TAIL_LIMITS |= {"gelu": 4 + 0.6 * 12 * 2, "gelu_tanh": 4 + 0.6 * 18 * 3}


def evaluate(z: Tensor, value: object) -> tuple[Tensor, Tensor]:
    """(act(z), act'(z)) by our functions, on the CPU."""
    name, parameter = activation_of(value)
    z = z.to(DEVICE)
    y, slope = torch.empty_like(z), torch.empty_like(z)
    grid = (triton.cdiv(z.numel(), BLOCK),)
    activation_kernel[grid](
        z, y, slope, z.numel(), ACTIVATION=name, PARAMETER=parameter, BLOCK=BLOCK
    )
    return y.cpu(), slope.cpu()


def expected(z: Tensor, value: object) -> tuple[Tensor, Tensor]:
    """The same by torch in float64."""
    name, parameter = activation_of(value)
    wide = z.double().requires_grad_()
    y = TORCHS[name](wide, parameter)
    (slope,) = torch.autograd.grad(y.sum(), wide)
    return y.detach(), slope


def grid_of(dtype: torch.dtype) -> Tensor:
    """Dense where functions bend, sparse from the smallest to large values; kinks included."""
    powers = torch.logspace(-37, 30, 4000, dtype=torch.float64)
    kinks = torch.tensor([0.0, -0.0, 3.0, -3.0, 6.0, -6.0], dtype=torch.float64)
    dense = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    far = torch.linspace(-120, 120, 10_001, dtype=torch.float64)
    return torch.cat([dense, far, powers, -powers, kinks]).to(dtype)


def largest_error(value: Tensor, oracle: Tensor, floor: float) -> float:
    """The largest |value - oracle| / max(|oracle|, floor), in eps of value's dtype."""
    error = (value.double() - oracle).abs() / oracle.abs().clamp(min=floor)
    assert not error.isnan().any()
    return float(error.max()) / torch.finfo(value.dtype).eps


@pytest.mark.parametrize("value", CHOICES, ids=str)
def test_fp32_value_and_derivative_are_those_of_torch(value: object) -> None:
    z = grid_of(torch.float32)
    y, slope = evaluate(z, value)
    oracle, slope_oracle = expected(z, value)
    # sums of three products, each factor to an ulp or two
    assert largest_error(y, oracle, 1.0) <= 3.0 + ON_GPU
    assert largest_error(slope, slope_oracle, 1.0) <= 5.0 + ON_GPU


@pytest.mark.parametrize("value", CHOICES, ids=str)
def test_fp64_value_and_derivative_are_those_of_torch(value: object) -> None:
    z = grid_of(torch.float64)
    y, slope = evaluate(z, value)
    oracle, slope_oracle = expected(z, value)
    # torch's own 1 - s and 1 - tanh**2 lose up to an eps, which factors up to 37 multiply
    assert largest_error(y, oracle, 1.0) <= 4.0
    assert largest_error(slope, slope_oracle, 1.0) <= 4.0 + 37.0


@pytest.mark.parametrize("name", TAIL_LIMITS)
def test_small_values_keep_their_digits(name: str) -> None:
    z = grid_of(torch.float32)
    limit = TAIL_LIMITS[name] + ON_GPU
    # torch's own gelu loses its negative tail in float64 only below 1e-9
    y, (oracle, _) = evaluate(z, name)[0], expected(z, name)
    assert largest_error(y, oracle, torch.finfo(torch.float32).eps) <= limit


@pytest.mark.parametrize("name", ["relu", "relu6", "hardswish", "identity"])
def test_kinks_are_exactly_those_of_torch(name: str) -> None:
    z = torch.tensor([0.0, -0.0, 3.0, -3.0, 6.0, -6.0])
    y, slope = evaluate(z, name)
    z.requires_grad_()
    oracle = TORCHS[name](z, 0.0)
    (slope_oracle,) = torch.autograd.grad(oracle.sum(), z)
    assert torch.equal(y, oracle)
    assert torch.equal(slope, slope_oracle)


def ulps(y: Tensor, z: Tensor, function: Callable[[Any], Any]) -> float:
    """The largest error of y in ulp of the exact function of z, z in float32 or float64."""
    info = torch.finfo(y.dtype)
    digits = 24 if y.dtype == torch.float32 else 53
    worst = 0.0
    with mpmath.workprec(200):
        for value, at in zip(y.double().tolist(), z.double().tolist(), strict=True):
            exact = function(at)
            exponent = max(int(mpmath.frexp(exact)[1]), math.frexp(info.tiny)[1])
            worst = max(worst, float(abs(value - exact) / mpmath.ldexp(1, exponent - digits)))
    return worst


def ulps_of_fp32(y: Tensor, oracle: Tensor) -> float:
    """The same for float32 against float64, fast."""
    info = torch.finfo(torch.float32)
    _, exponent = torch.frexp(oracle.abs().clamp(min=info.tiny))
    ulp = torch.ldexp(torch.ones_like(oracle), exponent - 24)
    return float(((y.double() - oracle).abs() / ulp).max())


def negative_range(count: int, dtype: torch.dtype) -> Tensor:
    """Values below zero: subnormal to huge, and dense where exp is neither 1 nor 0."""
    smallest, largest = (-44, 38) if dtype == torch.float32 else (-320, 308)
    sizes = torch.logspace(smallest, largest, count, dtype=torch.float64)
    dense = torch.linspace(0.01, 24, count, dtype=torch.float64)
    return -torch.cat([sizes, dense]).to(dtype)


def expm1_below_zero(z: Tensor) -> Tensor:
    """expm1 by our function, on the CPU."""
    z = z.to(DEVICE)
    y = torch.empty_like(z)
    expm1_kernel[(triton.cdiv(z.numel(), BLOCK),)](z, y, z.numel(), BLOCK=BLOCK)
    return y.cpu()


# by the argument in activations.py, 2.2 on a GPU
ULP_LIMIT_32 = 2.0 if INTERPRETED else 2.2


def test_tanh_of_fp32_errs_by_two_ulp_at_most() -> None:
    z = negative_range(60_000, torch.float32)
    z = torch.cat([z, -z])
    assert ulps_of_fp32(evaluate(z, "tanh")[0], torch.tanh(z.double())) <= ULP_LIMIT_32


def test_expm1_of_fp32_errs_by_two_ulp_at_most() -> None:
    z = negative_range(60_000, torch.float32)
    assert ulps_of_fp32(expm1_below_zero(z), torch.expm1(z.double())) <= ULP_LIMIT_32


def test_tanh_of_fp64_errs_by_two_ulp_at_most() -> None:
    z = negative_range(3_000, torch.float64)
    assert ulps(evaluate(z, "tanh")[0], z, mpmath.tanh) <= 2.0


def test_expm1_of_fp64_errs_by_two_ulp_at_most() -> None:
    z = negative_range(3_000, torch.float64)
    assert ulps(expm1_below_zero(z), z, mpmath.expm1) <= 2.0


@pytest.mark.parametrize("value", CHOICES, ids=str)
def test_derivative_is_that_of_our_own_value(value: object) -> None:
    z = torch.linspace(-7.03, 7.03, 500, dtype=torch.float64)
    step = 1e-5
    difference = (evaluate(z + step, value)[0] - evaluate(z - step, value)[0]) / (2 * step)
    # the third derivative is below 3 everywhere; two values of at most 8 cancel
    bound = 0.5 * step**2 + 8 * 4 * torch.finfo(torch.float64).eps / step
    torch.testing.assert_close(evaluate(z, value)[1], difference, rtol=0, atol=bound)


# act at NaN, inf, -inf; act' at the same
SPECIAL = {
    "identity": ((NAN, INF, -INF), (1, 1, 1)),
    "relu": ((NAN, INF, 0), (1, 1, 0)),
    "relu6": ((NAN, 6, 0), (1, 0, 0)),
    "leaky_relu": ((NAN, INF, -INF), (0.01, 1, 0.01)),
    "elu": ((NAN, INF, -1), (1, 1, 0)),
    "hardswish": ((NAN, INF, NAN), (1, 1, 0)),
    "sigmoid": ((NAN, 1, 0), (NAN, 0, 0)),
    "silu": ((NAN, INF, NAN), (NAN, NAN, NAN)),
    "tanh": ((NAN, 1, -1), (NAN, 0, 0)),
    "gelu": ((NAN, INF, NAN), (NAN, NAN, NAN)),
    "gelu_tanh": ((NAN, INF, NAN), (NAN, NAN, NAN)),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_and_infinities_come_out_as_from_torch(name: str, dtype: torch.dtype) -> None:
    z = torch.tensor([NAN, INF, -INF], dtype=dtype)
    y, slope = (
        torch.tensor(row, dtype=torch.float64).to(dtype) for row in map(list, SPECIAL[name])
    )
    ours = evaluate(z, name)
    torch.testing.assert_close(ours, (y, slope), rtol=0, atol=0, equal_nan=True)
    # three values are too few for torch's vectorised code, whose derivatives at NaN differ. fp64:
    # on some CPUs gelu in fp32 is another library's, which makes a NaN of infinity
    wide = z.double().requires_grad_()
    oracle = TORCHS[name](wide, activation_of(name)[1])
    (slope_oracle,) = torch.autograd.grad(oracle.sum(), wide)
    expected = (oracle.detach().to(dtype), slope_oracle.to(dtype))
    torch.testing.assert_close((y, slope), expected, equal_nan=True)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_huge_values_have_finite_derivatives(name: str) -> None:
    # where torch's gelu_tanh multiplies infinity by 0 in fp32
    z = torch.tensor([-3e38, -1e19, 1e19, 3e38])
    assert evaluate(z, name)[1].isfinite().all()


ACCEPTED: list[tuple[object, tuple[str, float]]] = [
    (None, ("identity", 0.0)),
    *((name, (name, parameter or 0.0)) for name, parameter in ACTIVATIONS.items()),
    (("leaky_relu", 0.1), ("leaky_relu", 0.1)),
    (("elu", 1), ("elu", 1.0)),
    (("gelu", "tanh"), ("gelu_tanh", 0.0)),
    (("gelu", "none"), ("gelu", 0.0)),
]


@pytest.mark.parametrize(("value", "pair"), ACCEPTED, ids=[str(value) for value, _ in ACCEPTED])
def test_activation_is_known(value: object, pair: tuple[str, float]) -> None:
    assert activation_of(value) == pair


REFUSED: list[tuple[object, type[Exception], str]] = [
    ("swish", ValueError, "expected an activation of identity, .*, got 'swish'"),
    ("ReLU", ValueError, "got 'ReLU'"),
    (("mish", 1.0), ValueError, "got 'mish'"),
    (torch.relu, TypeError, "expected an activation as None, a name or a .* pair, got <built-in"),
    (0.1, TypeError, "got 0.1"),
    (["elu", 0.5], TypeError, r"got \['elu', 0.5\]"),
    (("elu",), ValueError, r"expected a \(name, parameter\) pair, got \('elu',\)"),
    ((1, "elu"), TypeError, "expected the name of an activation, got 1"),
    (("relu", 0.1), ValueError, "expected no parameter of relu, got 0.1"),
    (("gelu", "erf"), ValueError, "expected approximate of gelu as none or tanh, got 'erf'"),
    (("gelu", True), TypeError, "expected approximate of gelu as a string, got True"),
    (("elu", "0.5"), TypeError, "expected the parameter of elu as a number, got '0.5'"),
    (("elu", True), TypeError, "got True"),
    (("elu", NAN), ValueError, "expected a finite parameter of elu, got nan"),
    (("leaky_relu", -INF), ValueError, "got -inf"),
]


@pytest.mark.parametrize(
    ("value", "error", "text"), REFUSED, ids=[str(value)[:24] for value, _, _ in REFUSED]
)
def test_activation_is_refused(value: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        activation_of(value)


def interpolation(function: Callable[[Any], Any], first: Any, last: Any, count: int) -> list[float]:
    """Coefficients, highest power first, of the polynomial through `count` Chebyshev nodes."""
    nodes = [mpmath.cos(mpmath.pi * (2 * k + 1) / (2 * count)) for k in range(count)]
    nodes = [(first + last) / 2 + (last - first) / 2 * node for node in nodes]
    powers = mpmath.matrix([[x ** (count - 1 - j) for j in range(count)] for x in nodes])
    values = mpmath.matrix([function(x) for x in nodes])
    return [float(value) for value in mpmath.lu_solve(powers, values)]


def _tanh_rest(square: Any) -> Any:
    z = mpmath.sqrt(square)
    return (mpmath.tanh(z) / z - 1) / square


def _expm1_rest(z: Any) -> Any:
    return (mpmath.expm1(z) - z) / z**2


def _normal_rest(t: Any) -> Any:
    a = (1 / t - 1) / mpmath.mpf(activations._NORMAL_SLOPE.value)
    return mpmath.erfc(a / mpmath.sqrt(2)) / 2 * mpmath.exp(a * a / 2) / t


@pytest.mark.parametrize(
    ("name", "function", "first", "last"),
    [
        ("_TANH_32", _tanh_rest, 0, mpmath.mpf(1.2) ** 2),
        ("_TANH_64", _tanh_rest, 0, mpmath.mpf(0.75) ** 2),
        ("_EXPM1_32", _expm1_rest, mpmath.mpf(-0.75), 0),
        ("_EXPM1_64", _expm1_rest, mpmath.mpf(-0.75), 0),
        ("_NORMAL_32", _normal_rest, 1 / (1 + 6 * mpmath.mpf(0.3)), 1),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_coefficients_are_those_of_the_interpolation(
    name: str, function: Callable[[Any], Any], first: Any, last: Any
) -> None:
    table = getattr(activations, name).value
    with mpmath.workprec(200):
        found = interpolation(function, mpmath.mpf(first), mpmath.mpf(last), len(table))
    assert list(table) == pytest.approx(found, rel=1e-14, abs=0)


# what a copy of fp32 takes in addition, in instructions of gfx942, on the versions that CI runs
INSTRUCTIONS = {
    "identity": 0, "relu": 2, "relu6": 5, "leaky_relu": 3, "elu": 16, "hardswish": 5,
    "sigmoid": 5, "silu": 6, "tanh": 24, "gelu": 22, "gelu_tanh": 10,
}  # fmt: skip


@pytest.mark.slow
def test_compiled_fp32_has_no_double_precision_and_few_instructions() -> None:
    done = run_outside_interpreter("tests/activation_kernels.py")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    narrow = {name: count for name, count in said["fp64"].items() if "float32" in name}
    assert narrow == {"sm_90 torch.float32": 0, "gfx942 torch.float32": 0}
    # the figure sees double precision where there is some
    assert min(count for name, count in said["fp64"].items() if "float64" in name) > 100
    found = said["vector instructions"]
    assert {name: count for name, count in found.items() if count > INSTRUCTIONS[name]} == {}
