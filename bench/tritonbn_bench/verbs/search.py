"""`tritonbn-bench search`."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    ACCURACY,
    INTERRUPTED,
    PASSED,
    UsageError,
    add_minutes,
    add_verb,
    check_folder,
    check_plans,
)

if TYPE_CHECKING:
    from tritonbn_kernels.outlook import Device
    from tritonbn_kernels.plan_file import Regime

    from ..cases import Case
    from ..judge.rule import Rule
    from ..search.machine import Machine
    from ..search.record import Record

__all__ = ["add", "run"]

DEFAULT_OUT = Path("out/search")
TRAINING = "forward_train,backward_train"
EXAMPLES = """examples:
  tritonbn-bench search                               ResNet-50's layers in bf16, training
  tritonbn-bench search --cases model:net:make        those of a model, as net.make() returns it
  tritonbn-bench search --minutes 20 --resume         twenty minutes, then again from there on
  tritonbn-bench search --resume --write plans.json   the rows that should change as a plan file
  tritonbn-bench search --list --device h200          what would be tried; needs no GPU

The package follows a plan file only where it is told to: tritonbn.use_plans("plans.json"), or
TRITONBN_PLAN_FILE=plans.json.
"""


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "search",
        "look for faster plans on this GPU",
        "Try the plans that the planner allows against those of its table, in the rounds and by "
        "the statistics of the gate. A row should change where every case of its regime is faster "
        "by more than the margin, twice.",
        EXAMPLES,
    )
    parser.set_defaults(verb=run)
    parser.add_argument(
        "--cases",
        default="quick",
        metavar="CASES",
        help="quick (ResNet-50, bf16), resnet50, sweep, networks, model:NETWORK or "
        "model:package.module:function (default: %(default)s)",
    )
    parser.add_argument(
        "--modes",
        default=TRAINING,
        metavar="A,B",
        help="of forward_train, backward_train, forward_eval, backward_eval (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="of a case, twice as many to confirm (default: 20)"
    )
    add_minutes(parser, "stop after about M minutes; go on with --resume")
    parser.add_argument(
        "--out",
        type=Path,
        default=DEFAULT_OUT,
        metavar="DIR",
        help="folder of what was measured (default: %(default)s)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep what lies in DIR and search only the rest"
    )
    parser.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        help="write the rows that should change, by all that lies in DIR",
    )
    parser.add_argument("--list", action="store_true", help="print what would be tried, and stop")
    parser.add_argument(
        "--device",
        choices=["h200", "h100", "a100", "mig16", "local"],
        help="with --list, for which GPU (default: this machine's, else h200)",
    )


def run(options: argparse.Namespace) -> int:
    """Search, print and write; the exit code."""
    from ..search import machine

    groups = _groups(options)
    if options.list:
        return _list(groups, options.device)
    if options.device not in (None, "local"):
        raise UsageError(
            f"expected --device {options.device} with --list only: a search runs on this "
            "machine's GPU"
        )
    rule = _rule(options.rounds)
    try:
        here = machine.local_machine(options.command)
    except LookupError as error:
        raise UsageError(str(error)) from error
    check_folder(options.out)
    return _search(options, groups, here, rule)


def _groups(options: argparse.Namespace) -> Mapping[Regime, tuple[Case, ...]]:
    from tritonbn_kernels.plan import environment_pins
    from tritonbn_kernels.traffic import MODES

    from ..search.regimes import cases_named, grouped

    check_plans()
    modes = [mode.strip() for mode in options.modes.split(",") if mode.strip()]
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise UsageError(f"expected modes of {', '.join(MODES)}, got {unknown[0]}")
    try:
        pins, cases = environment_pins(), cases_named(options.cases)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if pins:
        raise UsageError("TRITONBN_PLAN precedes every plan to be tried: unset it")
    groups = grouped(cases, modes)
    if not groups:
        raise UsageError(f"expected cases in {options.modes}, got none of {options.cases}")
    return groups


def _rule(rounds: int | None) -> Rule:
    from dataclasses import replace

    from ..judge.rule import RULE

    if rounds is not None and rounds < RULE.fewest:
        raise UsageError(f"expected --rounds of at least {RULE.fewest}, got {rounds}")
    return RULE if rounds is None else replace(RULE, rounds=rounds)


def _list(groups: Mapping[Regime, tuple[Case, ...]], name: str | None) -> int:
    """Print what would be tried."""
    from ..plan_table import device_of
    from ..search.candidates import proposals_for

    try:
        device, remark = device_of(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    print(f"plans that a search on {device.name} would try" + (f"; {remark}" if remark else ""))
    total = 0
    for regime, cases in groups.items():
        proposals = proposals_for(regime, cases, device)
        total += len(proposals.plans)
        print(f"\n{regime}: {', '.join(case.id for case in cases)}")
        print(f"  table: {_planned(regime, cases[0], device)}")
        for plan in proposals.plans:
            print(f"  {plan}: {_planned(regime, cases[0], device, plan)}")
        print(f"  left out: {proposals.refused} refused, {proposals.same} the same as another")
    print(f"\n{total} plans in {len(groups)} regimes")
    return PASSED


def _planned(regime: Regime, case: Case, device: Device, plan: str = "") -> str:
    from ..plan_table import plan_text
    from ..search.candidates import expected_of

    expected = expected_of(regime, case, device, plan)
    return f"{plan_text(expected)}, {expected.plan.num_warps} warps"


def _search(
    options: argparse.Namespace,
    groups: Mapping[Regime, tuple[Case, ...]],
    here: Machine,
    rule: Rule,
) -> int:
    from ..interruption import arriving
    from ..search.candidates import TABLE
    from ..search.record import Record, as_plan_file, as_text

    try:
        record = (
            Record.resume(options.out, here.environment)
            if options.resume
            else Record(options.out, here.environment)
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    interrupted = False
    try:
        with arriving():
            _go_on(record, groups, here, rule, options.minutes)
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted; go on with --resume", file=sys.stderr)
    found = [outcome for outcome in record.outcomes if outcome.regime in groups]
    print(f"on {here.device.name}, {here.gpu[1]} SMs:\n{as_text(found, len(groups))}")
    if interrupted:
        return INTERRUPTED
    if options.write:
        plans = as_plan_file(record.outcomes, here.environment, here.gpu)
        if plans.rows:
            plans.write(options.write)
            print(f'written: {options.write}; tritonbn.use_plans("{options.write}") follows it')
        else:
            print(f"nothing was written to {options.write}: no row should change")
    if any(TABLE in outcome.failed for outcome in found):
        print("regimes without times are searched again with --resume", file=sys.stderr)
    return ACCURACY if any(outcome.wrong for outcome in found) else PASSED


def _go_on(
    record: Record,
    groups: Mapping[Regime, tuple[Case, ...]],
    here: Machine,
    rule: Rule,
    minutes: float | None,
) -> None:
    """Search the regimes that are not in the record, until time is over."""
    from ..progress import progress
    from ..search.candidates import proposals_for
    from ..search.trial import try_plans

    deadline = time.monotonic() + 60 * (math.inf if minutes is None else minutes)
    left = {regime: cases for regime, cases in groups.items() if not record.holds(regime, cases)}
    with progress("search", len(left)) as advance:
        for regime, cases in left.items():
            proposals = proposals_for(regime, cases, here.device)
            outcome = try_plans(regime, cases, proposals, here.meter, rule)
            advance()
            record.add(outcome)
            if time.monotonic() > deadline:
                print("time is over; go on with --resume", file=sys.stderr)
                break
