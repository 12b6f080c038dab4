"""`convert` and `revert` change classes and nothing else, and are exact inverses."""

import copy
import weakref
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import tritonbn

from .agreement import DEVICE, assert_agreement, kernels_run_on

PAIRS = {
    "BatchNorm1d": (nn.BatchNorm1d, tritonbn.BatchNorm1d),
    "BatchNorm2d": (nn.BatchNorm2d, tritonbn.BatchNorm2d),
    "BatchNorm3d": (nn.BatchNorm3d, tritonbn.BatchNorm3d),
    "LazyBatchNorm1d": (nn.LazyBatchNorm1d, tritonbn.LazyBatchNorm1d),
    "LazyBatchNorm2d": (nn.LazyBatchNorm2d, tritonbn.LazyBatchNorm2d),
    "LazyBatchNorm3d": (nn.LazyBatchNorm3d, tritonbn.LazyBatchNorm3d),
}
INPUTS = {"1d": (4, 3), "2d": (2, 3, 2, 3), "3d": (2, 3, 2, 1, 3)}


def make(kind: type[Any]) -> Any:
    """A layer of `kind` for three channels."""
    return kind(device=DEVICE) if "Lazy" in kind.__name__ else kind(3, device=DEVICE)


@pytest.mark.parametrize(("torchs", "ours"), PAIRS.values(), ids=PAIRS)
def test_a_layer_alone_is_its_own_model(
    torchs: type[Any], ours: type[Any], launches: list[Any]
) -> None:
    layer = make(torchs)
    expected = repr(layer)
    assert tritonbn.convert(layer) is layer
    assert type(layer) is ours
    assert repr(layer) == expected
    x = torch.randn(INPUTS[torchs.__name__[-2:]], device=DEVICE)
    assert kernels_run_on(x)
    layer(x)
    assert launches
    assert tritonbn.revert(layer) is layer
    assert type(layer) is getattr(nn, torchs.__name__.removeprefix("Lazy"))
    del launches[:]
    layer(x)
    assert not launches


def test_both_are_idempotent() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), tritonbn.BatchNorm2d(3))
    for change, kind in (
        (tritonbn.convert, tritonbn.BatchNorm2d),
        (tritonbn.convert, tritonbn.BatchNorm2d),
        (tritonbn.revert, nn.BatchNorm2d),
        (tritonbn.revert, nn.BatchNorm2d),
    ):
        assert [type(layer) for layer in change(model)] == [kind, kind]


class Custom(nn.BatchNorm2d):
    """A user's own layer, whose forward we do not know."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1.0


class OurCustom(tritonbn.BatchNorm2d):
    """A user's own layer on top of ours."""


def patched() -> nn.BatchNorm2d:
    """A layer whose forward was replaced on the object, as hook libraries do."""
    layer = nn.BatchNorm2d(3)
    original = layer.forward
    layer.forward = lambda input: original(input) + 1.0  # type: ignore[method-assign]
    return layer


def annotated() -> nn.BatchNorm2d:
    """A layer on which somebody wrote down what follows it."""
    layer: Any = nn.BatchNorm2d(3)
    layer.activation = "relu"
    plain: nn.BatchNorm2d = layer
    return plain


LEFT_ALONE = {
    "subclass": lambda: Custom(3),
    "subclass_of_ours": lambda: OurCustom(3),
    "sync": lambda: nn.SyncBatchNorm(3),
    "instance_norm": lambda: nn.InstanceNorm2d(3, affine=True),
    "group_norm": lambda: nn.GroupNorm(1, 3),
    "quantised": lambda: torch.ao.nn.quantized.BatchNorm2d(3),
    "patched_forward": patched,
    "attribute_activation": annotated,
}


@pytest.mark.parametrize("kind", LEFT_ALONE)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_is_not_exactly_torchs_layer_is_left_alone(kind: str) -> None:
    layer = LEFT_ALONE[kind]()
    model = nn.Sequential(layer)
    found = type(layer)
    tritonbn.convert(model)
    assert model[0] is layer and type(layer) is found
    tritonbn.revert(model)
    assert model[0] is layer and type(layer) is found


class Nested(nn.Module):
    """Layers under every kind of parent, one of them in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.shared = self.stem[1]
        self.by_name = nn.ModuleDict(
            {"norm?": nn.BatchNorm2d(3), "a b": nn.BatchNorm2d(3), "0": nn.BatchNorm1d(3)}
        )
        self.listed = nn.ModuleList([nn.BatchNorm3d(3), nn.LazyBatchNorm2d()])
        self.add_module("training ", nn.BatchNorm2d(3, affine=False))
        self.add_module("nothing", None)
        self.tied = nn.BatchNorm2d(3)
        self.tied.weight = self.stem[1].weight  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.tied(self.shared(self.stem(x)))
        return y


def test_nested_models_keep_names_sharing_and_parents() -> None:
    model = Nested()
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    kinds = {name: type(m) for name, m in model.named_modules(remove_duplicate=False)}
    objects = dict(model.named_modules(remove_duplicate=False))
    tensors = list(model.parameters()) + list(model.buffers())
    assert tritonbn.convert(model) is model
    for name, kind in kinds.items():
        expected = PAIRS[kind.__name__][1] if kind.__name__ in PAIRS else kind
        assert type(objects[name]) is expected, name
    assert model.shared is model.stem[1]
    assert model.tied.weight is model.shared.weight
    assert tritonbn.revert(model) is model
    assert {name: type(module) for name, module in objects.items()} == kinds
    after = dict(model.named_modules(remove_duplicate=False))
    assert list(after) == names
    assert all(after[name] is objects[name] for name in names)
    kept = list(model.parameters()) + list(model.buffers())
    assert all(one is other for one, other in zip(kept, tensors, strict=True))


def forward_hook(module: nn.Module, *rest: Any, **options: Any) -> None:
    module.seen.append("forward")  # type: ignore[union-attr, operator]


def pre_hook(module: nn.Module, *rest: Any, **options: Any) -> None:
    module.seen.append("pre")  # type: ignore[union-attr, operator]


def backward_hook(module: nn.Module, *rest: Any) -> None:
    module.seen.append("backward")  # type: ignore[union-attr, operator]


def state_hook(module: nn.Module, state: dict[str, Any], *rest: Any) -> None:
    state["extra"] = torch.ones(1)


def load_hook(module: nn.Module, state: dict[str, Any], *rest: Any) -> None:
    state.pop("extra", None)


def test_hooks_flags_and_attributes_stay() -> None:
    layer: Any = nn.BatchNorm2d(3, device=DEVICE)
    layer.seen = []
    layer.register_forward_hook(forward_hook, with_kwargs=True, always_call=True)
    layer.register_forward_pre_hook(pre_hook, with_kwargs=True)
    layer.register_full_backward_hook(backward_hook)
    layer.register_state_dict_post_hook(state_hook)
    layer.register_load_state_dict_pre_hook(load_hook)
    layer.register_buffer("scratch", torch.zeros(2, device=DEVICE), persistent=False)
    layer.weight.requires_grad_(False)
    layer.eval()
    references = weakref.WeakValueDictionary(layer=layer)
    before = dict(vars(layer))
    contents = copy.deepcopy({name: str(value) for name, value in before.items()})

    tritonbn.convert(nn.Sequential(layer))
    assert list(vars(layer)) == list(before)
    assert all(vars(layer)[name] is value for name, value in before.items())
    assert list(references.values()) == [layer]
    assert not layer.training and not layer.weight.requires_grad
    layer(torch.randn(2, 3, 2, 2, device=DEVICE, requires_grad=True)).sum().backward()
    assert layer.seen == ["pre", "forward", "backward"]
    state = layer.state_dict()
    assert "extra" in state and "scratch" not in state
    layer.load_state_dict(state)
    layer.seen.clear()
    layer.zero_grad()

    tritonbn.revert(layer)
    assert type(layer) is nn.BatchNorm2d
    assert {name: str(value) for name, value in vars(layer).items()} == contents


def test_optimizers_go_on_with_the_same_parameters() -> None:
    layer = nn.BatchNorm2d(3, device=DEVICE)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    for change in (tritonbn.convert, tritonbn.revert, tritonbn.convert):
        change(layer)
        before = layer.weight.detach().clone()
        layer(torch.randn(2, 3, 2, 2, device=DEVICE)).square().sum().backward()
        optimizer.step()
        assert not torch.equal(layer.weight, before)
    assert optimizer.param_groups[0]["params"][0] is layer.weight


class Doubled(nn.Module):
    """A parametrisation that doubles its tensor."""

    def forward(self, tensor: Tensor) -> Tensor:
        return tensor * 2.0


def test_parametrised_layers_are_converted_and_their_copies_untouched(launches: list[Any]) -> None:
    layer: Any = nn.BatchNorm2d(3, device=DEVICE)
    parametrize.register_parametrization(layer, "weight", Doubled())
    twin = copy.deepcopy(layer)
    found = type(twin)
    x = torch.randn(2, 3, 2, 2, device=DEVICE)
    oracle = copy.deepcopy(layer).double()(x.double())

    tritonbn.convert(layer)
    assert parametrize.type_before_parametrizations(layer) is tritonbn.BatchNorm2d
    assert type(layer).__name__ == found.__name__
    assert type(twin) is found and not isinstance(twin, tritonbn.BatchNorm2d)
    y = layer(x)
    assert launches
    assert_agreement("y", y, twin(x), oracle)
    # what is parametrised after the conversion survives the way back
    parametrize.register_parametrization(layer, "bias", Doubled())
    assert type(copy.deepcopy(layer)) is type(layer)

    tritonbn.revert(layer)
    assert parametrize.type_before_parametrizations(layer) is nn.BatchNorm2d
    assert torch.equal(layer.bias, 2.0 * layer.parametrizations.bias.original)
    parametrize.remove_parametrizations(layer, "weight")
    parametrize.remove_parametrizations(layer, "bias")
    assert type(layer) is nn.BatchNorm2d


def test_weight_norm_survives() -> None:
    layer: Any = weight_norm(nn.BatchNorm1d(3, device=DEVICE))
    tritonbn.convert(layer)
    layer(torch.randn(4, 3, device=DEVICE)).square().sum().backward()
    assert layer.parametrizations.weight.original0.grad is not None
    tritonbn.revert(layer)
    assert parametrize.type_before_parametrizations(layer) is nn.BatchNorm1d


def tiny_network() -> nn.Sequential:
    """A CNN with 2-D and 1-D BatchNorm for `(N, 2, 6, 6)` images and three classes."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(2, 3, 3, padding=1, bias=False),
        norm=nn.BatchNorm2d(3),
        act=nn.ReLU(inplace=True),
        pool=nn.AdaptiveAvgPool2d(2),
        flatten=nn.Flatten(),
        linear=nn.Linear(12, 4),
        head_norm=nn.BatchNorm1d(4, momentum=None),
        head_act=nn.ReLU(),
        logits=nn.Linear(4, 3),
    )
    return nn.Sequential(layers).to(DEVICE)


def test_converted_training_agrees_with_unconverted_and_launches_kernels(
    launches: list[Any],
) -> None:
    torchs = tiny_network()
    ours = tritonbn.convert(copy.deepcopy(torchs))
    models = [ours, torchs, copy.deepcopy(torchs).double()]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    images = torch.randn(3, 8, 2, 6, 6, device=DEVICE)
    labels = torch.randint(3, (3, 8), device=DEVICE)
    assert kernels_run_on(images[0])
    losses: list[list[Tensor]] = [[], [], []]
    for batch, target in zip(images, labels, strict=True):
        for index, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            before = len(launches)
            width = next(model.parameters()).dtype
            loss = F.cross_entropy(model(batch.to(width)), target)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses[index].append(loss.detach())
            # at least one launch forward and one backward for each of the two layers
            assert len(launches) - before >= 4 if index == 0 else len(launches) == before
    assert_agreement("losses", *(torch.stack(values) for values in losses))
    assert_agreement(
        "logits", *(model.eval()(images[0].to(next(model.parameters()).dtype)) for model in models)
    )
    states = [model.state_dict() for model in models]
    assert list(states[0]) == list(states[1])
    # judged together: what the first layer rounds has gone through all others
    assert_agreement("state", *(flat(state) for state in states))


def flat(state: dict[str, Tensor]) -> Tensor:
    """All values of a state dict in one vector."""
    return torch.cat([value.flatten() for value in state.values() if value.is_floating_point()])


def test_revert_of_convert_gives_back_types_and_values() -> None:
    model = tiny_network()
    kinds = [type(module) for module in model.modules()]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    tritonbn.revert(tritonbn.convert(model))
    assert [type(module) for module in model.modules()] == kinds
    assert list(model.state_dict()) == list(values)
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


def test_state_of_a_converted_model_loads_into_torchs_and_back() -> None:
    torchs, ours = tiny_network(), tritonbn.convert(tiny_network())
    torchs.load_state_dict(ours.state_dict())
    ours.load_state_dict(torchs.state_dict())
    assert all(
        torch.equal(value, torchs.state_dict()[name]) for name, value in ours.state_dict().items()
    )


def test_revert_names_the_layers_with_an_activation_and_changes_none() -> None:
    model = nn.Sequential(
        tritonbn.BatchNorm2d(3),
        nn.Sequential(tritonbn.BatchNorm2d(3, activation="relu")),
        tritonbn.LazyBatchNorm1d(activation=("elu", 0.5)),
        tritonbn.BatchNorm2d(3, activation="identity"),
    )
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=r"got 1\.0 with 'relu', 2 with \('elu', 0\.5\)$"):
        tritonbn.revert(model)
    assert [type(module) for module in model.modules()] == kinds
    with pytest.raises(ValueError, match="got the model itself with 'relu'"):
        tritonbn.revert(tritonbn.BatchNorm2d(3, activation="relu"))


def test_revert_and_convert_keep_what_changes_no_result() -> None:
    layer = tritonbn.BatchNorm2d(3, activation="identity", memory_efficient=True)
    expected = repr(layer)
    assert type(tritonbn.revert(layer)) is nn.BatchNorm2d
    assert repr(layer) == repr(nn.BatchNorm2d(3))
    tritonbn.convert(layer)
    assert repr(layer) == expected


def test_an_activation_set_on_a_converted_layer_is_applied(launches: list[Any]) -> None:
    layer: Any = tritonbn.convert(nn.BatchNorm2d(3, device=DEVICE))
    x = torch.randn(2, 3, 2, 3, device=DEVICE)
    layer.activation = "relu"
    y = layer(x)
    assert launches
    torch.testing.assert_close(y, F.relu(F.batch_norm(x, None, None, training=True)))
    with pytest.raises(ValueError, match="got the model itself with 'relu'"):
        tritonbn.revert(layer)
