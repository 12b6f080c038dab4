"""`python -m tritonbn_bench.static.worker PART [WORDS ...]`: one part of the check, in a process of
its own.

PART is a target, `launches` or `traffic`; WORDS choose cases by their names. Prints one line of
JSON: what was measured, and faults.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["LAUNCHES", "TRAFFIC", "main", "measured"]

LAUNCHES, TRAFFIC = "launches", "traffic"


def measured(part: str, only: Sequence[str]) -> dict[str, Any]:
    """What one part finds, of cases whose names contain one of `only`; ready for JSON."""
    if part == TRAFFIC:
        from . import traffic

        moved = traffic.measure(only)
        return {TRAFFIC: moved, "faults": list(traffic.faults_of(moved))}
    if part == LAUNCHES:
        from . import launches

        return {LAUNCHES: launches.measure(only), "faults": []}
    from . import budget, check
    from .driver import TARGETS
    from .plans import is_chosen, quick_cases

    cases = [case for case in quick_cases() if is_chosen(case.name, only)]
    rows = list(check.check([TARGETS[part]], cases))
    faults = [f"{budget.key_of(row)}: {'; '.join(row.faults)}" for row in rows if row.faults]
    return {"figures": budget.measure(rows), "hints": budget.hints_of(rows), "faults": faults}


def main(arguments: list[str]) -> int:
    """Measure `PART [WORDS ...]`; the exit code."""
    part, *only = arguments
    print(json.dumps(measured(part, only)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
