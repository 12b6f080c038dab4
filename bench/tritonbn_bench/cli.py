"""The command line: `tritonbn-bench run | report | plan | env`. Nothing heavy is imported before a
verb is known, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .jobs import Run
    from .results import Results

__all__ = ["main"]

# exit codes; an interrupted run follows the shell's convention for SIGINT
PASSED, USAGE, INTERRUPTED = 0, 2, 130
DEFAULT_OUT = Path("out/report")
JOBS = ("accuracy", "training", "traffic", "fusion", "memory", "host", "resnet50", "sweep")
ALIASES = {"speed": ("resnet50", "sweep")}
EXIT_CODES = """exit codes:
  0    done (or time is over: repeat with --resume), every check of tritonbn passed
  2    wrong usage, or the machine lacks what was asked for
  4    a result of tritonbn broke its error bound, or training disagreed
  130  interrupted; what was measured is kept
"""
RUN_EXAMPLES = """examples:
  tritonbn-bench run                                    everything this machine can do
  tritonbn-bench run --only accuracy --out out/report   one job; a sweep may follow with --resume
  tritonbn-bench run --only speed --minutes 8 --resume  eight minutes of the sweeps, then again

Without a GPU the kernels run in Triton's interpreter: accuracy, training and modelled traffic are
reported, and no speed is.
"""
PLAN_EXAMPLES = """examples:
  tritonbn-bench plan resnet50 --batch 256 --layout nhwc    every layer of a network
  tritonbn-bench plan 32 64 56 56 --dtype fp32              one shape, N C H W
  tritonbn-bench plan resnet50 --batch 256 --fused          with additions and activations
  TRITONBN_PLAN=two_read tritonbn-bench plan resnet18       the same with a plan pinned

networks: resnet18, resnet50, resnet101, mobilenet_v2, efficientnet_b0, densenet121, unet,
resnet3d18, mlp. Times and traffic are modelled, not measured; no GPU is needed.
"""


class UsageError(Exception):
    """Something the user can put right; the text says how."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code.

    Args:
        arguments: of the command line, without the program's name; of this process if None
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        options = _parser().parse_args(given)
    except SystemExit as stop:
        # argparse has printed what is wrong, or the help
        return int(stop.code or 0)
    options.command = shlex.join(["tritonbn-bench", *given])
    try:
        return int(options.verb(options))
    except UsageError as error:
        print(f"tritonbn-bench: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("tritonbn-bench: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="tritonbn-bench",
        description="Accuracy, speed and training of tritonbn on this machine, and a report.",
        epilog=EXIT_CODES,
        formatter_class=raw,
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    run = verbs.add_parser(
        "run",
        help="measure, then write a report",
        description="Measure, then write a report.",
        epilog=f"{RUN_EXAMPLES}\n{EXIT_CODES}",
        formatter_class=raw,
    )
    run.set_defaults(verb=_run)
    run.add_argument(
        "--out",
        type=Path,
        default=DEFAULT_OUT,
        metavar="DIR",
        help="folder of the report (default: %(default)s)",
    )
    run.add_argument(
        "--only",
        action="append",
        choices=[*JOBS, *ALIASES],
        metavar="JOB",
        help=f"one of {', '.join(JOBS)}; speed means resnet50 and sweep; may be "
        "repeated (default: all this machine can do)",
    )
    run.add_argument(
        "--resume",
        action="store_true",
        help="keep what lies in DIR and measure only what is missing or failed",
    )
    run.add_argument("--quick", action="store_true", help="fewer cases, fp32 and bf16 only")
    run.add_argument(
        "--minutes", type=float, metavar="M", help="stop after about M minutes; go on with --resume"
    )
    run.add_argument(
        "--providers",
        metavar="A,B",
        default="",
        help="of the sweeps: tritonbn, torch, torch channels_last, torch.compile, "
        "copy (default: all)",
    )
    run.add_argument(
        "--device",
        choices=["auto", "cuda", "cpu"],
        default="auto",
        help="auto takes a GPU where there is one (default: %(default)s)",
    )
    report = verbs.add_parser(
        "report",
        help="redraw a report from its results",
        description="Redraw a report from its results; nothing is measured.",
        epilog="example:\n  tritonbn-bench report out/report\n",
        formatter_class=raw,
    )
    report.set_defaults(verb=_report)
    report.add_argument("folder", type=Path, metavar="DIR", help="where results.json lies")
    _add_plan(verbs, raw)
    env = verbs.add_parser(
        "env",
        help="print what a bug report needs",
        description="Print machine and versions, as a bug report needs them.",
        epilog="example:\n  tritonbn-bench env\n",
        formatter_class=raw,
    )
    env.set_defaults(verb=_env)
    return parser


def _add_plan(verbs: Any, raw: type[argparse.HelpFormatter]) -> None:
    plan = verbs.add_parser(
        "plan",
        help="print which kernels a network or a shape gets, and what is expected of them",
        description="Print the plan of every BatchNorm layer, its modelled traffic and time; with "
        "--fused those of the layer and what follows it.",
        epilog=PLAN_EXAMPLES,
        formatter_class=raw,
    )
    plan.set_defaults(verb=_plan)
    plan.add_argument(
        "what", nargs="+", metavar="NETWORK|SIZE", help="a network, or sizes N C [D] [H W]"
    )
    plan.add_argument("--batch", type=int, metavar="N", help="of a network (default: 32)")
    plan.add_argument(
        "--dtype",
        choices=["fp32", "fp16", "bf16", "fp64"],
        default="bf16",
        help="of the activations (default: %(default)s)",
    )
    plan.add_argument(
        "--layout",
        choices=["nc", "ncl", "nlc", "nchw", "nhwc", "ncdhw", "ndhwc"],
        help="order of the axes in memory (default: channels first)",
    )
    plan.add_argument(
        "--device",
        choices=["h200", "h100", "a100", "mig16", "local"],
        help="mig16: a slice of 16 SMs; local: this machine's GPU, the default if there is one, "
        "else h200",
    )
    plan.add_argument(
        "--fused",
        action="store_true",
        help="with what follows each BatchNorm, in the same kernel and as operators of its own",
    )
    plan.add_argument("--json", action="store_true", help="print figures for a program")


def _plan(options: argparse.Namespace) -> int:
    from . import fused_table, plan_table

    table = fused_table if options.fused else plan_table
    try:
        device, remark = plan_table.device_of(options.device)
        wanted = plan_table.request(
            options.what, options.batch, options.dtype, options.layout, device
        )
        print((table.as_json if options.json else table.as_text)(wanted, remark))
    except ValueError as error:
        raise UsageError(str(error)) from error
    return PASSED


def _run(options: argparse.Namespace) -> int:
    from .environment import choose_device, collect
    from .summary import exit_code

    try:
        device = choose_device(options.device)
    except RuntimeError as error:
        raise UsageError(str(error)) from error
    jobs = _jobs(options, device)
    providers = _providers(options.providers)
    from .jobs import Run
    from .results import Results

    environment = collect(device, options.command)
    try:
        results = (
            Results.resume(options.out, environment) if options.resume else Results(environment)
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    run = Run(results, options.out, device, options.quick, providers, deadline)
    interrupted = _perform(jobs, run)
    _publish(results, options.out)
    return INTERRUPTED if interrupted else exit_code(results.rows)


def _perform(jobs: Sequence[str], run: Run) -> bool:
    """Do the jobs and save, whatever ends them; whether the user interrupted."""
    from .jobs import OutOfTime, perform

    interrupted = False
    try:
        perform(jobs, run)
    except OutOfTime:
        print("time is over; go on with --resume", file=sys.stderr)
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted; go on with --resume", file=sys.stderr)
    finally:
        run.results.save(run.folder)
    return interrupted


def _publish(results: Results, folder: Path) -> None:
    """Write the report if the extras are there, then print its verdict and its path."""
    from .results import Results as Table
    from .summary import verdict

    absent = _absent_extras()
    if not absent:
        from .report import write_report

        page = write_report(results, folder)
    for sentence in verdict(results):
        print(sentence)
    if absent:
        print(f"no report was drawn: {', '.join(absent)} missing (pip install 'tritonbn[report]')")
        print(f"results: {Table.path(folder)}")
    else:
        print(f"report: {page}")


def _jobs(options: argparse.Namespace, device: str) -> tuple[str, ...]:
    from .jobs import NEEDS_GPU, default_jobs

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
    from .providers import PROVIDERS

    chosen = tuple(name.strip() for name in names.split(",") if name.strip())
    unknown = [name for name in chosen if name not in PROVIDERS]
    if unknown:
        raise UsageError(f"expected providers of {', '.join(PROVIDERS)}, got {unknown[0]}")
    return chosen


def _report(options: argparse.Namespace) -> int:
    from .results import Results
    from .summary import exit_code

    absent = _absent_extras()
    if absent:
        raise UsageError(f"{', '.join(absent)} missing: pip install 'tritonbn[report]'")
    try:
        results = Results.load(options.folder)
    except FileNotFoundError as error:
        raise UsageError(f"no results.json in {options.folder}; make one with run") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    _publish(results, options.folder)
    return exit_code(results.rows)


def _env(options: argparse.Namespace) -> int:
    import torch

    from .environment import collect

    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, value in collect(device, options.command).items():
        print(f"{name:<20} {'-' if value is None else value}")
    return PASSED


def _absent_extras() -> list[str]:
    return [name for name in ("pandas", "matplotlib") if find_spec(name) is None]
