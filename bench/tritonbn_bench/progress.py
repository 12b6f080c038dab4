"""A progress bar on a terminal; elsewhere a line a minute, and one per job."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .interruption import raise_lost

__all__ = ["progress"]

# between two lines where there is no terminal
_LINE_SECONDS = 60.0


@contextmanager
def progress(name: str, total: int) -> Iterator[Callable[[], None]]:
    """A function to be called after each of `total` pieces of work; what it shows goes to stderr.

    It raises KeyboardInterrupt where one got lost in the piece, which is not to be trusted then.

    Args:
        name: of the work
        total: pieces of work
    """
    with _shown(name, total) as show:

        def advance() -> None:
            raise_lost()
            show()

        yield advance


@contextmanager
def _shown(name: str, total: int) -> Iterator[Callable[[], None]]:
    if not sys.stderr.isatty():
        yield from _line(name, total)
        return
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
    except ImportError:
        yield from _line(name, total)
        return
    from rich.console import Console

    columns = (f"{name:<10}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total)
        yield lambda: bar.advance(task)


def _line(name: str, total: int) -> Iterator[Callable[[], None]]:
    started = said = time.monotonic()
    done = 0

    def advance() -> None:
        nonlocal done, said
        done += 1
        now = time.monotonic()
        if now - said >= _LINE_SECONDS:
            said = now
            left = (now - started) / done * (total - done) / 60
            text = f"{name}: {done} of {total}, about {left:.0f} min left"
            print(text, file=sys.stderr, flush=True)

    try:
        yield advance
    finally:
        seconds = time.monotonic() - started
        print(f"{name}: {done} of {total} in {seconds:.1f} s", file=sys.stderr, flush=True)
