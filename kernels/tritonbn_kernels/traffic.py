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
"""

from __future__ import annotations

MODES = ("forward_train", "forward_eval", "backward_train", "backward_eval")

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


def _bytes(tensors: dict[str, int], mode: str, numel: int, channels: int, itemsize: int) -> int:
    if mode not in tensors:
        raise ValueError(f"expected a mode of {', '.join(MODES)}, got {mode!r}")
    return tensors[mode] * numel * itemsize + _VECTORS[mode] * channels * _VECTOR_ITEMSIZE


def floor_bytes(mode: str, numel: int, channels: int, itemsize: int) -> int:
    """Least bytes that any algorithm moves: each tensor once.

    Args:
        mode: one of `MODES`.
        numel: elements of the input.
        channels: C.
        itemsize: bytes per element of the input.

    Raises:
        ValueError: unknown mode.
    """
    return _bytes(_FLOOR_TENSORS, mode, numel, channels, itemsize)


def two_read_bytes(mode: str, numel: int, channels: int, itemsize: int) -> int:
    """Bytes that the two-read kernels move when no cache serves the second read; arguments and
    errors as `floor_bytes`."""
    return _bytes(_TWO_READ_TENSORS, mode, numel, channels, itemsize)
