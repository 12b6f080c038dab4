"""The layers are torch's layers: state, errors, momentum rules, scripting and copies."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import tritonbn

from .agreement import DEVICE, assert_agreement, kernels_run_on, outcome

PAIRS: dict[str, tuple[type[Any], type[Any], tuple[int, ...]]] = {
    "1d-nc": (tritonbn.BatchNorm1d, nn.BatchNorm1d, (4, 3)),
    "1d-ncl": (tritonbn.BatchNorm1d, nn.BatchNorm1d, (2, 3, 4)),
    "2d": (tritonbn.BatchNorm2d, nn.BatchNorm2d, (2, 3, 2, 3)),
    "3d": (tritonbn.BatchNorm3d, nn.BatchNorm3d, (2, 3, 2, 1, 3)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "eps": {"eps": 0.25},
    "momentum-0": {"momentum": 0.0},
    "momentum-negative": {"momentum": -1.2},
    "momentum-2": {"momentum": 2.0},
    "momentum-none": {"momentum": None},
    "no_affine": {"affine": False},
    "no_tracking": {"track_running_stats": False},
    "neither": {"affine": False, "track_running_stats": False},
}
every_pair = pytest.mark.parametrize(("ours", "torchs", "shape"), PAIRS.values(), ids=PAIRS)


class Double(nn.BatchNorm2d):
    """The oracle: torch's layer in float64 for input of any dtype."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.double())


def trio(**options: Any) -> list[nn.BatchNorm2d]:
    """Our `BatchNorm2d(3)`, torch's, and the oracle, with one random state."""
    torchs = nn.BatchNorm2d(3, **options, device=DEVICE)
    for tensor in torchs.parameters():
        nn.init.normal_(tensor)
    ours = tritonbn.BatchNorm2d(3, **options, device=DEVICE)
    oracle = Double(3, **options, device=DEVICE).double()
    ours.load_state_dict(torchs.state_dict())
    oracle.load_state_dict(torchs.state_dict())
    return [ours, torchs, oracle]


def assert_same_state(layers: list[nn.BatchNorm2d]) -> None:
    """Compare all state of the first layer with the second, the third being the oracle."""
    states = [layer.state_dict() for layer in layers]
    assert list(states[0]) == list(states[1])
    for name in states[0]:
        assert_agreement(name, *(state[name] for state in states))


@every_pair
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_repr_state_and_type_are_torchs(
    ours: type[Any], torchs: type[Any], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    layer, expected = ours(3, **options), torchs(3, **options)
    assert isinstance(layer, torchs)
    assert repr(layer) == repr(expected)
    assert list(layer.state_dict()) == list(expected.state_dict())
    assert layer.state_dict()._metadata == expected.state_dict()._metadata
    assert [name for name, _ in layer.named_parameters()] == [
        name for name, _ in expected.named_parameters()
    ]


@every_pair
def test_bias_keyword_is_the_installed_torchs(
    ours: type[Any], torchs: type[Any], shape: tuple[int, ...]
) -> None:
    expected = outcome(torchs, 3, bias=False)[0]
    assert outcome(ours, 3, bias=False)[0] == expected
    if expected == "":
        layer = ours(3, bias=False, device=DEVICE)
        assert layer.bias is None and repr(layer) == repr(torchs(3, bias=False))
        assert layer(torch.randn(shape, device=DEVICE)).shape == shape


@every_pair
@pytest.mark.parametrize("dims", range(7))
def test_wrong_number_of_dimensions_raises_torchs_error(
    ours: type[Any], torchs: type[Any], shape: tuple[int, ...], dims: int
) -> None:
    x = torch.randn((2, 3, 2, 2, 2, 2)[:dims], device=DEVICE)
    layers = [make(3, device=DEVICE) for make in (ours, torchs)]
    assert outcome(layers[0], x) == outcome(layers[1], x)
    assert torch.equal(layers[0].num_batches_tracked, layers[1].num_batches_tracked)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_three_steps_and_evaluation_agree_with_torch(
    options: dict[str, Any], launches: list[Any]
) -> None:
    layers = trio(**options)
    for step in range(3):
        x = torch.randn(2, 3, 2, 3, device=DEVICE) * (step + 1) + step
        assert kernels_run_on(x)
        before = len(launches)
        assert_agreement("y", *(layer(x) for layer in layers))
        assert len(launches) > before
        assert_same_state(layers)
    x = torch.randn(1, 3, 2, 3, device=DEVICE)
    for layer in layers:
        layer.eval()
    assert_agreement("eval y", *(layer(x) for layer in layers))
    assert_same_state(layers)


@pytest.mark.parametrize("momentum", [0.1, None], ids=str)
def test_switching_tracking_off_later_stops_the_update_alone(momentum: float | None) -> None:
    layers = trio(momentum=momentum)
    x = torch.randn(2, 3, 2, 3, device=DEVICE)
    for tracking in (True, False):
        for layer in layers:
            layer.track_running_stats = tracking
        assert_agreement("y", *(layer(x) for layer in layers))
        assert_same_state(layers)
        assert layers[0].num_batches_tracked is not None
        assert int(layers[0].num_batches_tracked) == 1
    for layer in layers:
        layer.eval()
    # evaluation uses the statistics all the same
    assert_agreement("eval y", *(layer(x) for layer in layers))
    assert not torch.equal(layers[0](x), layers[0](x + 1.0))


@pytest.mark.parametrize("momentum", [0.1, None], ids=str)
def test_without_a_count_the_cumulative_average_stands_still(momentum: float | None) -> None:
    layers = trio(momentum=momentum)
    for layer in layers:
        layer.num_batches_tracked = None
    x = torch.randn(2, 3, 2, 3, device=DEVICE)
    assert_agreement("y", *(layer(x) for layer in layers))
    assert_same_state(layers)
    assert layers[0].running_mean is not None
    assert bool(layers[0].running_mean.any()) == (momentum is not None)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_removed_buffers_mean_batch_statistics(training: bool) -> None:
    layers = trio()
    for layer in layers:
        layer.running_mean = layer.running_var = None
        layer.train(training)
    x = torch.randn(2, 3, 2, 3, device=DEVICE)
    assert_agreement("y", *(layer(x) for layer in layers))
    assert_same_state(layers)
    one_value = outcome(layers[0], x[:1, :, :1, :1])
    assert one_value == outcome(layers[1], x[:1, :, :1, :1])
    assert one_value[0] == "ValueError"


RAISING: dict[str, Callable[[], tuple[Tensor, dict[str, Any]]]] = {
    "channels": lambda: (torch.randn(2, 4, 2, 2), {}),
    "one_value": lambda: (torch.randn(1, 3, 1, 1), {}),
    "eps": lambda: (torch.randn(2, 3, 2, 2), {"eps": -1.0}),
    "integer": lambda: (torch.ones(2, 3, 2, 2, dtype=torch.int64), {}),
    "dtype": lambda: (torch.randn(2, 3, 2, 2, dtype=torch.float64), {}),
    "empty": lambda: (torch.randn(0, 3, 2, 2), {}),
}


@pytest.mark.parametrize("momentum", [0.1, None], ids=str)
@pytest.mark.parametrize("case", RAISING)
def test_batches_are_counted_even_if_empty_or_refused(case: str, momentum: float | None) -> None:
    x, options = RAISING[case]()
    layers = trio(momentum=momentum, **options)[:2]
    ours, torchs = (outcome(layer, x.to(DEVICE)) for layer in layers)
    assert ours == torchs
    assert (ours == ("", "")) == (case == "empty")
    for layer in layers:
        assert layer.num_batches_tracked is not None
        assert int(layer.num_batches_tracked) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_layers_in_other_dtypes_keep_state_and_output_in_it(dtype: torch.dtype) -> None:
    layers = trio()
    for layer in layers[:2]:
        layer.to(dtype)
    layers[2].load_state_dict(layers[1].state_dict())
    x = torch.randn(4, 3, 2, 3, device=DEVICE).to(dtype)
    assert kernels_run_on(x)
    assert_agreement("y", *(layer(x) for layer in layers))
    assert_same_state(layers)


def test_input_may_be_given_by_name() -> None:
    x = torch.randn(2, 3, 2, 3, device=DEVICE)
    layer = tritonbn.BatchNorm2d(3, device=DEVICE)
    assert torch.equal(layer(input=x), layer(x))


def test_checkpoint_without_version_keeps_the_count() -> None:
    layers = trio()[:2]
    state = layers[1].state_dict()
    del state["num_batches_tracked"]
    for version in (2, None):
        for layer in layers:
            layer.num_batches_tracked = torch.tensor(7)
        metadata = state._metadata  # type: ignore[attr-defined]
        metadata[""] = {} if version is None else {"version": version}
        ours, torchs = (outcome(layer.load_state_dict, dict_of(state)) for layer in layers)
        assert ours == torchs
        assert (ours == ("", "")) == (version is None)
        assert int(layers[0].state_dict()["num_batches_tracked"]) == 7


def dict_of(state: Any) -> Any:
    """A copy of a state dict with its metadata."""
    copied = copy.copy(state)
    copied._metadata = copy.deepcopy(state._metadata)
    return copied


def copied_by_pickle(layer: nn.Module) -> nn.Module:
    copied: nn.Module = pickle.loads(pickle.dumps(layer))
    return copied


def copied_by_save(layer: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    copied: nn.Module = torch.load(file, weights_only=False)
    return copied


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, copied_by_pickle, copied_by_save], ids=["deep", "pickle", "save"]
)
def test_copies_are_ours_and_independent(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    layer = trio(momentum=None)[0]
    x = torch.randn(2, 3, 2, 3, device=DEVICE)
    layer(x)
    copied = duplicate(layer)
    assert type(copied) is tritonbn.BatchNorm2d
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    copied(x + 1.0)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    layer(x + 1.0)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, copied.state_dict()[name])


def test_meta_layers_get_memory_by_to_empty() -> None:
    layer = tritonbn.BatchNorm2d(3, device="meta")
    assert layer(torch.randn(2, 3, 2, 2, device="meta")).device.type == "meta"
    layer = layer.to_empty(device=DEVICE)
    layer.reset_parameters()
    expected = nn.BatchNorm2d(3).state_dict()
    assert all(torch.equal(v.cpu(), expected[k]) for k, v in layer.state_dict().items())


@pytest.mark.parametrize("momentum", [0.1, None], ids=str)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_models_are_torchs_and_leave_the_layers_ours(momentum: float | None) -> None:
    layers = trio(momentum=momentum)
    model = nn.Sequential(nn.Sequential(layers[0]), nn.ReLU())
    scripted = torch.jit.script(model)
    x = torch.randn(2, 3, 2, 3, device=DEVICE)
    assert torch.equal(scripted(x), layers[1](x).relu())
    # the scripted model shares Parameters and buffers with the layer, which stays what it was
    assert isinstance(model[0], nn.Sequential) and model[0][0] is layers[0]
    assert type(layers[0]) is tritonbn.BatchNorm2d
    for name, value in layers[0].state_dict().items():
        assert torch.equal(value, layers[1].state_dict()[name])
    scripted.eval()
    assert torch.equal(scripted(x), layers[1].eval()(x).relu())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced_layers_record_torchs_operator(training: bool) -> None:
    ours, torchs = trio()[:2]
    x = torch.randn(2, 3, 2, 3, device=DEVICE)
    traced: Any = torch.jit.trace(  # type: ignore[no-untyped-call]
        ours.train(training), (x,), check_trace=False
    )
    assert "aten::batch_norm" in str(traced.inlined_graph)
    torchs.load_state_dict(ours.state_dict())
    assert torch.equal(traced(x), torchs.train(training)(x))


def test_symbolic_trace_takes_the_layers_for_leaves() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), tritonbn.BatchNorm2d(3), nn.ReLU()).to(DEVICE)
    graph = torch.fx.symbolic_trace(model)
    calls = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert calls == ["0", "1", "2"]
    x = torch.randn(2, 3, 2, 3, device=DEVICE)
    assert torch.equal(graph(x), model(x))


class Doubled(nn.Module):
    """A parametrisation that doubles its tensor."""

    def forward(self, tensor: Tensor) -> Tensor:
        return tensor * 2.0


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_parametrised_tensors_are_used(name: str, launches: list[Any]) -> None:
    layers = [layer.eval() for layer in trio()]
    for layer in layers:
        parametrize.register_parametrization(layer, name, Doubled())
    x = torch.randn(2, 3, 2, 3, device=DEVICE)
    assert_agreement("y", *(layer(x) for layer in layers))
    assert launches
    parametrize.remove_parametrizations(layers[0], name)
    assert type(layers[0]) is tritonbn.BatchNorm2d


def test_weight_norm_reaches_the_kernel() -> None:
    layers = [weight_norm(layer, dim=-1) for layer in trio()]
    x = torch.randn(2, 3, 2, 3, device=DEVICE)
    results = []
    for layer in layers:
        y = layer(x)
        parameters = list(layer.parameters())
        results.append([y, *torch.autograd.grad(y.square().sum(), parameters)])
    for ours, torchs, oracle in zip(*results, strict=True):
        assert_agreement("result", ours, torchs, oracle)


def test_functional_call_uses_the_given_tensors() -> None:
    layer = tritonbn.BatchNorm2d(3, device=DEVICE)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    given = {**state, "weight": torch.full((3,), 2.0, device=DEVICE)}
    x = torch.randn(2, 3, 2, 3, device=DEVICE)
    y = torch.func.functional_call(layer, given, (x,))
    assert torch.equal(y, 2.0 * layer.train()(x))
    assert torch.equal(given["running_mean"], layer.state_dict()["running_mean"])
    assert int(given["num_batches_tracked"]) == 1
