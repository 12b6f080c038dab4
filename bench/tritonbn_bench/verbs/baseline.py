"""`tritonbn-bench baseline`."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..gating.session import ON_A_CPU, declare, request_of, session
from .common import INTERRUPTED, PASSED, UsageError, add_verb, check_folder

if TYPE_CHECKING:
    from ..environment import Environment
    from ..judge.baseline import Baseline

__all__ = ["add", "run"]

EXAMPLES = """examples:
  tritonbn-bench baseline --accept baselines         measure, and remember in baselines/GPU/KEY.json
  tritonbn-bench baseline --accept baselines --runs 10 --cases resnet50
  tritonbn-bench baseline --show baselines/nvidia-h200/KEY.json

A baseline is keyed by GPU, driver, torch, cuDNN and triton, and holds ratios to torch's own
BatchNorm and to a copy. Runs join those that are there; five tell how far a case strays, and widen
its margin. Commit the file: a job that a change triggers should not write it.
"""


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "baseline",
        "remember how fast tritonbn is on this machine, for gate --baseline",
        "Measure and remember, or show what is remembered.",
        EXAMPLES,
    )
    parser.set_defaults(verb=run)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--accept", type=Path, metavar="PATH", help="a folder of baselines, or a file NAME.json"
    )
    what.add_argument("--show", type=Path, metavar="FILE", help="print a baseline")
    parser.add_argument(
        "--runs",
        type=int,
        default=5,
        metavar="N",
        help="fresh processes and buffers each (default: %(default)s)",
    )
    declare(parser)


def run(options: argparse.Namespace) -> int:
    """Measure and remember, or show; the exit code."""
    from ..gating.sides import SideError
    from ..judge.baseline import load

    try:
        if options.show is not None:
            print("\n".join(_table(load(options.show))))
            return PASSED
        if options.runs < 1:
            raise ValueError(f"expected --runs of at least 1, got {options.runs}")
        return _accept(options)
    except (ValueError, OSError, SideError) as error:
        raise UsageError(str(error)) from error


def _accept(options: argparse.Namespace) -> int:
    from ..gating.written import case_line
    from ..judge.baseline import accept, save
    from ..judge.gate import against_baseline
    from ..judge.verdicts import Verdict

    request = request_of(options)
    with session(request, None, options.command) as at_work:
        path, found = _place(options.accept, at_work.environment)
        check_folder(path.parent, "--accept")
        accepted = 0
        for index in range(options.runs):
            if index:
                at_work.sides.restart()
            # the spread counts, not a verdict: every round is taken
            rule = replace(request.rule, seconds=2 * request.rule.seconds)
            result = against_baseline(list(request.trials), at_work.measurer, None, rule)
            wrong = [item for item in result.cases if item.verdict is Verdict.ACCURACY]
            if wrong:
                for item in wrong:
                    print(case_line(item))
                print("nothing was accepted: a correctness check is red")
                return result.exit_code()
            stopped = at_work.stop.reason
            if stopped:
                # half a run would be remembered as a whole one
                print(f"{stopped} in run {index + 1}: it is not counted", file=sys.stderr)
                break
            found = accept(result, at_work.environment, found)
            save(found, path)
            accepted += 1
            print(f"run {index + 1} of {options.runs} accepted", file=sys.stderr, flush=True)
        interrupted = at_work.stop.interrupted
    if found is None or not accepted:
        if interrupted:
            return INTERRUPTED
        raise ValueError("no run was finished, nothing is stored; give it more --minutes")
    print("\n".join(_table(found)))
    if request.device == "cpu":
        print(ON_A_CPU)
    print(f"written: {path}")
    return INTERRUPTED if interrupted else PASSED


def _place(wanted: Path, environment: Environment) -> tuple[Path, Baseline | None]:
    """The file to write, and what lies there."""
    from ..judge.baseline import key_of, load, path_of

    key = key_of(environment)
    path = wanted if wanted.suffix == ".json" else path_of(wanted, key)
    if not path.exists():
        return path, None
    found = load(path)
    if found.key != key:
        raise ValueError(f"{path} is of another machine or other versions; choose another file")
    return path, found


def _table(baseline: Baseline) -> list[str]:
    """Key, then a case a line."""
    lines = [", ".join(f"{name} {value}" for name, value in baseline.key.items() if value)]
    for case, stored in sorted(baseline.cases.items()):
        ratio, low, high = stored.reference.as_ratio()
        copy = f"{math.exp(stored.copy.estimate):.2f}" if stored.copy else "-"
        spread = "-" if stored.spread is None else f"{stored.spread:.2%}"
        lines.append(
            f"{case}  {ratio:.3f} ({low:.3f} ... {high:.3f}) x torch, {copy} x copy, "
            f"{stored.milliseconds:.4f} ms, sd {spread}, {len(stored.log_ratios)} runs"
        )
    return lines
