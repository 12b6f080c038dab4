"""Training steps of ResNet-50 in five ways, from the same weights on the same batch: torch, torch
compiled, ours in place of torch's layers, ours with addition and ReLU in them, ours compiled.

All five are timed in the same rounds, by the host's clock, for a user waits for the host too. What
disagrees in its losses gets no figure.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

import tritonbn
import tritonbn_kernels

from .clocks import clock_of
from .inputs import TORCH_DTYPES
from .judge.intervals import log_ratio
from .judge.rule import RULE
from .measure import Meter, Timed, in_words, time_together
from .resnet import ResNet
from .results import STEP_TIME, Row
from .timer import Samples, Work
from .training import activation_in

__all__ = ["JOB", "SETTINGS", "TINY", "WAYS", "Setting", "Trainer", "endtoend_rows", "trainers_of"]

JOB = "endtoend"
TORCH, COMPILED = "torch", "torch.compile"
CONVERTED, FUSED, BOTH = "tritonbn", "tritonbn fused", "tritonbn + torch.compile"
WAYS = (TORCH, COMPILED, CONVERTED, FUSED, BOTH)
IMAGES = "images per second"
STEPS_RULE = replace(RULE, rounds=10, fewest=5, seconds=60.0)
AGREEING_STEPS = 3
# largest share by which a loss may differ from torch's in those steps. In bf16, rounding once for
# three operators alone came to 0.029 in a ResNet-50 a quarter as wide at N of 8 to 32, less with
# more; a ReLU or a shortcut forgotten on a CPU came to 0.10 to 0.28, a gradient a tenth too small
# to 0.03
LARGEST_SHARE = {"fp32": 0.01, "bf16": 0.05}
_RATE, _MOMENTUM = 0.01, 0.9


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Attributes:
        dtype: "fp32", or "bf16" for autocast
        layout: "nchw" or "nhwc", of images and weights
        blocks, width, classes: of `ResNet`
        batch: images a step
        image: pixels along an edge
        compiler: backend of torch.compile
        name: of the network
    """

    dtype: str
    layout: str
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    classes: int = 1000
    batch: int = 128
    image: int = 224
    compiler: str = "inductor"
    name: str = "ResNet-50"

    @property
    def case(self) -> str:
        """What rows call it."""
        return f"{self.name} training step/{self.dtype}/{self.layout}/N{self.batch}"


SETTINGS = tuple(
    Setting(dtype, layout) for dtype in ("bf16", "fp32") for layout in ("nhwc", "nchw")
)
# for a CPU, where nothing but agreement can be looked at; its compiler makes no code
TINY = tuple(
    replace(
        setting,
        blocks=(1, 1),
        width=4,
        classes=10,
        batch=4,
        image=16,
        compiler="aot_eager",
        name="ResNet-8, narrow,",
    )
    for setting in SETTINGS[:1] + SETTINGS[-1:]
)


class Trainer:
    """A network, its optimiser, and the batch that it sees in every step."""

    def __init__(self, network: nn.Module, setting: Setting, images: Tensor, labels: Tensor):
        self.network = network.train()
        self.optimizer = torch.optim.SGD(network.parameters(), lr=_RATE, momentum=_MOMENTUM)
        self._images, self._labels = images, labels
        self._dtype = TORCH_DTYPES[setting.dtype]

    def step(self, _: object = None) -> Tensor:
        """One optimiser step; the loss before it."""
        self.optimizer.zero_grad()
        mixed = self._dtype != torch.float32
        with torch.autocast(self._images.device.type, self._dtype, enabled=mixed):
            loss = functional.cross_entropy(self.network(self._images), self._labels)
        torch.autograd.backward(loss)
        self.optimizer.step()
        return loss.detach()

    @property
    def own_bytes(self) -> int:
        """Bytes of parameters, buffers and the optimiser's state."""
        state = [
            value
            for values in self.optimizer.state.values()
            for value in values.values()
            if isinstance(value, Tensor)
        ]
        tensors = [*self.network.parameters(), *self.network.buffers(), *state]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


class StepStopwatch:
    """Wall time of training steps in a row, until the device is done; a block is their mean.

    Args:
        device: "cuda" or "cpu"
        block_ms: how long a block is to last at least
    """

    cache = "hot"
    _FEWEST = 3

    def __init__(self, device: str, block_ms: float = 250.0) -> None:
        self._synchronize: Callable[[], object] = (
            torch.cuda.synchronize if device == "cuda" else lambda: None
        )
        self._block_ms = block_ms

    def calls_for(self, work: Work) -> int:
        """Steps in a block, after a warm-up."""
        self.block(work, self._FEWEST)
        return max(self._FEWEST, math.ceil(self._block_ms / self.block(work, self._FEWEST)))

    def block(self, work: Work, calls: int) -> float:
        """Mean of `calls` steps, in ms."""
        self._synchronize()
        started = time.perf_counter()
        for _ in range(calls):
            work.call(None)
        self._synchronize()
        return 1e3 * (time.perf_counter() - started) / calls

    def wall(self, work: Work) -> float:
        """The same of the fewest steps."""
        return self.block(work, self._FEWEST)


def trainers_of(setting: Setting, device: str) -> dict[str, Trainer]:
    """The five ways, from the same weights on the same batch."""
    torch._dynamo.reset()
    random = torch.Generator().manual_seed(0)
    shape = (setting.batch, 3, setting.image, setting.image)
    last = setting.layout == "nhwc"
    memory_format = torch.channels_last if last else torch.contiguous_format
    images = torch.randn(shape, generator=random).to(device).contiguous(memory_format=memory_format)
    labels = torch.randint(setting.classes, (setting.batch,), generator=random).to(device)
    sizes = (setting.blocks, setting.width, setting.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = ResNet(*sizes)
    plain = plain.to(device).to(memory_format=memory_format)  # type: ignore[call-overload]
    fused = ResNet(*sizes, fused=True).to(device).to(memory_format=memory_format)  # type: ignore[call-overload]
    fused.load_state_dict(plain.state_dict())
    converted = tritonbn.convert(copy.deepcopy(plain))

    def compiled(network: nn.Module) -> nn.Module:
        made = copy.deepcopy(network)
        made.compile(backend=setting.compiler)
        return made

    networks = {
        TORCH: plain,
        COMPILED: compiled(plain),
        CONVERTED: converted,
        FUSED: fused,
        BOTH: compiled(converted),
    }
    return {name: Trainer(networks[name], setting, images, labels) for name in WAYS}


def endtoend_rows(setting: Setting, device: str, meter: Meter | None = None) -> list[Row]:
    """Rows of the five ways: agreement and launches; on a GPU images/s, ratios and memory too.

    Args:
        setting: what is trained
        device: "cuda" or "cpu"
        meter: measures the speed; that of a GPU if None, and none is measured on a CPU
    """
    trainers = trainers_of(setting, device)
    faults: dict[str, str] = {}
    rows: list[Row] = []
    losses = {name: _losses(trainer, faults, name) for name, trainer in trainers.items()}
    if TORCH in faults:
        # correctness comes before speed, and there is nothing to hold them against
        reason = f"torch failed, and nothing else tells right from wrong: {faults[TORCH]}"
        return [
            _row(setting, name, IMAGES, status="failed", reason=faults[name])
            if name in faults
            else _row(setting, name, IMAGES, status="skipped", reason=reason)
            for name in WAYS
        ]
    for name in WAYS:
        if name not in faults:
            rows += _agreement(setting, name, losses, faults)
    for name in (CONVERTED, FUSED):
        if name not in faults:
            rows.append(_launches(setting, name, trainers[name], faults))
    if meter is None and device == "cuda":
        meter = Meter(device, StepStopwatch(device), clock_of(device), STEPS_RULE)
    timed = Timed((), 0, "")
    if meter is not None:
        works = {name: Work(one.step) for name, one in trainers.items() if name not in faults}
        timed = time_together(works, meter, TORCH)
        faults |= timed.faults
        for name in works.keys() - faults.keys():
            rows += _speed(setting, name, timed, meter)
            if device == "cuda":
                rows.append(_peak(setting, name, trainers[name]))
    rows += [_row(setting, name, IMAGES, status="failed", reason=faults[name]) for name in faults]
    return sorted(rows, key=lambda row: WAYS.index(row.provider))


def _losses(trainer: Trainer, faults: dict[str, str], name: str) -> list[float]:
    try:
        return [float(trainer.step()) for _ in range(AGREEING_STEPS)]
    except Exception as problem:
        # one way's missing compiler or memory must not hide the others
        faults[name] = in_words(problem)
        return []


def _agreement(
    setting: Setting, name: str, losses: Mapping[str, Sequence[float]], faults: dict[str, str]
) -> list[Row]:
    """How far the losses are from torch's; a fault where it is too far."""
    pairs = list(zip(losses[TORCH], losses[name], strict=True))
    shares = [abs(ours - theirs) / abs(theirs) for theirs, ours in pairs]
    # max() passes over a NaN
    worst = max(shares) if all(map(math.isfinite, shares)) else math.inf
    allowed = LARGEST_SHARE[setting.dtype]
    if worst > allowed:
        faults[name] = f"losses differ from torch's by {worst:.2g} of them, allowed is {allowed:g}"
    value = worst if math.isfinite(worst) else None
    row = _row(setting, name, "largest share by which a loss differs from torch's")
    return [replace(row, value=value, bound=allowed, samples=AGREEING_STEPS)]


def _launches(setting: Setting, name: str, trainer: Trainer, faults: dict[str, str]) -> Row:
    """Launches of ours in a step; a fault where a layer launched none, or not its ReLU."""
    with tritonbn_kernels.record_launches() as records:
        trainer.step()
    layers = sum(isinstance(module, _BatchNorm) for module in trainer.network.modules())
    rectifying = sum(
        getattr(module, "activation", None) is not None for module in trainer.network.modules()
    )
    with_relu = sum(activation_in(record) is not None for record in records)
    # forward and backward, each at least one
    if len(records) < 2 * layers or with_relu < 2 * rectifying:
        faults[name] = (
            f"expected {2 * layers} launches of ours in a step, {2 * rectifying} with ReLU, "
            f"got {len(records)}, {with_relu}"
        )
    row = _row(setting, name, "launches of ours in a step")
    return replace(row, value=float(len(records)))


def _speed(setting: Setting, name: str, timed: Timed, meter: Meter) -> list[Row]:
    samples = Samples(timed.times(name), 0.0, timed.cache)
    count = len(samples.device_ms)
    step = replace(
        _row(setting, name, STEP_TIME, unit="ms", cache=timed.cache),
        value=samples.median,
        low=samples.low,
        high=samples.high,
        samples=count,
    )
    scale = 1e3 * setting.batch
    images = replace(
        step,
        quantity=IMAGES,
        unit="images/s",
        value=scale / samples.median,
        low=scale / samples.high,
        high=scale / samples.low,
    )
    rows = [step, images]
    if name != TORCH and timed.rounds and TORCH in timed.rounds[0].times:
        rule = meter.rule.for_case(setting.case)
        value, low, high = log_ratio(timed.rounds, name, TORCH, rule).as_ratio()
        row = _row(setting, name, f"ratio to {TORCH}", cache=timed.cache)
        rows.append(replace(row, value=value, low=low, high=high, samples=count))
    return rows


def _peak(setting: Setting, name: str, trainer: Trainer) -> Row:
    """Most memory at once in a step, of this way alone: what the other four hold is left out."""
    trainer.optimizer.zero_grad()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    trainer.step()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before + trainer.own_bytes
    row = _row(setting, name, "peak memory of a step", unit="bytes")
    # gradients would stand in the way of the next one's peak
    trainer.optimizer.zero_grad()
    return replace(row, value=float(peak))


def _row(
    setting: Setting,
    provider: str,
    quantity: str,
    *,
    unit: str = "1",
    cache: str = "",
    status: str = "ok",
    reason: str = "",
) -> Row:
    return Row(
        job=JOB,
        kind="measured",
        case=setting.case,
        provider=provider,
        quantity=quantity,
        unit=unit,
        dtype=setting.dtype,
        layout=setting.layout,
        batch=setting.batch,
        data="normal",
        origin=f"{setting.image} x {setting.image} images, SGD, momentum {_MOMENTUM:g}"
        + (", autocast" if setting.dtype != "fp32" else ""),
        backend=provider,
        cache=cache,
        status=status,
        reason=reason,
    )
