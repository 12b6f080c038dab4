"""BatchNorm layers for models: torch's own classes with the forward pass on Triton kernels.

State and its versions, and without an activation constructor and repr, are those of the installed
torch. `functional._route` says for every input whether the kernels run: where they do not, torch's
forward runs unchanged, and its functions follow for an activation or a residual.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.batchnorm import _BatchNorm

from tritonbn_kernels.activation_names import activation_of

from ._following import IDENTITY, Activation, follows_nothing
from ._foreign import eps_of, qconfig_of, refusal
from ._layer_calls import again
from ._validation import check_memory_efficient, residual_for
from .functional import _batch_norm, _by_torch, _route

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
]


def _under_another_name(
    method: Callable[[_BatchNorm, Tensor], Tensor], name: str
) -> Callable[[_BatchNorm, Tensor], Tensor]:
    """Copy `method` as a function called `name`: TorchScript compiles no second `forward`."""
    function = cast("FunctionType", method)
    copy = FunctionType(function.__code__, function.__globals__, name)
    copy.__annotations__ = function.__annotations__
    return copy


class _TritonBatchNorm(_BatchNorm):
    """What the layers below add to torch's; mixed in before torch's class.

    It keeps no state of its own but what the constructor is told, and has defaults for that:
    `convert` makes one of these of a torch layer that never went through a constructor of ours.

    Args:
        args, kwargs: as the installed torch's class takes them.
        activation: applied to the result, as `batch_norm` takes it; None for none. It may be set
            later, and travels with the layer, not with its state_dict.
        memory_efficient: whether backward computes the input from the output, and the input is
            not kept: with identity and leaky_relu, and elu in fp32; needs |beta / gamma| <= 3 in
            every channel (`_memory.py` says why) and no residual, else an error names the channels.
            "auto" keeps the input in the calls where that is not so. It has no effect where torch
            runs or compiles the layer; gradients cannot be differentiated again.

    Raises:
        TypeError, ValueError: no such activation, or memory_efficient with one that cannot be
            inverted. Other errors are those of torch's class.
    """

    # class attributes with no annotation: TorchScript would read it, in place of torch's own
    activation = cast("Activation | None", None)
    memory_efficient = cast("bool | str", False)
    # what torch's tools read of a layer that they rebuild, and TorchScript should not compile
    eps = eps_of
    qconfig = qconfig_of
    __jit_unused_properties__ = ("eps", "qconfig")

    def __init__(
        self,
        *args: Any,
        activation: Activation | None = None,
        memory_efficient: bool | str = False,
        **kwargs: Any,
    ) -> None:
        check_memory_efficient(memory_efficient, activation_of(activation))
        super().__init__(*args, **kwargs)
        # a plain layer has the attributes of torch's, no more
        if activation is not None:
            self.activation = activation
        if memory_efficient:
            self.memory_efficient = memory_efficient

    def __setattr__(self, name: str, value: Any) -> None:
        # a module of torch's for an activation would become a submodule, which nobody calls
        if name == "activation":
            check_memory_efficient(self.memory_efficient, activation_of(value))
        elif name == "memory_efficient":
            check_memory_efficient(value, activation_of(self.activation))
        super().__setattr__(name, value)

    _torch_forward = _under_another_name(_BatchNorm.forward, "_torch_forward")

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalise `input` as torch's layer does, add `residual`, apply the activation.

        Args:
            input: `(N, C, *S)`, the number of dimensions of the class; any layout.
            residual: the shape and device of `input`, of any floating dtype, any layout.

        Returns:
            The shape, dtype and memory format of `input`.

        Raises:
            ValueError: the number of dimensions is not the layer's, or batch statistics are asked
                of one value per channel. Other errors are those of `batch_norm`.

        Mutates: in training with running statistics, `running_mean`, `running_var` and
            `num_batches_tracked`.
        """
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            # a layer with an activation does not get here, see __prepare_scriptable__
            y = self._torch_forward(input)
            if residual is None:
                return y
            if residual.shape != y.shape:
                raise ValueError("expected a residual of the shape of the input")
            return y + residual.to(y.dtype)
        if residual is None:
            kept = again(self, input)
            if kept is not None:
                return kept
        following = IDENTITY if self.activation is None else activation_of(self.activation)
        engine = _route(input, residual)
        if engine == "torch":
            # torch.fx takes torch's layers for leaves by the module they are defined in, not ours
            if isinstance(input, Proxy) or isinstance(residual, Proxy):
                return self._leaf(input, residual)
            if following is IDENTITY and residual is None:
                return self._torch_forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        if residual is not None:
            residual = residual_for(input, residual)

        training, momentum = self.training, self.momentum
        running_mean = running_var = count = None
        if self.track_running_stats or not training:
            running_mean, running_var = self.running_mean, self.running_var
            count = self.num_batches_tracked if training else None
        if momentum is None and count is None:
            # a cumulative average without its count: torch leaves the statistics as they are
            momentum = 0.0
        arguments = (
            input,
            running_mean,
            running_var,
            self.weight,
            self.bias,
            training or (running_mean is None and running_var is None),
            momentum,
            vars(self)["eps"],
            count,
            following,
            residual,
        )
        if engine == "torch":
            return _by_torch(*arguments)
        return _batch_norm(*arguments, self, self.memory_efficient)

    def _leaf(self, input: Tensor | Proxy, residual: Tensor | Proxy | None) -> Any:
        """The call of this layer in a graph of torch.fx."""
        tracer: Any = next(one.tracer for one in (input, residual) if isinstance(one, Proxy))
        operands = (input,) if residual is None else (input, residual)
        return tracer.create_proxy("call_module", tracer.path_of_module(self), operands, {})

    def extra_repr(self) -> str:
        """Torch's, and what of ours was asked for."""
        parts = [super().extra_repr()]  # type: ignore[no-untyped-call]
        if self.activation is not None:
            parts.append(f"activation={self.activation!r}")
        if self.memory_efficient:
            parts.append(f"memory_efficient={self.memory_efficient!r}")
        return ", ".join(parts)

    def __dir__(self) -> list[str]:
        """Torch's names, without what a layer with an activation has for a trap.

        torch.jit.trace and inspect.getmembers read every name that is here.
        """
        names: list[str] = super().__dir__()  # type: ignore[no-untyped-call]
        if follows_nothing(self.activation):
            return names
        return [name for name in names if name != "qconfig"]

    def __prepare_scriptable__(self) -> "_TritonBatchNorm":
        """What TorchScript compiles for this layer.

        Raises:
            NotImplementedError: it has an activation, which the compiled forward does not know.
        """
        if not follows_nothing(self.activation):
            remedy = "use torch.jit.trace, or torch.compile"
            raise NotImplementedError(refusal(self.activation, remedy))
        return self


class _Lazy(_TritonBatchNorm):
    """The layers that get their number of channels from the first input."""

    def initialize_parameters(self, input: Tensor, residual: Tensor | None = None) -> None:
        """Torch's, for which a residual is one argument too many."""
        super().initialize_parameters(input)  # type: ignore[misc]


class BatchNorm1d(_TritonBatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` on Triton kernels: input `(N, C)` or `(N, C, L)`."""


class BatchNorm2d(_TritonBatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` on Triton kernels: input `(N, C, H, W)`."""


class BatchNorm3d(_TritonBatchNorm, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` on Triton kernels: input `(N, C, D, H, W)`."""


class LazyBatchNorm1d(_Lazy, nn.LazyBatchNorm1d):
    """`torch.nn.LazyBatchNorm1d` that becomes our `BatchNorm1d` at its first forward."""

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_Lazy, nn.LazyBatchNorm2d):
    """`torch.nn.LazyBatchNorm2d` that becomes our `BatchNorm2d` at its first forward."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(_Lazy, nn.LazyBatchNorm3d):
    """`torch.nn.LazyBatchNorm3d` that becomes our `BatchNorm3d` at its first forward."""

    cls_to_become = BatchNorm3d
