"""Layers with an activation and a residual: torch's layer, addition and activation in one call."""

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tritonbn
from tritonbn import _following, functional, modules
from tritonbn_kernels.activation_names import ACTIVATIONS

from .agreement import DEVICE, assert_agreement, kernels_run_on, outcome

# as a layer takes it, and torch's function of the same
CHOICES: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
    "none": (None, lambda z: z),
    "identity": ("identity", lambda z: z),
    "relu": ("relu", F.relu),
    "relu6": ("relu6", F.relu6),
    "leaky_relu": ("leaky_relu", F.leaky_relu),
    "leaky_relu-slope": (("leaky_relu", 0.2), lambda z: F.leaky_relu(z, 0.2)),
    "elu": ("elu", F.elu),
    "elu-alpha": (("elu", 0.5), lambda z: F.elu(z, 0.5)),
    "hardswish": ("hardswish", F.hardswish),
    "sigmoid": ("sigmoid", F.sigmoid),
    "silu": ("silu", F.silu),
    "tanh": ("tanh", F.tanh),
    "gelu": ("gelu", F.gelu),
    "gelu_tanh": ("gelu_tanh", lambda z: F.gelu(z, approximate="tanh")),
    "gelu-tanh": (("gelu", "tanh"), lambda z: F.gelu(z, approximate="tanh")),
}
SHAPE = (4, 3, 3, 5)
# what a layer hands on is told apart by the test of torch's composition
FORMULAS = {
    name: choice
    for name, choice in CHOICES.items()
    if name not in ("identity", "leaky_relu", "elu", "gelu-tanh")
}
every_formula = pytest.mark.parametrize(("activation", "function"), FORMULAS.values(), ids=FORMULAS)
every_choice = pytest.mark.parametrize(("activation", "function"), CHOICES.values(), ids=CHOICES)
train_and_eval = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
with_and_without = pytest.mark.parametrize("added", [True, False], ids=["residual", "alone"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def layer_of(activation: Any = None, **options: Any) -> tritonbn.BatchNorm2d:
    """A layer for three channels with random parameters and statistics."""
    layer = tritonbn.BatchNorm2d(3, activation=activation, device=DEVICE, **options)
    state = {
        "weight": torch.randn(3),
        "bias": torch.randn(3),
        "running_mean": torch.randn(3),
        "running_var": torch.rand(3) + 0.5,
    }
    layer.load_state_dict(state, strict=False)
    return layer


def torchs_of(layer: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """torch's layer in the same state."""
    torchs = nn.BatchNorm2d(3, momentum=layer.momentum, device=DEVICE).train(layer.training)
    torchs.load_state_dict(layer.state_dict())
    return torchs


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(SHAPE, device=DEVICE) + 0.5).to(dtype)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_of_the_kernels_is_in_torchs_words_too(name: str) -> None:
    z = torch.linspace(-4.0, 8.0, 13)
    chosen = (name, ACTIVATIONS[name] or 0.0)
    expected = CHOICES[name][1](z)
    assert torch.equal(_following.followed(z, chosen, None), expected)
    assert torch.equal(_following.activation_layer(chosen)(z.clone()), expected)


@dtypes
@train_and_eval
@with_and_without
@every_formula
def test_result_and_gradients_agree_with_torchs_functions(
    activation: Any,
    function: Callable[[Tensor], Tensor],
    added: bool,
    training: bool,
    dtype: torch.dtype,
    launches: list[Any],
) -> None:
    layer = layer_of(activation).train(training)
    layers = [layer, torchs_of(layer), torchs_of(layer).double()]
    x, residual = images(dtype), images(dtype) if added else None
    dy = torch.randn(SHAPE, device=DEVICE).to(dtype)
    assert kernels_run_on(x)
    results = []
    for index, one in enumerate(layers):
        width = torch.float64 if index == 2 else dtype
        leaves = [x.to(width, copy=True).requires_grad_()]
        if residual is not None:
            leaves.append(residual.to(width, copy=True).requires_grad_())
        if index == 0:
            y = layer(*leaves)
        else:
            z = one(leaves[0])
            y = function(z if residual is None else z + leaves[1])
        assert launches
        gradients = torch.autograd.grad(y, [*leaves, *one.parameters()], dy.to(width))
        results.append([y, *gradients, *(one.running_mean, one.running_var)])
    names = ["y", "dx", *(["dresidual"] if added else []), "dgamma", "dbeta", "mean", "var"]
    for name, *triple in zip(names, *results, strict=True):
        assert_agreement(name, *triple)
    assert layers[0].num_batches_tracked == int(training)


@train_and_eval
@with_and_without
@every_choice
def test_where_the_kernels_do_not_run_it_is_torchs_composition(
    activation: Any,
    function: Callable[[Tensor], Tensor],
    added: bool,
    training: bool,
    monkeypatch: pytest.MonkeyPatch,
    launches: list[Any],
) -> None:
    for module in (functional, modules):
        monkeypatch.setattr(module, "_route", lambda *_: "torch")
    layer = layer_of(activation).train(training)
    torchs = torchs_of(layer)
    x, residual = images(torch.bfloat16), images(torch.bfloat16) if added else None
    z = torchs(x)
    expected = function(z if residual is None else z + residual)
    assert torch.equal(layer(x, residual), expected)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, torchs.state_dict()[name])
    y = tritonbn.batch_norm(
        x,
        layer.running_mean,
        layer.running_var,
        layer.weight,
        layer.bias,
        training,
        residual=residual,
        activation=activation,
    )
    assert torch.equal(y, expected) and y.dtype is torch.bfloat16
    assert launches == []


def test_momentum_none_and_empty_batches_are_counted_with_an_activation() -> None:
    layer = layer_of("relu", momentum=None)
    torchs = torchs_of(layer)
    for x in (images(), images()[:0], images() * 3.0):
        torch.testing.assert_close(layer(x, x), F.relu(torchs(x) + x))
        for name, value in layer.state_dict().items():
            torch.testing.assert_close(value, torchs.state_dict()[name])
    assert layer.num_batches_tracked == 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_transforms_of_a_fused_layer_are_torchs(launches: list[Any]) -> None:
    layer = layer_of("silu").eval()
    torchs = torchs_of(layer)

    def composed(x: Tensor, residual: Tensor) -> Tensor:
        return F.silu(torchs(x) + residual)

    x, residual = torch.stack([images(), images()]), torch.stack([images(), images()])
    torch.testing.assert_close(
        torch.func.vmap(layer)(x, residual), torch.func.vmap(composed)(x, residual)
    )
    tangents = (images(), images())
    found = torch.func.jvp(layer, (x[0], residual[0]), tangents)
    torch.testing.assert_close(found, torch.func.jvp(composed, (x[0], residual[0]), tangents))
    assert launches == []


EAGER = {
    "1d": (tritonbn.BatchNorm1d, nn.BatchNorm1d),
    "2d": (tritonbn.BatchNorm2d, nn.BatchNorm2d),
    "3d": (tritonbn.BatchNorm3d, nn.BatchNorm3d),
}


@pytest.mark.parametrize(("ours", "torchs"), EAGER.values(), ids=EAGER)
def test_repr_names_the_activation_and_the_state_does_not(ours: Any, torchs: Any) -> None:
    plain, fused = torchs(3), ours(3, activation="relu")
    assert repr(fused) == repr(plain)[:-1] + ", activation='relu')"
    pair = ours(3, activation=("leaky_relu", 0.2), memory_efficient=True)
    expected = ", activation=('leaky_relu', 0.2), memory_efficient=True)"
    assert repr(pair) == repr(plain)[:-1] + expected
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert fused.state_dict()._metadata == plain.state_dict()._metadata
    fused.load_state_dict(plain.state_dict())
    plain.load_state_dict(fused.state_dict())
    # nor has a layer without one an attribute more than torch's
    assert vars(ours(3)).keys() == vars(plain).keys()


@pytest.mark.parametrize(("ours", "torchs"), EAGER.values(), ids=EAGER)
def test_constructor_takes_torchs_arguments_by_position_as_well(ours: Any, torchs: Any) -> None:
    arguments = (3, 0.25, None, False, True, "meta", torch.float64)
    layer, expected = ours(*arguments, activation="relu"), torchs(*arguments)
    assert repr(layer) == repr(expected)[:-1] + ", activation='relu')"
    assert layer.running_mean.dtype is torch.float64 and layer.running_mean.is_meta
    # an eighth is one too many, as it is for torch
    assert outcome(torchs, *arguments, "relu")[0] == "TypeError"
    assert outcome(ours, *arguments, "relu")[0] == "TypeError"


@pytest.mark.parametrize(
    ("activation", "error"),
    [
        ("softmax", ValueError),
        (("relu", 0.1), ValueError),
        (("leaky_relu", float("nan")), ValueError),
        (nn.ReLU(), TypeError),
        (["leaky_relu", 0.2], TypeError),
    ],
    ids=["name", "parameter", "nan", "module", "list"],
)
def test_what_is_no_activation_raises_in_the_constructor(
    activation: Any, error: type[Exception]
) -> None:
    for make in (tritonbn.BatchNorm2d, tritonbn.LazyBatchNorm2d):
        arguments = (3,) if make is tritonbn.BatchNorm2d else ()
        with pytest.raises(error, match=r"expected .*, got"):
            make(*arguments, activation=activation)


def test_what_is_no_activation_cannot_be_set_either() -> None:
    layer: Any = layer_of("relu")
    with pytest.raises(TypeError, match=r"expected an activation as .*, got ReLU\(\)"):
        layer.activation = nn.ReLU()
    with pytest.raises(ValueError, match=r"expected an activation of .*, got 'softmax'"):
        layer.activation = "softmax"
    with pytest.raises(ValueError, match="expected memory_efficient=True with"):
        layer.memory_efficient = True
    assert (layer.activation, layer.memory_efficient) == ("relu", False)
    layer.activation = ("elu", 2.0)
    layer.memory_efficient = True
    with pytest.raises(ValueError, match="expected memory_efficient=True with"):
        layer.activation = "relu"
    assert layer.activation == ("elu", 2.0)


@pytest.mark.parametrize("activation", [None, "identity", "leaky_relu", ("elu", 2.0)], ids=str)
def test_memory_efficient_is_kept_where_the_activation_can_be_inverted(activation: Any) -> None:
    layer = tritonbn.BatchNorm2d(3, activation=activation, memory_efficient=True)
    assert layer.memory_efficient is True
    assert copy.deepcopy(layer).memory_efficient is True
    assert tritonbn.BatchNorm2d(3, activation=activation).memory_efficient is False


@pytest.mark.parametrize(
    "activation",
    ["relu", "silu", ("leaky_relu", 0.0), ("leaky_relu", -0.1), ("elu", 0.0)],
    ids=str,
)
def test_memory_efficient_of_no_inverse_raises(activation: Any) -> None:
    with pytest.raises(ValueError, match=r"expected memory_efficient=True with .*; got"):
        tritonbn.BatchNorm2d(3, activation=activation, memory_efficient=True)


def test_memory_efficient_is_a_bool() -> None:
    with pytest.raises(TypeError, match="expected memory_efficient as a bool or 'auto', got 1"):
        tritonbn.BatchNorm2d(3, memory_efficient=1)  # type: ignore[arg-type]


LAZY: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "1d": (tritonbn.LazyBatchNorm1d, tritonbn.BatchNorm1d, (4, 3)),
    "2d": (tritonbn.LazyBatchNorm2d, tritonbn.BatchNorm2d, (2, 3, 2, 2)),
    "3d": (tritonbn.LazyBatchNorm3d, tritonbn.BatchNorm3d, (2, 3, 2, 1, 2)),
}


@with_and_without
@pytest.mark.parametrize(("lazy", "eager", "shape"), LAZY.values(), ids=LAZY)
def test_lazy_layers_keep_what_they_were_told(
    lazy: Any, eager: Any, shape: tuple[int, ...], added: bool
) -> None:
    layer = lazy(activation=("leaky_relu", 0.5), memory_efficient="auto", device=DEVICE)
    x = torch.randn(shape, device=DEVICE)
    z = F.batch_norm(x, None, None, training=True)
    y = layer(x, x) if added else layer(x)
    torch.testing.assert_close(y, F.leaky_relu(z + x if added else z, 0.5))
    assert type(layer) is eager
    assert (layer.activation, layer.memory_efficient) == (("leaky_relu", 0.5), "auto")
    assert "activation=('leaky_relu', 0.5)" in repr(layer)


def by_pickle(layer: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(layer))


def by_save(layer: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, by_pickle, by_save])
def test_copies_carry_the_activation(duplicate: Callable[[nn.Module], Any]) -> None:
    layer = layer_of(("elu", 0.5)).eval()
    copied = duplicate(layer)
    assert type(copied) is tritonbn.BatchNorm2d
    assert copied.activation == ("elu", 0.5)
    x = images()
    assert torch.equal(copied(x), layer(x))
    assert type(vars(copied)["eps"]) is float


def test_hooks_see_the_residual_and_the_activated_result() -> None:
    layer = layer_of("relu")
    seen: list[Any] = []
    layer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    layer.register_forward_hook(lambda module, args, y: seen.append(y))
    x, residual = images(), images()
    y = layer(x, residual=residual)
    assert seen[0][0][0] is x and seen[0][1]["residual"] is residual
    assert seen[1] is y and bool((y >= 0).all())


def test_every_name_that_is_listed_can_be_read() -> None:
    members = dict(inspect.getmembers(layer_of("relu")))
    assert members["activation"] == "relu" and members["eps"] == 1e-5
    assert "qconfig" not in members
