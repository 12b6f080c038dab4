"""Bytes that Batch Normalization must move through device memory. Pure Python.

Counted per mode in whole tensors of the input's size (R = read, W = write):

| mode | floor: one read | two-read kernels |
|---|---|---|
| forward_train  | 1R + 1W | 2R + 1W |
| forward_eval   | 1R + 1W | 1R + 1W |
| backward_train | 2R + 1W | 4R + 1W |
| backward_eval  | 2R + 1W | 2R + 1W |

(in eval the input's gradient waits for no sum, so one pass makes all three gradients), plus the
per-channel vectors, each moved once: parameters, running statistics, saved statistics.
The floor is what GB/s is counted on, for every provider alike.

`y = activation(bn(x) + residual)` in the same kernel moves more for the residual only: the
derivative of an activation alone is computed anew from x, and the way back reads beta for it. m is
the mask of one bit an element that an activation of two slopes keeps behind a residual: a byte for
every 16 bytes of x.

| behind BatchNorm | forward_train | backward, floor | backward_train, two reads |
|---|---|---|---|
| activation                   | 1R + 1W     | 2R + 1W     | 4R + 1W      |
| residual                     | 2R + 1W     | 2R + 1W     | 4R + 1W      |
| residual, masked activation  | 2R + 1W + m | 2R + 2W + m | 4R + 2W + 2m |
| residual, another activation | 2R + 1W     | 3R + 2W     | 6R + 2W      |

The gradient of a residual that meets no activation is dy itself and is not written; one behind
another activation is read again for the derivative. A two-read kernel reads x once more forward,
and everything once more backward. forward_eval keeps no mask.

As operators of their own an addition moves 2R + 1W forward and nothing backward (both gradients are
dy), an activation 1R + 1W forward and 2R + 1W backward (dy, and its own input or output), in place
or not. Behind a two-read BatchNorm that makes 3R + 2W and 6R + 2W with an activation, 4R + 2W and
4R + 1W with a residual, 5R + 3W and 6R + 2W with both.
"""

from __future__ import annotations

from typing import NamedTuple

from tritonbn_kernels.activation_names import side_of

MODES = ("forward_train", "forward_eval", "backward_train", "backward_eval")
IDENTITY = "identity"

_FLOOR_TENSORS = {"forward_train": 2, "forward_eval": 2, "backward_train": 3, "backward_eval": 3}
_TWO_READ_TENSORS = {"forward_train": 3, "forward_eval": 2, "backward_train": 5, "backward_eval": 3}
# gamma, beta; running mean and variance read and written; mean (two words) and inv_std saved
_FORWARD_TRAIN_VECTORS = 2 + 4 + 3
_VECTORS = {
    "forward_train": _FORWARD_TRAIN_VECTORS,
    "forward_eval": 2 + 2 + 3,
    # gamma; mean and inv_std; dgamma, dbeta
    "backward_train": 1 + 3 + 2,
    "backward_eval": 1 + 3 + 2,
}
_VECTOR_ITEMSIZE = 4
# bytes of x for each byte of the mask
_MASK_RUN = 16


class _Extra(NamedTuple):
    """What a fused call moves more: tensors read and written, masks, vectors."""

    reads: int = 0
    writes: int = 0
    masks: int = 0
    vectors: int = 0


def mask_bytes(numel: int, itemsize: int) -> int:
    """Bytes of the mask of a tensor: one for every 16 of the tensor, the last ones included."""
    return -(-numel * itemsize // _MASK_RUN)


def _extra(mode: str, residual: bool, activation: str) -> _Extra:
    """What is added to a floor."""
    side = side_of(activation, residual)
    if mode.startswith("forward"):
        keeps = mode == "forward_train" and side == "mask"
        return _Extra(reads=int(residual), masks=int(keeps))
    if activation == IDENTITY:
        return _Extra()
    if not side:
        return _Extra(vectors=1)
    if side == "mask":
        return _Extra(writes=1, masks=1)
    return _Extra(reads=1, writes=1, vectors=1)


def _bytes(
    tensors: dict[str, int],
    mode: str,
    numel: int,
    channels: int,
    itemsize: int,
    extra: _Extra,
) -> int:
    if mode not in tensors:
        raise ValueError(f"expected a mode of {', '.join(MODES)}, got {mode!r}")
    moved = (tensors[mode] + extra.reads + extra.writes) * numel * itemsize
    moved += extra.masks * mask_bytes(numel, itemsize)
    return moved + (_VECTORS[mode] + extra.vectors) * channels * _VECTOR_ITEMSIZE


def floor_bytes(
    mode: str,
    numel: int,
    channels: int,
    itemsize: int,
    *,
    residual: bool = False,
    activation: str = IDENTITY,
) -> int:
    """Least bytes that any algorithm moves: each tensor once.

    Args:
        mode: one of `MODES`.
        numel: elements of the input.
        channels: C.
        itemsize: bytes per element of the input.
        residual: whether a tensor is added before the activation.
        activation: its name, as in `activation_names`.

    Raises:
        ValueError: unknown mode.
    """
    extra = _extra(mode, residual, activation)
    return _bytes(_FLOOR_TENSORS, mode, numel, channels, itemsize, extra)


def two_read_bytes(
    mode: str,
    numel: int,
    channels: int,
    itemsize: int,
    *,
    residual: bool = False,
    activation: str = IDENTITY,
) -> int:
    """Bytes that the two-read kernels move when no cache serves the second read; arguments and
    errors as `floor_bytes`."""
    extra = _extra(mode, residual, activation)
    if mode == "backward_train":
        extra = extra._replace(reads=2 * extra.reads, masks=2 * extra.masks)
    return _bytes(_TWO_READ_TENSORS, mode, numel, channels, itemsize, extra)


def unfused_bytes(
    mode: str,
    numel: int,
    channels: int,
    itemsize: int,
    *,
    residual: bool = False,
    activation: str = IDENTITY,
    one_read: bool = False,
) -> int:
    """Bytes that BatchNorm, addition and activation move as operators of their own.

    Args:
        one_read: BatchNorm itself moves its floor instead of reading twice.

    Other arguments and errors as `floor_bytes`.
    """
    acts = activation != IDENTITY
    if mode.startswith("forward"):
        extra = _Extra(reads=2 * residual + acts, writes=residual + acts)
    else:
        extra = _Extra(reads=2 * acts, writes=int(acts))
    tensors = _FLOOR_TENSORS if one_read else _TWO_READ_TENSORS
    return _bytes(tensors, mode, numel, channels, itemsize, extra)
