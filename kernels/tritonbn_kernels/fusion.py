"""What follows the normalisation in the same launch: a residual that is added, an activation; and
on the way back the gradient before the activation.

FUSED, one constant of every kernel, is (activation, its parameter, side, restores):

- side says what a backward pass reads besides dy and x: nothing, "mask" (one bit an element where
  the activation has two slopes), or "residual" (read again, to compute the derivative anew).
- restores: the tensor given as x is y, from which an invertible activation gives x back.

Without a residual nothing is kept for the derivative: z is computed anew by the multiply-add that
the forward pass had (`moments.scaled`), to the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tritonbn_kernels.activations import gradient_through, passed_gradient, restored
from tritonbn_kernels.moments import load_channels, offset_of, scaled


# fmt: off
@triton.jit
def backward_vectors(
    saved_ptr, gamma_ptr, beta_ptr, offs_c, mask_c, n_channels,
    FUSED: tl.constexpr, ACCUMULATE: tl.constexpr,
):
    # fmt: on
    """mean in two words, inv_std, scale and offset of a backward pass, each (BLOCK_C,).

    Where x is restored from y, `pulled_back` centres by beta and undoes the scale instead: mean is
    beta, and offset is 1 / scale.
    """
    inv_std = load_channels(saved_ptr + 2 * n_channels, offs_c, mask_c, 0.0, ACCUMULATE)
    scale = load_channels(gamma_ptr, offs_c, mask_c, 1.0, ACCUMULATE) * inv_std
    beta = load_channels(beta_ptr, offs_c, mask_c, 0.0, ACCUMULATE)
    if FUSED[3]:
        mean_hi, mean_lo = beta, tl.zeros_like(beta)
        offset = 1.0 / tl.where(mask_c, scale, 1.0)
    else:
        mean_hi = load_channels(saved_ptr, offs_c, mask_c, 0.0, ACCUMULATE)
        mean_lo = load_channels(saved_ptr + n_channels, offs_c, mask_c, 0.0, ACCUMULATE)
        offset = offset_of(beta, mean_lo, scale)
    return mean_hi, mean_lo, inv_std, scale, offset


@triton.jit
def pulled_back(dy, x, side, mean_hi, scale, offset, FUSED: tl.constexpr):
    """(dz, x - mean_hi) of a tile: the gradient before activation and residual, and where it is.

    `side` is the tile of the residual or of the mask (whether z is handed on), else anything; the
    vectors broadcast over the tile.
    """
    ACTIVATION: tl.constexpr = FUSED[0]
    PARAMETER: tl.constexpr = FUSED[1]
    if FUSED[3]:
        z = restored(x, ACTIVATION, PARAMETER)
        centred = (z - mean_hi) * offset
        dz = gradient_through(dy, z, ACTIVATION, PARAMETER)
    else:
        centred = x - mean_hi
        if FUSED[2] == "mask":
            dz = passed_gradient(dy, side, ACTIVATION, PARAMETER)
        elif ACTIVATION == "identity":
            dz = dy
        else:
            z = scaled(centred, scale, offset)
            if FUSED[2] == "residual":
                z += side
            dz = gradient_through(dy, z, ACTIVATION, PARAMETER)
    return dz, centred
