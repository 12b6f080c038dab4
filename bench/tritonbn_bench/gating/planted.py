"""A slowdown planted in one process: what proves that the other process runs something else."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest import mock

import tritonbn

from ..timer import Work

__all__ = ["Plant"]

LAYERS = (tritonbn.BatchNorm1d, tritonbn.BatchNorm2d, tritonbn.BatchNorm3d)
# cycles of the device's sleep that are timed to learn how long one lasts
PROBE_CYCLES = 2_000_000


class Plant:
    """Makes this process's tritonbn slower, and takes it back.

    A forward pass can be slowed inside the package: `tritonbn.batch_norm` and calls of the layers
    are replaced. A backward pass has no function of the package at its head, so its call is. On a
    CPU a call is followed by idle turns for the share of its own time, on a GPU by a kernel that
    sleeps for the share of `ms`.

    Args:
        device: "cuda" or "cpu"
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._undo = ExitStack()
        self._cost = _cost_of_wrapping()

    def set(self, work: Work, share: float, ms: float, *, inside: bool) -> Work:
        """The work to be timed from now on: planted, or for a share of 0 the work itself.

        Args:
            work: as it was before anything was planted
            share: of a call's time that is added
            ms: time of a call, which a GPU's sleep is made from
            inside: slow the functions of the package rather than the call
        """
        self.clear()
        if not share:
            return work
        waste = self._sleep(share * ms) if self._device == "cuda" else _idle(share, self._cost)
        if not inside:
            return replace(work, call=slowed(work.call, waste))
        for owner, name in ((tritonbn, "batch_norm"), *((layer, "__call__") for layer in LAYERS)):
            slow = slowed(getattr(owner, name), waste)
            self._undo.enter_context(mock.patch.object(owner, name, slow))
        return work

    def clear(self) -> None:
        """Give the package its own functions back."""
        self._undo.close()

    def _sleep(self, ms: float) -> Callable[[float], None]:
        import torch

        # untyped in torch
        cuda: Any = torch.cuda
        start, end = (cuda.Event(enable_timing=True) for _ in range(2))
        # the first may wake the device
        for event in (start, end):
            cuda._sleep(PROBE_CYCLES)
            event.record()
        cuda.synchronize()
        cycles = max(int(ms * PROBE_CYCLES / max(start.elapsed_time(end), 1e-3)), 1)
        return lambda _: cuda._sleep(cycles)


def slowed(call: Callable[..., Any], waste: Callable[[float], None]) -> Callable[..., Any]:
    """`call`, followed by waste that is told how many seconds the call took."""

    def slow(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        result = call(*arguments, **named)
        waste(time.perf_counter() - started)
        return result

    return slow


def _idle(share: float, cost: float) -> Callable[[float], None]:
    """Idle turns for a share of a call's seconds, less the seconds that the wrapping costs."""

    def waste(seconds: float) -> None:
        until = time.perf_counter() + share * seconds - cost
        while time.perf_counter() < until:
            pass

    return waste


def _cost_of_wrapping() -> float:
    """Seconds by which a call is slower for being wrapped: some per cent of a short one."""

    def nothing(*arguments: object) -> None:
        pass

    def seconds(call: Callable[..., Any]) -> float:
        arguments = range(8)
        return min(timeit.repeat(lambda: call(*arguments), number=200, repeat=9)) / 200

    return max(seconds(slowed(nothing, _idle(0.0, 0.0))) - seconds(nothing), 0.0)
