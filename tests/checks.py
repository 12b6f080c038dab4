"""One call judged three ways: ours, eager torch on the same device, and the float64 oracle."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

import tritonbn_kernels
from tests.inputs import DEVICE
from tests.tolerances import assert_within, mean_budget, sum_budget, value_budget
from tritonbn import reference

__all__ = ["EPS", "Operands", "check_backward", "check_forward", "operands", "torch_gradients"]

EPS = 1e-5


@dataclass(frozen=True)
class Operands:
    """Arguments of a BatchNorm call: `x` `(N, C, *S)`, the others `(C,)` or None."""

    x: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    momentum: float | None = 0.1
    eps: float = EPS

    def copy(self) -> "Operands":
        """The same with running statistics of its own."""
        mean, var = self.running_mean, self.running_var
        return replace(
            self,
            running_mean=None if mean is None else mean.clone(),
            running_var=None if var is None else var.clone(),
        )

    def oracle(self, training: bool, tracked: int | None = None) -> reference.Forward:
        """The exact result; `tracked` batches came before this one."""
        return reference.forward(
            self.x,
            self.gamma,
            self.beta,
            self.running_mean,
            self.running_var,
            training,
            self.momentum,
            self.eps,
            tracked,
        )

    def wide(self) -> "Operands":
        """A copy with parameters and statistics in the one dtype that torch takes for every x."""
        dtype = torch.float64 if self.x.dtype == torch.float64 else torch.float32
        given = (self.gamma, self.beta, self.running_mean, self.running_var)
        gamma, beta, mean, var = (None if t is None else t.to(dtype, copy=True) for t in given)
        return replace(self, gamma=gamma, beta=beta, running_mean=mean, running_var=var)


def operands(
    x: Tensor, parameters: torch.dtype | None = None, statistics: torch.dtype | None = None
) -> Operands:
    """`x` with random gamma, beta and running statistics, by default fp32 (fp64 for fp64).

    The running mean lies near the channel's own, so that evaluation is as well conditioned as
    training.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    channels = x.shape[1]
    gamma = torch.rand(channels, dtype=torch.float64) + 0.5
    gamma[1::3] *= -1
    beta = torch.randn(channels, dtype=torch.float64)
    wide = reference.forward(x, None, None, None, None, True, 0.1, EPS)
    mean = wide.mean + 0.5 * torch.randn(channels, dtype=torch.float64, device=x.device)
    var = torch.rand(channels, dtype=torch.float64) + 0.5
    return Operands(
        x,
        gamma.to(DEVICE, parameters or dtype),
        beta.to(DEVICE, parameters or dtype),
        mean.to(DEVICE, statistics or dtype),
        var.to(DEVICE, statistics or dtype),
    )


def check_forward(call: Operands, training: bool, tracked: int | None = None) -> Tensor:
    """Run the forward launcher, judge y and the running statistics, return what it saved.

    Args:
        call: the operands; its running statistics are not touched.
        training: whether batch statistics normalise.
        tracked: batches counted before this one, None for no count.
    """
    ours, torchs = call.copy(), call.wide()
    count = None if tracked is None else torch.tensor(tracked, device=DEVICE)
    oracle = call.oracle(training, tracked)
    y, saved = tritonbn_kernels.batch_norm_forward(
        ours.x,
        ours.gamma,
        ours.beta,
        ours.running_mean,
        ours.running_var,
        count,
        training,
        ours.momentum,
        ours.eps,
    )
    momentum = 1 / (tracked + 1) if call.momentum is None and tracked is not None else call.momentum
    assert momentum is not None
    torch_y = functional.batch_norm(
        torchs.x,
        torchs.running_mean,
        torchs.running_var,
        torchs.gamma,
        torchs.beta,
        training,
        momentum,
        torchs.eps,
    )
    assert y.dtype == call.x.dtype
    assert_within("y", y, oracle.y, value_budget(oracle.y, torch_y, y.dtype))
    if count is not None:
        assert count.item() == (tracked or 0) + training
    _check_running(call, ours, torchs, oracle, momentum if training else 0.0)
    return saved


def _check_running(
    before: Operands, ours: Operands, torchs: Operands, oracle: reference.Forward, share: float
) -> None:
    """Judge the running statistics, in which the batch has a weight of `share`."""
    if ours.running_mean is None or ours.running_var is None:
        return
    if share == 0:
        assert before.running_mean is not None and before.running_var is not None
        assert torch.equal(ours.running_mean, before.running_mean)
        assert torch.equal(ours.running_var, before.running_var)
        return
    assert torchs.running_mean is not None and torchs.running_var is not None
    assert oracle.running_mean is not None and oracle.running_var is not None
    x_dtype, dtype = before.x.dtype, ours.running_mean.dtype
    centred = before.x.double() - oracle.mean.view(1, -1, *[1] * (before.x.dim() - 2))
    assert_within(
        "running_mean",
        ours.running_mean,
        oracle.running_mean,
        mean_budget(
            oracle.running_mean,
            torchs.running_mean.to(dtype),
            dtype,
            share * centred,
            x_dtype,
            std=oracle.var.sqrt(),
        ),
    )
    assert_within(
        "running_var",
        ours.running_var,
        oracle.running_var,
        mean_budget(
            oracle.running_var,
            torchs.running_var.to(dtype),
            dtype,
            share * centred.square(),
            x_dtype,
        ),
    )


def check_backward(
    call: Operands,
    dy: Tensor,
    training: bool,
    *,
    need_dx: bool = True,
    need_dgamma: bool = True,
    need_dbeta: bool = True,
    saved: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Run the backward launcher, judge the gradients that are asked for, return them.

    `saved` is what a forward launcher kept; None runs one.
    """
    if saved is None:
        saved = _saved(call, training)
    ours = tritonbn_kernels.batch_norm_backward(
        dy, call.x, call.gamma, saved, training, need_dx, need_dgamma, need_dbeta
    )
    wanted = (need_dx, need_dgamma, need_dbeta)
    assert [gradient is not None for gradient in ours] == list(wanted)
    exact = call.oracle(training)
    oracle = reference.backward(dy, call.x, call.gamma, exact.mean, exact.inv_std, training)
    torchs = torch_gradients(call, dy, training)
    dx, dgamma, dbeta = ours
    if dx is not None:
        assert dx.dtype == call.x.dtype
        assert_within("dx", dx, oracle.dx, value_budget(oracle.dx, torchs.dx, dx.dtype))
    shape = (1, -1, *[1] * (dy.dim() - 2))
    xhat = (call.x.double() - exact.mean.view(shape)) * exact.inv_std.view(shape)
    if dgamma is not None:
        terms = dy.double() * xhat
        torch_sum = torchs.dgamma.to(dgamma.dtype)
        budget = sum_budget(oracle.dgamma, torch_sum, dgamma.dtype, terms, call.x.dtype)
        assert_within("dgamma", dgamma, oracle.dgamma, budget)
    if dbeta is not None:
        torch_sum = torchs.dbeta.to(dbeta.dtype)
        budget = sum_budget(oracle.dbeta, torch_sum, dbeta.dtype, dy.double(), call.x.dtype)
        assert_within("dbeta", dbeta, oracle.dbeta, budget)
    return ours


def torch_gradients(call: Operands, dy: Tensor, training: bool) -> reference.Gradients:
    """Gradients by eager torch on this device, gamma 1 and beta 0 where `call` has none."""
    wide = call.wide()
    dtype = torch.float64 if call.x.dtype == torch.float64 else torch.float32
    channels = call.x.shape[1]
    gamma = torch.ones(channels, dtype=dtype, device=DEVICE) if wide.gamma is None else wide.gamma
    beta = torch.zeros_like(gamma) if wide.beta is None else wide.beta
    leaves = [tensor.detach().requires_grad_() for tensor in (call.x, gamma, beta)]
    y = functional.batch_norm(
        leaves[0],
        wide.running_mean,
        wide.running_var,
        leaves[1],
        leaves[2],
        training,
        0.1,
        call.eps,
    )
    return reference.Gradients(*torch.autograd.grad(y, leaves, dy))


def _saved(call: Operands, training: bool) -> Tensor:
    """What our forward launcher keeps for backward."""
    mean, var = (None, None) if training else (call.running_mean, call.running_var)
    _, saved = tritonbn_kernels.batch_norm_forward(
        call.x, call.gamma, call.beta, mean, var, None, training, 0.1, call.eps
    )
    return saved
