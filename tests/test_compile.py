"""Compiled and exported models: one graph, the eager losses, the eager running statistics."""

import copy
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tritonbn

from .agreement import DEVICE, assert_agreement, kernels_run_on
from .tolerances import error

FORWARD = torch.ops.tritonbn.batch_norm_forward.default
EVAL = torch.ops.tritonbn.batch_norm_eval.default
HAS_COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
# backends that keep torch's own arithmetic for what is not ours
exact_backends = pytest.mark.parametrize("backend", ["eager", "aot_eager"])
needs_compiler = pytest.mark.skipif(
    HAS_COMPILER is None and DEVICE.type == "cpu", reason="Inductor needs a C++ compiler"
)
either_export = pytest.mark.parametrize("strict", [True, False], ids=["strict", "non_strict"])
either_momentum = pytest.mark.parametrize("momentum", [0.1, None], ids=str)
# torch warns about itself while it compiles
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """No graph of another test."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def network(momentum: float | None = 0.1) -> nn.Sequential:
    """Convolution, BatchNorm2d, linear, BatchNorm1d: both layout families of the kernels."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 1, bias=False),
        tritonbn.BatchNorm2d(3, momentum=momentum),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 4),
        tritonbn.BatchNorm1d(4, momentum=momentum),
    ).to(DEVICE)


def flat(state: dict[str, Tensor]) -> Tensor:
    """All values of a state dict in one vector."""
    return torch.cat([value.flatten() for value in state.values() if value.is_floating_point()])


def train(model: Any, optimizer: torch.optim.Optimizer, batches: Tensor) -> list[Tensor]:
    """Losses of one step per batch."""
    losses = []
    for x in batches:
        optimizer.zero_grad()
        loss = model(x).pow(3).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def assert_same_state(model: nn.Module, expected: nn.Module) -> None:
    """Parameters and buffers are equal to the bit, and there are as many."""
    state = model.state_dict()
    assert sorted(state) == sorted(expected.state_dict())
    for name, value in expected.state_dict().items():
        assert torch.equal(state[name], value), name


@either_momentum
@exact_backends
def test_three_training_steps_in_one_graph_are_the_eager_ones(
    backend: str, momentum: float | None, launches: list[Any]
) -> None:
    eager = network(momentum)
    compiled = copy.deepcopy(eager)
    batches = torch.randn(3, 4, 2, 2, 2, device=DEVICE)
    assert kernels_run_on(batches[0])
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (eager, compiled)]
    expected = train(eager, optimizers[0], batches)
    before = len(launches)
    assert before >= 12
    losses = train(torch.compile(compiled, fullgraph=True, backend=backend), optimizers[1], batches)
    assert len(launches) >= 2 * before
    assert torch.equal(torch.stack(losses), torch.stack(expected))
    assert_same_state(compiled, eager)


@either_momentum
@pytest.mark.slow
@needs_compiler
def test_inductor_trains_three_steps_as_exactly_as_torchs_layers(
    momentum: float | None, launches: list[Any]
) -> None:
    ours = network(momentum)
    theirs = [tritonbn.revert(copy.deepcopy(ours)) for _ in range(2)]
    models = [ours, *theirs, copy.deepcopy(theirs[0]).double()]
    # the largest error of several trainings: of one it is a matter of luck whose is larger
    trainings = torch.randn(5, 3, 4, 2, 2, 2, device=DEVICE)
    # momentum None breaks the graph of torch's layers
    compiled = [
        torch.compile(model, fullgraph=model is ours, backend="inductor") for model in models[:2]
    ]
    losses, states = [], []
    for model, run in zip(models, [*compiled, *models[2:]], strict=True):
        start, width = copy.deepcopy(model.state_dict()), next(model.parameters()).dtype
        results = []
        for batches in trainings.to(width):
            model.load_state_dict(start)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            results.append((train(run, optimizer, batches), flat(model.state_dict()).clone()))
        losses.append(torch.cat([torch.stack(found) for found, _ in results]))
        states.append(torch.cat([state for _, state in results]))
    # two layers, three steps, forward and backward
    assert len(launches) >= 12
    # the compiler rounds convolution, product and loss in its own way, ours and torch's alike:
    # torch's error is that of its layers compiled or not, whichever is larger
    for name, found in (("losses", losses), ("state", states)):
        value, *torchs, oracle = found
        assert_agreement(name, value, max(torchs, key=lambda one: error(one, oracle)), oracle)
    counts = [int(model.state_dict()["1.num_batches_tracked"]) for model in models]
    assert counts == [3, 3, 3, 3]


@pytest.mark.slow
@needs_compiler
def test_inductor_keeps_running_statistics_to_the_bit() -> None:
    layer = tritonbn.BatchNorm2d(3, device=DEVICE)
    expected = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="inductor")
    for x in torch.randn(3, 4, 3, 2, 2, device=DEVICE):
        assert torch.equal(compiled(x), expected(x))
    assert_same_state(layer, expected)


@exact_backends
def test_compiled_evaluation_is_the_eager_one(backend: str, launches: list[Any]) -> None:
    model = network()
    x = torch.randn(4, 2, 2, 2, device=DEVICE)
    model(x)
    model.eval()
    expected = model(x)
    before = len(launches)
    with torch.no_grad():
        y = torch.compile(model, fullgraph=True, backend=backend)(x)
    assert len(launches) > before
    assert torch.equal(y, expected)


def test_switching_between_training_and_evaluation_recompiles(launches: list[Any]) -> None:
    layer = tritonbn.BatchNorm2d(3, device=DEVICE)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 2, 2, device=DEVICE)
    for training in (True, False, True, False):
        layer.train(training)
        expected = copy.deepcopy(layer)(x)
        assert torch.equal(compiled(x), expected)
    assert layer.num_batches_tracked is not None
    assert int(layer.num_batches_tracked) == 2


def test_channels_last_stays_channels_last_when_compiled() -> None:
    layer = tritonbn.BatchNorm2d(3, device=DEVICE)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 2, 2, device=DEVICE).to(memory_format=torch.channels_last)
    x.requires_grad_()
    y = compiled(x)
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert dx.is_contiguous(memory_format=torch.channels_last)


def test_batches_of_any_size_share_a_graph() -> None:
    layer = tritonbn.BatchNorm1d(3, device=DEVICE)
    expected = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for count in (4, 5, 7):
        x = torch.randn(count, 3, device=DEVICE)
        assert torch.equal(compiled(x), expected(x))
    assert_same_state(layer, expected)


@either_export
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_exported_programs_keep_the_operator_and_the_update(
    training: bool, strict: bool, launches: list[Any]
) -> None:
    model = network().train(training)
    expected = copy.deepcopy(model)
    x = torch.randn(4, 2, 2, 2, device=DEVICE)
    program = torch.export.export(model, (x,), strict=strict)
    calls = [
        node
        for graph in program.graph_module.modules()
        if isinstance(graph, torch.fx.GraphModule)
        for node in graph.graph.nodes
        if node.target is (FORWARD if training else EVAL)
    ]
    assert len(calls) == 2
    module = program.module()
    before = len(launches)
    y = module(x)
    assert len(launches) > before
    assert torch.equal(y, expected(x))
    state = module.state_dict()
    # evaluation reads no counter, which a strict export then leaves out
    unused = set() if training else {"1.num_batches_tracked", "5.num_batches_tracked"}
    for name, value in expected.state_dict().items():
        assert (name in unused and name not in state) or torch.equal(state[name], value), name


def test_conversion_of_a_compiled_model_recompiles_it(launches: list[Any]) -> None:
    layer = nn.BatchNorm2d(3, device=DEVICE)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 2, 2, device=DEVICE)
    compiled(x)
    assert not launches
    tritonbn.convert(layer)
    compiled(x)
    assert launches


@either_export
def test_trained_exports_reach_all_parameters(strict: bool) -> None:
    model = network()
    x = torch.randn(4, 2, 2, 2, device=DEVICE)
    module = torch.export.export(model, (x,), strict=strict).module()
    module(x).pow(3).mean().backward()
    model(x).pow(3).mean().backward()
    assert [p.grad is not None for p in module.parameters()] == [True] * 7
    for (name, one), other in zip(model.named_parameters(), module.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.equal(one.grad, other.grad), name


def test_compiled_transforms_are_left_to_torch() -> None:
    layer = tritonbn.BatchNorm1d(3, device=DEVICE).eval()
    x = torch.randn(2, 4, 3, device=DEVICE)
    transformed = torch.vmap(lambda batch: layer(batch))
    expected = transformed(x)
    found = torch.compile(transformed, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(found, expected)
