"""The operators with an activation, a residual and a mask: schema, fake results, compiled graphs,
and masks that come back other than they were saved.

All that a tracer is told must be so: the mask's size too, which depends on shape and strides.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

import tritonbn
from tests.checks import Operands, torch_gradients
from tests.fused import fused_call
from tests.held import gradient_of
from tests.inputs import DEVICE, lay_out, values
from tests.test_operators import BACKWARD, EVAL, FORWARD, LAYOUTS, forward_arguments
from tests.tolerances import assert_within, value_budget
from tritonbn_kernels import record_launches
from tritonbn_kernels.activation_names import activation_of

train_and_eval = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# besides the layouts of small tensors, whose masks are bytes: masks of bits, in both families
SHAPES: dict[str, Callable[[], Tensor]] = {
    **LAYOUTS,
    "planes": lambda: torch.randn(2, 3, 4, 8),
    "rows": lambda: torch.randn(2, 3, 2, 16).transpose(1, 3),
    "images": lambda: torch.randn(2, 16, 3, 3),
    "plane_slice": lambda: torch.randn(2, 3, 4, 16)[..., :8],
}
# what is kept: a mask, the residual, nothing
KINDS = [("relu", True), ("silu", True), ("gelu", False), ("identity", True)]
of_every_kind = pytest.mark.parametrize(
    ("activation", "residual"), KINDS, ids=[f"{name}-{added}" for name, added in KINDS]
)


def _following(x: Tensor, activation: str, residual: bool) -> tuple[Any, ...]:
    """What follows eps in the arguments of the forward operators."""
    return (*activation_of(activation), torch.randn_like(x) if residual else None, True)


def _backward(
    dy: Tensor, arguments: tuple[Any, ...], results: tuple[Tensor, ...], training: bool
) -> tuple[Any, ...]:
    """Arguments of the backward operator, all gradients asked for."""
    x, weight, bias = arguments[:3]
    *activation, residual, _ = arguments[9:]
    mask = results[2] if results[2].numel() else None
    read = (bias, residual, None) if mask is None else (None, None, mask)
    needs = (True, True, True, residual is not None)
    return dy, x, weight, results[1], training, *needs[:3], *activation, *read, needs[3]


@train_and_eval
@of_every_kind
@pytest.mark.parametrize("shape", ["images", "channels_last"])
def test_operators_pass_opcheck(
    shape: str, activation: str, residual: bool, training: bool
) -> None:
    x = SHAPES[shape]().to(DEVICE)
    following = _following(x, activation, residual)
    arguments = (*forward_arguments(x, training, True, True), *following)
    if training:
        opcheck(FORWARD, arguments)
    else:
        opcheck(EVAL, (*arguments[:5], 1e-5, *following))
    results = FORWARD(*arguments)
    assert bool(results[2].numel()) == (activation == "relu")
    opcheck(BACKWARD, _backward(torch.randn_like(x), arguments, results, training))


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_operators_pass_opcheck_with_gradients(activation: str) -> None:
    x = torch.randn(2, 4, 2, 4, device=DEVICE, requires_grad=True)
    arguments = [*forward_arguments(x, True, True, True), *_following(x, activation, True)]
    for place in (1, 2, 11):
        arguments[place] = arguments[place].detach().requires_grad_()
    opcheck(FORWARD, tuple(arguments))


@train_and_eval
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_fake_results_are_like_real_ones(shape: str, dtype: torch.dtype, training: bool) -> None:
    x = SHAPES[shape]().to(DEVICE)
    # not by to(), which would make some layouts dense
    x = torch.empty_strided(x.shape, x.stride(), dtype=dtype, device=DEVICE).zero_() + x.to(dtype)
    arguments = list(forward_arguments(x, training, True, True))
    if dtype == torch.float64:
        arguments[1:5] = [vector.double() for vector in arguments[1:5]]
    arguments += _following(x, "relu", True)
    real = FORWARD(*arguments)
    dy = torch.randn_like(x)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(v) if isinstance(v, Tensor) else v for v in arguments]
        fake = FORWARD(*fakes)
        fake += BACKWARD(*_backward(mode.from_tensor(dy), tuple(fakes), fake, training))
    real += BACKWARD(*_backward(dy, tuple(arguments), real, training))
    for ours, expected in zip(fake, real, strict=True):
        assert (ours.shape, ours.stride(), ours.dtype) == (
            expected.shape,
            expected.stride(),
            expected.dtype,
        )


class _Following(torch.nn.Module):
    """A fused layer, its residual a leaf of the graph."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.layer = tritonbn.BatchNorm2d(6, activation=activation, device=DEVICE)
        for place, parameter in enumerate(self.parameters()):
            parameter.data.copy_(torch.linspace(-0.7, 1.4, 6) + place)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        y: Tensor = self.layer(x, residual)
        return y


def _trained(module: Any, layer: torch.nn.Module, training: bool) -> list[Tensor]:
    """y and all gradients of one step, and what the step left in the buffers."""
    torch.manual_seed(5)
    layer.train(training).zero_grad()
    x, residual, dy = (values((4, 6, 4, 4), torch.float32) for _ in range(3))
    leaves = (x.requires_grad_(), residual.requires_grad_())
    y = module(*leaves)
    wanted = [*leaves, *layer.parameters()]
    gradients = torch.autograd.grad(y, wanted, dy)
    return [y.detach(), *gradients, *(buffer.clone() for buffer in layer.buffers())]


@train_and_eval
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_compiled_layer_with_a_residual_trains_like_an_eager_one(
    activation: str, training: bool
) -> None:
    eager, compiled = _Following(activation), _Following(activation)
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    expected = _trained(eager, eager, training)
    with record_launches() as launches:
        found = _trained(run, compiled, training)
    assert len(launches) == 2
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert all(gradient.abs().sum() > 0 for gradient in found[1:5])
    torch.compiler.reset()


def _misaligned(tensor: Tensor) -> Tensor:
    """A copy of the same layout at no multiple of 16 bytes."""
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    storage = torch.zeros(reach + 2, dtype=tensor.dtype, device=tensor.device)
    return storage[1:].as_strided(tensor.shape, tensor.stride()).copy_(tensor)


def _dense(tensor: Tensor) -> Tensor:
    """A contiguous copy, as `torch.autograd.graph.save_on_cpu` makes and brings back."""
    return tensor.clone(memory_format=torch.contiguous_format)


@train_and_eval
@pytest.mark.parametrize("move", [torch.clone, _misaligned, _dense])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "channels_last_slice"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_saved_tensors_may_be_moved(
    activation: str, layout: str, move: Callable[[Tensor], Tensor], training: bool
) -> None:
    # relu's mask moves too, and lies in the order of an x that comes back in another
    shape, dtype = (3, 8, 4, 8), torch.bfloat16
    x = lay_out(values(shape, dtype), layout)
    call = fused_call(x, activation, values(shape, dtype), training)
    dy = gradient_of(x)
    masks: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        masks.extend([tensor] if tensor.dtype is torch.uint8 else [])
        return move(tensor)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = _public_gradients(call, dy, training)
    assert len(masks) == (activation == "relu")
    _assert_gradients(call, dy, training, found)


@train_and_eval
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_derivatives_of_gradients_know_the_order_of_a_moved_mask(
    activation: str, training: bool
) -> None:
    x = lay_out(values((3, 8, 2, 4), torch.float64), "channels_last")
    call = fused_call(x, activation, values((3, 8, 2, 4), torch.float64), training)
    dy = gradient_of(x).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(_dense, lambda tensor: tensor):
        found = _public_gradients(call, dy, training, create_graph=True)
    assert all(gradient.requires_grad for gradient in found)
    _assert_gradients(call, dy.detach(), training, found)


def _public_gradients(
    call: Operands, dy: Tensor, training: bool, create_graph: bool = False
) -> list[Tensor]:
    """Gradients of x, weight, bias and residual by the public function."""
    assert call.running_mean is not None and call.running_var is not None
    given = (call.x, call.gamma, call.beta, call.residual)
    leaves = [one.detach().requires_grad_() for one in given if one is not None]
    x, gamma, beta, residual = leaves
    statistics = (call.running_mean.clone(), call.running_var.clone())
    y = tritonbn.batch_norm(
        x, *statistics, gamma, beta, training, residual=residual, activation=call.activation
    )
    return list(torch.autograd.grad(y, leaves, dy, create_graph=create_graph))


def _assert_gradients(call: Operands, dy: Tensor, training: bool, found: list[Tensor]) -> None:
    oracle, torchs = call.gradients(dy, training), torch_gradients(call, dy, training)
    names = ("dx", "dgamma", "dbeta", "dresidual")
    for name, ours in zip(names, found, strict=True):
        exact, theirs = getattr(oracle, name), getattr(torchs, name)
        assert_within(name, ours.detach(), exact, value_budget(exact, theirs, ours.dtype))
