"""What may happen to tensors between the forward and the backward pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import tritonbn
from tests.inputs import DEVICE
from tritonbn_kernels import record_launches


def _operands() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(2, 8, 4, 4, device=DEVICE).to(memory_format=torch.channels_last)
    return x.requires_grad_(), torch.randn(8, device=DEVICE), torch.randn_like(x)


def _gradient(x: Tensor, weight: Tensor, dy: Tensor) -> Tensor:
    y = tritonbn.batch_norm(x, None, None, weight, training=True)
    [dx] = torch.autograd.grad(y, x, dy)
    return dx


@pytest.mark.parametrize("first", ["plain", "hooked"])
def test_saved_tensors_may_come_back_in_another_layout(first: str) -> None:
    # as offloading to the CPU and back does
    x, weight, dy = _operands()

    def dense(tensor: Tensor) -> Tensor:
        return tensor.clone(memory_format=torch.contiguous_format)

    def hooked() -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(dense, lambda tensor: tensor):
            return _gradient(x, weight, dy)

    if first == "hooked":
        hooked()
    with record_launches() as launches:
        expected = _gradient(x, weight, dy)
        found = hooked()
    assert len(launches) >= 4
    torch.testing.assert_close(found, expected)


def _vectorised(y: Tensor, x: Tensor, dys: Tensor) -> Tensor:
    [dx] = torch.autograd.grad(y, x, dys, is_grads_batched=True)
    return dx


def _mapped(y: Tensor, x: Tensor, dys: Tensor) -> Tensor:
    def one(dy: Tensor) -> Tensor:
        [dx] = torch.autograd.grad(y, x, dy, retain_graph=True)
        return dx

    return torch.func.vmap(one)(dys)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("batched", [_vectorised, _mapped], ids=["is_grads_batched", "vmap"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_batched_gradients_are_those_of_torch(
    batched: Callable[[Tensor, Tensor, Tensor], Tensor], training: bool
) -> None:
    x, weight, dy = _operands()
    mean, var = torch.zeros(8, device=DEVICE), torch.ones(8, device=DEVICE)
    dys = torch.stack([dy, 2 * dy])
    found = batched(tritonbn.batch_norm(x, mean, var, weight, training=training), x, dys)
    mean, var = torch.zeros(8, device=DEVICE), torch.ones(8, device=DEVICE)
    theirs = torch.nn.functional.batch_norm(x, mean, var, weight, training=training)
    for got, one in zip(found, dys, strict=True):
        [expected] = torch.autograd.grad(theirs, x, one, retain_graph=True)
        torch.testing.assert_close(got, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_tangent_of_the_output_gradient_is_kept() -> None:
    x, weight, dy = _operands()
    y = tritonbn.batch_norm(x, None, None, weight, training=True)
    tangent = torch.randn_like(dy)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(dy, tangent)  # type: ignore[no-untyped-call]
        [dx] = torch.autograd.grad(y, x, dual)
        found = torch.autograd.forward_ad.unpack_dual(dx).tangent  # type: ignore[no-untyped-call]
    assert found is not None
    torch.testing.assert_close(found, _gradient(x, weight, tangent), atol=1e-5, rtol=1e-5)
