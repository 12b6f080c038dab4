"""What follows a BatchNorm, by the names that cases, results and pictures share. Pure Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["FUSIONS", "NONE", "PLAIN", "Fusion", "fusion_of"]


@dataclass(frozen=True)
class Fusion:
    """`y = activation(bn(x) + residual)`.

    Attributes:
        name: key of FUSIONS
        activation: its name in tritonbn
        residual: whether a tensor is added before the activation
        words: as a sentence has it
    """

    name: str
    activation: str
    residual: bool
    words: str

    @property
    def formula(self) -> dict[str, Any]:
        """Arguments of the formulas in `tritonbn_kernels.traffic`."""
        return {"residual": self.residual, "activation": self.activation}


NONE = "none"
PLAIN = Fusion(NONE, "identity", False, "nothing")
FUSIONS = {
    fusion.name: fusion
    for fusion in (
        PLAIN,
        Fusion("relu", "relu", False, "ReLU"),
        Fusion("add_relu", "relu", True, "add + ReLU"),
        Fusion("add", "identity", True, "add"),
        Fusion("relu6", "relu6", False, "ReLU6"),
        Fusion("silu", "silu", False, "SiLU"),
        Fusion("add_silu", "silu", True, "add + SiLU"),
        Fusion("sigmoid", "sigmoid", False, "sigmoid"),
    )
}


def fusion_of(name: str) -> Fusion:
    """The fusion of this name.

    Raises:
        ValueError: there is none
    """
    if name not in FUSIONS:
        raise ValueError(f"expected fusion to be one of {', '.join(FUSIONS)}, got {name}")
    return FUSIONS[name]
