"""What gate, baseline and selfcheck share: their options, and the processes they measure in."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..judge.rule import RULE, Rule
from ..verbs.common import add_device, add_minutes

if TYPE_CHECKING:
    from ..environment import Environment
    from .measurer import Stop, TwoProcesses
    from .revisions import Sources
    from .sides import Sides
    from .suites import Trial

__all__ = ["ON_A_CPU", "Request", "Session", "declare", "request_of", "session"]

DEFAULT_CACHES = {"cuda": "cold", "cpu": "hot"}
ON_A_CPU = (
    "On a CPU tritonbn runs torch's kernels: what is compared is tritonbn's way to them, "
    "in time of the processor with hot caches."
)


@dataclass(frozen=True)
class Request:
    """What is to be measured.

    Attributes:
        device: "cuda" or "cpu"
        trials: by id
        rule: of the verdicts
        head: packages under judgement
        cache: as `stopwatch_of` takes it
        minutes: after which no case is begun, None for no end
    """

    device: str
    trials: Mapping[str, Trial]
    rule: Rule
    head: Sources
    cache: str | None
    minutes: float | None


@dataclass(frozen=True)
class Session:
    """Processes at work.

    Attributes:
        sides: the processes
        measurer: what takes rounds over them
        stop: why no more is measured
        environment: of the machine
    """

    sides: Sides
    measurer: TwoProcesses
    stop: Stop
    environment: Environment


def declare(parser: argparse.ArgumentParser) -> None:
    """The options that the three verbs share."""
    parser.add_argument(
        "--cases",
        default="quick",
        metavar="quick|resnet50|FILE",
        help="a suite, or a JSON list of cases (default: %(default)s)",
    )
    add_device(parser)
    parser.add_argument(
        "--cache",
        choices=["cold", "hot", "produced"],
        help="state of the caches before a call: emptied, as the call before left them, or holding "
        "x as a convolution leaves it (default: cold on a GPU, hot on a CPU)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=RULE.rounds,
        metavar="K",
        help="at most, of a first pass (default: %(default)s)",
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=RULE.margin,
        metavar="SHARE",
        help="slowdown of a case that counts as none, half of it for a mean over cases "
        "(default: %(default)s)",
    )
    add_minutes(parser, "begin no case after M minutes; it is skipped")
    parser.add_argument(
        "--repository",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="checkout whose working tree is measured; outside of one, what is installed "
        "(default: where you are)",
    )


def request_of(options: argparse.Namespace) -> Request:
    """What the options ask for.

    Raises:
        ValueError: the machine or the options cannot
    """
    import torch

    from .revisions import head_of
    from .suites import trials

    there = torch.cuda.is_available()
    if options.device == "cuda" and not there:
        raise ValueError("no CUDA device is visible; drop --device cuda to compare on the CPU")
    device = "cuda" if there and options.device != "cpu" else "cpu"
    if device == "cpu" and options.cache == "cold":
        raise ValueError("expected --cache hot or produced on a CPU, got cold")
    rule = replace(
        RULE,
        rounds=options.rounds,
        fewest=min(RULE.fewest, options.rounds),
        margin=options.margin,
        total_margin=options.margin * RULE.total_margin / RULE.margin,
    )
    found = trials(options.cases, device)
    if options.cache not in (None, DEFAULT_CACHES[device]):
        # what is stored of one state of the caches says nothing of another
        found = {f"{name}/{options.cache}": trial for name, trial in found.items()}
    return Request(
        device,
        found,
        rule,
        head_of(options.repository),
        options.cache,
        options.minutes,
    )


@contextmanager
def session(request: Request, base: Sources | None, command: str) -> Iterator[Session]:
    """Start the processes of head and base (None: head alone), and end them.

    Raises:
        SideError: a side is not what it should be
    """
    from ..clocks import clock_of
    from ..environment import collect
    from .measurer import TwoProcesses, stoppable
    from .sides import Sides

    with Sides(request.head, base, request.device) as sides:
        # the processes import meanwhile
        environment = collect(request.device, command)
        environment["commit"] = request.head.commit or environment["commit"]
        sides.look()
        with stoppable(request.minutes) as stop:
            clock = clock_of(request.device)
            measurer = TwoProcesses(sides, request.trials, stop, request.cache, clock)
            yield Session(sides, measurer, stop, environment)
