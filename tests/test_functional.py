"""`batch_norm` is `torch.nn.functional.batch_norm`: its checks, dtypes, layouts and autograd."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

import tritonbn

from .agreement import DEVICE, assert_agreement, kernels_run_on, outcome

Arguments = dict[str, Any]
# dtypes of the three runs of one case: ours, torch's and the oracle
WIDTHS = (torch.float32, torch.float32, torch.float64)
train_and_eval = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def sound_arguments(training: bool, shape: tuple[int, ...] = (2, 3, 4)) -> Arguments:
    """New arguments that `F.batch_norm` accepts."""
    channels = shape[1]
    return {
        "input": torch.randn(shape, device=DEVICE) + 1.0,
        "running_mean": torch.randn(channels, device=DEVICE),
        "running_var": torch.rand(channels, device=DEVICE) + 0.5,
        "weight": torch.randn(channels, device=DEVICE),
        "bias": torch.randn(channels, device=DEVICE),
        "training": training,
        "momentum": 0.1,
        "eps": 1e-5,
    }


def converted(arguments: Arguments, dtype: torch.dtype) -> Arguments:
    """The same arguments, tensors cloned in `dtype`."""
    return {
        name: value.detach().to(dtype, copy=True) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def strides(tensor: Tensor) -> list[int]:
    """Strides that mean something: those of dimensions with more than one element."""
    return [step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def ones(*shape: int, dtype: torch.dtype = torch.float32, needs_grad: bool = False) -> Tensor:
    return torch.ones(shape, dtype=dtype, device=DEVICE, requires_grad=needs_grad)


# what replaces the sound argument; each meets another check of torch's, or is accepted in spite
# of its looks
FAULTS: dict[str, Callable[[], Arguments]] = {
    "one_value": lambda: {"input": ones(1, 3)},
    "eps_negative": lambda: {"eps": -1e-5},
    "eps_zero": lambda: {"eps": 0.0},
    "eps_nan": lambda: {"eps": float("nan")},
    "empty_batch": lambda: {"input": ones(0, 3, 4)},
    "empty_plane": lambda: {"input": ones(2, 3, 0)},
    "no_channels": lambda: {"input": ones(2, 0, 4)},
    "long_mean": lambda: {"running_mean": ones(4)},
    "long_var": lambda: {"running_var": ones(4)},
    "short_weight": lambda: {"weight": ones(2)},
    "short_bias": lambda: {"bias": ones(2)},
    "no_mean": lambda: {"running_mean": None},
    "no_var": lambda: {"running_var": None},
    "mean_needs_gradient": lambda: {"running_mean": ones(3, needs_grad=True)},
    "var_needs_gradient": lambda: {"running_var": ones(3, needs_grad=True)},
    "integer": lambda: {"input": ones(2, 3, 4, dtype=torch.int64)},
    "complex": lambda: {"input": ones(2, 3, 4, dtype=torch.complex64)},
    "one_dimension": lambda: {"input": ones(3)},
    "no_dimension": lambda: {"input": ones()},
    "six_dimensions": lambda: {"input": ones(2, 3, 1, 2, 1, 2)},
    "no_weight": lambda: {"weight": None},
    "no_bias": lambda: {"bias": None},
    "row_weight": lambda: {"weight": ones(1, 3)},
    "double_mean": lambda: {"running_mean": ones(3, dtype=torch.float64)},
    "half_weight": lambda: {"weight": ones(3, dtype=torch.float16)},
    "integer_bias": lambda: {"bias": ones(3, dtype=torch.int64)},
    "half_input": lambda: {"input": ones(2, 3, 4, dtype=torch.float16)},
    "meta_input": lambda: {"input": torch.ones(2, 3, 4, device="meta")},
    "no_momentum": lambda: {"momentum": None},
}


# torch wants one dtype for all parameters of a half-precision input; any of the two will do here
BEYOND_TORCH = ({"half_input", "half_weight"},)


@train_and_eval
@pytest.mark.parametrize("first", FAULTS)
def test_faults_alone_and_in_pairs_end_as_in_torch(first: str, training: bool) -> None:
    for second in FAULTS:
        replaced = {**FAULTS[second](), **FAULTS[first]()}
        expected = outcome(F.batch_norm, **{**sound_arguments(training), **replaced})
        if {first, second} in BEYOND_TORCH:
            expected = ("", "")
        found = outcome(tritonbn.batch_norm, **{**sound_arguments(training), **replaced})
        assert found == expected, f"{first} with {second}"


def test_failed_check_leaves_running_statistics() -> None:
    arguments = sound_arguments(True)
    before = arguments["running_mean"].clone(), arguments["running_var"].clone()
    with pytest.raises(RuntimeError, match="bias should contain 3 elements not 2"):
        tritonbn.batch_norm(**{**arguments, "bias": ones(2)})
    assert torch.equal(arguments["running_mean"], before[0])
    assert torch.equal(arguments["running_var"], before[1])


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 3, 0)], ids=["nc", "nchw", "ncl"])
@train_and_eval
def test_empty_input_gives_empty_result_and_zero_gradients(
    shape: tuple[int, ...], training: bool
) -> None:
    arguments = sound_arguments(training, shape)
    before = arguments["running_mean"].clone()
    inputs = [arguments[name].requires_grad_() for name in ("input", "weight", "bias")]
    y = tritonbn.batch_norm(**arguments)
    assert y.shape == shape
    dx, dgamma, dbeta = torch.autograd.grad(y.sum(), inputs)
    assert dx.shape == shape
    assert not dgamma.any() and not dbeta.any()
    assert torch.equal(arguments["running_mean"], before)


DTYPES = {
    "fp32": (torch.float32, torch.float32),
    "fp64": (torch.float64, torch.float64),
    "fp16-params_fp32": (torch.float16, torch.float32),
    "fp16-params_fp16": (torch.float16, torch.float16),
    "bf16-params_fp32": (torch.bfloat16, torch.float32),
    "bf16-params_bf16": (torch.bfloat16, torch.bfloat16),
}


@train_and_eval
@pytest.mark.parametrize(("dtype", "parameter_dtype"), DTYPES.values(), ids=DTYPES)
def test_results_have_torchs_dtypes_and_values(
    dtype: torch.dtype, parameter_dtype: torch.dtype, training: bool
) -> None:
    sound = converted(sound_arguments(training, (4, 3, 5)), parameter_dtype)
    sound["input"] = sound["input"].to(dtype)
    assert kernels_run_on(sound["input"])
    results = []
    for function, wide in (
        (tritonbn.batch_norm, False),
        (F.batch_norm, False),
        (F.batch_norm, True),
    ):
        arguments = converted(sound, torch.float64) if wide else {**sound}
        for name in ("running_mean", "running_var"):
            arguments[name] = arguments[name].clone()
        inputs = [arguments[name].detach().requires_grad_() for name in ("input", "weight", "bias")]
        arguments.update(zip(("input", "weight", "bias"), inputs, strict=True))
        y = function(**arguments)
        dy = torch.linspace(-1, 1, y.numel(), device=DEVICE).view(y.shape).to(y.dtype)
        gradients = torch.autograd.grad(y, inputs, dy)
        results.append([y, *gradients, arguments["running_mean"], arguments["running_var"]])
    names = ("y", "dx", "dgamma", "dbeta", "running_mean", "running_var")
    for name, ours, torchs, oracle in zip(names, *results, strict=True):
        assert_agreement(name, ours, torchs, oracle)


@train_and_eval
def test_bfloat16_parameters_may_go_with_float32_statistics(training: bool) -> None:
    # torch refuses this on the CPU; FSDP2's mixed precision makes it
    arguments = sound_arguments(training)
    for name in ("input", "weight", "bias"):
        arguments[name] = arguments[name].bfloat16()
    wide = converted(arguments, torch.float32)
    assert kernels_run_on(arguments["input"])
    y = tritonbn.batch_norm(**arguments)
    # the float32 run differs by the rounding of its result alone
    assert torch.equal(y, tritonbn.batch_norm(**wide).bfloat16())
    assert torch.equal(arguments["running_mean"], wide["running_mean"])


def test_parameters_and_statistics_may_be_strided() -> None:
    arguments = sound_arguments(True)
    expected = tritonbn.batch_norm(**converted(arguments, torch.float32))
    for name in ("running_mean", "running_var", "weight", "bias"):
        spread = torch.full((6,), float("nan"), device=DEVICE)
        spread[::2] = arguments[name]
        arguments[name] = spread[::2]
    mean = arguments["running_mean"].clone()
    assert torch.equal(tritonbn.batch_norm(**arguments), expected)
    assert not torch.equal(arguments["running_mean"], mean)


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "nc": lambda: torch.randn(4, 3),
    "ncl": lambda: torch.randn(4, 3, 5),
    "nchw": lambda: torch.randn(2, 3, 4, 5),
    "ncdhw": lambda: torch.randn(2, 3, 2, 4, 3),
    "channels_last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "channels_last_3d": lambda: torch.randn(2, 3, 2, 4, 3).to(memory_format=torch.channels_last_3d),
    "channels_last_one_image": lambda: torch.randn(1, 3, 4, 5).to(
        memory_format=torch.channels_last
    ),
    "one_pixel": lambda: torch.randn(4, 3, 1, 1),
    "one_pixel_channels_last": lambda: torch.randn(4, 3, 1, 1).to(
        memory_format=torch.channels_last
    ),
    "one_channel": lambda: torch.randn(4, 1, 3, 5),
    "nchw_slice": lambda: torch.randn(2, 3, 4, 10)[..., ::2],
    "channel_slice": lambda: torch.randn(2, 6, 4, 5)[:, ::2],
    "expanded": lambda: torch.randn(1, 3, 4, 5).expand(2, 3, 4, 5),
}


@train_and_eval
@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_and_input_gradient_keep_the_memory_format(layout: str, training: bool) -> None:
    x = LAYOUTS[layout]().to(DEVICE).requires_grad_()
    assert kernels_run_on(x)
    y = tritonbn.batch_norm(**sound_arguments(training, tuple(x.shape)) | {"input": x})
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    # as torch on the CPU: strided slices come out dense, in the order of x's dimensions
    assert strides(y) == strides(torch.empty_like(x))
    assert strides(dx) == strides(torch.empty_like(x))


@train_and_eval
@pytest.mark.parametrize("shape", [(4, 5, 3), (3, 4)], ids=["nlc", "cn"])
def test_transposed_input_gives_a_dense_result(shape: tuple[int, ...], training: bool) -> None:
    # torch's own backends differ in the strides of these
    x = torch.randn(shape, device=DEVICE).transpose(-1, 0 if len(shape) == 2 else 1)
    sound = sound_arguments(training, tuple(x.shape))
    runs = [{**converted(sound, dtype), "input": x.to(dtype)} for dtype in WIDTHS]
    y = tritonbn.batch_norm(**runs[0])
    assert_agreement("y", y, F.batch_norm(**runs[1]), F.batch_norm(**runs[2]))
    assert y.stride() in (x.stride(), x.contiguous().stride())


@train_and_eval
def test_version_counters_of_the_statistics_stand_still(training: bool) -> None:
    arguments = sound_arguments(training)
    statistics = [arguments["running_mean"], arguments["running_var"]]
    before = [tensor._version for tensor in statistics]
    values = [tensor.clone() for tensor in statistics]
    tritonbn.batch_norm(**arguments)
    assert [tensor._version for tensor in statistics] == before
    changed = [not torch.equal(*pair) for pair in zip(statistics, values, strict=True)]
    assert changed == [training, training]


@train_and_eval
def test_two_forwards_before_one_backward_have_their_own_gradients(training: bool) -> None:
    arguments = sound_arguments(training)
    parameters = [arguments[name].requires_grad_() for name in ("weight", "bias")]
    batches = [torch.randn(2, 3, 4, device=DEVICE, requires_grad=True) for _ in range(2)]
    wanted = [*batches, *parameters]
    results = []
    for function, dtype in (
        (tritonbn.batch_norm, torch.float32),
        (F.batch_norm, torch.float32),
        (F.batch_norm, torch.float64),
    ):
        copies = converted(arguments, dtype)
        inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in wanted]
        copies.update(weight=inputs[2], bias=inputs[3])
        first = function(**copies | {"input": inputs[0]})
        second = function(**copies | {"input": inputs[1]})
        results.append(torch.autograd.grad((first * second).sum(), inputs))
    for name, ours, torchs, oracle in zip(("x1", "x2", "gamma", "beta"), *results, strict=True):
        assert_agreement(name, ours, torchs, oracle)


@train_and_eval
@pytest.mark.parametrize("name", ["input", "weight"])
def test_editing_what_backward_needs_raises(name: str, training: bool) -> None:
    arguments = sound_arguments(training)
    gamma = arguments["weight"].requires_grad_()
    source = arguments["input"].requires_grad_()
    arguments["input"], arguments["weight"] = source * 1.0, gamma * 1.0
    y = tritonbn.batch_norm(**arguments)
    arguments[name].mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), [source, gamma])


@train_and_eval
@pytest.mark.parametrize("name", ["running_mean", "running_var", "bias"])
def test_editing_statistics_or_bias_leaves_the_gradient(name: str, training: bool) -> None:
    # torch keeps the running statistics and raises here; nothing of ours depends on them
    arguments = sound_arguments(training)
    x = arguments["input"].requires_grad_()
    y = tritonbn.batch_norm(**arguments)
    (expected,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    arguments[name].mul_(2.0)
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.equal(dx, expected)


@train_and_eval
def test_backward_keeps_input_weight_and_three_words_a_channel(training: bool) -> None:
    arguments = sound_arguments(training)
    x, gamma = arguments["input"].requires_grad_(), arguments["weight"].requires_grad_()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        tritonbn.batch_norm(**arguments)
    places = {tensor.untyped_storage().data_ptr() for tensor in kept}
    assert arguments["running_mean"].untyped_storage().data_ptr() not in places
    assert arguments["running_var"].untyped_storage().data_ptr() not in places
    assert sorted(t.numel() for t in kept) == sorted([x.numel(), gamma.numel(), 3 * gamma.numel()])


def _imaginary(*shape: int) -> Tensor:
    """A tensor whose sign is a bit of its own: the imaginary part of a conjugate."""
    part = torch.randn(shape, dtype=torch.complex64, device=DEVICE).conj().imag
    assert part.is_neg()
    return part


@train_and_eval
@pytest.mark.parametrize("negative", ["input", "weight", "bias"])
def test_a_sign_that_is_not_in_memory_is_seen(negative: str, training: bool) -> None:
    arguments = sound_arguments(training, (8, 4))
    arguments[negative] = _imaginary(8, 4) if negative == "input" else torch._neg_view(ones(4))
    expected = F.batch_norm(**converted(arguments, torch.float32))
    assert kernels_run_on(arguments["input"])
    torch.testing.assert_close(tritonbn.batch_norm(**arguments), expected)


def test_a_sign_of_the_gradient_that_is_not_in_memory_is_seen() -> None:
    x, dy = torch.randn(8, 4, device=DEVICE), _imaginary(8, 4)
    weight = torch.randn(4, device=DEVICE).requires_grad_()
    bias = torch.randn(4, device=DEVICE).requires_grad_()
    ours, torchs = (
        torch.autograd.grad(
            function(x, None, None, weight, bias, training=True), (weight, bias), dy
        )
        for function in (tritonbn.batch_norm, F.batch_norm)
    )
    for found, expected in zip(ours, torchs, strict=True):
        torch.testing.assert_close(found, expected)


def test_statistics_see_a_sign_that_is_not_in_memory() -> None:
    x = _imaginary(8, 4)
    torch.testing.assert_close(tritonbn.statistics(x).mean, x.mean(0))
