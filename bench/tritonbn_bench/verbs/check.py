"""`tritonbn-bench check --static`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import PASSED, REGRESSION, UsageError, add_verb, check_folder

if TYPE_CHECKING:
    from ..static.suite import Finding

__all__ = ["add", "run"]

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
DEFAULT_PLANS = Path("tritonbn-plans.json")
EXAMPLES = """examples:
  tritonbn-bench check --static                     what every change should pass; no GPU is needed
  tritonbn-bench check --static --update            accept what it finds as the new budgets
  tritonbn-bench check --static --target sm_90      of the compiled kernels, those of one target
  tritonbn-bench check --static --model my.net:make --update    keep the plans of a model's layers
  tritonbn-bench check --static --model my.net:make             compare with them

Three parts, each against a committed budget: what the compiler makes of the kernels (width of
accesses, spills, shared memory, double precision, cache hints), which kernels well-known networks
launch, and the bytes that each kind of plan moves. A part without a budget for this version of
Triton is not compared, says so and does not fail. About 40 s with a warm Triton cache, five minutes
without. Of the compiled kernels these are the cases most used: `python -m tritonbn_bench.static`
has all of them, and its own --update renews them.

The function of --model takes nothing and returns the model and its input, or a tuple of inputs. Its
plans are modelled; commit the file, and a plan of more bytes or more launches fails.
"""


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "check",
        "compare kernels, plans and traffic with their budgets, without a GPU",
        "Compare what can be known of the kernels without a GPU with committed budgets.",
        EXAMPLES,
    )
    parser.set_defaults(verb=run)
    parser.add_argument(
        "--static", action="store_true", help="compile and count, do not run: needs no GPU"
    )
    parser.add_argument("--update", action="store_true", help="accept what is found")
    parser.add_argument(
        "--target",
        action="append",
        choices=TARGETS,
        help="of the compiled kernels; may be repeated (default: all)",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORDS",
        help="cases and networks whose names contain WORDS, as printed; may be repeated",
    )
    parser.add_argument(
        "--budgets", type=Path, metavar="DIR", help="folder of the budgets (default: our own)"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes at a time (default: %(default)s, one a core)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write check.md there, as it is printed"
    )
    parser.add_argument(
        "--model",
        metavar="MODULE:FUNCTION",
        help="check the plans of this model's BatchNorm layers instead",
    )
    parser.add_argument(
        "--plans",
        type=Path,
        default=DEFAULT_PLANS,
        metavar="FILE",
        help="the plans of --model, to commit (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        choices=["h200", "h100", "a100", "mig16"],
        default="h200",
        help="that --model is planned for (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Check; the exit code."""
    if not options.static:
        raise UsageError("expected --static; a check on a GPU is `tritonbn-bench gate`")
    if options.jobs < 1:
        raise UsageError(f"expected at least one process for --jobs, got {options.jobs}")
    if options.out is not None:
        check_folder(options.out)
    if options.model:
        return _check_model(options)
    return _check_budgets(options)


def _check_budgets(options: argparse.Namespace) -> int:
    # the interpreter replaces the compiler as soon as the kernels are imported
    if os.environ.get("TRITON_INTERPRET", "0") not in {"", "0"}:
        raise UsageError("expected no TRITON_INTERPRET: the interpreter compiles nothing; unset it")
    if find_spec("greenlet") is None:
        raise UsageError("greenlet missing, by which traffic is counted: pip install greenlet")
    from ..static import budget, suite

    wanted = suite.Request(
        tuple(options.target or TARGETS),
        tuple(options.only),
        options.budgets or budget.FOLDER,
        options.jobs,
        options.update,
    )
    try:
        findings = suite.check(wanted)
    except suite.CheckStoppedError as error:
        raise UsageError(str(error)) from error
    if not any(finding.lines for finding in findings):
        raise UsageError(f"expected words in the name of a case for --only, got {options.only!r}")
    _say(suite.as_text(findings), suite.as_markdown(findings), options.out)
    return _exit_code(findings)


def _exit_code(findings: Sequence[Finding]) -> int:
    return REGRESSION if any(finding.failed for finding in findings) else PASSED


def _check_model(options: argparse.Namespace) -> int:
    from tritonbn_kernels.outlook import DEVICES

    from ..model_layers import ModelError, layers_of, load_model
    from ..static import model_plans

    device = DEVICES[options.device]
    try:
        lines = model_plans.plans_of(layers_of(*load_model(options.model)), device)
        if not lines:
            raise UsageError(f"expected BatchNorm layers in {options.model}, got none")
        verdict = model_plans.compare(model_plans.read(options.plans, device.name), lines)
        if options.update:
            model_plans.write(options.plans, device.name, lines)
    except (ModelError, ValueError) as error:
        raise UsageError(str(error)) from error
    told = (options.model, device, lines, verdict, str(options.plans) if options.update else "")
    _say(model_plans.as_text(*told), model_plans.as_markdown(*told), options.out)
    return REGRESSION if verdict.worse and not options.update else PASSED


def _say(text: str, markdown: str, folder: Path | None) -> None:
    """Print, and write for people who look at a job's page."""
    print(text)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "check.md").write_text(markdown, encoding="utf-8")
    page = os.environ.get("GITHUB_STEP_SUMMARY")
    if page:
        with open(page, "a", encoding="utf-8") as file:
            file.write(markdown)
