"""What a call does besides normalising, said in what its kernels are compiled for."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tritonbn_kernels.activation_names import NO_PARAMETER
from tritonbn_kernels.plan import ACCESS_BYTES

IDENTITY = ("identity", NO_PARAMETER)


class Fused(NamedTuple):
    """Activation and parameter, as `activation_of` has them; side: what a backward pass reads
    besides dy and x, as `side_of` has it; restores: whether x is got back from y.
    """

    activation: str = "identity"
    parameter: float = NO_PARAMETER
    side: str = ""
    restores: bool = False

    @property
    def constants(self) -> dict[str, object]:
        """For the kernels of a backward pass; the first two for those of a forward pass too."""
        return {
            "ACTIVATION": self.activation,
            "PARAMETER": self.parameter,
            "SIDE": self.side,
            "RESTORES": self.restores,
        }

    @property
    def needs_bias(self) -> bool:
        """Whether a backward pass computes z anew, from gamma and beta."""
        return self.restores or (self.activation != "identity" and self.side != "mask")


UNFUSED = Fused()


def run_of(itemsize: int) -> int:
    """Elements of 16 bytes: those that a byte of a mask stands for where they come in such runs."""
    return ACCESS_BYTES // itemsize


def mask_run(x: torch.Tensor) -> int:
    """Elements to a byte of the mask of `x`: 16 bytes where the whole tensor divides so, else 1.

    By the number of elements alone: compilers change strides after they have asked for the size.
    """
    run = run_of(x.element_size())
    return run if x.numel() % run == 0 else 1


def pack_bytes(mask: torch.Tensor, run: int) -> torch.Tensor:
    """A mask of one byte an element as one of `run` bits a byte.

    By torch's operations: for kernels that read one value or a few at a time, whose accesses cost
    far more.
    """
    bits = mask.view(-1, run)
    packed = bits[:, 0].clone()
    for number in range(1, run):
        packed |= bits[:, number] << number
    return packed
