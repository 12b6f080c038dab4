"""The registered operators: schema, fake implementations, layouts, and what a tracer sees."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import tritonbn

from .agreement import DEVICE

FORWARD = torch.ops.tritonbn.batch_norm_forward.default
EVAL = torch.ops.tritonbn.batch_norm_eval.default
BACKWARD = torch.ops.tritonbn.batch_norm_backward.default
train_and_eval = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])

LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "nc": lambda: torch.randn(4, 3),
    "nchw": lambda: torch.randn(2, 3, 2, 3),
    "channels_last": lambda: torch.randn(2, 3, 2, 3).to(memory_format=torch.channels_last),
    "channels_last_3d": lambda: torch.randn(2, 3, 2, 1, 3).to(memory_format=torch.channels_last_3d),
    "nlc": lambda: torch.randn(2, 4, 3).transpose(1, 2),
    "cn": lambda: torch.randn(3, 4).t(),
    "slice": lambda: torch.randn(2, 3, 2, 6)[..., ::2],
    "channel_slice": lambda: torch.randn(2, 6, 2, 3)[:, ::2],
    "expanded": lambda: torch.randn(1, 3, 2, 3).expand(2, 3, 2, 3),
    "swapped_plane": lambda: torch.randn(2, 3, 4, 3).transpose(2, 3),
    "one_pixel": lambda: torch.randn(4, 3, 1, 1),
    "one_image": lambda: torch.randn(1, 3, 2, 3).to(memory_format=torch.channels_last),
}
SAME_SHAPE = [
    (x, dy)
    for x, dy in itertools.product(LAYOUTS, repeat=2)
    if LAYOUTS[x]().shape == LAYOUTS[dy]().shape
]


def forward_arguments(x: Tensor, training: bool, affine: bool, tracked: bool) -> tuple[Any, ...]:
    """Arguments of the forward operator; fp32 parameters whatever x is."""
    channels = x.shape[1]
    weight = torch.randn(channels, device=DEVICE) if affine else None
    bias = torch.randn(channels, device=DEVICE) if affine else None
    mean = torch.randn(channels, device=DEVICE) if tracked else None
    var = torch.rand(channels, device=DEVICE) + 0.5 if tracked else None
    count = torch.tensor(0, device=DEVICE) if tracked and training else None
    return x, weight, bias, mean, var, count, training, 0.1, 1e-5


def backward_arguments(x: Tensor, dy: Tensor, training: bool, *needs: bool) -> tuple[Any, ...]:
    """Arguments of the backward operator, the forward one having run."""
    arguments = forward_arguments(x, training, True, True)
    _, saved, _ = FORWARD(*arguments)
    return dy, x, arguments[1], saved, training, *needs


@train_and_eval
@pytest.mark.parametrize("layout", LAYOUTS)
def test_forward_operator_passes_opcheck(layout: str, training: bool) -> None:
    x = LAYOUTS[layout]().to(DEVICE)
    opcheck(FORWARD, forward_arguments(x, training, True, True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_forward_operator_passes_opcheck_in_other_dtypes(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 2, 3, device=DEVICE).to(dtype)
    opcheck(
        FORWARD,
        tuple(
            value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
            for value in forward_arguments(x, True, True, True)
        ),
    )


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_forward_operator_passes_opcheck_without_statistics(affine: bool) -> None:
    x = torch.randn(2, 3, 2, 3, device=DEVICE)
    opcheck(FORWARD, forward_arguments(x, True, affine, False))


def test_forward_operator_passes_opcheck_with_gradients() -> None:
    x = torch.randn(2, 3, 2, 3, device=DEVICE, requires_grad=True)
    arguments = forward_arguments(x, True, True, True)
    for parameter in arguments[1:3]:
        parameter.requires_grad_()
    opcheck(FORWARD, arguments)


@train_and_eval
@pytest.mark.parametrize("layout", LAYOUTS)
def test_backward_operator_passes_opcheck(layout: str, training: bool) -> None:
    x = LAYOUTS[layout]().to(DEVICE)
    dy = torch.randn(x.shape, device=DEVICE)
    opcheck(BACKWARD, backward_arguments(x, dy, training, True, True, True))


@pytest.mark.parametrize(
    "needs",
    [(True, False, False), (False, True, False), (False, False, True)],
    ids=["dx", "dgamma", "dbeta"],
)
def test_backward_operator_passes_opcheck_for_one_gradient(needs: tuple[bool, ...]) -> None:
    x = torch.randn(2, 3, 2, 3, device=DEVICE)
    opcheck(BACKWARD, backward_arguments(x, torch.randn_like(x), True, *needs))


@train_and_eval
@pytest.mark.parametrize(
    ("layout", "gradient"), SAME_SHAPE, ids=["-".join(pair) for pair in SAME_SHAPE]
)
def test_fake_results_have_the_strides_of_real_ones(
    layout: str, gradient: str, training: bool
) -> None:
    x, dy = LAYOUTS[layout]().to(DEVICE), LAYOUTS[gradient]().to(DEVICE)
    arguments = forward_arguments(x, training, True, True)
    real = FORWARD(*arguments)
    needs = (True, True, True)
    real += BACKWARD(dy, x, arguments[1], real[1], training, *needs)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(v) if isinstance(v, Tensor) else v for v in arguments]
        fake = FORWARD(*fakes)
        fake += BACKWARD(mode.from_tensor(dy), fakes[0], fakes[1], fake[1], training, *needs)
    for ours, expected in zip(fake, real, strict=True):
        assert (ours.shape, ours.stride(), ours.dtype) == (
            expected.shape,
            expected.stride(),
            expected.dtype,
        )


def test_schema_names_what_is_written() -> None:
    written = {
        argument.name
        for argument in FORWARD._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    }
    assert written == {"running_mean", "running_var", "num_batches_tracked"}
    assert not BACKWARD._schema.is_mutable


@train_and_eval
def test_only_what_the_schema_names_is_written(training: bool) -> None:
    arguments = forward_arguments(torch.randn(2, 3, 2, 3, device=DEVICE), training, True, True)
    before = [value.clone() if isinstance(value, Tensor) else value for value in arguments]
    FORWARD(*arguments)
    changed = [
        index
        for index, value in enumerate(arguments)
        if isinstance(value, Tensor) and not torch.equal(value, before[index])
    ]
    assert changed == ([3, 4, 5] if training else [])


def test_evaluation_has_an_operator_that_declares_no_mutation() -> None:
    assert not any(
        argument.alias_info is not None and argument.alias_info.is_write
        for argument in EVAL._schema.arguments
    )
    x = torch.randn(2, 3, 2, 3, device=DEVICE, requires_grad=True)
    arguments = forward_arguments(x, False, True, True)
    opcheck(EVAL, (*arguments[:5], 1e-5))
    y, saved, _ = EVAL(*arguments[:5], 1e-5)
    expected, expected_saved, _ = FORWARD(*arguments)
    assert torch.equal(y, expected)
    assert torch.equal(saved, expected_saved)
    dy = torch.randn_like(y)
    [dx], [expected_dx] = torch.autograd.grad(y, x, dy), torch.autograd.grad(expected, x, dy)
    assert torch.equal(dx, expected_dx)


@pytest.mark.parametrize("operator", [FORWARD, EVAL, BACKWARD], ids=["forward", "eval", "backward"])
def test_operators_take_any_layout(operator: Any) -> None:
    assert torch.Tag.flexible_layout in operator.tags


def test_dispatch_modes_see_the_operators() -> None:
    seen = []

    class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    layer = tritonbn.BatchNorm2d(3, device=DEVICE)
    with Recorder():  # type: ignore[no-untyped-call]
        layer(torch.randn(2, 3, 2, 2, device=DEVICE, requires_grad=True)).sum().backward()
    assert seen.count(FORWARD) == 1
    assert seen.count(BACKWARD) == 1
