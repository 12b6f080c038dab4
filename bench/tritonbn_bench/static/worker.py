"""`python -m tritonbn_bench.static.worker PART`: one part of the check in a process of its own.

PART is a target, `launches` or `traffic`. Prints one line of JSON: what was measured, and faults.
"""

from __future__ import annotations

import json
import sys
from typing import Any

__all__ = ["LAUNCHES", "TRAFFIC", "main", "measured"]

LAUNCHES, TRAFFIC = "launches", "traffic"


def measured(part: str, only: str) -> dict[str, Any]:
    """What one part finds, of cases whose names contain `only`; ready for JSON."""
    if part == TRAFFIC:
        from . import traffic

        moved = traffic.measure(only)
        return {TRAFFIC: moved, "faults": list(traffic.faults_of(moved))}
    if part == LAUNCHES:
        from . import launches

        return {LAUNCHES: launches.measure(only), "faults": []}
    from . import budget, check
    from .driver import TARGETS
    from .plans import quick_cases

    cases = [case for case in quick_cases() if only in case.name]
    rows = list(check.check([TARGETS[part]], cases))
    faults = [
        f"{part} {row.planned.case.name} | {row.planned.operation} | {row.planned.record.kernel}: "
        f"{'; '.join(row.faults)}"
        for row in rows
        if row.faults
    ]
    return {"figures": budget.measure(rows), "hints": budget.hints_of(rows), "faults": faults}


def main(arguments: list[str]) -> int:
    """Measure `PART [ONLY]`; the exit code."""
    part, only = (*arguments, "")[:2]
    print(json.dumps(measured(part, only)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
