"""One call of one provider between start and stop of the profiler: the program that ncu runs.

python -m tritonbn_bench.counters.child CASE-ID PROVIDER
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..inputs import make_inputs
from ..providers import PROVIDERS
from ..stopwatch import CudaStopwatch
from ..timer import Work
from .choice import case_of
from .ncu import BACKEND

__all__ = ["main", "profile_once"]

# compiles, and lets libraries choose
_WARM_UP = 3


def profile_once(work: Work, flush: Callable[[], object]) -> None:
    """Call `work` with the profiler on, warm, after the caches were flushed as in the sweep.

    What `setup` runs (the forward pass in front of a backward pass) is not profiled.

    Args:
        work: on the current device
        flush: empties the caches
    """
    for _ in range(_WARM_UP):
        work.call(work.setup())
    state = work.setup()
    flush()
    # untyped in torch
    profiler: Any = torch.cuda.profiler
    torch.cuda.synchronize()
    profiler.start()
    try:
        work.call(state)
        torch.cuda.synchronize()
    finally:
        profiler.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare the provider, say what runs, and profile one call."""
    identifier, provider = sys.argv[1:] if arguments is None else arguments
    case = case_of(identifier)
    prepared = PROVIDERS[provider].prepare(case, make_inputs(case, "cuda"))
    print(f"{BACKEND}{prepared.backend}", flush=True)
    profile_once(prepared.work, CudaStopwatch().flush)
    return 0


if __name__ == "__main__":
    sys.exit(main())
