"""`tritonbn-bench run`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import report
from .common import (
    INTERRUPTED,
    UsageError,
    add_device,
    add_minutes,
    add_verb,
    check_folder,
    check_plans,
    put_aside,
)

if TYPE_CHECKING:
    from ..jobs import Run

__all__ = ["add", "run"]

DEFAULT_OUT = Path("out/report")
JOBS = (
    *("accuracy", "training", "traffic", "fusion", "memory", "plan", "static", "host"),
    *("resnet50", "sweep", "networks", "endtoend"),
)
ALIASES = {"speed": ("resnet50", "sweep")}
# all that `providers.PROVIDERS` has, which imports torch
PROVIDERS = (
    *("tritonbn", "tritonbn unfused", "torch", "torch channels_last", "torch.compile"),
    "copy",
)
EXAMPLES = """examples:
  tritonbn-bench run                                    everything this machine can do
  tritonbn-bench run --only accuracy --out out/report   one job; a sweep may follow with --resume
  tritonbn-bench run --only speed --minutes 8 --resume  eight minutes of the sweeps, then again

Without a GPU the kernels run in Triton's interpreter, and no speed is reported: accuracy, training,
traffic and bytes by formula (traffic, fusion), memory, plan, static and host are. endtoend then
runs when asked for, and shows agreement only.

Without --resume the results that lie in DIR are kept as results.json.before.
"""


def add(verbs: Any) -> None:
    """Declare the verb."""
    run_parser = add_verb(
        verbs,
        "run",
        "measure, then write a report",
        "Measure, then write a report.",
        EXAMPLES,
    )
    run_parser.set_defaults(verb=run)
    run_parser.add_argument(
        "--out",
        type=Path,
        default=DEFAULT_OUT,
        metavar="DIR",
        help="folder of the report (default: %(default)s)",
    )
    run_parser.add_argument(
        "--only",
        action="append",
        choices=[*JOBS, *ALIASES],
        metavar="JOB",
        help=f"one of {', '.join(JOBS)}; speed means resnet50 and sweep; may be "
        "repeated (default: all this machine can do)",
    )
    run_parser.add_argument(
        "--resume",
        action="store_true",
        help="keep what lies in DIR and measure only what is missing or failed",
    )
    run_parser.add_argument("--quick", action="store_true", help="fewer cases, fp32 and bf16 only")
    add_minutes(run_parser, "stop after about M minutes; go on with --resume")
    run_parser.add_argument(
        "--providers",
        metavar="A,B",
        default="",
        help=f"of the sweeps: {', '.join(PROVIDERS)} (default: all)",
    )
    run_parser.add_argument(
        "--cache",
        choices=["cold", "hot", "produced"],
        help="of the sweeps, before each call: emptied, left as they are, or emptied and the main "
        "operand written anew (default: cold)",
    )
    add_device(run_parser)


def run(options: argparse.Namespace) -> int:
    """Measure what was asked for, write the report; the exit code."""
    from ..environment import choose_device, collect
    from ..summary import exit_code

    try:
        device = choose_device(options.device)
    except RuntimeError as error:
        raise UsageError(str(error)) from error
    jobs = _jobs(options, device)
    providers = _providers(options.providers)
    check_plans()
    check_folder(options.out)
    from ..jobs import Run
    from ..results import Results

    environment = collect(device, options.command)
    try:
        results = (
            Results.resume(options.out, environment) if options.resume else Results(environment)
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    cache = options.cache or "cold"
    other = {row.cache for row in results.rows if row.quantity == "time"} - {cache}
    if other and device == "cuda":
        raise UsageError(
            f"the results in {options.out} were measured with {', '.join(sorted(other))} caches, "
            f"this run asks for {cache} ones; choose another --out"
        )
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    run = Run(results, options.out, device, options.quick, providers, deadline, cache)
    if not options.resume:
        put_aside(options.out)
    interrupted = _perform(jobs, run)
    report.publish(results, options.out)
    return INTERRUPTED if interrupted else exit_code(results.rows)


def _perform(jobs: Sequence[str], run: Run) -> bool:
    """Do the jobs and save, whatever ends them; whether the user interrupted."""
    from ..interruption import arriving
    from ..jobs import OutOfTime, perform

    interrupted = False
    try:
        with arriving():
            perform(jobs, run)
    except OutOfTime:
        print("time is over; go on with --resume", file=sys.stderr)
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted; go on with --resume", file=sys.stderr)
    finally:
        run.results.save(run.folder)
    return interrupted


def _jobs(options: argparse.Namespace, device: str) -> tuple[str, ...]:
    from ..jobs import NEEDS_GPU, default_jobs

    if not options.only:
        return default_jobs(device)
    wanted = [job for name in options.only for job in ALIASES.get(name, (name,))]
    without = [job for job in wanted if job in NEEDS_GPU and device != "cuda"]
    if without:
        raise UsageError(
            f"{', '.join(without)} measures speed and needs a GPU: none is visible, or "
            "TRITON_INTERPRET=1 is set; leave out --only for what can be done without one"
        )
    return tuple(job for job in JOBS if job in wanted)


def _providers(names: str) -> tuple[str, ...]:
    chosen = tuple(name.strip() for name in names.split(",") if name.strip())
    unknown = [name for name in chosen if name not in PROVIDERS]
    if unknown:
        raise UsageError(f"expected providers of {', '.join(PROVIDERS)}, got {unknown[0]}")
    return chosen
