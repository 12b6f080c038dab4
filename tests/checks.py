"""One call judged three ways: ours, eager torch on the same device, and the float64 oracle.

With an activation or a residual, torch is its layers one after another in fp32 (fp64 for fp64), the
results rounded to the dtype of x: in half precision it would round between them as well, by which
its error, and so our budget, would only grow.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

import tritonbn_kernels
from tests.eager import activate
from tests.inputs import DEVICE
from tests.tolerances import assert_within, mean_budget, sum_budget, value_budget
from tritonbn import reference
from tritonbn._following import Activation
from tritonbn_kernels.activation_names import activation_of

__all__ = [
    "EPS",
    "MASKED",
    "Operands",
    "check_backward",
    "check_forward",
    "check_forward_and_mask",
    "operands",
    "torch_forward",
    "torch_gradients",
]

EPS = 1e-5
# whose derivative is one of two numbers: with a residual, backward takes a bit of each element
MASKED = ("relu", "relu6", "leaky_relu")


@dataclass(frozen=True)
class Operands:
    """Arguments of a BatchNorm call: `x` and `residual` `(N, C, *S)`, the others `(C,)` or None."""

    x: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    momentum: float | None = 0.1
    eps: float = EPS
    residual: Tensor | None = None
    activation: Activation | None = None

    @property
    def fused(self) -> bool:
        """Whether anything comes after the normalisation."""
        return self.residual is not None or self.activation is not None

    @property
    def keeps_mask(self) -> bool:
        """Whether the backward pass takes the mask of the forward pass."""
        return self.residual is not None and activation_of(self.activation)[0] in MASKED

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
            residual=self.residual,
            activation=self.activation,
        )

    def gradients(self, dy: Tensor, training: bool) -> reference.Gradients:
        """The exact gradients; `dresidual` is there without a residual too: it is dy behind the
        activation."""
        exact = self.oracle(training)
        residual = torch.zeros_like(self.x) if self.residual is None else self.residual
        return reference.backward(
            dy,
            self.x,
            self.gamma,
            exact.mean,
            exact.inv_std,
            training,
            beta=self.beta,
            residual=residual,
            activation=self.activation,
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


def torch_forward(call: Operands, training: bool, momentum: float = 0.1) -> Tensor:
    """y by eager torch on this device; `call`, best a `wide` one, has its statistics updated."""
    x = call.x
    if call.fused and x.dtype != torch.float64:
        x = x.float()
    y = functional.batch_norm(
        x,
        call.running_mean,
        call.running_var,
        call.gamma,
        call.beta,
        training,
        momentum,
        call.eps,
    )
    if call.residual is not None:
        y = y + call.residual.to(y.dtype)
    return activate(y, call.activation).to(call.x.dtype)


def check_forward(call: Operands, training: bool, tracked: int | None = None) -> Tensor:
    """`check_forward_and_mask`, of which the mask is not returned."""
    return check_forward_and_mask(call, training, tracked)[0]


def check_forward_and_mask(
    call: Operands, training: bool, tracked: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Run the forward launcher, judge y and the running statistics, return what it saved and the
    mask.

    Args:
        call: the operands; its running statistics are not touched.
        training: whether batch statistics normalise.
        tracked: batches counted before this one, None for no count.
    """
    ours, torchs = call.copy(), call.wide()
    count = None if tracked is None else torch.tensor(tracked, device=DEVICE)
    oracle = call.oracle(training, tracked)
    y, saved, mask = _launched(ours, count, training)
    momentum = 1 / (tracked + 1) if call.momentum is None and tracked is not None else call.momentum
    assert momentum is not None
    torch_y = torch_forward(torchs, training, momentum)
    assert y.dtype == call.x.dtype
    assert_within("y", y, oracle.y, value_budget(oracle.y, torch_y, y.dtype))
    if count is not None:
        assert count.item() == (tracked or 0) + training
    _check_running(call, ours, torchs, oracle, momentum if training else 0.0)
    return saved, mask


def _launched(
    call: Operands, count: Tensor | None, training: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """y, what is saved, and the mask, by our forward launcher."""
    arguments = (
        call.x,
        call.gamma,
        call.beta,
        call.running_mean,
        call.running_var,
        count,
        training,
        call.momentum,
        call.eps,
    )
    if not call.fused:
        return (*tritonbn_kernels.batch_norm_forward(*arguments), None)
    y, saved, mask = tritonbn_kernels.fused_forward(
        *arguments,
        activation=activation_of(call.activation),
        residual=call.residual,
        keeps_mask=call.keeps_mask,
    )
    assert (mask is not None) == call.keeps_mask
    return y, saved, mask


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
    need_dresidual: bool | None = None,
    saved: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Run the backward launcher, judge the gradients that are asked for, return them: three, and
    dresidual where there is an activation or a residual.

    `need_dresidual` None asks for it where there is a residual. `saved` and `mask` are what a
    forward launcher kept; `saved` None runs one.
    """
    if saved is None:
        saved, mask = _saved(call, training)
    needs = (need_dx, need_dgamma, need_dbeta)
    wanted = list(needs)
    arguments = (dy, call.x, call.gamma, saved, training)
    ours: tuple[Tensor | None, ...]
    if not call.fused:
        ours = tritonbn_kernels.batch_norm_backward(*arguments, *needs)
    else:
        if need_dresidual is None:
            need_dresidual = call.residual is not None
        wanted.append(need_dresidual)
        name, parameter = activation_of(call.activation)
        # where they are not read again, whoever calls need not keep them
        again = name != "identity" and not call.keeps_mask
        ours = tritonbn_kernels.fused_backward(
            *arguments,
            *needs,
            (name, parameter),
            call.beta if again else None,
            call.residual if again else None,
            mask,
            need_dresidual,
        )
    assert [gradient is not None for gradient in ours] == wanted
    oracle, torchs = call.gradients(dy, training), torch_gradients(call, dy, training)
    for name in ("dx", "dresidual"):
        value = dict(zip(reference.Gradients._fields, ours, strict=False)).get(name)
        if value is not None:
            exact, torch_value = getattr(oracle, name), getattr(torchs, name)
            assert value.dtype == call.x.dtype
            assert_within(name, value, exact, value_budget(exact, torch_value, value.dtype))
    _check_sums(call, training, ours, oracle, torchs)
    return ours


def _check_sums(
    call: Operands,
    training: bool,
    ours: tuple[Tensor | None, ...],
    oracle: reference.Gradients,
    torchs: reference.Gradients,
) -> None:
    """Judge dgamma and dbeta."""
    exact, x = call.oracle(training), call.x
    shape = (1, -1, *[1] * (x.dim() - 2))
    xhat = (x.double() - exact.mean.view(shape)) * exact.inv_std.view(shape)
    g = oracle.dresidual
    assert g is not None
    _, dgamma, dbeta, *_ = ours
    if dgamma is not None:
        torch_sum = torchs.dgamma.to(dgamma.dtype)
        budget = sum_budget(oracle.dgamma, torch_sum, dgamma.dtype, g * xhat, x.dtype)
        assert_within("dgamma", dgamma, oracle.dgamma, budget)
    if dbeta is not None:
        torch_sum = torchs.dbeta.to(dbeta.dtype)
        budget = sum_budget(oracle.dbeta, torch_sum, dbeta.dtype, g, x.dtype)
        assert_within("dbeta", dbeta, oracle.dbeta, budget)


def torch_gradients(call: Operands, dy: Tensor, training: bool) -> reference.Gradients:
    """Gradients by eager torch on this device, gamma 1 and beta 0 where `call` has none."""
    wide = call.wide()
    dtype = torch.float64 if call.x.dtype == torch.float64 else torch.float32
    channels = call.x.shape[1]
    gamma = torch.ones(channels, dtype=dtype, device=DEVICE) if wide.gamma is None else wide.gamma
    beta = torch.zeros_like(gamma) if wide.beta is None else wide.beta
    given = [call.x, gamma, beta, *([] if call.residual is None else [call.residual])]
    x, gamma, beta, *residual = leaves = [tensor.detach().requires_grad_() for tensor in given]
    y = torch_forward(
        replace(wide, x=x, gamma=gamma, beta=beta, residual=residual[0] if residual else None),
        training,
    )
    return reference.Gradients(*torch.autograd.grad(y, leaves, dy.to(y.dtype)))


def _saved(call: Operands, training: bool) -> tuple[Tensor, Tensor | None]:
    """What our forward launcher keeps for backward."""
    mean, var = (None, None) if training else (call.running_mean, call.running_var)
    plain = replace(call, running_mean=mean, running_var=var, momentum=0.1)
    return _launched(plain, None, training)[1:]
