"""Launch plans of well-known networks: which kernels with which grid, warps and constants.

The real launchers run on tensors without memory, under a driver without a device, and what they
would launch is noted before it is compiled: it takes milliseconds a layer and is the same for every
version of Triton. One line for each launch and the launches of a training step of each network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from triton.runtime import JITFunction

import tritonbn_kernels
from tritonbn_kernels.activation_names import activation_of

from ..fusions import FUSIONS, PLAIN
from ..networks import NETWORKS, Layer
from .budget import Figures
from .driver import TARGETS, FakeDriver, Target, active_driver
from .plans import CHANNELS_FIRST, CHANNELS_LAST, EPS, Case, is_chosen

__all__ = ["BATCHES", "TARGET", "LaunchNote", "measure", "network_cases", "noted_launches"]

# an H200, and what one GPU of one or of many is often given
TARGET = TARGETS["sm_90"]
BATCHES = (32, 256)
DTYPES = ("bf16", "fp32")
# of these too with what follows each layer in the network
FUSED = (32, "bf16")
# what a launch is compiled with that says how the work is cut; flags that only say what is asked
# for (a bias, running statistics) follow from the call
CUT = ("BLOCK", "VECTOR", "PACK", "PIECES", "TILES", "STREAM", "GROUPED", "SPLIT", "NORMALIZE")
CUT_OPTIONS = ("maxnreg", "launch_cooperative_grid")


class LaunchNote:
    """One launch that was asked for: kernel, and figures by name (grid, num_warps, constants)."""

    def __init__(self, kernel: str, grid: tuple[int, ...], options: dict[str, Any]) -> None:
        self.kernel = kernel
        kept = {
            name: int(value)
            for name, value in options.items()
            if (name.startswith(CUT) or name in CUT_OPTIONS) and isinstance(value, int) and value
        }
        self.figures: Figures = {"num_warps": options["num_warps"], **dict(sorted(kept.items()))}
        for axis, programs in zip(("grid", "grid y", "grid z"), grid, strict=False):
            if axis == "grid" or programs != 1:
                self.figures[axis] = programs


def _note_again(notes: list[LaunchNote], note: LaunchNote, *arguments: Any) -> None:
    notes.append(note)


@contextmanager
def noted_launches() -> Iterator[list[LaunchNote]]:
    """A list that grows by every launch, none of which is compiled or run."""
    notes: list[LaunchNote] = []

    def run(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> object:
        note = LaunchNote(kernel.fn.__name__, tuple(grid), options)
        notes.append(note)
        # what a second launch of the same kernel calls
        again = partial(_note_again, notes, note)
        return SimpleNamespace(run=again, function=None, packed_metadata=None)

    with mock.patch.object(JITFunction, "run", run):
        yield notes


def network_cases() -> Iterator[tuple[str, Case, int]]:
    """(network and how it is run, kind of layer, layers of that kind); as operators of its own, and
    with what follows it in the same kernel."""
    for batch in BATCHES:
        for key, network in NETWORKS.items():
            # without space the channels come last
            layouts = (CHANNELS_FIRST, CHANNELS_LAST) if network.input_size else (CHANNELS_LAST,)
            for layout in layouts:
                for dtype in DTYPES:
                    title = f"{key} N={batch} {layout} {dtype}"
                    for layer in network.layers:
                        case = Case((batch, layer.channels, *layer.plane), layout, dtype)
                        yield title, case, layer.count
                        if (batch, dtype) == FUSED:
                            yield from _fused(f"{title} fused", case, layer)


def _fused(title: str, case: Case, layer: Layer) -> Iterator[tuple[str, Case, int]]:
    for name, count in layer.followed:
        fusion = FUSIONS[name]
        if fusion is PLAIN:
            yield title, case, count
        else:
            fused = replace(case, activation=fusion.activation, residual=fusion.residual)
            yield title, fused, count


def _passes(case: Case, target: Target) -> dict[str, list[LaunchNote]]:
    """Launches of the forward and backward pass of a training step."""
    found: dict[str, list[LaunchNote]] = {}
    with torch.device("meta"), active_driver(FakeDriver(target)):
        tritonbn_kernels.clear_cache()
        x, dy = case.make(), case.make()
        residual = case.make() if case.residual else None
        gamma, beta, mean, var = (torch.empty(case.shape[1]) for _ in range(4))
        count = torch.zeros((), dtype=torch.int64)
        activation = activation_of(case.activation)
        try:
            with noted_launches() as found["forward train"]:
                _, saved, mask = tritonbn_kernels.fused_forward(
                    x, gamma, beta, mean, var, count, True, 0.1, EPS, activation, residual, True
                )
            with noted_launches() as found["backward train"]:
                tritonbn_kernels.fused_backward(
                    dy, x, gamma, saved, True, True, True, True,
                    activation, beta, residual, mask, case.residual,
                )  # fmt: skip
        finally:
            tritonbn_kernels.clear_cache()
    return found


def measure(only: Sequence[str] = (), target: Target = TARGET) -> dict[str, Figures]:
    """Figures by `target case | pass | kernel`, and launches by `target network | training step`,
    of cases and networks that `plans.is_chosen`."""
    measured: dict[str, Figures] = {}
    known: dict[Case, int] = {}
    steps: Counter[str] = Counter()
    for title, case, layers in network_cases():
        if not is_chosen(title, only) and not is_chosen(case.name, only):
            continue
        if case not in known:
            notes = _passes(case, target)
            known[case] = sum(map(len, notes.values()))
            measured |= _lines(f"{target.name} {case.name}", notes)
        steps[f"{target.name} {title} | training step"] += layers * known[case]
    return {**measured, **{step: {"launches": count} for step, count in steps.items()}}


def _lines(place: str, notes: dict[str, list[LaunchNote]]) -> dict[str, Figures]:
    lines: dict[str, Figures] = {}
    for operation, launches in notes.items():
        for note in launches:
            line, again = f"{place} | {operation} | {note.kernel}", 2
            while line in lines:
                line, again = f"{place} | {operation} | {note.kernel} #{again}", again + 1
            lines[line] = note.figures
    return lines
