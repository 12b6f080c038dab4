"""BatchNorm layers for models: torch's own classes with the forward pass on Triton kernels.

Everything but `forward` is inherited, so constructor, repr, state_dict and its versions are those
of the installed torch. `functional._route` says for every input whether the kernels run: where they
do not, torch's forward runs unchanged.
"""

from collections.abc import Callable
from types import FunctionType
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.batchnorm import _BatchNorm

from ._layer_calls import again
from .functional import _batch_norm, _route

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
    """The forward pass that the layers below share; mixed in before torch's class.

    It keeps no state of its own: `convert` makes one of these of a torch layer that never went
    through a constructor of ours.
    """

    _torch_forward = _under_another_name(_BatchNorm.forward, "_torch_forward")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input` as torch's layer does.

        Args:
            input: `(N, C, *S)`, the number of dimensions of the class; any layout.

        Returns:
            The shape, dtype and memory format of `input`.

        Raises:
            ValueError: the number of dimensions is not the layer's, or batch statistics are asked
                of one value per channel. Other errors are those of `batch_norm`.

        Mutates: in training with running statistics, `running_mean`, `running_var` and
            `num_batches_tracked`.
        """
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self._torch_forward(input)
        y = again(self, input)
        if y is not None:
            return y
        if _route(input) == "torch":
            # torch.fx takes torch's layers for leaves by the module they are defined in, not ours
            if isinstance(input, Proxy):
                path = input.tracer.path_of_module(self)
                return input.tracer.create_proxy("call_module", path, (input,), {})
            return self._torch_forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]

        training, momentum = self.training, self.momentum
        running_mean = running_var = count = None
        if self.track_running_stats or not training:
            running_mean, running_var = self.running_mean, self.running_var
            count = self.num_batches_tracked if training else None
        if momentum is None and count is None:
            # a cumulative average without its count: torch leaves the statistics as they are
            momentum = 0.0
        return _batch_norm(
            input,
            running_mean,
            running_var,
            self.weight,
            self.bias,
            training or (running_mean is None and running_var is None),
            momentum,
            self.eps,
            count,
            self,
        )


class BatchNorm1d(_TritonBatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` on Triton kernels: input `(N, C)` or `(N, C, L)`."""


class BatchNorm2d(_TritonBatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` on Triton kernels: input `(N, C, H, W)`."""


class BatchNorm3d(_TritonBatchNorm, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` on Triton kernels: input `(N, C, D, H, W)`."""


class LazyBatchNorm1d(_TritonBatchNorm, nn.LazyBatchNorm1d):
    """`torch.nn.LazyBatchNorm1d` that becomes our `BatchNorm1d` at its first forward."""

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_TritonBatchNorm, nn.LazyBatchNorm2d):
    """`torch.nn.LazyBatchNorm2d` that becomes our `BatchNorm2d` at its first forward."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(_TritonBatchNorm, nn.LazyBatchNorm3d):
    """`torch.nn.LazyBatchNorm3d` that becomes our `BatchNorm3d` at its first forward."""

    cls_to_become = BatchNorm3d
