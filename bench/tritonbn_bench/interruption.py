"""Ctrl-C while a verb runs, noted so that it cannot be lost.

Python raises KeyboardInterrupt wherever the program happens to be. In a `__del__` or the callback
of a weak reference (imports have one) it is printed and dropped, a library's bare `except` passes
over it, and numpy's conversions make a TypeError of it.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["arriving", "noted", "raise_lost"]

# raised, and not seen yet; of the module, for a signal is the whole process's
_under_way = False


def raise_lost() -> None:
    """Raise KeyboardInterrupt again if one got lost; to be called between two units of work."""
    if _under_way:
        raise KeyboardInterrupt


@contextmanager
def arriving() -> Iterator[None]:
    """A body that an interruption ends as KeyboardInterrupt, whatever became of it on its way."""
    global _under_way
    try:
        yield
        raise_lost()
    except Exception as error:
        if _under_way:
            raise KeyboardInterrupt from error
        raise
    finally:
        _under_way = False


@contextmanager
def noted() -> Iterator[None]:
    """As `arriving`, and interruptions are noted, but where somebody else handles them."""
    elsewhere = threading.current_thread() is not threading.main_thread()
    if elsewhere or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def note(*_: object) -> None:
        global _under_way
        _under_way = True
        raise KeyboardInterrupt

    hook = sys.unraisablehook
    # a lost one is raised again, and nobody need read how it got lost
    sys.unraisablehook = lambda lost: None if lost.exc_type is KeyboardInterrupt else hook(lost)
    signal.signal(signal.SIGINT, note)
    try:
        with arriving():
            yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = hook
