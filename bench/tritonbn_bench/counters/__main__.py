"""The command: choose cases, count tritonbn's call and torch's, write counters.json and .md."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tritonbn_kernels.outlook import Device

from ..cases import Case
from ..environment import collect, same_machine
from ..plan_table import device_of
from ..providers import PROVIDERS
from ..results import Results
from ..summary import EAGER, LARGE, OURS
from .choice import FIXED, case_of, worst
from .ncu import SECONDS, NotPossibleError, count, find_ncu
from .record import Record, expected_of_case, load, save
from .table import as_markdown

__all__ = ["main"]

DONE, FAILED, NOT_POSSIBLE = 0, 1, 2
# seconds that the call under way has when time is over
GRACE = 30.0
PROGRAM = "python -m tritonbn_bench.counters"


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, and return the exit code: 0 everything was counted or time is over, 1 a call was not,
    2 wrong usage, or this machine has no counters for us."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        chosen = _parser().parse_args(given)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        cases = [case_of(one) for one in _identifiers(chosen)]
        _look_for_the_tools()
        return _count_all(chosen, cases, shlex.join([PROGRAM, *given]))
    except (NotPossibleError, ValueError, OSError) as error:
        print(f"counters: {error}", file=sys.stderr)
        return NOT_POSSIBLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE-ID", help=f"such as {FIXED[0]}")
    parser.add_argument(
        "--worst",
        type=int,
        metavar="N",
        help="the N cases of a sweep that are slowest against a copy, and N/2 against their best "
        f"rival, of those that move {LARGE / 1e6:.0f} MB or more",
    )
    parser.add_argument(
        "--from", dest="results", type=Path, metavar="RESULTS", help="results.json, or its folder"
    )
    parser.add_argument("--out", type=Path, default=Path("out/counters"), metavar="DIR")
    parser.add_argument("--resume", action="store_true", help="keep what DIR has counted already")
    parser.add_argument(
        "--minutes", type=float, help=f"start no call after so long, and end {GRACE:.0f} s later"
    )
    return parser


def _identifiers(chosen: argparse.Namespace) -> list[str]:
    """Ids given, those of the slowest cases, or a fixed few where no results say which these are.

    Raises:
        FileNotFoundError: there are no such results
    """
    found = list(chosen.cases)
    if chosen.worst is not None and chosen.results is not None:
        found += worst(Results.load(chosen.results).rows, chosen.worst)
    if not found:
        print("no large case of a sweep was given: a fixed few are counted")
        return list(FIXED)
    return list(dict.fromkeys(found))


def _look_for_the_tools() -> None:
    """Raise NotPossibleError unless ncu and a GPU are there."""
    import torch

    find_ncu()
    if not torch.cuda.is_available():
        raise NotPossibleError("no GPU is seen, and counters are those of a GPU")


def _count_all(chosen: argparse.Namespace, cases: Sequence[Case], command: str) -> int:
    """Count both providers of every case, and write what there is after each."""
    environment = collect("cuda", command)
    device, _ = device_of("local")
    before, kept = load(chosen.out) if chosen.resume else ({}, [])
    if before and (different := same_machine(before, environment)):
        raise ValueError(f"{chosen.out} differs from this run in {', '.join(different)}")
    records = {(one.case, one.provider): one for one in kept if not one.reason}
    left = [
        (case, provider)
        for case in cases
        for provider in (OURS, next(name for name in EAGER if PROVIDERS[name].takes(case)))
        if (case.id, provider) not in records
    ]
    end = time.monotonic() + (60 * chosen.minutes if chosen.minutes else math.inf)
    while left and time.monotonic() < end:
        case, provider = left.pop(0)
        seconds = min(SECONDS, end + GRACE - time.monotonic())
        record = _counted(case, provider, device, seconds)
        if record.reason and time.monotonic() >= end:
            # cut short, which says nothing of the call
            left.insert(0, (case, provider))
            break
        records[case.id, provider] = record
        print(f"{case.id} | {provider} | {record.reason or 'counted'}", flush=True)
        save(chosen.out, environment, records.values())
        page = as_markdown(environment, list(records.values()))
        (chosen.out / "counters.md").write_text(page, encoding="utf-8")
    if left:
        print("time is over: go on with --resume")
    return FAILED if any(record.reason for record in records.values()) else DONE


def _counted(case: Case, provider: str, device: Device, seconds: float) -> Record:
    """What ncu counts of a call within so many seconds, or why it does not."""
    expected = expected_of_case(case, device)
    try:
        counted = count(case.id, provider, seconds)
    except (RuntimeError, ValueError) as error:
        return Record(case.id, provider, "", (), expected, str(error))
    return Record(case.id, provider, counted.backend, counted.kernels, expected)


if __name__ == "__main__":
    sys.exit(main())
