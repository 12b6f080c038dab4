"""`tritonbn-bench selfcheck`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..gating.session import ON_A_CPU, Request, Session, declare, request_of, session
from .common import INCONCLUSIVE, INTERRUPTED, UsageError, add_verb, check_folder, nonnegative

if TYPE_CHECKING:
    from ..judge.gate import GateResult
    from ..judge.rounds import Measured, Measurer, Round
    from ..judge.trials import SelfCheck

__all__ = ["add", "run"]

EXAMPLES = """examples:
  tritonbn-bench selfcheck                             does the gate keep silent over nothing?
  tritonbn-bench selfcheck --runs 100 --planted 0.05      false alarms and power, for a closer look
  tritonbn-bench selfcheck --out out/selfcheck && tritonbn-bench gate --base main \\
      --margins out/selfcheck/margins.json                margins of this machine's own noise

The working tree is compared with itself, loaded in two processes: an alarm is a false one. Then a
slowdown is planted in the head's process: it must be found. A case whose smallest detectable change
(3.6 x sd of its log ratio) exceeds its margin is one this machine cannot gate.
"""


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "selfcheck",
        "see whether a gate on this machine can be trusted",
        "Compare tritonbn with itself, then with a planted slowdown.",
        EXAMPLES,
    )
    parser.set_defaults(verb=run)
    parser.add_argument(
        "--runs", type=int, default=10, metavar="N", help="of each kind (default: %(default)s)"
    )
    parser.add_argument(
        "--planted",
        type=nonnegative,
        default=0.05,
        metavar="SHARE",
        help="slowdown of the head in the second kind of run, 0 for none (default: %(default)s)",
    )
    parser.add_argument(
        "--restart",
        type=int,
        default=5,
        metavar="M",
        help="fresh processes after every M runs (default: %(default)s)",
    )
    declare(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/selfcheck"),
        metavar="DIR",
        help="folder of margins.json, selfcheck.json, selfcheck.md (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Compare with itself, write what was found; 1 if the gate cannot be trusted here."""
    from ..gating.sides import SideError

    try:
        for name in ("runs", "restart"):
            if getattr(options, name) < 1:
                raise ValueError(f"expected --{name} of at least 1, got {getattr(options, name)}")
        check_folder(options.out)
        return _check(options, request_of(options))
    except (ValueError, OSError, SideError) as error:
        raise UsageError(str(error)) from error


def _check(options: argparse.Namespace, request: Request) -> int:
    from ..judge.trials import self_check

    total = options.runs * (2 if options.planted else 1)
    with session(request, request.head, options.command) as at_work:
        proof = at_work.measurer.prove()

        def told(index: int, result: GateResult) -> None:
            done = index + 1
            print(f"run {done} of {total}", file=sys.stderr, flush=True)
            if done % options.restart == 0 and done < total and not at_work.stop.reason:
                at_work.sides.restart()

        found = self_check(
            list(request.trials),
            at_work.measurer,
            options.runs,
            request.rule,
            options.planted or None,
            told,
            slow=_slow(at_work, options.planted),
            stopped=lambda: at_work.stop.reason,
        )
    code = found.exit_code
    if options.planted and found.found is None and not found.false_alarms and not found.wrong:
        # time was over before anything was planted
        code = INCONCLUSIVE
    if at_work.stop.interrupted:
        code = INTERRUPTED
    lines = _lines(found)
    if proof is not None:
        lines.append(
            f"the two sides are two: slowed by {proof.planted:.0%}, moved by {proof.seen:+.1%}"
        )
    if request.device == "cpu":
        lines.append(ON_A_CPU)
    _write(options, found, lines, at_work, code)
    print("\n".join(lines))
    print(f"written: {options.out}")
    return code


def _slow(at_work: Session, share: float) -> Measurer:
    """The measurer with a slowdown planted in the head's process."""

    def measure(case: str, rounds: int, enough: Callable[[Sequence[Round]], bool]) -> Measured:
        at_work.measurer.planted = share
        try:
            return at_work.measurer(case, rounds, enough)
        finally:
            at_work.measurer.planted = 0.0

    return measure


def _lines(found: SelfCheck) -> list[str]:
    lines = []
    for item in found.cases:
        power = f", planted found {item.found} of {item.planted}" if item.planted else ""
        spread = (
            "sd unknown"
            if math.isnan(item.sd)
            else f"sd {item.sd:.2%}, smallest detectable change {item.detectable:.1%}"
        )
        noisy = "" if math.isnan(item.sd) or item.gateable else "; too noisy for its margin"
        why = f"; {item.reason}" if item.reason else ""
        lines.append(
            f"{item.case}: {item.false_alarms} false alarms and {item.open} inconclusive in "
            f"{item.runs} runs, {spread}{power}, margin {item.margin:.1%}{noisy}{why}"
        )
    lines.append(f"false alarms: {found.false_alarms}, {found.total_alarms} of them of totals")
    if found.planted is not None:
        share = "not judged" if found.found is None else f"{found.found:.1%} found"
        lines.append(f"planted slowdown of {found.planted:.0%}: {share}")
    return lines


def _write(
    options: argparse.Namespace,
    found: SelfCheck,
    lines: Sequence[str],
    at_work: Session,
    code: int,
) -> None:
    from ..gating.margins import save_margins
    from ..gating.written import summarise

    options.out.mkdir(parents=True, exist_ok=True)
    save_margins(options.out / "margins.json", found.margins, at_work.environment)
    page = "## tritonbn-bench selfcheck\n\n" + "".join(f"- {line}\n" for line in lines)
    (options.out / "selfcheck.md").write_text(page, encoding="utf-8")
    cases = [
        {**asdict(item), "sd": None if math.isnan(item.sd) else item.sd} for item in found.cases
    ]
    content = {
        "schema": "tritonbn.selfcheck/1",
        "environment": at_work.environment,
        "cases": cases,
        "total_alarms": found.total_alarms,
        "planted": found.planted,
        "found": found.found,
        "exit_code": code,
    }
    text = json.dumps(content, indent=1) + "\n"
    (options.out / "selfcheck.json").write_text(text, encoding="utf-8")
    summarise(page)
