"""Derivatives: checked by finite differences, and handed to torch where ours end."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

import tritonbn

from .agreement import DEVICE, assert_agreement, kernels_run_on, outcome

train_and_eval = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
# torch's transforms script their decompositions on first use
scripting_warns = pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated")
# ours, torch's and the oracle
RUNS: tuple[tuple[Callable[..., Tensor], torch.dtype], ...] = (
    (tritonbn.batch_norm, torch.float32),
    (F.batch_norm, torch.float32),
    (F.batch_norm, torch.float64),
)
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_first": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
}
PLAIN = (False, False)
AFFINE = {
    "affine": (True, True),
    "weight_only": (True, False),
    "bias_only": (False, True),
    "plain": PLAIN,
}


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, device=DEVICE, requires_grad=True)


def normaliser(
    function: Callable[..., Tensor], training: bool, present: tuple[bool, bool] = (True, True)
) -> Callable[..., Tensor]:
    """`function` of x and of the parameters that are present, with statistics of its own."""
    mean = torch.linspace(-1, 1, 2, dtype=torch.float64, device=DEVICE)
    var = torch.linspace(0.5, 2, 2, dtype=torch.float64, device=DEVICE)

    def normalise(x: Tensor, *parameters: Tensor) -> Tensor:
        given = iter(parameters)
        weight, bias = (next(given) if here else None for here in present)
        statistics = (mean.to(x.dtype), var.to(x.dtype))
        return function(x, *statistics, weight, bias, training=training, eps=1e-3)

    return normalise


def dual(primal: Tensor, tangent: Tensor) -> Tensor:
    """A tensor of forward-mode AD."""
    made: Tensor = forward_ad.make_dual(primal, tangent)  # type: ignore[no-untyped-call]
    return made


@train_and_eval
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("present", AFFINE.values(), ids=AFFINE)
def test_first_derivatives_are_the_finite_differences(
    present: tuple[bool, bool], layout: str, training: bool, launches: list[Any]
) -> None:
    x = LAYOUTS[layout](random(2, 2, 1, 2).detach()).requires_grad_()
    assert kernels_run_on(x)
    inputs = [x, *(random(2) for here in present if here)]
    assert gradcheck(normaliser(tritonbn.batch_norm, training, present), inputs)
    assert len(launches) > 2


@train_and_eval
@pytest.mark.parametrize("present", AFFINE.values(), ids=AFFINE)
def test_second_derivatives_are_the_finite_differences(
    present: tuple[bool, bool], training: bool
) -> None:
    inputs = [random(3, 2), *(random(2) for here in present if here)]
    assert kernels_run_on(inputs[0])
    assert gradgradcheck(normaliser(tritonbn.batch_norm, training, present), inputs)


@train_and_eval
@pytest.mark.parametrize(
    "wanted",
    [names for size in (1, 2, 3) for names in itertools.combinations("xwb", size)],
    ids="".join,
)
def test_every_subset_of_gradients_is_torchs(wanted: Sequence[str], training: bool) -> None:
    tensors = [random(*shape).detach() for shape in ((4, 2, 3), (2,), (2,))]
    results = []
    for function, dtype in RUNS:
        inputs = [tensor.to(dtype).clone() for tensor in tensors]
        needed = ["xwb".index(name) for name in wanted]
        for index in needed:
            inputs[index].requires_grad_()
        y = normaliser(function, training)(*inputs)
        y.pow(3).sum().backward()  # type: ignore[no-untyped-call]
        assert all((t.grad is None) == (i not in needed) for i, t in enumerate(inputs))
        results.append([inputs[index].grad for index in needed])
    assert kernels_run_on(tensors[0])
    for name, ours, torchs, oracle in zip(wanted, *results, strict=True):
        assert ours is not None and torchs is not None and oracle is not None
        assert_agreement(name, ours, torchs, oracle)


@train_and_eval
def test_gradient_penalty_agrees_with_torch(training: bool) -> None:
    tensors = [random(4, 2, 3), random(2), random(2)]
    results = []
    for function, dtype in RUNS:
        x, gamma, beta = (tensor.detach().to(dtype).requires_grad_() for tensor in tensors)
        y = normaliser(function, training)(x, gamma, beta)
        (dx,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(dx.square().sum(), (x, gamma, beta)))
    for name, ours, torchs, oracle in zip("xwb", *results, strict=True):
        assert_agreement(name, ours, torchs, oracle)


@train_and_eval
def test_gradient_transform_is_torchs(training: bool) -> None:
    x = random(3, 2).detach()
    seen = []

    def loss(function: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        def of(x: Tensor) -> Tensor:
            seen.append(tritonbn.backend(x))
            return normaliser(function, training, PLAIN)(x).pow(3).sum()

        return of

    assert torch.equal(grad(loss(tritonbn.batch_norm))(x), grad(loss(F.batch_norm))(x))
    assert seen == ["torch", "torch"]


@scripting_warns
@train_and_eval
def test_forward_over_functorch_is_torchs(training: bool) -> None:
    x, tangent = random(3, 2).detach(), random(3, 2).detach()
    ours, torchs = (
        jvp(normaliser(function, training, PLAIN), (x,), (tangent,))
        for function in (tritonbn.batch_norm, F.batch_norm)
    )
    assert torch.equal(ours[0], torchs[0]) and torch.equal(ours[1], torchs[1])


def test_vmap_in_evaluation_is_a_loop_over_the_batches() -> None:
    batches = random(4, 3, 2).detach()
    one = normaliser(tritonbn.batch_norm, False, PLAIN)
    together = vmap(one)(batches)
    assert_agreement(
        "y",
        together,
        vmap(normaliser(F.batch_norm, False, PLAIN))(batches),
        torch.stack([one(x) for x in batches]),
    )


def test_vmap_in_training_refuses_shared_statistics_with_torchs_words() -> None:
    batches = random(4, 3, 2).detach()
    ours, torchs = (
        outcome(vmap(normaliser(function, True, PLAIN)), batches)
        for function in (tritonbn.batch_norm, F.batch_norm)
    )
    assert ours == torchs
    assert ours[1].startswith("Batch norm got a batched tensor as input while the running_mean")


@scripting_warns
@train_and_eval
def test_forward_mode_is_torchs(training: bool) -> None:
    x, gamma = random(3, 2).detach(), random(2).detach()
    tangents = random(3, 2).detach(), random(2).detach()
    results: list[Any] = []
    for function in (tritonbn.batch_norm, F.batch_norm):
        with forward_ad.dual_level():
            duals = [dual(*pair) for pair in zip((x, gamma), tangents, strict=True)]
            assert tritonbn.backend(duals[0]) == "torch"
            y = normaliser(function, training, (True, False))(*duals)
            results.append(forward_ad.unpack_dual(y))  # type: ignore[no-untyped-call]
    assert torch.equal(results[0].primal, results[1].primal)
    assert torch.equal(results[0].tangent, results[1].tangent)


@scripting_warns
def test_tangents_of_running_statistics_raise_torchs_error() -> None:
    x, mean, var = random(3, 2).detach(), random(2).detach(), random(2).detach().square()
    texts = []
    for function in (tritonbn.batch_norm, F.batch_norm):
        with forward_ad.dual_level():
            texts.append(outcome(function, dual(x, x), dual(mean, mean), var))
    assert texts[0] == texts[1]
    assert "cannot have forward grad defined" in texts[0][1]


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "saved_hooks"])
def test_checkpointing_updates_the_statistics_twice_as_in_torch(
    reentrant: bool, launches: list[Any]
) -> None:
    # torch's known behaviour: the forward pass is run again, its update included
    layers = [kind(2, device=DEVICE) for kind in (tritonbn.BatchNorm1d, torch.nn.BatchNorm1d)]
    layers.append(torch.nn.BatchNorm1d(2, device=DEVICE, dtype=torch.float64))
    x = random(4, 2).detach()
    results = []
    for layer in layers:
        inner = x.to(layer.weight.dtype).requires_grad_()
        y = checkpoint(layer, inner, use_reentrant=reentrant)
        y.pow(3).sum().backward()
        assert int(layer.state_dict()["num_batches_tracked"]) == 2
        results.append([y, inner.grad, layer.weight.grad, layer.running_mean, layer.running_var])
    # forward, forward again, backward
    assert len(launches) >= 3
    for ours, torchs, oracle in zip(*results, strict=True):
        assert_agreement("result", ours, torchs, oracle)
