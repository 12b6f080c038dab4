"""The process of one side: `python -m tritonbn_bench.gating.worker`.

Its import path has the harness of the head and the packages of its own side. It is told what to do
by a JSON object a line on stdin, answers each with one on stdout, and ends with its stdin. What
libraries print goes to stderr.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ..cases import Case
from .lives import serve, serve_in_lives
from .revisions import PACKAGES, tree_hash

if TYPE_CHECKING:
    from ..inputs import Inputs
    from ..providers import Prepared
    from ..stopwatch import Stopwatch
    from ..timer import Work

__all__ = ["Worker", "main"]

# of Linux's personality(2): asks for the present one, and switches randomness of addresses off
WHICH, NOT_RANDOM, REFUSED = 0xFFFFFFFF, 0x0040000, -1
STARTED_AGAIN = "TRITONBN_WORKER_STARTED_AGAIN"
SYMBOLS = "torch.fx.experimental.symbolic_shapes"
# calls of each work on fresh buffers that are not timed
RENEWED = 5
# modules that judge rather than compute: both sides are held against the head's
JUDGES = {"tritonbn": "reference", "tritonbn_kernels": "traffic"}


class Worker:
    """What a side can be told to do; every method's arguments and result fit into JSON.

    Args:
        device: "cuda" or "cpu"
    """

    def __init__(self, device: str) -> None:
        import torch

        from .planted import Plant

        if device == "cpu":
            torch.set_num_threads(1)
            _share_a_core()
        self._device = device
        self._pid = os.getpid()
        self._plant = Plant(device)
        self._cache: str | None = None
        self._stopwatches: dict[str | None, Stopwatch] = {}
        self._ballast = bytearray()
        self._held: tuple[Case, str] | None = None
        self._works: dict[str, Work] = {}
        self._unplanted: Work | None = None
        self._stopwatch: Stopwatch | None = None
        # of what is planted: its share, the time of a call without it, and where it goes
        self._share, self._inside, self._forward = 0.0, False, True
        self._ms: float | None = None

    def hello(self) -> dict[str, Any]:
        """Who this is: process, packages and their hash, versions."""
        import torch

        # both sides import now, side by side, what their cases would have to wait for, each life
        # anew: the last is what torch's autograd imports at its first call
        for name in ("tritonbn_bench.gating.work", "tritonbn_bench.stopwatch", SYMBOLS):
            with suppress(ImportError):
                import_module(name)
        packages = [Path(str(import_module(name).__file__)).resolve().parent for name in PACKAGES]
        triton = sys.modules.get("triton")
        return {
            # of the process that was started, whichever life answers
            "pid": self._pid,
            "packages": [str(package) for package in packages],
            "digest": tree_hash(packages),
            "torch": torch.__version__,
            "triton": getattr(triton, "__version__", None),
        }

    def prepare(
        self,
        case: dict[str, Any],
        via: str,
        seed: int,
        cache: str | None,
        heritage: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Make a case ready on fresh buffers; the fault of its results, or calls a block by name.

        Args:
            case: fields of a `Case`
            via: one of `work.VIAS`
            seed: of the inputs
            cache: as `stopwatch_of` takes it
            heritage: of a life before this one, of which nothing is needed
        """
        from .work import fault_of

        self.drop()
        wanted = Case(**{**case, "plane": tuple(case["plane"])})
        self._held = (wanted, via)
        self._cache = cache
        inputs, prepared = self._ready(seed)
        fault = fault_of(wanted, inputs, prepared["ours"])
        if fault:
            self.drop()
            return {"fault": fault}
        self._forward = wanted.mode.startswith("forward")
        self._stopwatch = stopwatch = self._stopwatch_of(cache)
        return {
            "fault": "",
            "backends": {name: one.backend for name, one in prepared.items()},
            "calls": {name: stopwatch.calls_for(work) for name, work in self._works.items()},
            "cache": stopwatch.cache,
        }

    def renew(self, seed: int, heritage: dict[str, Any] | None = None) -> dict[str, Any]:
        """Put what was prepared on fresh buffers elsewhere in memory, planted as before.

        Args:
            seed: of the inputs
            heritage: of the life before this one, None if it is the same
        """
        if heritage is not None:
            self._inherit(heritage)
        # first let go of the old buffers: two sets of a large case need not fit side by side
        self._works, self._unplanted = {}, None
        self._ready(seed)
        for work in self._works.values():
            for _ in range(RENEWED):
                work.call(work.setup())
        if self._share:
            self.plant(self._share, 1, self._inside)
        return {}

    def heritage(self) -> dict[str, Any]:
        """What the next life of this side has to know, for `renew`."""
        if self._held is None:
            return {}
        case, via = self._held
        pace = getattr(self._stopwatch, "pace", None)
        return {
            "case": asdict(case),
            "via": via,
            "cache": self._cache,
            "share": self._share,
            "inside": self._inside,
            "ms": self._ms,
            "looks": list(pace.looks) if pace else [],
        }

    def _inherit(self, heritage: dict[str, Any]) -> None:
        case = Case(**{**heritage["case"], "plane": tuple(heritage["case"]["plane"])})
        self._held = (case, heritage["via"])
        self._forward = case.mode.startswith("forward")
        self._share, self._inside = heritage["share"], heritage["inside"]
        self._ms, self._cache = heritage["ms"], heritage["cache"]
        self._stopwatch = self._stopwatch_of(self._cache)
        pace = getattr(self._stopwatch, "pace", None)
        if pace:
            pace.looks.extend(heritage["looks"])

    def block(self, name: str, calls: int) -> dict[str, Any]:
        """Time a block of what was prepared: median in ms per call."""
        assert self._stopwatch is not None
        work = self._works[name]
        # the other process may have been at work
        self._stopwatch.block(work, max(calls // 2, 3))
        return {"ms": self._stopwatch.block(work, calls)}

    def plant(self, share: float, calls: int, inside: bool) -> dict[str, Any]:
        """Make tritonbn slower by a share of a call's time; 0 takes it back.

        Args:
            share: of a call's time
            calls: of a block, where the time of a call has to be found first
            inside: slow the functions of the package where they are at the head of the call, rather
                than the call, which has a little more to it
        """
        assert self._stopwatch is not None and self._unplanted is not None
        work, self._share, self._inside = self._unplanted, share, inside
        if share and self._ms is None:
            self._ms = median(self._stopwatch.block(work, calls) for _ in range(3))
        self._works["ours"] = self._plant.set(
            work, share, self._ms or 0.0, inside=inside and self._forward
        )
        return {}

    def drop(self) -> dict[str, Any]:
        """Let go of what was prepared, and of what was planted."""
        self._plant.clear()
        self._held, self._works, self._unplanted = None, {}, None
        self._share, self._ms = 0.0, None
        if self._device == "cuda":
            import torch

            torch.cuda.empty_cache()
        return {}

    def _ready(self, seed: int) -> tuple[Inputs, dict[str, Prepared]]:
        """Inputs and calls of what is held, on fresh buffers."""
        from .work import fresh_inputs, prepare_ours, prepare_rivals

        assert self._held is not None
        case, via = self._held
        if self._device == "cpu":
            # where buffers lie in the caches is luck, a side's own and good for some per cent of
            # time: a ballast of random size moves what is allocated after it
            self._ballast = bytearray(random.SystemRandom().randrange(1, 64) * 4160)
        inputs = fresh_inputs(case, self._device, seed)
        prepared = {"ours": prepare_ours(case, via, inputs), **prepare_rivals(case, inputs)}
        self._works = {name: one.work for name, one in prepared.items()}
        self._unplanted = self._works["ours"]
        return inputs, prepared

    def _stopwatch_of(self, cache: str | None) -> Stopwatch:
        from ..stopwatch import stopwatch_of

        if cache not in self._stopwatches:
            self._stopwatches[cache] = stopwatch_of(self._device, cache, shared=True)
        return self._stopwatches[cache]


def _share_a_core() -> None:
    """Stay on one core, the same for both sides: cores differ by who else uses them, and only one
    side works at a time."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def judge_by(roots: Sequence[Path]) -> None:
    """Put the head's JUDGES in the place of this side's; its own code keeps those it has imported.

    Args:
        roots: of the head's PACKAGES, in their order
    """
    for root, (package, module) in zip(roots, JUDGES.items(), strict=True):
        owner = import_module(package)
        path = root / package / f"{module}.py"
        name = f"{package}.{module}"
        if Path(str(import_module(name).__file__)).resolve() == path.resolve():
            continue
        spec = spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        judge = module_from_spec(spec)
        sys.modules[name] = judge
        spec.loader.exec_module(judge)
        setattr(owner, module, judge)


def _lie_as_others_do() -> None:
    """Start again with addresses that are not random, where the system can: where code and data
    lie is good for a per cent or two on a CPU, and two processes of one source should not differ.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "personality"):
        return
    now = libc.personality(WHICH)
    # a container may refuse, and once is enough where a kernel agrees and does nothing
    if now == REFUSED or now & NOT_RANDOM or os.environ.get(STARTED_AGAIN):
        return
    if libc.personality(now | NOT_RANDOM) != REFUSED:
        os.environ[STARTED_AGAIN] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main() -> int:
    """Serve until stdin ends or `quit` comes; the exit code."""
    parser = argparse.ArgumentParser(prog="tritonbn_bench.gating.worker")
    parser.add_argument("--device", required=True, choices=["cuda", "cpu"])
    parser.add_argument("--judge", required=True, nargs=len(PACKAGES), type=Path)
    options = parser.parse_args()
    if options.device == "cpu":
        _lie_as_others_do()
    # answers keep the pipe, everything else that is printed gets stderr
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    judge_by(options.judge)
    worker = Worker(options.device)
    commands: dict[str, Callable[..., dict[str, Any]]] = {
        "hello": worker.hello,
        "prepare": worker.prepare,
        "renew": worker.renew,
        "block": worker.block,
        "plant": worker.plant,
        "drop": worker.drop,
    }

    def listen() -> dict[str, Any] | None:
        # a line at a time: what is not asked yet is for the process that is alive then
        request = json.loads(sys.stdin.readline() or '{"do": "quit"}')
        return None if request["do"] == "quit" else request

    def answer(request: dict[str, Any]) -> None:
        named = {name: value for name, value in request.items() if name != "do"}
        try:
            found = commands[request["do"]](**named)
        except Exception as problem:
            # the other side goes on, so this one answers rather than dies
            found = {"error": f"{type(problem).__name__}: {str(problem).strip()[:300]}"}
        print(json.dumps(found), file=channel, flush=True)

    if options.device == "cpu" and hasattr(os, "fork"):
        serve_in_lives(listen, answer, worker.heritage)
    else:
        serve(listen, answer)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # nothing is held that outlives a process, and torch takes half a second to fold its tents
    os._exit(code)
