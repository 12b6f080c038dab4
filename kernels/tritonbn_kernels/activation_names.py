"""Names and parameters of the activations that kernels know, in torch's words; pure Python.

The formulas are in `activations.py`. A new one is a row here, two functions and two branches there,
torch's own in `tritonbn/_following.py`, and the oracle's in `tritonbn/reference.py`.
"""

from __future__ import annotations

import math
from numbers import Real

__all__ = [
    "ACTIVATIONS",
    "INVERTIBLE",
    "NO_PARAMETER",
    "TWO_SLOPES",
    "activation_of",
    "side_of",
]

NO_PARAMETER = 0.0
# name -> parameter by default, None where there is none
ACTIVATIONS: dict[str, float | None] = {
    "identity": None,
    "relu": None,
    "relu6": None,
    "leaky_relu": 0.01,
    "elu": 1.0,
    "hardswish": None,
    "sigmoid": None,
    "silu": None,
    "tanh": None,
    "gelu": None,
    "gelu_tanh": None,
}
# with a residual, one bit an element tells the derivative of these
TWO_SLOPES = frozenset({"relu", "relu6", "leaky_relu"})
# what `activations.restored` undoes, those with a parameter where it is positive
INVERTIBLE = frozenset({"identity", "leaky_relu", "elu"})
# what torch calls approximate
_GELUS = {"none": "gelu", "tanh": "gelu_tanh"}


def activation_of(value: object) -> tuple[str, float]:
    """(name, parameter) as kernels take them, `NO_PARAMETER` where the activation has none.

    `value`: None (the identity), a name, or a pair of a name and what torch calls negative_slope
    ("leaky_relu"), alpha ("elu") or approximate ("gelu").

    Raises:
        TypeError: neither of these, or the second of a pair is of the wrong kind.
        ValueError: no such name, a parameter that is not finite, or one where none belongs.
    """
    if value is None:
        return "identity", NO_PARAMETER
    if isinstance(value, str):
        parameter = ACTIVATIONS[_known(value)]
        return value, NO_PARAMETER if parameter is None else parameter
    if not isinstance(value, tuple):
        raise TypeError(
            f"expected an activation as None, a name or a (name, parameter) pair, got {value!r}"
        )
    if len(value) != 2:
        raise ValueError(f"expected a (name, parameter) pair, got {value!r}")
    name, parameter = value
    if not isinstance(name, str):
        raise TypeError(f"expected the name of an activation, got {name!r}")
    if _known(name) == "gelu":
        return _gelu(parameter), NO_PARAMETER
    if ACTIVATIONS[name] is None:
        raise ValueError(f"expected no parameter of {name}, got {parameter!r}")
    return name, _finite(name, parameter)


def side_of(activation: str, residual: bool) -> str:
    """What a backward pass needs besides dy and x: "" for nothing, "mask" or "residual"; the least
    that gives exact derivatives.

    With a residual z cannot be told from x. Where the activation has two slopes one bit an element
    tells which; elsewhere the residual is read again, which its producer often keeps anyway.
    """
    if not residual or activation == "identity":
        return ""
    return "mask" if activation in TWO_SLOPES else "residual"


def _known(name: str) -> str:
    """`name`, if it is in the table."""
    if name not in ACTIVATIONS:
        raise ValueError(f"expected an activation of {', '.join(ACTIVATIONS)}, got {name!r}")
    return name


def _gelu(approximate: object) -> str:
    """The activation that torch's `approximate` asks for."""
    if not isinstance(approximate, str):
        raise TypeError(f"expected approximate of gelu as a string, got {approximate!r}")
    if approximate not in _GELUS:
        raise ValueError(f"expected approximate of gelu as none or tanh, got {approximate!r}")
    return _GELUS[approximate]


def _finite(name: str, parameter: object) -> float:
    """`parameter` as a float."""
    if isinstance(parameter, bool) or not isinstance(parameter, Real):
        raise TypeError(f"expected the parameter of {name} as a number, got {parameter!r}")
    if not math.isfinite(parameter):
        raise ValueError(f"expected a finite parameter of {name}, got {parameter!r}")
    return float(parameter)
