"""What a case, a mode and a gate can come to, and the exit code of it."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from ..verbs import common

__all__ = ["Verdict", "exit_code"]


class Verdict(str, Enum):
    """In the order in which reports list them."""

    ACCURACY = "accuracy failure"
    REGRESSION = "REGRESSION"
    INCONCLUSIVE = "INCONCLUSIVE"
    NO_BASELINE = "NO_BASELINE"
    SKIPPED = "SKIPPED"
    IMPROVED = "IMPROVED"
    PASS = "PASS"


def exit_code(verdicts: Iterable[Verdict], *, strict: bool) -> int:
    """That of the gravest verdict: 4, 1, 3 or 0.

    Args:
        verdicts: of cases and totals
        strict: whether no verdict is a failure too
    """
    found = set(verdicts)
    if Verdict.ACCURACY in found:
        return common.ACCURACY
    if Verdict.REGRESSION in found:
        return common.REGRESSION
    if strict and Verdict.INCONCLUSIVE in found:
        return common.INCONCLUSIVE
    return common.PASSED
