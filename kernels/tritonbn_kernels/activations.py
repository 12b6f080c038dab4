"""Activations behind the normalisation, and their derivatives, as device functions.

`activate` and `gradient_through` take fp32 or fp64 and round to nothing narrower. Their choices
are constants, so only the chosen formula is compiled. Values at the kinks are torch's. A NaN stays
one; the derivatives that are constant by parts take the branch of torch's scalar and CUDA code
there (1 or the slope; torch's vectorised CPU code differs from it). At the infinities 0 * inf
is NaN where torch's is: silu, gelu, gelu_tanh and hardswish of -inf, and the derivatives of silu,
gelu and gelu_tanh at both. The sign of a zero may differ from torch's.

fp32 takes what the hardware has in one instruction, two for a reciprocal: `_exp`, `_reciprocal`.
An exact division costs nine instructions on sm_90 and ten on gfx942, `tl.exp` five and eight. So
silu takes 6 instructions, gelu 21 (31 for `tl.erf` alone, which also loses its negative tail).
Errors in the interpreter, eps being 2**-23, or 2**-52 for fp64:

    tanh, expm1_below_zero      1.5 and 1.2 ulp, 1.0 and 1.2 in fp64
    derivatives                 5 eps relative to max(1, |derivative|)
    sigmoid, silu               10 eps relative to max(|value|, eps)
    gelu, gelu_tanh             12 and 24 eps likewise; in fp64 gelu's tail is cut as torch's is

What counts in the last two lines is the rounding of the exponent, of which the smallest value that
matters has up to 18; relative to max(1, |value|) all are below 3 eps. By PTX, `exp2` errs by 2 ulp
at most and `rsqrt` by 2**-22.9: with the worst of both, tanh errs by 2.2 ulp and expm1 by 2.1.

The polynomials interpolate at Chebyshev nodes; `tests/test_activations.py` computes them anew.
"""

from __future__ import annotations

import triton
import triton.language as tl

# below them tanh and expm1 are polynomials: where what 1 - 2 q and e - 1 lose is less than 2 ulp
_TANH_BOUND_32 = tl.constexpr(1.2)
_TANH_BOUND_64 = tl.constexpr(0.75)
_EXPM1_BOUND = tl.constexpr(0.75)
# Phi(-a) = exp(-a^2 / 2) t P(t), t = 1 / (1 + slope a)
_NORMAL_SLOPE = tl.constexpr(0.3)

# (tanh(z) / z - 1) / z^2 as a polynomial in z^2, highest power first as all of them
_TANH_32 = tl.constexpr(
    (
        -2.6835058004783417e-05,
        0.00024010402853608784,
        -0.001061939148255955,
        0.0033038314803472417,
        -0.008731976558006465,
        0.021834769701217994,
        -0.05396355059181751,
        0.13333308391432025,
        -0.3333333311242338,
    )
)
_TANH_64 = tl.constexpr(
    (
        -1.6408599646831444e-06,
        1.0048053928129499e-05,
        -3.449472469998217e-05,
        9.42476297649358e-05,
        -0.00023809406936979282,
        0.0005897469986953327,
        -0.0014557818253310693,
        0.0035921213885060418,
        -0.008863234987439102,
        0.021869488509711037,
        -0.05396825396758208,
        0.13333333333332661,
        -0.3333333333333333,
    )
)
# (expm1(z) - z) / z^2, z from -0.75 to 0
_EXPM1_32 = tl.constexpr(
    (
        0.0001504237508804647,
        0.0013504181025519686,
        0.00831872942182336,
        0.0416641318326789,
        0.16666650470662736,
        0.49999999831491504,
    )
)
_EXPM1_64 = tl.constexpr(
    (
        1.5242663491355502e-09,
        2.4103562348722887e-08,
        2.746447651413201e-07,
        2.7551610923357137e-06,
        2.4801360527791478e-05,
        0.00019841264036087213,
        0.0013888888796045877,
        0.00833333333246582,
        0.041666666666625045,
        0.16666666666666588,
        0.5,
    )
)
# P, fitted for a from 0 to 6: beyond, Phi(-a) is below 1e-9 and the error within two per cent of it
_NORMAL_32 = tl.constexpr(
    (
        0.03584272805300634,
        -0.15695249816628476,
        0.20379563236480205,
        -0.048729670229918746,
        0.12406905422610917,
        0.10206594400093587,
        0.12022795267304248,
        0.11968087206701647,
    )
)


@triton.constexpr_function
def _count(coefficients):
    # the interpreter knows no len of a constexpr
    return len(coefficients)


@triton.jit
def _polynomial(x, COEFFICIENTS: tl.constexpr):
    """Horner's rule, highest power first."""
    value = tl.full(x.shape, COEFFICIENTS[0], x.dtype)
    for power in tl.static_range(1, _count(COEFFICIENTS)):
        value = value * x + COEFFICIENTS[power]
    return value


@triton.jit
def _exp(x):
    """exp(x), to 2 ulp and |x| half ulp of fp32; results below 2**-126 may be 0."""
    if x.dtype == tl.float64:
        value = tl.exp(x)
    else:
        value = tl.exp2(x * 1.4426950408889634)
    return value


@triton.jit
def _reciprocal(x):
    """1 / x for x >= 1, infinity included; by the square root's instruction in fp32, to 3 ulp."""
    if x.dtype == tl.float64:
        value = 1.0 / x
    else:
        root = tl.rsqrt(x)
        value = root * root
    return value


@triton.jit
def _logistic(w):
    """(s, s (1 - s)) with s = 1 / (1 + exp(-w)), both to a few ulp at either end."""
    e = _exp(-tl.abs(w))
    larger = _reciprocal(1.0 + e)
    smaller = e * larger
    return tl.where(w >= 0.0, larger, smaller), smaller * larger


@triton.jit
def _normal(z):
    """(Phi(z), its derivative): the standard normal distribution."""
    density = _exp(z * z * -0.5)
    if z.dtype == tl.float64:
        phi = 0.5 + 0.5 * tl.erf(z * 0.7071067811865476)
    else:
        t = _reciprocal(1.0 + tl.abs(z) * _NORMAL_SLOPE)
        below = density * (t * _polynomial(t, _NORMAL_32))
        phi = tl.where(z > 0.0, 1.0 - below, below)
    return phi, density * 0.3989422804014327


@triton.jit
def tanh(z):
    """tanh(z): odd polynomial near 0, else 1 - 2 / (exp(2 |z|) + 1) with the sign of z."""
    square = z * z
    size = tl.abs(z)
    far = 1.0 - 2.0 * _reciprocal(_exp(2.0 * size) + 1.0)
    far = tl.where(z < 0.0, -far, far)
    if z.dtype == tl.float64:
        near = z + z * (square * _polynomial(square, _TANH_64))
        value = tl.where(size < _TANH_BOUND_64, near, far)
    else:
        near = z + z * (square * _polynomial(square, _TANH_32))
        value = tl.where(size < _TANH_BOUND_32, near, far)
    return value


@triton.jit
def expm1_below_zero(z):
    """exp(z) - 1 for z <= 0, all that elu needs: no cancellation is left where exp(z) < 1/2."""
    if z.dtype == tl.float64:
        near = z + z * z * _polynomial(z, _EXPM1_64)
    else:
        near = z + z * z * _polynomial(z, _EXPM1_32)
    return tl.where(z > -_EXPM1_BOUND, near, _exp(z) - 1.0)


@triton.jit
def _log1p_below_zero(x):
    """log(1 + x) for -1 < x <= 0: what 1 + x loses is put back by its share (Goldberg 1991)."""
    u = 1.0 + x
    lost = x - (u - 1.0)
    return tl.log(u) + lost / u


@triton.jit
def _relu(z):
    return tl.where(z <= 0.0, 0.0, z)


@triton.jit
def _relu6(z):
    return tl.where(z >= 6.0, 6.0, _relu(z))


@triton.jit
def _leaky_relu(z, SLOPE: tl.constexpr):
    return tl.where(z > 0.0, z, z * SLOPE)


@triton.jit
def passes(z, ACTIVATION: tl.constexpr):
    """Where relu, relu6 or leaky_relu hand z on as it is: one bit tells their derivative."""
    if ACTIVATION == "relu":
        there = (z <= 0.0) == 0
    elif ACTIVATION == "relu6":
        there = ((z <= 0.0) | (z >= 6.0)) == 0
    else:
        tl.static_assert(ACTIVATION == "leaky_relu", "expected an activation of two slopes")
        there = z > 0.0
    return there


@triton.jit
def passed_gradient(dy, there, ACTIVATION: tl.constexpr, PARAMETER: tl.constexpr):
    """dy * act'(z) for relu, relu6 and leaky_relu, where `there` is what `passes` said of z.

    Chosen, not multiplied: where relu is off an infinite dy gives 0, as in torch.
    """
    if ACTIVATION == "leaky_relu":
        dz = tl.where(there, dy, dy * PARAMETER)
    else:
        dz = tl.where(there, dy, 0.0)
    return dz


@triton.jit
def _elu(z, ALPHA: tl.constexpr):
    return tl.where(z <= 0.0, ALPHA * expm1_below_zero(z), z)


@triton.jit
def _elu_gradient(z, ALPHA: tl.constexpr):
    return tl.where(z <= 0.0, ALPHA * _exp(z), 1.0)


@triton.jit
def _hardswish(z):
    return z * tl.minimum(tl.maximum(z + 3.0, 0.0), 6.0) * (1.0 / 6.0)


@triton.jit
def _through_hardswish(dy, z):
    # chosen as in `passed_gradient`
    return tl.where(z <= -3.0, 0.0, tl.where(z < 3.0, dy * (z * (1.0 / 3.0) + 0.5), dy))


@triton.jit
def _sigmoid(z):
    return _reciprocal(1.0 + _exp(-z))


@triton.jit
def _sigmoid_gradient(z):
    return _logistic(z)[1]


@triton.jit
def _silu(z):
    return z * _sigmoid(z)


@triton.jit
def _silu_gradient(z):
    s, slope = _logistic(z)
    return s + z * slope


@triton.jit
def _tanh_gradient(z):
    return 4.0 * _logistic(2.0 * z)[1]


@triton.jit
def _gelu(z):
    return z * _normal(z)[0]


@triton.jit
def _gelu_gradient(z):
    phi, density = _normal(z)
    return phi + z * density


@triton.jit
def _gelu_tanh(z):
    """0.5 z (1 + tanh(w / 2)) = z / (1 + exp(-w)), w = sqrt(8 / pi) (z + 0.044715 z^3)."""
    return z * _sigmoid(z * (1.5957691216057308 + 0.07135481627260025 * (z * z)))


@triton.jit
def _gelu_tanh_gradient(z):
    # bounded, or huge z would be infinity times the slope 0; 1e4 is far where the slope is 0
    square = tl.minimum(z * z, 1e4)
    s, slope = _logistic(z * (1.5957691216057308 + 0.07135481627260025 * square))
    return s + z * slope * (1.5957691216057308 + 0.21406444881780073 * square)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr, PARAMETER: tl.constexpr):
    """act(z), elementwise over any shape; the names and parameters are `activation_of`'s."""
    if ACTIVATION == "relu":
        value = _relu(z)
    elif ACTIVATION == "relu6":
        value = _relu6(z)
    elif ACTIVATION == "leaky_relu":
        value = _leaky_relu(z, PARAMETER)
    elif ACTIVATION == "elu":
        value = _elu(z, PARAMETER)
    elif ACTIVATION == "hardswish":
        value = _hardswish(z)
    elif ACTIVATION == "sigmoid":
        value = _sigmoid(z)
    elif ACTIVATION == "silu":
        value = _silu(z)
    elif ACTIVATION == "tanh":
        value = tanh(z)
    elif ACTIVATION == "gelu":
        value = _gelu(z)
    elif ACTIVATION == "gelu_tanh":
        value = _gelu_tanh(z)
    else:
        tl.static_assert(ACTIVATION == "identity", "expected an activation of the table")
        value = z
    return value


@triton.jit
def gradient_through(dy, z, ACTIVATION: tl.constexpr, PARAMETER: tl.constexpr):
    """dy * act'(z), elementwise over any shape, from the same z that `activate` took."""
    if ACTIVATION == "relu" or ACTIVATION == "relu6" or ACTIVATION == "leaky_relu":
        dz = passed_gradient(dy, passes(z, ACTIVATION), ACTIVATION, PARAMETER)
    elif ACTIVATION == "elu":
        dz = dy * _elu_gradient(z, PARAMETER)
    elif ACTIVATION == "hardswish":
        dz = _through_hardswish(dy, z)
    elif ACTIVATION == "sigmoid":
        dz = dy * _sigmoid_gradient(z)
    elif ACTIVATION == "silu":
        dz = dy * _silu_gradient(z)
    elif ACTIVATION == "tanh":
        dz = dy * _tanh_gradient(z)
    elif ACTIVATION == "gelu":
        dz = dy * _gelu_gradient(z)
    elif ACTIVATION == "gelu_tanh":
        dz = dy * _gelu_tanh_gradient(z)
    else:
        tl.static_assert(ACTIVATION == "identity", "expected an activation of the table")
        dz = dy
    return dz


@triton.jit
def restored(y, ACTIVATION: tl.constexpr, PARAMETER: tl.constexpr):
    """z with act(z) = y, for the activations that lose nothing: identity, leaky_relu of a positive
    slope, and elu, whose tail ends where y is -alpha to the last bit."""
    if ACTIVATION == "leaky_relu":
        z = tl.where(y > 0.0, y, y * (1.0 / PARAMETER))
    elif ACTIVATION == "elu":
        z = tl.where(y > 0.0, y, _log1p_below_zero(y * (1.0 / PARAMETER)))
    else:
        tl.static_assert(ACTIVATION == "identity", "expected an activation that can be undone")
        z = y
    return z
