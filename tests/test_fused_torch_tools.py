"""torch's own tools on a layer with an activation: the right result, or an error; never a model
that has lost the activation in silence."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao import quantization as typed_quantization
from torch.ao.quantization import quantize_fx

import tritonbn

from .agreement import DEVICE, kernels_run_on

# half of its functions have no types
quantization: Any = typed_quantization
convert_sync_batchnorm: Any = nn.SyncBatchNorm.convert_sync_batchnorm
warnings_of_tools = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::torch.jit.TracerWarning",
    "ignore:Please use quant_min and quant_max:UserWarning",
)
train_and_eval = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
LOST = "expected a BatchNorm layer without an activation, got activation="


def images() -> Tensor:
    return torch.randn(2, 3, 4, 5, device=DEVICE)


def convolution_and_norm(activation: Any = ("leaky_relu", 0.25)) -> nn.Sequential:
    """A model in evaluation, whose statistics are none of a fresh layer."""
    norm = tritonbn.BatchNorm2d(3, activation=activation)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm).to(DEVICE)
    model(images())
    return model.eval()


class Residual(nn.Module):
    """A convolution, then a fused layer to which the input is added, by position or by name."""

    def __init__(self, *, named: bool = False) -> None:
        super().__init__()
        self.named = named
        self.convolution = nn.Conv2d(3, 3, 1, bias=False)
        self.norm = tritonbn.BatchNorm2d(3, activation="relu")
        self.to(DEVICE)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution(x)
        z: Tensor = self.norm(y, residual=x) if self.named else self.norm(y, x)
        return z

    def expected(self, x: Tensor) -> Tensor:
        """The same by torch's functions, in training."""
        return F.relu(F.batch_norm(self.convolution(x), None, None, training=True) + x)


class Function(nn.Module):
    """The fused function inside a model."""

    def forward(self, x: Tensor) -> Tensor:
        return tritonbn.batch_norm(
            x, None, None, training=True, residual=x, activation=("leaky_relu", 0.25)
        )

    def expected(self, x: Tensor) -> Tensor:
        return F.leaky_relu(F.batch_norm(x, None, None, training=True) + x, 0.25)


@pytest.mark.parametrize("qconfig", [False, True], ids=["plain", "qconfig"])
def test_convert_sync_batchnorm_raises(qconfig: bool) -> None:
    model: Any = convolution_and_norm("relu")
    if qconfig:
        model[1].qconfig = None
    with pytest.raises(NotImplementedError, match=LOST + "'relu'"):
        convert_sync_batchnorm(model)
    assert type(model[1]) is tritonbn.BatchNorm2d
    model[1].activation = None
    converted = convert_sync_batchnorm(model)
    assert type(converted[1]) is nn.SyncBatchNorm
    assert converted[1].eps == 1e-5 and type(converted[1].eps) is float


def test_fuse_conv_bn_eval_raises_until_the_activation_is_taken_away() -> None:
    model: Any = convolution_and_norm()
    with pytest.raises(NotImplementedError, match="expected eps of a BatchNorm layer without"):
        nn.utils.fuse_conv_bn_eval(model[0], model[1])
    model[1].activation = None
    x = images()
    torch.testing.assert_close(nn.utils.fuse_conv_bn_eval(model[0], model[1])(x), model(x))


def test_fuse_linear_bn_eval_raises_until_the_activation_is_taken_away() -> None:
    linear = nn.Linear(3, 4).eval()
    norm = tritonbn.BatchNorm1d(4, activation="silu").eval()
    with pytest.raises(NotImplementedError, match="expected eps of a BatchNorm layer without"):
        nn.utils.fuse_linear_bn_eval(linear, norm)
    norm.activation = None
    x = torch.randn(5, 3)
    fused = nn.utils.fuse_linear_bn_eval(linear, norm)
    torch.testing.assert_close(fused(x), tritonbn.revert(norm)(linear(x)))


def test_a_formula_written_anew_raises_and_its_number_is_there() -> None:
    norm = tritonbn.BatchNorm2d(3, eps=0.25, activation="relu")
    assert norm.running_var is not None
    with pytest.raises(NotImplementedError, match=r"float\(eps\) is the number"):
        torch.rsqrt(norm.running_var + norm.eps)
    with pytest.raises(NotImplementedError, match=r"float\(eps\) is the number"):
        norm.eps + norm.running_var
    assert torch.equal(norm.running_var + float(norm.eps), torch.full((3,), 1.25))
    # as a number it is one
    assert norm.eps == 0.25 and repr(norm.eps) == "0.25" and norm.eps * 2 == 0.5
    other = tritonbn.BatchNorm2d(3, eps=norm.eps)
    assert type(other.eps) is float
    norm.eps = 0.5
    assert norm.eps == 0.5 and vars(norm)["eps"] == 0.5


FUSINGS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "fuse_modules": lambda model: quantization.fuse_modules(model.eval(), ["0", "1"]),
    "fuse_modules_qat": lambda model: quantization.fuse_modules_qat(model.train(), ["0", "1"]),
}


@pytest.mark.parametrize("fuse", FUSINGS.values(), ids=FUSINGS)
@warnings_of_tools
def test_fusing_of_quantisation_raises(fuse: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(AssertionError, match=r"did not find fuser method for: .*tritonbn"):
        fuse(convolution_and_norm("relu"))


PREPARING: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "prepare": lambda model, x: quantization.prepare(model),
    "prepare_qat": lambda model, x: quantization.prepare_qat(model.train()),
    "prepare_fx": lambda model, x: quantize_fx.prepare_fx(
        model, quantization.get_default_qconfig_mapping(), (x,)
    ),
    "dynamic": lambda model, x: quantization.quantize_dynamic(model),
}


@pytest.mark.parametrize("prepare", PREPARING.values(), ids=PREPARING)
@warnings_of_tools
def test_preparing_for_quantisation_raises(prepare: Callable[[nn.Module, Tensor], object]) -> None:
    with pytest.raises(NotImplementedError, match=LOST + "'relu'"):
        prepare(convolution_and_norm("relu"), images())


def optimized(model: nn.Module) -> nn.Module:
    # warns when imported
    from torch.fx.experimental import optimization

    return optimization.fuse(model)


GRAPHS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "fuse_fx": lambda model: quantize_fx.fuse_fx(model),
    "optimization.fuse": optimized,
    "symbolic_trace": lambda model: torch.fx.symbolic_trace(model),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("tool", GRAPHS.values(), ids=GRAPHS)
@warnings_of_tools
def test_tools_on_graphs_leave_the_layer_as_it_is(
    tool: Callable[[nn.Module], nn.Module], launches: list[Any]
) -> None:
    model, x = convolution_and_norm(), images()
    expected = F.leaky_relu(tritonbn.revert(plain_copy(model))(x), 0.25)
    changed = tool(model)
    del launches[:]
    torch.testing.assert_close(changed(x), expected)
    assert kernels_run_on(x) and launches
    assert sum(isinstance(one, tritonbn.BatchNorm2d) for one in changed.modules()) == 1


def plain_copy(model: nn.Sequential) -> nn.Sequential:
    """A copy whose norm has no activation."""
    copied: Any = copy.deepcopy(model)
    copied[1].activation = None
    plain: nn.Sequential = copied
    return plain


@pytest.mark.parametrize("named", [False, True], ids=["position", "name"])
def test_symbolic_trace_carries_the_residual(named: bool, launches: list[Any]) -> None:
    model, x = Residual(named=named), images()
    graph = torch.fx.symbolic_trace(model)
    calls = [(node.op, node.target) for node in graph.graph.nodes if node.op == "call_module"]
    assert calls == [("call_module", "convolution"), ("call_module", "norm")]
    torch.testing.assert_close(graph(x), model.expected(x))
    assert launches


def test_symbolic_trace_keeps_the_fused_function_whole(launches: list[Any]) -> None:
    model, x = Function(), images()
    graph = torch.fx.symbolic_trace(model)
    targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert targets == [tritonbn.batch_norm]
    torch.testing.assert_close(graph(x), model.expected(x))
    assert launches


@warnings_of_tools
def test_script_of_a_fused_layer_raises_and_of_a_plain_one_adds_the_residual() -> None:
    model: Any = Residual()
    with pytest.raises(NotImplementedError, match=LOST + "'relu'"):
        torch.jit.script(model)
    assert type(model.norm) is tritonbn.BatchNorm2d
    model.norm.activation = None
    x = images()
    torch.testing.assert_close(
        torch.jit.script(model)(x),
        F.batch_norm(model.convolution(x), None, None, training=True) + x,
    )


def scripted(x: Tensor) -> Tensor:
    return tritonbn.batch_norm(x, None, None, training=True)


def scripted_with_activation(x: Tensor) -> Tensor:
    return tritonbn.batch_norm(x, None, None, training=True, activation="relu")


def scripted_with_residual(x: Tensor) -> Tensor:
    return tritonbn.batch_norm(x, None, None, training=True, residual=x)


@warnings_of_tools
def test_script_of_the_function_is_torchs_and_refuses_the_rest() -> None:
    x = images()
    expected = F.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(torch.jit.script(scripted)(x), expected)
    torch.testing.assert_close(
        torch.jit.script(tritonbn.batch_norm)(x, None, None, training=True), expected
    )
    for function in (scripted_with_activation, scripted_with_residual):
        with pytest.raises(RuntimeError, match=r"[Kk]eyword argument \w+"):
            torch.jit.script(function)


@pytest.mark.parametrize("make", [Residual, Function])
@warnings_of_tools
def test_trace_records_activation_and_residual(make: Any) -> None:
    model, x = make(), images()
    traced: Any = torch.jit.trace(model, (x,), check_trace=False)  # type: ignore[no-untyped-call]
    other = images()
    torch.testing.assert_close(traced(other), model.expected(other))


@train_and_eval
@warnings_of_tools
def test_trace_of_a_layer_alone_is_right(training: bool) -> None:
    model, x = convolution_and_norm().train(training), images()
    traced: Any = torch.jit.trace(model, (x,), check_trace=False)  # type: ignore[no-untyped-call]
    expected = F.leaky_relu(tritonbn.revert(plain_copy(model))(x), 0.25)
    torch.testing.assert_close(traced(x), expected)


@train_and_eval
def test_export_keeps_the_activation(training: bool) -> None:
    model, x = convolution_and_norm().train(training), images()
    expected = F.leaky_relu(tritonbn.revert(plain_copy(model))(x), 0.25)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), expected)


@pytest.mark.parametrize("make", [Residual, Function])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_whole_it_is_the_same(make: Any, backend: str) -> None:
    torch.compiler.reset()
    model, x = make(), images()
    x.requires_grad_()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    dy, results = torch.randn_like(x), []
    for function in (compiled, model.expected):
        y = function(x)
        leaves = [x, *model.parameters()][:2]
        results.append((y, *torch.autograd.grad(y, leaves, dy)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_compiled_graphs_notice_another_activation() -> None:
    torch.compiler.reset()
    layer = nn.BatchNorm2d(3, affine=False, track_running_stats=False)
    ours: Any = tritonbn.convert(layer)
    compiled: Any = torch.compile(ours, backend="eager", fullgraph=True)
    x = images()
    z = F.batch_norm(x, None, None, training=True)
    expectations: list[tuple[Any, Tensor]] = [
        (None, z),
        ("relu", F.relu(z)),
        (("leaky_relu", 0.25), F.leaky_relu(z, 0.25)),
        (("leaky_relu", 0.5), F.leaky_relu(z, 0.5)),
        (None, z),
    ]
    for activation, expected in expectations:
        ours.activation = activation
        torch.testing.assert_close(compiled(x), expected)
    del ours.activation
    torch.testing.assert_close(compiled(x), z)


def test_replicas_of_data_parallel_carry_the_activation() -> None:
    layer = tritonbn.BatchNorm2d(3, activation="relu")
    replica: Any = layer._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
    assert replica.activation == "relu" and replica.eps == 1e-5
