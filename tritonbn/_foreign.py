"""How torch's own tools learn that a layer does more than normalise.

Some tools rebuild a BatchNorm layer from its attributes: they would drop its activation and give a
wrong model in silence. Of a layer with an activation they meet one of two attributes that ordinary
use does not touch in this way:

- `eps` is a float that no tensor takes for an operand. Who folds BatchNorm into a convolution or a
  linear layer computes `running_var + eps` (`torch.nn.utils.fusion`, and others who write the
  formula anew). It still is a float: printed, compared, handed to a function as a number. A layer
  of another kind that is given it to keep wants `float(layer.eps)`, or it cannot be compiled.
- `qconfig` cannot be read. `SyncBatchNorm.convert_sync_batchnorm` and `torch.ao.quantization` ask
  for it, nobody else does; of all that the former reads, the rest is what anybody reads.

`convert_sync_batchnorm` works in place, layer by layer: those before the one that it may not
convert are converted when it raises.

Both keep what is assigned in the layer's `__dict__`, where the layer itself reads it. What finds
its layers by their exact class (`torch.fx.experimental.optimization.fuse`, quantisation's fusing)
does not take ours for torch's.
"""

from typing import Any

import torch
from torch import nn

from ._following import follows_nothing

__all__ = ["eps_of", "qconfig_of", "refusal"]


def refusal(activation: object, remedy: str = "put the activation into a layer of its own") -> str:
    """The text of every such error."""
    return (
        f"expected a BatchNorm layer without an activation, got activation={activation!r}, which"
        f" would be lost: {remedy}"
    )


class _FusedEps(float):
    """eps of a layer with an activation; `float` of it is a plain one."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        raise NotImplementedError(
            "expected eps of a BatchNorm layer without an activation, got that of a layer with"
            " one, which a formula of eps alone would lose; float(eps) is the number"
        )


def _assigned(layer: nn.Module, name: str) -> Any:
    """What lies in the layer's `__dict__`."""
    try:
        return vars(layer)[name]
    except KeyError:
        raise AttributeError(name) from None


def _get_eps(layer: nn.Module) -> float:
    eps: float = _assigned(layer, "eps")
    # a compiler knows floats alone, and none of the tools is compiled
    if follows_nothing(layer.activation) or torch.compiler.is_compiling():
        return eps
    return _FusedEps(eps)


def _set_eps(layer: nn.Module, eps: float) -> None:
    # it may come from another such layer
    vars(layer)["eps"] = float(eps) if isinstance(eps, _FusedEps) else eps


def _get_qconfig(layer: nn.Module) -> Any:
    if not follows_nothing(layer.activation):
        raise NotImplementedError(refusal(layer.activation))
    return _assigned(layer, "qconfig")


def _set_qconfig(layer: nn.Module, qconfig: Any) -> None:
    vars(layer)["qconfig"] = qconfig


def _delete_qconfig(layer: nn.Module) -> None:
    del vars(layer)["qconfig"]


eps_of: Any = property(_get_eps, _set_eps)
qconfig_of: Any = property(_get_qconfig, _set_qconfig, _delete_qconfig)
