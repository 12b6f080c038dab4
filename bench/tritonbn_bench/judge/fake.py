"""A seeded model of a machine that times: what the whole decision rule is tested on.

It draws what shared machines do: a slow drift that hits all sides alike, clock states, noise of its
own in each block, outliers, stretches in which the hardware throttles, and buffers that lie well or
badly for as long as they live.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .rounds import BASE, COPY, HEAD, REFERENCE, Block, Measured, Measurer, Round, take_round

__all__ = ["CALM", "ROUGH", "STILL", "FakeMachine", "Weather"]

# ms of a block of each side where nothing disturbs it
TIMES = {BASE: 0.5, HEAD: 0.5, REFERENCE: 0.6, COPY: 0.2}
NOMINAL_MHZ, THROTTLED_MHZ = 1980.0, 1400.0


@dataclass(frozen=True)
class Weather:
    """How unquiet a machine is; sizes are standard deviations of log times where not said.

    Attributes:
        drift: of the AR(1) process that all sides share
        memory: its correlation from block to block
        state: log time between the two clock states
        switch: probability per block of changing the state
        noise: of each block for itself
        outliers: share of blocks that something else disturbs
        outlier: mean log time that this adds, exponentially distributed
        placement: of a side's buffers, new in each measurement
        throttle: probability per block that a throttled stretch begins
        stretch: its mean length in blocks
    """

    drift: float = 0.0
    memory: float = 0.95
    state: float = 0.0
    switch: float = 0.02
    noise: float = 0.0
    outliers: float = 0.0
    outlier: float = 0.2
    placement: float = 0.0
    throttle: float = 0.0
    stretch: float = 6.0


STILL = Weather()
# of the note's simulation: 1 % drift, a clock state of 4 %, 0.6 % of noise, outliers
CALM = Weather(drift=0.01, state=0.04, noise=0.006, outliers=0.002, outlier=0.1, placement=0.002)
ROUGH = Weather(
    drift=0.03,
    memory=0.8,
    state=0.04,
    switch=0.1,
    noise=0.02,
    outliers=0.04,
    placement=0.005,
    throttle=0.004,
)


class FakeMachine:
    """A machine whose time is drawn.

    Args:
        seed: of everything drawn
        weather: how unquiet it is
    """

    def __init__(self, seed: int, weather: Weather = CALM) -> None:
        self._random = np.random.default_rng(seed)
        self._weather = weather
        self._drift = self._random.normal(0.0, weather.drift)
        self._slow_state = False
        self._throttled = 0

    def measurer(
        self,
        effects: Mapping[str, float] | None = None,
        sides: Sequence[str] = (BASE, HEAD),
        faults: Mapping[str, str] | None = None,
        skipped: Mapping[str, str] | None = None,
    ) -> Measurer:
        """What measures cases on this machine.

        Args:
            effects: factor on the time of a side, such as {HEAD: 1.05}; of a side in one case where
                the key is "side@case"
            sides: that are timed
            faults: by case, why its correctness check is red
            skipped: by case, why it cannot be measured
        """
        return _FakeMeasurer(self, effects or {}, tuple(sides), faults or {}, skipped or {})

    def blocks(self, factors: Mapping[str, float]) -> dict[str, Block]:
        """What times a block of each side, on fresh buffers.

        Args:
            factors: on the time of each side
        """
        return {side: self._block(side, factor) for side, factor in factors.items()}

    def clock(self) -> tuple[float, tuple[str, ...]]:
        """SM clock in MHz and what holds it down."""
        mhz = NOMINAL_MHZ * math.exp(-self._weather.state * self._slow_state)
        if self._throttled:
            return min(mhz, THROTTLED_MHZ), ("hw_thermal_slowdown",)
        return mhz, ()

    def _block(self, side: str, factor: float) -> Block:
        placed = self._random.normal(0.0, self._weather.placement)
        still = math.log(TIMES[side] * factor) + placed
        return lambda: math.exp(still + self._disturbance())

    def _disturbance(self) -> float:
        """Log time that this block takes longer than one on a machine at rest."""
        weather = self._weather
        # all of a block's chances at once: drawing is what simulations spend their time on
        chances = self._random.random(3)
        shock, noise = self._random.standard_normal(2)
        fresh = math.sqrt(1 - weather.memory**2)
        self._drift = weather.memory * self._drift + fresh * weather.drift * float(shock)
        self._slow_state ^= bool(chances[0] < weather.switch)
        self._throttled = max(self._throttled - 1, 0)
        if not self._throttled and chances[1] < weather.throttle:
            self._throttled = int(self._random.geometric(1 / weather.stretch))
        mhz, _ = self.clock()
        disturbed = chances[2] < weather.outliers
        outlier = self._random.exponential(weather.outlier) if disturbed else 0.0
        own = float(weather.noise * noise + outlier)
        return self._drift + own + math.log(NOMINAL_MHZ / mhz)


@dataclass
class _FakeMeasurer:
    machine: FakeMachine
    effects: Mapping[str, float]
    sides: tuple[str, ...]
    faults: Mapping[str, str]
    skipped: Mapping[str, str]
    labels: Mapping[str, str] = field(default_factory=lambda: {"backend": "fake"})

    def __call__(
        self, case: str, rounds: int, enough: Callable[[Sequence[Round]], bool]
    ) -> Measured:
        """As `Measurer`."""
        if case in self.skipped:
            return Measured(case, skipped=self.skipped[case], labels=self.labels)
        if case in self.faults:
            return Measured(case, fault=self.faults[case], labels=self.labels)
        blocks = self.machine.blocks({side: self._factor(side, case) for side in self.sides})
        taken: list[Round] = []
        while len(taken) < rounds and not (taken and enough(taken)):
            taken.append(take_round(blocks, len(taken), self.machine.clock))
        return Measured(case, tuple(taken), labels=self.labels)

    def _factor(self, side: str, case: str) -> float:
        return self.effects.get(side, 1.0) * self.effects.get(f"{side}@{case}", 1.0)
