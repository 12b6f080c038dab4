"""The two sides of a comparison as processes that pass a baton: whoever is asked works, the other
waits. Needs neither torch nor tritonbn itself."""

from __future__ import annotations

import json
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

from ..judge.rounds import BASE, HEAD, Block, take_round
from .revisions import Sources

__all__ = ["Proof", "Side", "SideError", "Sides"]

# seconds: a first compilation of a large fused case may take most of it
PATIENCE = 600.0
# share by which the head is slowed to see whether base and head are two, and rounds to look at it
PROOF_SHARE, PROOF_ROUNDS = 0.2, 7
# seen is half of what was planted or more; noise gets a second and third look
PROOF_SLACK, PROOF_LOOKS = 2.0, 3


class SideError(RuntimeError):
    """A side died, did not answer, or is not what it should be; the text names it."""


class Side:
    """One process with the packages of one side.

    Args:
        name: as errors call it
        sources: its packages
        judge: packages of the head, whose oracle judges both sides
        device: "cuda" or "cpu"
    """

    def __init__(self, name: str, sources: Sources, judge: Sources, device: str) -> None:
        self.name = name
        self.sources = sources
        self._errors = tempfile.TemporaryFile()
        self._pending = b""
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tritonbn_bench.gating.worker", "--device", device),
                *("--judge", *map(str, judge.roots)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(sources, device),
            # python looks there first
            cwd=sources.roots[0],
            # Ctrl-C is for the parent, which ends its workers in order
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process can be asked."""
        return self._process.poll() is None

    def ask(self, do: str, *, patience: float = PATIENCE, **fields: Any) -> dict[str, Any]:
        """Have something done and wait for the answer.

        Args:
            do: a method of `worker.Worker`
            patience: seconds until it counts as hung

        Raises:
            SideError: it died, hung, or could not do it
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **fields}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._failure(f"does not listen to {do}") from error
        answer: dict[str, Any] = json.loads(self._line(do, patience))
        if "error" in answer:
            raise SideError(f"{self.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process, gently if it listens."""
        assert self._process.stdin is not None and self._process.stdout is not None
        # its loop ends with its stdin; if it is dead, what it was told last is lost
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _kill(self) -> None:
        """End the process and the life that it may have forked."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _line(self, do: str, patience: float) -> bytes:
        assert self._process.stdout is not None
        until = time.monotonic() + patience
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(until - time.monotonic(), 0)):
                    self._kill()
                    raise self._failure(f"did not answer {do} in {patience:g} s")
                more = os.read(self._process.stdout.fileno(), 1 << 16)
                if not more:
                    raise self._failure(f"died at {do}")
                self._pending += more
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _failure(self, what: str) -> SideError:
        try:
            code = self._process.wait(timeout=5)
            what += f", exit code {code}"
        except subprocess.TimeoutExpired:
            self._kill()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()[-8:]
        tail = "".join(f"\n  {line}" for line in lines)
        return SideError(f"{self.name} (process {self.pid}) {what}; its last words:{tail or ' -'}")


@dataclass(frozen=True)
class Proof:
    """What a planted difference looked like from outside.

    Attributes:
        case: id of the case it was planted in
        planted: share by which the head was slowed
        seen: share by which head / base moved
    """

    case: str
    planted: float
    seen: float

    @property
    def passed(self) -> bool:
        """Whether at least half of what was planted was seen: of one process nothing would be.

        More may be: on a GPU a sleep is a launch besides.
        """
        return math.log1p(self.seen) >= math.log1p(self.planted) / PROOF_SLACK


class Sides:
    """Base and head, or the head alone; a context that ends their processes.

    Args:
        head: packages under judgement
        base: packages they are compared with, None for a stored baseline
        device: "cuda" or "cpu"

    Attributes:
        hellos: what each side said of itself, by name
    """

    def __init__(self, head: Sources, base: Sources | None, device: str) -> None:
        self.device = device
        self._wanted = {HEAD: head} if base is None else {BASE: base, HEAD: head}
        self.hellos: Mapping[str, Mapping[str, Any]] = {}
        self._sides: dict[str, Side] = {}

    def __getitem__(self, name: str) -> Side:
        return self._sides[name]

    def __contains__(self, name: str) -> bool:
        return name in self._sides

    def __enter__(self) -> Sides:
        """Start the processes; they import while the caller does something else until `look`."""
        head = self._wanted[HEAD]
        for name, sources in self._wanted.items():
            self._sides[name] = Side(name, sources, head, self.device)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def restart(self) -> None:
        """Fresh processes with the same packages."""
        self.close()
        self.__enter__()
        self.look()

    def close(self) -> None:
        """End all processes."""
        for side in self._sides.values():
            side.close()
        self._sides = {}

    def look(self) -> None:
        """Ask every side who it is.

        Raises:
            SideError: two are one process, or one has other packages than it was given
        """
        self.hellos = {name: side.ask("hello") for name, side in self._sides.items()}
        if len({hello["pid"] for hello in self.hellos.values()}) < len(self.hellos):
            raise SideError("the two sides are one: base and head are the same process")
        for name, hello in self.hellos.items():
            sources = self._sides[name].sources
            wanted = [str(package.resolve()) for package in sources.packages]
            if hello["packages"] != wanted:
                raise SideError(f"{name}: expected packages {wanted}, got {hello['packages']}")
            if hello["digest"] != sources.digest:
                raise SideError(f"{name}: its sources changed while it started")

    def prove(self, case: str, calls: int) -> Proof:
        """Slow the head in its own process and see head / base move by as much, then undo it.

        Base and head are timed with and without, in the same rounds: had both handles one process,
        both would be slowed and nothing would move.

        Args:
            case: id of the case that both sides have prepared
            calls: of a block

        Raises:
            SideError: not seen, that is, the two sides are one
        """
        for _ in range(PROOF_LOOKS):
            shifts = []
            for index in range(PROOF_ROUNDS):
                times = take_round(
                    {
                        BASE: self._block(BASE, 0.0, calls),
                        HEAD: self._block(HEAD, 0.0, calls),
                        "base beside": self._block(BASE, PROOF_SHARE, calls),
                        "head planted": self._block(HEAD, PROOF_SHARE, calls),
                    },
                    index,
                ).times
                before = times[HEAD] / times[BASE]
                shifts.append(times["head planted"] / times["base beside"] / before)
            proof = Proof(case, PROOF_SHARE, median(shifts) - 1)
            if proof.passed:
                break
        self.plant(0.0, calls)
        if not proof.passed:
            raise SideError(
                f"the two sides are one: head was slowed by {PROOF_SHARE:.0%} in its own process, "
                f"and head / base moved by {proof.seen:+.1%} ({case})"
            )
        return proof

    def plant(self, share: float, calls: int, *, inside: bool = False) -> None:
        """Slow the head by a share of a call's time from now on; 0 takes it back.

        Args:
            share: of a call's time
            calls: of a block
            inside: in the functions of the head's package, where the case calls them
        """
        self._sides[HEAD].ask("plant", share=share, calls=calls, inside=inside)

    def _block(self, name: str, share: float, calls: int) -> Block:
        def block() -> float:
            self.plant(share, calls, inside=True)
            ms: float = self._sides[name].ask("block", name="ours", calls=calls)["ms"]
            return ms

        return block


def _environment(sources: Sources, device: str) -> dict[str, str]:
    """Of a worker: the packages of its side, then this harness, then what was there."""
    harness = Path(__file__).resolve().parents[2]
    paths = [*map(str, sources.roots), str(harness)]
    if os.environ.get("PYTHONPATH"):
        paths.append(os.environ["PYTHONPATH"])
    # on a CPU the interpreter would be timed, on a GPU it would be in the way
    dropped = {"TRITON_INTERPRET"}
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    if device == "cpu":
        environment["OMP_NUM_THREADS"] = "1"
        # as for addresses: dictionaries and sets of both sides in the same order
        environment["PYTHONHASHSEED"] = "0"
    return environment
