"""What a long piece of work shows of itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = bool | Callable[[int, int], object] | None


@contextmanager
def shown(name: str, progress: Progress, total: int) -> Iterator[Callable[[], None]]:
    """A function to be called after each of `total` pieces of the work called `name`.

    Args:
        progress: a bar on stderr (True), nothing (False), or a bar if stderr is a terminal (None);
            or a function of the pieces done and `total`. The bar is rich's where it is installed.
    """
    if callable(progress):
        yield _counting(progress, total)
    elif total and (progress or (progress is None and sys.stderr.isatty())):
        try:
            from rich.console import Console
            from rich.progress import Progress as Bar
        except ImportError:
            yield _counting(lambda done, total: _line(name, done, total), total)
            return
        with Bar(console=Console(stderr=True)) as bar:
            task = bar.add_task(name, total=total)
            yield lambda: bar.advance(task)
    else:
        yield lambda: None


def _counting(report: Callable[[int, int], object], total: int) -> Callable[[], None]:
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        report(done, total)

    return advance


def _line(name: str, done: int, total: int) -> None:
    end = "\n" if done == total else ""
    print(f"\r{name} {done} of {total}", end=end, file=sys.stderr, flush=True)
