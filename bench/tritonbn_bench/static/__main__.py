"""`python -m tritonbn_bench.static`: compile every plan for every target and judge it.

Exit code 0: all is as it must be and no worse than the committed budget; 1: faults or a worse
figure, printed; 2: it cannot run here. `--update` writes the budget.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the exit code."""
    # the interpreter replaces the compiler as soon as the kernels are imported
    if os.environ.get("TRITON_INTERPRET", "0") not in {"", "0"}:
        print("expected no TRITON_INTERPRET: the interpreter compiles nothing", file=sys.stderr)
        return 2
    from .check import run
    from .driver import TARGETS
    from .plans import DTYPES, cases, quick_cases

    parser = argparse.ArgumentParser(prog="python -m tritonbn_bench.static")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="default: all")
    parser.add_argument("--dtype", action="append", choices=list(DTYPES), help="default: all")
    parser.add_argument("--quick", action="store_true", help="a few shapes, bf16 alone")
    parser.add_argument("--update", action="store_true", help="make the figures the new budget")
    parser.add_argument("--all", action="store_true", help="one line for every launch")
    chosen = parser.parse_args(arguments)
    candidates = quick_cases() if chosen.quick else cases()
    wanted = [case for case in candidates if not chosen.dtype or case.dtype in chosen.dtype]
    whole = not (chosen.quick or chosen.target or chosen.dtype)
    update = ("whole" if whole else "part") if chosen.update else ""
    lines, faults = run(chosen.target or list(TARGETS), wanted, chosen.all, update)
    print("\n".join(lines))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
