"""`tritonbn-bench gate`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..gating.session import ON_A_CPU, Request, declare, request_of, session
from .common import INTERRUPTED, PASSED, UsageError, add_verb, check_folder, nonnegative

if TYPE_CHECKING:
    from ..gating.revisions import Sources
    from ..gating.sides import Proof
    from ..judge.gate import CaseResult

__all__ = ["add", "run"]

EXAMPLES = """examples:
  tritonbn-bench gate --base origin/main                  is the working tree slower than main?
  tritonbn-bench gate --base HEAD~1 --cases resnet50 --minutes 20 --strict
  tritonbn-bench gate --base v0.1.0 --margins out/selfcheck/margins.json
  tritonbn-bench gate --baseline baselines                slower than what was accepted here before?

Base and head run in a process each and take turns; a slowdown planted in the head's process proves
in each run that they are two. A baseline holds ratios to torch's own BatchNorm and to a copy.
On a CPU tritonbn runs torch's kernels, and tritonbn's way to them is what is compared.
Written to DIR: gate.md, gate.xml (JUnit), gate.json, trend.json (for github-action-benchmark).
"""


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "gate",
        "fail if tritonbn became slower than a revision or a baseline",
        "Compare the working tree with a revision, or with an accepted baseline.",
        EXAMPLES,
    )
    parser.set_defaults(verb=run)
    against = parser.add_mutually_exclusive_group(required=True)
    against.add_argument("--base", metavar="REV", help="a revision of the repository")
    against.add_argument(
        "--baseline", type=Path, metavar="PATH", help="a file of baseline --accept, or its folder"
    )
    declare(parser)
    parser.add_argument(
        "--margins", type=Path, metavar="FILE", help="margins by case, as selfcheck writes them"
    )
    parser.add_argument("--strict", action="store_true", help="fail where no verdict is possible")
    parser.add_argument(
        "--force", action="store_true", help="compare even where base and head have equal sources"
    )
    parser.add_argument(
        "--plant",
        type=nonnegative,
        default=0.0,
        metavar="SHARE",
        help="slow the head by this share, to see whether your CI fails",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/gate"),
        metavar="DIR",
        help="folder of what is written (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Compare and write; the exit code of the gravest verdict."""
    from ..gating.revisions import checkout, head_of
    from ..gating.sides import SideError

    try:
        check_folder(options.out)
        if options.base is None:
            if not options.baseline.exists():
                raise ValueError(
                    f"expected a baseline or a folder of them, got {options.baseline}: "
                    "it is not there"
                )
            return _gate(options, request_of(options), None)
        head = head_of(options.repository)
        if head.tree is None:
            raise ValueError(
                f"expected a checkout of tritonbn at {options.repository} to compare with "
                f"{options.base}; what is installed can be compared with a --baseline"
            )
        request = request_of(options)
        with checkout(head.tree, options.base) as base:
            if base.digest == head.digest and not (options.force or options.plant):
                return _nothing(options, request, base)
            return _gate(options, request, base)
    except (ValueError, OSError, SideError) as error:
        raise UsageError(str(error)) from error


def _nothing(options: argparse.Namespace, request: Request, base: Sources) -> int:
    """Say so, in the files too: later steps of a job look for them."""
    from ..environment import collect
    from ..gating.written import write_gate
    from ..judge.gate import GateResult

    text = f"nothing to compare: head's packages equal those of {base.label} ({base.commit})"
    print(f"{text}; --force compares them all the same")
    environment = collect(request.device, options.command)
    facts = {"base": {"label": base.label, "commit": base.commit}, "exit_code": PASSED}
    write_gate(options.out, GateResult(()), environment, facts, f"- {text}", strict=False)
    return PASSED


def _gate(options: argparse.Namespace, request: Request, base: Sources | None) -> int:
    from ..gating.margins import Margins, load_margins
    from ..gating.written import case_line, plain_sentence, write_gate
    from ..judge.baseline import find
    from ..judge.gate import against_baseline, compare

    margins = load_margins(options.margins) if options.margins else Margins()

    def tell(item: CaseResult) -> None:
        print(case_line(item), file=sys.stderr, flush=True)

    with session(request, base, options.command) as at_work:
        proof = None if base is None else at_work.measurer.prove()
        remarks = _remarks(request, base, proof)
        differs = margins.differs(at_work.environment)
        if differs:
            remarks.append(f"The margins are another machine's: {differs}.")
        at_work.measurer.planted = options.plant
        cases, measurer = list(request.trials), at_work.measurer
        if base is not None:
            result = compare(cases, measurer, request.rule, margins.by_case, tell)
        else:
            stored, how = find(options.baseline, at_work.environment)
            remarks.append(f"Baseline: {how}.")
            result = against_baseline(cases, measurer, stored, request.rule, tell)
    code = INTERRUPTED if at_work.stop.interrupted else result.exit_code(options.strict)
    if options.plant:
        remarks.append(f"A slowdown of {options.plant:.0%} was planted in the head.")
    facts = {
        "sides": at_work.sides.hellos,
        "base": None if base is None else {"label": base.label, "commit": base.commit},
        "head": {"label": request.head.label, "commit": request.head.commit},
        "proof": None if proof is None else asdict(proof),
        "rule": asdict(request.rule),
        "planted": options.plant,
        "strict": options.strict,
        "exit_code": code,
    }
    text = "\n".join(f"- {remark}" for remark in remarks)
    write_gate(options.out, result, at_work.environment, facts, text, strict=options.strict)
    for line in (*remarks, *map(case_line, result.cases), plain_sentence(result)):
        print(line)
    print(f"written: {options.out}")
    return code


def _remarks(request: Request, base: Sources | None, proof: Proof | None) -> list[str]:
    """What is compared, and how it is known to be two."""
    head = request.head
    remarks = [f"Head: {head.label} ({head.commit or 'no commit'})."]
    if base is not None:
        remarks[0] += f" Base: {base.label} ({base.commit})."
    if request.device == "cpu":
        remarks.append(ON_A_CPU)
    if proof is not None:
        remarks.append(
            f"The two sides are two: with head's process slowed by {proof.planted:.0%}, "
            f"head / base moved by {proof.seen:+.1%}."
        )
    elif base is not None:
        remarks.append("That the sides are two was not seen: no case could be timed on both.")
    return remarks
