"""The BatchNorm layers of a user's model: what a hook sees of a step, and what it leaves behind."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tritonbn
from tritonbn_bench.cases import LAYOUTS
from tritonbn_bench.inputs import make_inputs
from tritonbn_bench.model_layers import (
    LayerCall,
    ModelError,
    cases_of,
    layers_of,
    layout_name,
    load_model,
)

MODULE = """
import torch
from torch import nn

def pair():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.zeros(2, 3, 8, 8)

def several():
    return nn.Bilinear(2, 2, 2), (torch.zeros(1, 2), torch.zeros(1, 2))

def model_only():
    return nn.BatchNorm1d(3)

def nothing():
    return None

def swapped():
    return torch.zeros(1), nn.BatchNorm1d(3)

def raises():
    raise RuntimeError("no weights here")

constant = 3
"""


class _Block(nn.Module):
    """Three layers of ours and of torch's, one of them called twice, one frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = tritonbn.BatchNorm2d(4, activation="relu")
        self.leaky = tritonbn.BatchNorm2d(4, activation="leaky_relu")
        self.frozen = nn.BatchNorm2d(4)
        self.twice = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout()

    def train(self, mode: bool = True) -> "_Block":
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = self.fused(x, residual=x)
        y = self.frozen(self.leaky(y))
        return self.dropout(self.twice(self.twice(y)))  # type: ignore[no-any-return]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user's in the current folder."""
    name = f"users_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"{name}_broken.py").write_text("import no_such_package_at_all")
    (tmp_path / f"{name}_wrong.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_a_users_function_gives_model_and_inputs(module: str) -> None:
    model, inputs = load_model(f"{module}:pair")
    assert isinstance(model, nn.Sequential) and [x.shape for x in inputs] == [(2, 3, 8, 8)]
    assert len(load_model(f"{module}:several")[1]) == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param("{}", "expected package.module:function, got", id="no-colon"),
        pytest.param("{}_absent:pair", "expected a module .*_absent, got none", id="no-module"),
        pytest.param("{}_broken:pair", "importing .* failed: No module named 'no_such", id="needs"),
        pytest.param("{}_wrong:pair", "importing .* failed: ZeroDivisionError", id="import"),
        pytest.param("{}:pears", "expected pears in users_.*, got none", id="no-function"),
        pytest.param("{}:constant", "to be a function, got int", id="no-callable"),
        pytest.param("{}:raises", "failed: RuntimeError: no weights here", id="raises"),
        pytest.param("{}:nothing", r"return \(model, .*got NoneType", id="returns-none"),
        pytest.param("{}:model_only", "got BatchNorm1d", id="returns-model"),
        pytest.param("{}:swapped", r"got \(Tensor, BatchNorm1d\)", id="returns-swapped"),
    ],
)
def test_what_is_wrong_with_a_users_function_is_said(module: str, spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(spec.format(module))


def test_every_call_of_a_layer_is_seen_with_what_follows_it() -> None:
    calls = layers_of(_Block(), [torch.randn(2, 4, 3, 5)])
    assert [(call.path, call.fusion, call.training) for call in calls] == [
        ("fused", "add_relu", True),
        ("leaky", "leaky_relu(0.01)", True),
        ("frozen", "none", False),
        ("twice", "none", True),
        ("twice", "none", True),
    ]
    assert {(call.shape, call.dtype, call.layout) for call in calls} == {
        ((2, 4, 3, 5), "fp32", "nchw")
    }
    assert {call.training for call in layers_of(_Block(), [torch.randn(2, 4, 3, 5)], False)} == {
        False
    }


def test_a_model_is_left_as_it_was() -> None:
    model = _Block()
    model.twice.eval()
    flags = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    layers_of(model, [torch.randn(2, 4, 3, 5)])
    following = torch.rand(1)
    torch.manual_seed(0)
    torch.randn(2, 4, 3, 5)
    assert torch.equal(following, torch.rand(1))
    assert [module.training for module in model.modules()] == flags
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_lazy_layer_gets_its_size_and_no_statistics() -> None:
    model = nn.LazyBatchNorm2d()
    layers_of(model, [torch.randn(2, 3, 4, 4)])
    assert model.num_features == 3
    assert torch.equal(model.state_dict()["running_mean"], torch.zeros(3))


def test_a_step_that_fails_says_so_and_leaves_no_hooks() -> None:
    model = _Block()
    with pytest.raises(ModelError, match=r"forward pass failed: ValueError: .*4D"):
        layers_of(model, [torch.randn(2, 4)])
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("model", "x", "expected"),
    [
        pytest.param(nn.BatchNorm1d(3), (4, 3), ("(model)", "BatchNorm1d", "nc"), id="vectors"),
        pytest.param(nn.BatchNorm1d(3), (4, 3, 5), ("(model)", "BatchNorm1d", "ncl"), id="points"),
        pytest.param(nn.BatchNorm3d(3), (4, 3, 2, 2, 2), ("(model)", "BatchNorm3d", "ncdhw")),
        pytest.param(nn.SyncBatchNorm(3), (4, 3, 2, 2), ("(model)", "SyncBatchNorm", "nchw")),
        pytest.param(nn.LazyBatchNorm2d(), (4, 3, 2, 2), ("(model)", "BatchNorm2d", "nchw")),
        pytest.param(
            nn.Sequential(tritonbn.BatchNorm1d(3)), (4, 3, 5), ("0", "BatchNorm1d", "ncl")
        ),
    ],
)
def test_layers_of_every_kind_are_seen(
    model: nn.Module, x: tuple[int, ...], expected: tuple[str, ...]
) -> None:
    (call,) = layers_of(model, [torch.randn(x)])
    assert (call.path, call.kind, call.layout) == expected
    assert call.shape == x


def test_autocast_decides_the_dtype() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.layers(x)  # type: ignore[no-any-return]

    (call,) = layers_of(Net(), [torch.randn(2, 3, 4, 4)])
    assert call.dtype == "bf16"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_of_a_case_have_the_layout_that_is_seen(layout: str) -> None:
    shape = (2, 3, 4, 5, 6)[: len(layout)]
    call = LayerCall("a", "BatchNorm", shape, "fp32", layout, "none", True)
    for case in cases_of([call]):
        assert layout_name(make_inputs(case, "cpu").x) == layout


def test_a_strided_view_is_named_and_is_no_case() -> None:
    call = layers_of(nn.BatchNorm2d(3), [torch.randn(2, 6, 4, 4)[:, ::2]])[0]
    assert call.layout == "strides (96, 32, 4, 1)"
    assert call.unmeasured == "a view with strides (96, 32, 4, 1)"
    assert cases_of([call]) == ()


def test_cases_of_a_model_count_their_layers() -> None:
    calls = layers_of(_Block(), [torch.randn(2, 4, 3, 5)])
    assert [call.unmeasured for call in calls if call.unmeasured] == [
        "followed by leaky_relu(0.01)"
    ]
    cases = cases_of(calls, "a net")
    assert {case.id: (case.count, case.origin) for case in cases} == {
        "forward_train/fp32/nchw/N2C4S15/add_relu": (1, "a net: fused"),
        "backward_train/fp32/nchw/N2C4S15/add_relu": (1, "a net: fused"),
        "forward_eval/fp32/nchw/N2C4S15": (1, "a net: frozen"),
        "backward_eval/fp32/nchw/N2C4S15": (1, "a net: frozen"),
        "forward_train/fp32/nchw/N2C4S15": (2, "a net: twice"),
        "backward_train/fp32/nchw/N2C4S15": (2, "a net: twice"),
    }
