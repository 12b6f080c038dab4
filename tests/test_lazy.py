"""Lazy layers materialise into our layers, at the first forward and with torch's state."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

import tritonbn

from .agreement import DEVICE, assert_agreement, kernels_run_on, outcome

CLASSES: dict[str, tuple[type[Any], type[Any], type[Any], tuple[int, ...]]] = {
    "1d": (tritonbn.LazyBatchNorm1d, tritonbn.BatchNorm1d, nn.LazyBatchNorm1d, (4, 3)),
    "2d": (tritonbn.LazyBatchNorm2d, tritonbn.BatchNorm2d, nn.LazyBatchNorm2d, (2, 3, 2, 2)),
    "3d": (tritonbn.LazyBatchNorm3d, tritonbn.BatchNorm3d, nn.LazyBatchNorm3d, (2, 3, 2, 1, 2)),
}
every_class = pytest.mark.parametrize(
    ("lazy", "eager", "torchs", "shape"), CLASSES.values(), ids=CLASSES
)
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "cumulative": {"momentum": None, "eps": 0.5},
    "no_affine": {"affine": False},
    "no_tracking": {"track_running_stats": False},
    "neither": {"affine": False, "track_running_stats": False},
}


@every_class
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_first_forward_materialises_into_our_class_and_runs_the_kernels(
    lazy: type[Any],
    eager: type[Any],
    torchs: type[Any],
    shape: tuple[int, ...],
    options: dict[str, Any],
    launches: list[Any],
) -> None:
    layers = [make(**options, device=DEVICE) for make in (lazy, torchs, torchs)]
    layers[2].double()
    assert isinstance(layers[0], torchs)
    assert repr(layers[0]) == repr(layers[1])
    x = torch.randn(shape, device=DEVICE)
    assert kernels_run_on(x)
    assert_agreement("y", layers[0](x), layers[1](x), layers[2](x.double()))
    assert launches
    assert type(layers[0]) is eager
    assert repr(layers[0]) == repr(layers[1])
    states = [layer.state_dict() for layer in layers]
    assert list(states[0]) == list(states[1])
    for name in states[0]:
        assert_agreement(name, *(state[name] for state in states))


@every_class
def test_wrong_number_of_dimensions_ends_as_in_torch(
    lazy: type[Any], eager: type[Any], torchs: type[Any], shape: tuple[int, ...]
) -> None:
    x = torch.randn(2, 3, 2, 2, 2, 2, device=DEVICE)
    layers = [make(device=DEVICE) for make in (lazy, torchs)]
    assert outcome(layers[0], x) == outcome(layers[1], x)
    assert type(layers[0]) is eager


def test_pickled_layer_is_still_lazy_and_loads_a_full_state() -> None:
    layer = pickle.loads(pickle.dumps(tritonbn.LazyBatchNorm2d(device=DEVICE)))
    assert isinstance(layer, tritonbn.LazyBatchNorm2d)
    assert isinstance(layer.weight, UninitializedParameter)
    full = nn.BatchNorm2d(3, device=DEVICE).eval()
    nn.init.normal_(full.weight)
    layer.load_state_dict(full.state_dict())
    layer.eval()
    x = torch.randn(2, 3, 2, 2, device=DEVICE)
    assert_agreement("y", layer(x), full(x), copy.deepcopy(full).double()(x.double()))
    assert isinstance(layer, tritonbn.BatchNorm2d)


def test_lazy_layer_inside_a_model_trains() -> None:
    layer: Any = tritonbn.LazyBatchNorm2d()
    model = nn.Sequential(nn.LazyConv2d(4, 1), layer, nn.ReLU()).to(DEVICE)
    model(torch.randn(2, 3, 2, 2, device=DEVICE)).sum().backward()
    assert isinstance(layer, tritonbn.BatchNorm2d)
    assert layer.weight.grad is not None
    assert int(layer.state_dict()["num_batches_tracked"]) == 1
