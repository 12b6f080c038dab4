"""A cooperative schedule of the interpreter: the programs of a grid run at the same time.

The interpreter runs one program after another, so a program that waits for another waits forever.
Here each program is a coroutine, and before every load, store and atomic the baton goes to a
program drawn from a seed: a seed is a schedule, and runs again as it ran.

Stores may become visible late, as on a GPU, where the threads of a program are ordered only by a
block barrier: a store waits in its program until a draw lets it out, the program itself touches the
same addresses, it ends, or it performs a release with a block barrier between. So a missing
`tl.debug_barrier()` before an arrival, or a relaxed arrival, shows.

Not covered: whether the programs really are on the GPU at once (there a cooperative launch sees to
it; `resident` plays what happens without), loads performed early (a missing acquire, or no block
barrier after the poll), one block store seen in part, scopes, and progress on the hardware.
"""

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from importlib import import_module
from math import prod
from pathlib import Path
from types import FrameType
from typing import Any

from triton.runtime import interpreter

from .memory import Access, memory_hook, replaced

__all__ = ["DeadlockError", "WaitingProgram", "cooperative"]

# chances, one of them drawn per launch, that a program keeps the baton: from fine interleaving to
# programs that run far ahead of the others
_KEEPS_BATON = (0.0, 0.5, 0.9, 0.97)
# chances, likewise, that a waiting store becomes visible at its program's next operation; the least
# still lets it out within 100 operations
_BECOMES_VISIBLE = (1.0, 0.5, 0.2)


@dataclass(frozen=True)
class WaitingProgram:
    """Where a program was when the schedule gave up: its index in the grid, the kind of its last
    operation (load, store, atomic) with the line of the kernel, and how often it came there."""

    program: tuple[int, int, int]
    operation: str
    line: str
    times: int


class DeadlockError(RuntimeError):
    """Every running program only repeats operations: none will ever end.

    `waiting` tells where each of them is, `not_started` which programs found no place.
    """

    def __init__(
        self,
        waiting: tuple[WaitingProgram, ...],
        not_started: tuple[tuple[int, int, int], ...],
        hand_overs: int,
    ) -> None:
        lines = [f"no progress in {hand_overs} hand-overs"]
        lines += [
            f"program {each.program} waits at {each.line}: {each.operation}, {each.times} times"
            for each in waiting
        ]
        if not_started:
            lines.append(f"not started: programs {list(not_started)}")
        super().__init__("\n  ".join(lines))
        self.waiting = waiting
        self.not_started = not_started


@contextmanager
def cooperative(seed: int, hand_overs: int = 100, resident: int | None = None) -> Iterator[None]:
    """Run the programs of every grid launched inside together, in an order drawn from `seed`.

    Each launch draws a schedule of its own. Needs greenlet. Works inside and around
    `random_program_order` and `traffic_meter`. Without effect on kernels that run on a GPU.

    Args:
        seed: the schedule.
        hand_overs: a program makes no progress when it has come to the same operation on the same
            addresses this often; as many hand-overs for each running program, all without progress,
            are a deadlock. More is needed by a kernel that rightly repeats itself more often.
        resident: programs that run at once, any number if None; the others start when one ends.

    Raises:
        DeadlockError: by the launch, when no program makes progress.
        ImportError: greenlet is not installed.
        ValueError: `hand_overs` or `resident` below 1.
    """
    if hand_overs < 1 or (resident is not None and resident < 1):
        raise ValueError(f"expected at least 1, got hand_overs {hand_overs}, resident {resident}")
    builder = interpreter.interpreter_builder
    shipped_launch = interpreter.GridExecutor.__call__
    shipped_dim = builder.set_grid_dim
    generator = random.Random(seed)
    schedule = _Schedule(builder, generator, hand_overs, resident)
    launching: list[Any] = []

    def launch(executor: Any, *args: Any, **kwargs: Any) -> None:
        launching.append(executor)
        try:
            shipped_launch(executor, *args, **kwargs)
        except interpreter.InterpreterError as error:
            if isinstance(error.__cause__, DeadlockError):
                raise error.__cause__ from None
            raise
        finally:
            launching.pop()

    def set_grid_dim(nx: int, ny: int, nz: int) -> None:
        # the arguments are bound by now: from here on the kernel is only called
        shipped_dim(nx, ny, nz)
        launching[-1].fn = _together(launching[-1].fn, builder, schedule)

    with (
        replaced(interpreter.GridExecutor, __call__=launch),
        replaced(builder, set_grid_dim=set_grid_dim),
        memory_hook(schedule.on_access, schedule.on_barrier),
    ):
        yield


def _together(kernel: Callable[..., None], builder: Any, schedule: "_Schedule") -> Any:
    """What the interpreter calls in place of `kernel`: at the last call it runs all programs."""
    indices: list[tuple[int, int, int]] = []

    def call(**arguments: Any) -> None:
        indices.append(builder.grid_idx)
        if len(indices) == prod(builder.grid_dim):
            schedule.run(lambda: kernel(**arguments), indices)

    return call


@dataclass(eq=False)
class _Program:
    """A program under way: its coroutine, what it has come to how often, its stores on the way."""

    index: tuple[int, int, int]
    coroutine: Any = None
    came_to: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    last: tuple[str, int, int] | None = None
    line: str = ""
    advances: bool = True
    repeats: bool = False
    late: list["_LateStore"] = field(default_factory=list)


@dataclass(eq=False)
class _LateStore:
    """A store that other programs do not see yet; `ordered` by a block barrier that came since."""

    access: Access
    first: int
    last: int
    ordered: bool = False


class _Schedule:
    """Draws who runs next; a hub coroutine, to which every program hands back."""

    def __init__(
        self, builder: Any, generator: random.Random, hand_overs: int, resident: int | None
    ) -> None:
        self._greenlet = _greenlet()
        self._builder = builder
        self._generator = generator
        self._hand_overs = hand_overs
        self._resident = resident
        self._current: _Program | None = None
        self._hub: Any = None
        self._becomes_visible = 1.0

    def run(self, body: Callable[[], None], indices: list[tuple[int, int, int]]) -> None:
        """Run `body` once as each of the programs, `resident` of them at once, to the end."""
        draw = self._generator
        keeps_baton = draw.choice(_KEEPS_BATON)
        self._becomes_visible = draw.choice(_BECOMES_VISIBLE)
        self._hub = self._greenlet.getcurrent()
        absent = [_Program(index) for index in indices]
        draw.shuffle(absent)
        running: list[_Program] = []
        idle = 0
        try:
            while absent or running:
                while absent and len(running) < (self._resident or len(indices)):
                    running.append(self._started(absent.pop(), body))
                program = self._current
                if program is None or program.repeats or draw.random() >= keeps_baton:
                    program = draw.choice(running)
                self._resume(program)
                if program.coroutine.dead:
                    running.remove(program)
                    self._current = None
                idle = 0 if program.advances else idle + 1
                if idle >= self._hand_overs * len(running) > 0:
                    raise _deadlock(running, absent, idle)
        finally:
            self._current = None
            for program in running:
                # a started coroutine unwinds, one that never ran just ends
                program.coroutine.throw(self._greenlet.GreenletExit)

    def on_access(self, access: Access) -> Any:
        """Hand over; then let late stores out as drawn, and perform or delay this access."""
        program = self._current
        if program is None:
            return access.perform()
        self._note(program, access)
        self._hub.switch()
        self._publish(program, lambda _: self._generator.random() < self._becomes_visible)
        first = int(access.addresses.min())
        last = int(access.addresses.max()) + access.itemsize - 1
        self._publish(program, lambda late: late.first <= last and first <= late.last)
        if access.kind == "store":
            program.late.append(_LateStore(access, first, last))
            return None
        if access.releases:
            self._publish(program, lambda late: late.ordered)
        return access.perform()

    def on_barrier(self) -> None:
        """Order the stores so far before the next release."""
        if self._current is not None:
            for late in self._current.late:
                late.ordered = True

    def _started(self, program: _Program, body: Callable[[], None]) -> _Program:
        def run() -> None:
            body()
            self._publish(program, lambda _: True)

        program.coroutine = self._greenlet.greenlet(run)
        # numpy keeps its warnings' state there: programs must not warn where the caller is silent
        program.coroutine.gr_context = copy_context()
        return program

    def _resume(self, program: _Program) -> None:
        self._current = program
        program.advances = True
        # the interpreter keeps one index for the whole grid
        self._builder.grid_idx = program.index
        program.coroutine.switch()

    def _note(self, program: _Program, access: Access) -> None:
        """Take down where the program is, and whether that is progress."""
        key = access.key
        program.came_to[key] += 1
        program.repeats = key == program.last
        program.last = key
        program.advances = program.came_to[key] <= self._hand_overs
        if not program.advances:
            program.line = _kernel_line(sys._getframe())

    def _publish(self, program: _Program, chosen: Callable[[_LateStore], bool]) -> None:
        """Perform the chosen late stores, in the order in which they were issued."""
        if program.late:
            outcome = [(chosen(late), late) for late in program.late]
            program.late = [late for now, late in outcome if not now]
            for now, late in outcome:
                if now:
                    late.access.perform()


def _deadlock(running: list[_Program], absent: list[_Program], idle: int) -> DeadlockError:
    waiting = tuple(
        WaitingProgram(program.index, program.last[0], program.line, program.came_to[program.last])
        for program in sorted(running, key=lambda program: program.index)
        if program.last is not None
    )
    return DeadlockError(waiting, tuple(sorted(program.index for program in absent)), idle)


def _kernel_line(frame: FrameType | None) -> str:
    """`file:line in function` of the innermost frame that is neither Triton's nor ours."""
    ours = __name__.rpartition(".")[0]
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(("triton.", ours)):
            name = Path(frame.f_code.co_filename).name
            return f"{name}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return "an unknown line"


def _greenlet() -> Any:
    try:
        return import_module("greenlet")
    except ImportError as error:
        raise ImportError(
            "expected greenlet for cooperative schedules, got none: it comes with the extra 'test'"
        ) from error
