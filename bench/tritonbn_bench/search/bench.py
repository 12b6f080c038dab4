"""Plans measured on the GPU: each is the row of a plan file while it is checked and timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional

from tritonbn_kernels import fallbacks
from tritonbn_kernels.plan_file import Regime, rows_in_use

from ..accuracy import judge
from ..cases import Case
from ..inputs import Inputs, make_inputs
from ..judge.rounds import Block, Clock, Round, no_clock, take_round
from ..measure import in_words
from ..providers import PROVIDERS, Prepared, composed, poisoned_memory, results_of
from ..stopwatch import Stopwatch
from ..summary import OURS
from ..timer import Work
from .candidates import TABLE
from .trial import PlanTimes, Stop

__all__ = ["Bench"]


class Bench:
    """A `PlanMeter` of a device.

    Args:
        device: "cuda", or "cpu" for the interpreter, whose times say nothing
        stopwatch: times blocks
        clock: asked between them
    """

    def __init__(self, device: str, stopwatch: Stopwatch, clock: Clock = no_clock) -> None:
        self._device, self._stopwatch, self._clock = device, stopwatch, clock

    def __call__(
        self,
        regime: Regime,
        case: Case,
        plans: Sequence[str],
        rounds: int,
        enough: Stop,
    ) -> PlanTimes:
        """As `PlanMeter`; a plan that raises, or whose results break their bound, is not timed."""
        try:
            return self._times(regime, case, plans, rounds, enough)
        except Exception as problem:
            # too large for this device, say: the next case may do
            return PlanTimes((), failed={TABLE: in_words(problem)})

    def _times(
        self,
        regime: Regime,
        case: Case,
        plans: Sequence[str],
        rounds: int,
        enough: Stop,
    ) -> PlanTimes:
        if self._device == "cuda":
            torch.cuda.empty_cache()
        inputs = make_inputs(case, self._device)
        prepared = PROVIDERS[OURS].prepare(case, inputs)
        with poisoned_memory():
            torch_results = results_of(composed(functional.batch_norm), inputs, case.mode)
        wrong: dict[str, str] = {}
        failed: dict[str, str] = {}
        sides: dict[str, Block] = {}
        work = prepared.work
        for plan in (TABLE, *plans):
            refused = len(fallbacks())
            with _following(regime, plan):
                try:
                    fault = _fault(prepared, inputs, case, torch_results)
                    if len(fallbacks()) > refused and plan != TABLE:
                        # what ran instead is not what would be written
                        failed[plan] = fallbacks()[-1]
                    elif fault:
                        wrong[plan] = fault
                    else:
                        sides[plan] = self._block(regime, plan, work)
                except Exception as problem:
                    # a plan that the compiler or the driver refuses must not end the search
                    failed[plan] = in_words(problem)
        while True:
            try:
                return PlanTimes(self._rounds(sides, rounds, enough), wrong, failed)
            except _PlanError as lost:
                failed[lost.plan] = in_words(lost.problem)
                del sides[lost.plan]

    def _rounds(
        self,
        sides: Mapping[str, Block],
        rounds: int,
        enough: Stop,
    ) -> tuple[Round, ...]:
        taken: list[Round] = []
        # without the table's times there is nothing to compare with
        while TABLE in sides and len(sides) > 1 and len(taken) < rounds:
            taken.append(take_round(sides, len(taken), self._clock))
            if len(taken) > 1 and enough(taken):
                break
        return tuple(taken)

    def _block(self, regime: Regime, plan: str, work: Work) -> Block:
        calls = self._stopwatch.calls_for(work)

        def block() -> float:
            try:
                with _following(regime, plan):
                    # plans anew, which is not to be timed
                    work.call(work.setup())
                    return self._stopwatch.block(work, calls)
            except Exception as problem:
                raise _PlanError(plan, problem) from problem

        return block


class _PlanError(Exception):
    """A plan that raised in the middle of a round."""

    def __init__(self, plan: str, problem: Exception) -> None:
        super().__init__(plan)
        self.plan, self.problem = plan, problem


def _following(regime: Regime, plan: str) -> AbstractContextManager[None]:
    """A context in which calls of a regime follow a plan, and all others the table."""
    return rows_in_use({} if plan == TABLE else {regime: plan})


def _fault(prepared: Prepared, inputs: Inputs, case: Case, torch_results: dict[str, Tensor]) -> str:
    """Why the results are wrong; empty if they are right."""
    with poisoned_memory():
        results = prepared.outputs()
    verdicts = judge(inputs, case.mode, results, torch_results)
    return "; ".join(verdict.reason for verdict in verdicts if not verdict.passed)
