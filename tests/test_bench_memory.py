"""The accounting of memory, against what torch and our layers keep of the same small network."""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import tritonbn
from tests.inputs import INTERPRETED
from tritonbn_bench.memory import WAYS, Accounts, Way, resnet, resnet50_usage
from tritonbn_bench.providers import composed
from tritonbn_bench.saved import saved_bytes

IN_PLACE, OUT_OF_PLACE, FUSED, EFFICIENT = WAYS
SHAPE, DEPTHS, WIDTH, CLASSES = (8, 3, 32, 32), (1, 2), 8, 5
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu": (torch.relu_, torch.relu),
    "leaky_relu": (functional.leaky_relu_, functional.leaky_relu),
    "silu": (functional.silu, functional.silu),
    "identity": (lambda z: z, lambda z: z),
}


class TorchOperators(nn.Module):
    """The `Operators` of `memory` by torch, or by our fused call; parameters made on first use."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way = way
        self.weights: list[nn.Parameter] = []
        self.used = 0

    def _parameter(self, *shape: int) -> nn.Parameter:
        if self.used == len(self.weights):
            weight = nn.Parameter(0.1 * torch.randn(shape))
            self.register_parameter(f"weight{self.used}", weight)
            self.weights.append(weight)
        self.used += 1
        return self.weights[self.used - 1]

    def conv(self, x: Tensor, channels: int, kernel: int, stride: int) -> Tensor:
        weight = self._parameter(channels, x.shape[1], kernel, kernel)
        return functional.conv2d(x, weight, stride=stride, padding=kernel // 2)

    def norm(self, x: Tensor, activation: str, residual: Tensor | None = None) -> Tensor:
        gamma, beta = self._parameter(x.shape[1]), self._parameter(x.shape[1])
        arguments = (x, None, None, gamma, beta, True)
        if self.way.fused:
            return tritonbn.batch_norm(*arguments, residual=residual, activation=activation)
        if self.way.in_place and activation == "relu":
            return composed(functional.batch_norm)(
                *arguments, residual=residual, activation=activation
            )
        y = functional.batch_norm(*arguments)
        if residual is not None:
            y = y.add_(residual) if self.way.in_place else y + residual
        return ACTIVATIONS[activation][not self.way.in_place](y)

    def max_pool(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(x, 3, 2, 1)

    def mean(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))

    def linear(self, x: Tensor, features: int) -> Tensor:
        return functional.linear(x, self._parameter(features, x.shape[1]))

    def logits(self, image: Tensor, activation: str) -> Tensor:
        self.used = 0
        return resnet(self, image, DEPTHS, width=WIDTH, classes=CLASSES, activation=activation)


def _accounts(way: Way, activation: str) -> tuple[int, int]:
    """Bytes saved, and at most, of the small network in fp32."""
    accounts = Accounts(way, 4)
    logits = resnet(
        accounts,
        accounts.given(SHAPE),
        DEPTHS,
        width=WIDTH,
        classes=CLASSES,
        activation=activation,
    )
    saved = accounts.saved()
    accounts.backward(logits)
    return saved, accounts.peak


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu"])
@pytest.mark.parametrize("way", [IN_PLACE, OUT_OF_PLACE], ids=["in-place", "out-of-place"])
def test_saved_bytes_are_those_that_torch_keeps(way: Way, activation: str) -> None:
    operators = TorchOperators(way)
    image = torch.randn(SHAPE)
    operators.logits(image, activation)
    found = saved_bytes(lambda: operators.logits(image, activation), operators)
    assert found == _accounts(way, activation)[0]


@pytest.mark.skipif(not INTERPRETED, reason="kernels run on the GPU here, this network does not")
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu"])
def test_saved_bytes_are_those_that_our_fused_call_keeps(activation: str) -> None:
    operators = TorchOperators(FUSED)
    image = torch.randn(SHAPE)
    operators.logits(image, activation)
    found = saved_bytes(lambda: operators.logits(image, activation), operators)
    assert found == _accounts(FUSED, activation)[0]


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages alive among the results of operators, and at most so far."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        arguments: tuple[Any, ...] = (),
        keywords: Mapping[str, Any] | None = None,
    ) -> Any:
        results = function(*arguments, **(keywords or {}))
        for tensor in results if isinstance(results, tuple | list) else [results]:
            if isinstance(tensor, Tensor):
                self.see(tensor)
        return results

    def see(self, tensor: Tensor) -> None:
        """Count the storage of a tensor while it lives."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.alive:
            self.alive[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, self.alive.pop, storage._cdata)
        self.peak = max(self.peak, sum(self.alive.values()))


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("way", [IN_PLACE, OUT_OF_PLACE], ids=["in-place", "out-of-place"])
def test_the_peak_is_that_of_torchs_tensors(way: Way, activation: str) -> None:
    operators = TorchOperators(way)
    image = torch.randn(SHAPE)
    operators.logits(image, activation)
    with _Ledger() as ledger:
        ledger.see(image)
        torch.autograd.backward(operators.logits(image, activation).sum())
    gradients = sum(p.numel() * 4 for p in operators.parameters())
    peak = _accounts(way, activation)[1]
    # gradients of parameters are not in the accounts, and few are there at the peak
    assert peak <= ledger.peak <= peak + gradients < 1.07 * peak


def _saved(way: Way, activation: str) -> int:
    return resnet50_usage(way, 64, "bf16", activation).saved


def test_resnet50_keeps_every_input_of_batch_norm_and_of_convolutions() -> None:
    # in values of one image: what BatchNorm makes (11.114 M, see test_networks) is what it reads
    norms, pooled, image = 11_113_984, 64 * 56 * 56, 3 * 224 * 224
    added_shortcuts = 256 * 56**2 + 512 * 28**2 + 1024 * 14**2 + 2048 * 7**2
    # ReLU in place: every result but those of shortcuts, which vanish in their sums
    values = norms + (norms - added_shortcuts) + pooled + image + 2048
    # an index of 8 bytes for each maximum, two vectors of fp32 for each channel
    others = 64 * pooled * 8 + 26_560 * 2 * 4
    assert _saved(IN_PLACE, "relu") == 64 * values * 2 + others


def test_relu_gains_nothing_in_place_and_the_mask_costs_a_sixteenth_of_the_sums() -> None:
    assert _saved(OUT_OF_PLACE, "relu") == _saved(IN_PLACE, "relu")
    sums = 3 * 256 * 56**2 + 4 * 512 * 28**2 + 6 * 1024 * 14**2 + 3 * 2048 * 7**2
    # a third vector for each channel, and the last result is kept by its ReLU alone
    more = 64 * sums * 2 // 16 + 26_560 * 4 - 64 * 2048 * 7**2 * 2
    assert _saved(FUSED, "relu") - _saved(IN_PLACE, "relu") == more


def test_a_fused_smooth_activation_keeps_no_argument() -> None:
    assert _saved(FUSED, "silu") < 0.75 * _saved(IN_PLACE, "silu")


def test_an_invertible_activation_keeps_the_output_that_is_there_anyway() -> None:
    # 37 % of the elements of BatchNorm are followed by an activation alone
    gone = _saved(FUSED, "leaky_relu") - _saved(EFFICIENT, "leaky_relu")
    assert gone == pytest.approx(0.37 * 64 * 11_113_984 * 2, rel=0.02)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_everything_is_given_back(way: Way) -> None:
    accounts = Accounts(way, 2)
    logits = resnet(accounts, accounts.given((2, 3, 64, 64)), DEPTHS)
    assert accounts.now >= accounts.saved() > 0
    accounts.backward(logits)
    del logits
    assert accounts.now == 0
