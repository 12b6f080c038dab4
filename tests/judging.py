"""Measurers whose rounds are known, and gates run on the fake machine many times over."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tritonbn_bench.judge.fake import FakeMachine, Weather
from tritonbn_bench.judge.gate import CaseResult, compare
from tritonbn_bench.judge.rounds import BASE, COPY, HEAD, REFERENCE, Measured, Measurer, Round
from tritonbn_bench.judge.rule import RULE, Rule

# a pass: whole, its rounds, or by how much the head is slower in them
Line = Measured | tuple[Round, ...] | float
CASE, SECOND = "forward_train/bf16/nchw/N32C256S784", "forward_train/bf16/nchw/N8C64S3136"
ENVIRONMENT: dict[str, str | int | float | bool | None] = {
    "device": "cuda",
    "gpu": "NVIDIA H200",
    "compute_capability": "9.0",
    "driver": "570.1",
    "torch": "2.11.0",
    "cudnn": "91000",
    "triton": "3.6.0",
    "commit": "abc",
    "date": "2026-01-01 00:00 UTC",
}


def rounds_of(
    change: float, spread: float = 0.003, count: int = 20, **others: float
) -> tuple[Round, ...]:
    """Rounds whose head is slower than all other sides by a share, in the mean exactly.

    Args:
        change: of the head
        spread: largest distance of a round's log ratio from the mean
        count: of rounds
        others: by side, what else that side is slower by
    """
    wobble = spread * np.random.default_rng(count).permutation(np.linspace(-1, 1, count))
    rest = {side: 1 + others.get(side, 0.0) for side in (BASE, REFERENCE, COPY)}
    return tuple(
        Round({**rest, HEAD: (1 + change) * math.exp(value)}, clock_mhz=1980.0) for value in wobble
    )


class Scripted:
    """A measurer that plays what a script says of each pass over a case; the last line repeats.

    Attributes:
        asked: (case, rounds asked for) of every call
    """

    def __init__(self, script: Mapping[str, Sequence[Line]]) -> None:
        self.script = script
        self.asked: list[tuple[str, int]] = []

    def __call__(
        self, case: str, rounds: int, enough: Callable[[Sequence[Round]], bool]
    ) -> Measured:
        lines = self.script[case]
        line = lines[min(sum(name == case for name, _ in self.asked), len(lines) - 1)]
        self.asked.append((case, rounds))
        if isinstance(line, Measured):
            return line
        played = rounds_of(line, count=rounds) if isinstance(line, float) else line
        return Measured(case, played)


def outcomes(
    weather: Weather,
    change: float,
    runs: int,
    rule: Rule = RULE,
    measurer: Callable[[FakeMachine], Measurer] | None = None,
) -> list[CaseResult]:
    """What `runs` gates say of one case whose head is slower by a share, a machine each."""
    found: list[CaseResult] = []
    for seed in range(runs):
        machine = FakeMachine(seed, weather)
        measure = measurer(machine) if measurer else machine.measurer({HEAD: 1 + change})
        found += compare([CASE], measure, rule).cases
    return found


def counted(results: Sequence[CaseResult]) -> Counter[str]:
    """How often each verdict was given."""
    return Counter(item.verdict.name for item in results)


def sequential(machine: FakeMachine) -> Measurer:
    """What this package does not do: all blocks of the base, then all of the head."""

    def measure(case: str, rounds: int, enough: object) -> Measured:
        blocks = machine.blocks({BASE: 1.0, HEAD: 1.0})
        taken = {
            side: [math.sqrt(block() * block()) for _ in range(rounds)]
            for side, block in blocks.items()
        }
        pairs = zip(taken[BASE], taken[HEAD], strict=True)
        return Measured(case, tuple(Round({BASE: base, HEAD: head}) for base, head in pairs))

    return measure


def unclocked(machine: FakeMachine, effects: Mapping[str, float]) -> Measurer:
    """A machine that throttles and does not tell."""
    measurer = machine.measurer(effects)

    def bare(rounds: Sequence[Round]) -> tuple[Round, ...]:
        return tuple(replace(item, clock_mhz=None, throttled=()) for item in rounds)

    def measure(case: str, rounds: int, enough: Callable[[Sequence[Round]], bool]) -> Measured:
        found = measurer(case, rounds, lambda so_far: enough(bare(so_far)))
        return replace(found, rounds=bare(found.rounds))

    return measure
