"""Rounds over the sides: base and head each in its own process, the reference and the copy in the
head's."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType
from typing import Any

from ..interruption import raise_lost
from ..judge.rounds import (
    BASE,
    COPY,
    HEAD,
    REFERENCE,
    Block,
    Clock,
    Measured,
    Round,
    no_clock,
    take_round,
)
from .sides import Proof, SideError, Sides
from .suites import Trial

__all__ = ["Stop", "TwoProcesses", "stoppable"]

# how the workers call what is timed
NAMES = {BASE: "ours", HEAD: "ours", REFERENCE: "torch", COPY: "copy"}


class Stop:
    """Why no more is measured: the user interrupted, or time is over.

    Args:
        minutes: until time is over, None for no end
    """

    def __init__(self, minutes: float | None = None) -> None:
        self._until = None if minutes is None else time.monotonic() + 60 * minutes
        self.interrupted = False

    @property
    def reason(self) -> str:
        """In a few words; empty to go on."""
        if self.interrupted:
            return "interrupted"
        if self._until is not None and time.monotonic() > self._until:
            return "no time left"
        return ""


@contextmanager
def stoppable(minutes: float | None) -> Iterator[Stop]:
    """A `Stop` that Ctrl-C sets, so that what was measured is kept; a second Ctrl-C ends at once.

    Args:
        minutes: as `Stop` takes it
    """
    stop = Stop(minutes)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if stop.interrupted:
            raise KeyboardInterrupt
        stop.interrupted = True

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        # one that came while the processes started
        raise_lost()
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class TwoProcesses:
    """A measurer (`judge.rounds.Measurer`) of one or two sides.

    Args:
        sides: started and looked at
        trials: by id
        stop: asked before each case and round
        cache: as `stopwatch_of` takes it
        clock: of the head's device

    Attributes:
        planted: share by which the head is slowed in every case from now on
    """

    def __init__(
        self,
        sides: Sides,
        trials: Mapping[str, Trial],
        stop: Stop,
        cache: str | None = None,
        clock: Clock = no_clock,
    ) -> None:
        self._sides = sides
        self._trials = trials
        self._stop = stop
        self._cache = cache
        self._clock = clock
        self._seed = 0
        self._round = 0
        self.planted = 0.0

    def __call__(
        self, case: str, rounds: int, enough: Callable[[Sequence[Round]], bool]
    ) -> Measured:
        """As `Measurer`; a case of which base is wrong is skipped, one of which head is, at fault.

        Raises:
            SideError: a side died or hung
        """
        reason = self._stop.reason
        if reason:
            return Measured(case, skipped=reason)
        ready = self._prepare(case)
        if isinstance(ready, Measured):
            return ready
        try:
            taken = self._take(ready, rounds, enough)
        except SideError as error:
            if not all(self._sides[name].alive for name in ready):
                raise
            # out of memory, say: the other cases go on
            return Measured(case, skipped=str(error))
        if self._stop.interrupted:
            return Measured(case, skipped=self._stop.reason)
        return Measured(case, tuple(taken), labels=self._labels(ready))

    def _take(
        self,
        ready: Mapping[str, Mapping[str, Any]],
        rounds: int,
        enough: Callable[[Sequence[Round]], bool],
    ) -> list[Round]:
        """Rounds of what is ready, until there are enough or the user interrupts."""
        blocks = self._blocks(ready)
        if self.planted:
            self._sides.plant(self.planted, self._calls(ready, "ours"))
        taken: list[Round] = []
        while len(taken) < rounds and not (taken and enough(taken)):
            if self._stop.interrupted:
                break
            if taken:
                self._renew(ready)
            self._round = len(taken)
            taken.append(take_round(blocks, self._round, self._clock))
        for name in ready:
            self._sides[name].ask("drop")
        return taken

    def prove(self) -> Proof | None:
        """Prove on the first case that both can do, forwards if any, that base and head are two;
        None if there is no such case.

        Raises:
            SideError: they are one
        """
        order = sorted(self._trials.items(), key=lambda item: "backward" in item[1].case.mode)
        for name, _ in order:
            ready = self._prepare(name)
            if not isinstance(ready, Measured):
                return self._sides.prove(name, self._calls(ready, "ours"))
        return None

    def _prepare(self, case: str) -> dict[str, dict[str, Any]] | Measured:
        """What each side answered, or why the case cannot be measured."""
        trial = self._trials[case]
        self._seed += 1
        ready: dict[str, dict[str, Any]] = {}
        for name in (HEAD, BASE):
            if name not in self._sides:
                continue
            try:
                answer = self._sides[name].ask(
                    "prepare",
                    case=asdict(trial.case),
                    via=trial.via,
                    # the same data for both, other data each time
                    seed=self._seed,
                    cache=self._cache,
                )
            except SideError as error:
                if not self._sides[name].alive:
                    raise
                answer = {"fault": str(error)}
            if answer["fault"]:
                if name == HEAD:
                    return Measured(case, fault=answer["fault"])
                return Measured(case, skipped=f"base cannot do it: {answer['fault']}")
            ready[name] = answer
        return ready

    def _renew(self, ready: Mapping[str, Any]) -> None:
        """Fresh buffers in each round: a lucky place in memory would pass for a faster side."""
        self._seed += 1
        # in turns too: the last to be renewed is the warmest
        for name in list(ready)[:: 1 if self._seed % 2 else -1]:
            self._sides[name].ask("renew", seed=self._seed)

    def _blocks(self, ready: Mapping[str, Mapping[str, Any]]) -> dict[str, Block]:
        def block(name: str) -> Block:
            calls = self._calls(ready, NAMES[name])

            def timed() -> float:
                side = name if name in ready else self._hosts(ready)
                return float(self._sides[side].ask("block", name=NAMES[name], calls=calls)["ms"])

            return timed

        return {name: block(name) for name in NAMES if name != BASE or BASE in ready}

    def _hosts(self, ready: Mapping[str, Any]) -> str:
        """The side that times reference and copy in this round: both in turns, for a process that
        works more is a warmer one."""
        return list(ready)[self._round % len(ready)]

    @staticmethod
    def _calls(ready: Mapping[str, Mapping[str, Any]], what: str) -> int:
        """Calls a block: as many for both sides."""
        return max(int(answer["calls"].get(what, 1)) for answer in ready.values())

    @staticmethod
    def _labels(ready: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        labels = {name: str(answer["backends"]["ours"]) for name, answer in ready.items()}
        head = ready[HEAD]
        labels[REFERENCE] = str(head["backends"]["torch"])
        return {**labels, "cache": str(head["cache"])}
