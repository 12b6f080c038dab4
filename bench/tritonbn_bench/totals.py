"""Times of single layers summed over networks, and what they come to in a training step."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from .cases import TRAINING_MODES
from .fusions import NONE
from .networks import NETWORKS, Layer
from .results import STEP_TIME, Row
from .summary import EAGER, OURS, UNFUSED, times

__all__ = ["Gain", "Group", "layer_totals", "step_gains"]

# jobs that time the layers of networks, and those that they time all layers of
NETWORK_JOBS = {"resnet50": ("resnet50",), "networks": tuple(NETWORKS)}


class Group(NamedTuple):
    """What a sum is of; batch is None where the rows do not say."""

    mode: str
    dtype: str
    layout: str
    batch: int | None
    provider: str


def layer_totals(
    rows: Iterable[Row], layers: Sequence[Layer], *, followed: bool = False
) -> dict[Group, float]:
    """Device ms that layers take together; of providers that have a figure for every layer.

    Args:
        rows: of one job
        layers: of one network
        followed: each with what follows it there, or BatchNorm alone
    """
    found: dict[Group, dict[tuple[int | None, int | None, str], float]] = defaultdict(dict)
    for row in times(rows).values():
        group = Group(row.mode, row.dtype, row.layout, row.batch, row.provider)
        found[group][row.channels, row.space, row.fusion] = row.value or 0.0
    sums = {}
    for group, by_shape in found.items():
        # where nothing follows a layer of a chain there is nothing to fuse
        unfused = followed and group.provider == UNFUSED
        alone = found.get(group._replace(provider=OURS), {}) if unfused else by_shape
        parts = [
            (count, (alone if fusion == NONE else by_shape).get((layer.channels, space, fusion)))
            for layer in layers
            for space in (math.prod(layer.plane),)
            for fusion, count in (layer.followed if followed else ((NONE, layer.count),))
        ]
        if all(value is not None for _, value in parts):
            sums[group] = sum(count * (value or 0.0) for count, value in parts)
    return sums


@dataclass(frozen=True)
class Gain:
    """What tritonbn's layers save of a training step, forward and backward.

    Attributes:
        network: its name
        followed: whether the layers are taken with what follows them
        dtype, layout, batch: of the layers that were timed
        rival: provider that is compared with
        theirs, ours: ms of all layers in a step
        step: ms of the rival's whole step, where one was timed
        step_batch: samples of that step
    """

    network: str
    followed: bool
    dtype: str
    layout: str
    batch: int | None
    rival: str
    theirs: float
    ours: float
    step: float | None = None
    step_batch: int | None = None

    @property
    def projected(self) -> float | None:
        """The rival's step over one that is shorter by what the layers save, which is taken to
        grow with the batch."""
        if not (self.step and self.step_batch and self.batch):
            return None
        saved = (self.theirs - self.ours) * self.step_batch / self.batch
        return self.step / (self.step - saved) if self.step > saved else None


def step_gains(rows: Sequence[Row]) -> list[Gain]:
    """Of every network whose layers have all been timed, against torch's eager layers."""
    gains = []
    for job, names in NETWORK_JOBS.items():
        part = [row for row in rows if row.job == job]
        for name in names:
            network = NETWORKS[name]
            for followed in (False, True):
                sums = layer_totals(part, network.layers, followed=followed)
                for gain in _gains(network.name, sums, followed=followed):
                    gains.append(_with_step(gain, rows))
    # ResNet-50 is timed by itself, and at another batch size among the networks
    return sorted(gains, key=lambda gain: gain.network)


def _gains(network: str, sums: dict[Group, float], *, followed: bool) -> Iterator[Gain]:
    forward, backward = TRAINING_MODES
    for group, theirs in sums.items():
        if group.mode != forward or group.provider not in EAGER:
            continue
        both = [
            sums.get(group._replace(mode=mode, provider=provider))
            for provider in (group.provider, OURS)
            for mode in (forward, backward)
        ]
        _, their_backward, ours, our_backward = both
        if their_backward is not None and ours is not None and our_backward is not None:
            yield Gain(
                network,
                followed,
                group.dtype,
                group.layout,
                group.batch,
                group.provider,
                theirs + their_backward,
                ours + our_backward,
            )


def _with_step(gain: Gain, rows: Iterable[Row]) -> Gain:
    """The same with the whole step that was timed in its dtype and layout, at its batch size or
    the nearest."""
    case = f"{gain.network} training step/{gain.dtype}/{gain.layout}/"
    steps = [
        row
        for row in rows
        if (row.job, row.quantity, row.provider) == ("endtoend", STEP_TIME, "torch")
        and row.value
        and row.batch
        and row.case.startswith(case)
    ]
    if not steps or not gain.batch:
        return gain
    here = math.log(gain.batch)
    nearest = min(steps, key=lambda row: abs(math.log(row.batch or 1) - here))
    return replace(gain, step=nearest.value, step_batch=nearest.batch)
