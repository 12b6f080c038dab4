"""A layer's kept call is made again only while everything it was checked for still holds."""

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tritonbn
from tests.inputs import DEVICE
from tritonbn import _layer_calls
from tritonbn_kernels import pinned_plan, record_launches


def _layer(**arguments: object) -> tritonbn.BatchNorm2d:
    return tritonbn.BatchNorm2d(4, **arguments).to(DEVICE)  # type: ignore[arg-type]


def _input() -> torch.Tensor:
    return torch.randn(3, 4, 2, 2, device=DEVICE)


def _torch_twin(layer: nn.BatchNorm2d) -> nn.BatchNorm2d:
    twin = copy.deepcopy(layer)
    tritonbn.revert(twin)
    return twin


def test_a_second_call_of_the_same_kind_is_the_kept_one() -> None:
    layer = _layer()
    assert _layer_calls.again(layer, _input()) is None
    layer(_input())
    with record_launches() as launches:
        assert _layer_calls.again(layer, _input()) is not None
    assert len(launches) == 1
    assert layer.num_batches_tracked == 2


def _halve(layer: nn.BatchNorm2d) -> None:
    layer.half()


def _replace_weight(layer: nn.BatchNorm2d) -> None:
    layer.weight = nn.Parameter(torch.randn(4, device=DEVICE))


def _swap_data(layer: nn.BatchNorm2d) -> None:
    layer.weight.data = torch.randn(4, device=DEVICE)


def _drop_bias(layer: nn.BatchNorm2d) -> None:
    layer.bias = None  # type: ignore[assignment]


def _evaluate(layer: nn.BatchNorm2d) -> None:
    layer.eval()


def _slow(layer: nn.BatchNorm2d) -> None:
    layer.momentum = 0.01


def _widen(layer: nn.BatchNorm2d) -> None:
    layer.eps = 0.5


def _cumulate(layer: nn.BatchNorm2d) -> None:
    layer.momentum = None


def _untrack(layer: nn.BatchNorm2d) -> None:
    layer.track_running_stats = False


def _uncount(layer: nn.BatchNorm2d) -> None:
    layer.num_batches_tracked = None


def _replace_statistics(layer: nn.BatchNorm2d) -> None:
    layer.running_mean = torch.randn(4, device=DEVICE)


CHANGES = [
    _replace_weight,
    _swap_data,
    _drop_bias,
    _evaluate,
    _slow,
    _widen,
    _cumulate,
    _untrack,
    _uncount,
    _replace_statistics,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_a_changed_layer_is_looked_at_anew(change: Callable[[nn.BatchNorm2d], None]) -> None:
    layer = _layer()
    layer(_input())
    change(layer)
    twin = _torch_twin(layer)
    x = _input()
    with record_launches() as launches:
        y = layer(x)
    assert launches
    torch.testing.assert_close(y, twin(x))
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], value)


def test_a_layer_made_half_takes_half_input() -> None:
    layer = _layer()
    layer(_input())
    _halve(layer)
    y = layer(_input().half())
    assert y.dtype is torch.float16


def test_a_parameter_cut_short_in_place_raises_as_in_torch() -> None:
    layer = _layer()
    layer(_input())
    layer.weight.data = layer.weight.data[:3]
    with pytest.raises(RuntimeError, match="weight should contain 4 elements not 3"):
        layer(_input())


def test_another_view_of_the_same_memory_is_looked_at_anew() -> None:
    layer, memory, x = _layer(), torch.arange(1.0, 9.0, device=DEVICE), _input()
    layer.weight.data = memory[:4]
    layer(x)
    layer.weight.data = memory[::2]
    twin = _torch_twin(layer)
    torch.testing.assert_close(layer(x), twin(x))


def test_a_weight_whose_sign_is_not_in_memory_is_never_kept() -> None:
    layer, x = _layer(), _input()
    layer.weight.data = torch._neg_view(layer.weight.data)
    twin = _torch_twin(layer)
    for _ in range(2):
        torch.testing.assert_close(layer(x), twin(x))


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(lambda: torch.randn(2, 4, 2, 2, device=DEVICE), id="batch"),
        pytest.param(lambda: torch.randn(3, 4, 2, 2, device=DEVICE).half(), id="dtype"),
        pytest.param(
            lambda: _input().to(memory_format=torch.channels_last),
            id="layout",
        ),
        pytest.param(
            lambda: torch.randn(3 * 16 + 1, device=DEVICE)[1:].view(3, 4, 2, 2), id="alignment"
        ),
        pytest.param(lambda: torch.randn(0, 4, 2, 2, device=DEVICE), id="empty"),
        pytest.param(lambda: torch._neg_view(_input()), id="negative"),
    ],
)
def test_another_kind_of_input_is_looked_at_anew(x: Callable[[], torch.Tensor]) -> None:
    layer = _layer()
    layer(_input())
    twin, other = _torch_twin(layer), x()
    expected = twin.to(DEVICE)(other)
    torch.testing.assert_close(layer(other), expected, atol=2e-3, rtol=2e-3)


def test_one_value_per_channel_still_raises() -> None:
    layer = _layer()
    layer(_input())
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        layer(torch.randn(1, 4, 1, 1, device=DEVICE))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_transformed_calls_still_go_to_torch() -> None:
    layer = _layer(track_running_stats=False)
    x = _input()
    layer(x)
    with record_launches() as launches:
        torch.func.vmap(layer)(torch.stack([x, x]))
        torch.func.jvp(layer, (x,), (x,))
    assert launches == []


def test_changed_plans_reach_the_layer() -> None:
    layer, x = _layer(), _input()
    layer(x)
    with pinned_plan(fused=0, splits=2, block_v=1), record_launches() as launches:
        layer(x)
    assert {record.kernel for record in launches} == {"statistics_kernel", "normalize_kernel"}


def test_kept_calls_travel_with_no_copy_and_die_with_the_layer() -> None:
    layer = _layer()
    layer(_input())
    assert id(layer) in _layer_calls._last_calls
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert id(other) not in _layer_calls._last_calls
        assert other.__dict__.keys() == layer.__dict__.keys()
        other(_input())
    number = id(layer)
    del layer, other
    gc.collect()
    assert number not in _layer_calls._last_calls


def test_statistics_that_require_a_gradient_still_raise() -> None:
    layer = _layer()
    layer(_input())
    assert layer.running_mean is not None
    layer.running_mean.requires_grad_()
    with pytest.raises(RuntimeError, match="is not differentiable"):
        layer(_input())


def test_a_count_of_another_dtype_is_counted_by_torch() -> None:
    layer = _layer()
    layer(_input())
    layer.num_batches_tracked = torch.tensor(1, dtype=torch.int32, device=DEVICE)
    with record_launches() as launches:
        layer(_input())
    assert launches == []
    assert layer.num_batches_tracked == 2


def test_settings_may_be_properties_of_a_subclass() -> None:
    class Scheduled(tritonbn.BatchNorm2d):
        @property
        def momentum(self) -> float:
            return 0.25

        @momentum.setter
        def momentum(self, value: float) -> None:
            del value

    layer = Scheduled(4).to(DEVICE)
    for _ in range(2):
        layer(torch.ones(3, 4, 2, 2, device=DEVICE))
    assert layer.running_mean is not None
    torch.testing.assert_close(layer.running_mean, torch.full((4,), 1 - 0.75**2, device=DEVICE))


def test_reverted_layers_run_torch() -> None:
    layer = _layer()
    layer(_input())
    tritonbn.revert(layer)
    with record_launches() as launches:
        layer(_input())
    assert launches == []


def test_a_fused_layer_is_called_again_as_it_is() -> None:
    layer, x = _layer(activation=("leaky_relu", 0.25)), _input()
    expected = F.leaky_relu(F.batch_norm(x, None, None, training=True), 0.25)
    torch.testing.assert_close(layer(x), expected)
    with record_launches() as launches:
        y = _layer_calls.again(layer, x)
    assert y is not None and len(launches) == 1
    torch.testing.assert_close(y, expected)


def test_another_activation_is_looked_at_anew() -> None:
    layer, x = _layer(), _input()
    z = F.batch_norm(x, None, None, training=True)
    functions: dict[Any, Callable[[torch.Tensor], torch.Tensor]] = {
        "relu": F.relu,
        "silu": F.silu,
        None: lambda z: z,
        ("leaky_relu", 0.25): lambda z: F.leaky_relu(z, 0.25),
        ("leaky_relu", 0.5): lambda z: F.leaky_relu(z, 0.5),
    }
    for activation, function in functions.items():
        layer.activation = activation
        assert _layer_calls.again(layer, x) is None
        # the second of each is the kept one
        for _ in range(2):
            torch.testing.assert_close(layer(x), function(z))
    # None is back where the class has it
    del layer.activation
    torch.testing.assert_close(layer(x), z)


def test_an_activation_of_a_subclass_is_seen_as_well() -> None:
    class Activated(tritonbn.BatchNorm2d):
        activation = "relu"

    class Scheduled(tritonbn.BatchNorm2d):
        slope = 0.5

        @property
        def activation(self) -> tuple[str, float]:  # type: ignore[override]
            return "leaky_relu", self.slope

    x = _input()
    z = F.batch_norm(x, None, None, training=True)
    fixed, scheduled = Activated(4).to(DEVICE), Scheduled(4).to(DEVICE)
    for slope in (0.5, 0.5, 0.25):
        scheduled.slope = slope
        torch.testing.assert_close(fixed(x), F.relu(z))
        torch.testing.assert_close(scheduled(x), F.leaky_relu(z, slope))


@pytest.mark.parametrize("activation", [None, "relu"])
def test_calls_with_a_residual_are_neither_kept_nor_taken_for_kept_ones(
    activation: str | None,
) -> None:
    layer, x, residual = _layer(activation=activation), _input(), _input()
    function = F.relu if activation else torch.clone
    z = F.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(layer(x, residual), function(z + residual))
    assert _layer_calls.again(layer, x) is None
    torch.testing.assert_close(layer(x), function(z))
    for _ in range(2):
        torch.testing.assert_close(layer(x, residual), function(z + residual))
        torch.testing.assert_close(layer(x), function(z))
    assert layer.num_batches_tracked == 6


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradients_of_a_kept_fused_call_are_those_of_the_first(training: bool) -> None:
    layer, dy = _layer(activation="silu").train(training), _input()
    x = _input().requires_grad_()
    leaves = [x, *layer.parameters()]
    first = torch.autograd.grad(layer(x), leaves, dy)
    kept = torch.autograd.grad(layer(x), leaves, dy)
    assert all(torch.equal(*pair) for pair in zip(first, kept, strict=True))
    plain = F.batch_norm(
        x, layer.running_mean, layer.running_var, layer.weight, layer.bias, training
    )
    for found, expected in zip(kept, torch.autograd.grad(F.silu(plain), leaves, dy), strict=True):
        torch.testing.assert_close(found, expected)
