"""Fresh processes at the price of a fork.

Where a process's pages lie in memory is luck, and its own for as long as it lives: two processes of
the same sources differ by a per cent or two on a CPU. So a worker there begins a new life, with new
pages, whenever it gets new buffers: the process that was started only imports, and each life is a
fork of it. (It never runs a backward pass itself: torch's engine does not survive a fork.)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

__all__ = ["serve", "serve_in_lives"]

Request = dict[str, Any]
# reads a request, None at the end
Listen = Callable[[], "Request | None"]
# answers one
Answer = Callable[[Request], None]
# what begins a life
BIRTHS = ("prepare", "renew")


def serve(listen: Listen, answer: Answer) -> None:
    """Answer every request in this process."""
    while (request := listen()) is not None:
        answer(request)


def serve_in_lives(listen: Listen, answer: Answer, heritage: Callable[[], Request]) -> None:
    """Answer BIRTHS and what follows each in a fork of this process.

    Args:
        listen: called by whichever process is alive: all others wait
        answer: as `listen`
        heritage: what a life leaves to the next, as the argument `heritage` of its request

    Raises:
        ChildProcessError: a life ended otherwise than by itself
    """
    request = listen()
    while request is not None:
        if request["do"] in BIRTHS:
            request = _live(request, listen, answer, heritage)
        else:
            answer(request)
            request = listen()


def _live(
    request: Request, listen: Listen, answer: Answer, heritage: Callable[[], Request]
) -> Request | None:
    """One life; what it was told last, which is for the next, or None at the end."""
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        # whatever happens, only the first process may return from here
        code = 1
        try:
            os.close(reader)
            answer(request)
            while (last := listen()) is not None:
                if last["do"] in BIRTHS:
                    with os.fdopen(writer, "w", encoding="utf-8") as testament:
                        json.dump({**last, "heritage": heritage()}, testament)
                    break
                answer(last)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as testament:
        left = testament.read()
    _, status = os.waitpid(process, 0)
    if status:
        raise ChildProcessError(f"a life ended with {os.waitstatus_to_exitcode(status)}")
    found: Request | None = json.loads(left) if left else None
    return found
