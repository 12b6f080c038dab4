"""A call as a CUDA graph replays it: the device's time without a launch of the host's."""

from __future__ import annotations

from typing import Any

import torch

from .timer import Work

__all__ = ["replayed"]


def replayed(work: Work, *, with_setup: bool) -> Work:
    """The same work, captured once and replayed; on the current stream of the current device.

    Args:
        work: without anything that waits for the device
        with_setup: whether `setup` makes what `call` gets. It is then captured too, and replayed
            untimed: what it keeps lives in the memory of the graphs, where `call` finds it again.

    Raises:
        RuntimeError: torch cannot capture it
    """
    # untyped in torch
    cuda: Any = torch.cuda
    stream = cuda.Stream()
    before, timed = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    # a backward pass runs on the stream of its forward pass, so both are warmed up on this one
    with torch.cuda.stream(stream):
        for _ in range(3):
            work.call(work.setup())
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    state: Any = None
    current = torch.cuda.current_stream()
    try:
        if with_setup:
            with torch.cuda.graph(before, stream=stream):
                state = work.setup()
        with torch.cuda.graph(timed, pool=before.pool() if with_setup else None, stream=stream):
            kept = work.call(state)
    finally:
        # a capture that fails at its end leaves its own stream behind
        cuda.set_stream(current)

    def call(_: object) -> object:
        timed.replay()
        # results are held as long as the graph that writes them
        return kept

    setup = before.replay if with_setup else lambda: None
    return Work(call, setup, work.moved_bytes, work.produce)
