"""A search without a GPU: plans whose times a seeded machine draws.

As a script it searches until it is interrupted: `python -m tests.searching ARGUMENTS`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence

from tritonbn_bench import cli
from tritonbn_bench.cases import Case
from tritonbn_bench.judge.fake import CALM, FakeMachine, Weather
from tritonbn_bench.judge.rounds import BASE, Round, take_round
from tritonbn_bench.search import machine
from tritonbn_bench.search.candidates import TABLE
from tritonbn_bench.search.trial import PlanTimes, Stop
from tritonbn_kernels.outlook import H200
from tritonbn_kernels.plan_file import Regime

__all__ = ["FakeMeter", "fake_machine"]

# factor on the table's time, by plan and case
Effect = Callable[[str, Case], float]


class FakeMeter:
    """A `PlanMeter` whose times are drawn.

    Args:
        effect: of the plans; the table's is 1
        seed: of the machine
        weather: how unquiet it is
        wrong, failed: reasons by plan
        seconds: that every call takes
    """

    def __init__(
        self,
        effect: Effect,
        seed: int = 0,
        weather: Weather = CALM,
        wrong: Mapping[str, str] | None = None,
        failed: Mapping[str, str] | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.calls: list[tuple[str, tuple[str, ...], int]] = []
        self._machine = FakeMachine(seed, weather)
        self.effect, self._seconds = effect, seconds
        self.wrong, self.failed = wrong or {}, failed or {}

    def __call__(
        self, regime: Regime, case: Case, plans: Sequence[str], rounds: int, enough: Stop
    ) -> PlanTimes:
        """As `PlanMeter`."""
        time.sleep(self._seconds)
        self.calls.append((case.id, tuple(plans), rounds))
        sides = (TABLE, *plans)
        wrong = {plan: self.wrong[plan] for plan in sides if plan in self.wrong}
        failed = {plan: self.failed[plan] for plan in sides if plan in self.failed}
        blocks = {
            plan: self._machine.blocks({BASE: self.effect(plan, case)})[BASE]
            for plan in sides
            if plan not in {*wrong, *failed}
        }
        taken: list[Round] = []
        while TABLE in blocks and len(blocks) > 1 and len(taken) < rounds:
            taken.append(take_round(blocks, len(taken), self._machine.clock))
            if enough(taken):
                break
        return PlanTimes(tuple(taken), wrong, failed)


def fake_machine(meter: FakeMeter) -> Callable[[str], machine.Machine]:
    """In place of `machine.local_machine`: an H200 with this meter."""
    return lambda command: machine.Machine(
        H200, meter, {"device": "cuda", "gpu": "H200", "command": command, "torch": "2"}
    )


def _planted(plan: str, case: Case) -> float:
    return 0.8 if plan == "fused" else 1.0


if __name__ == "__main__":
    setattr(machine, "local_machine", fake_machine(FakeMeter(_planted, seconds=0.1)))  # noqa: B010
    sys.exit(cli.main(["search", *sys.argv[1:]]))
