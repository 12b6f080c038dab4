"""What every verb shares: exit codes, and the error that a user can put right."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = [
    "ACCURACY",
    "EXIT_CODES",
    "INCONCLUSIVE",
    "INTERRUPTED",
    "PASSED",
    "REGRESSION",
    "USAGE",
    "UsageError",
    "add_device",
    "add_verb",
]

# an interruption follows the shell's convention for SIGINT
PASSED, REGRESSION, USAGE, INCONCLUSIVE, ACCURACY, INTERRUPTED = 0, 1, 2, 3, 4, 130
EXIT_CODES = """exit codes:
  0    done (or time is over: repeat with --resume), every check of tritonbn passed
  1    something became slower or worse, confirmed
  2    wrong usage, or the machine lacks what was asked for
  3    no verdict was possible (of a gate: under --strict)
  4    a result of tritonbn broke its error bound, or training disagreed
  130  interrupted; what was measured is kept
"""


class UsageError(Exception):
    """Something the user can put right; the text says how."""


def add_verb(
    verbs: Any, name: str, summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """A parser for a verb whose help ends in examples and exit codes.

    Args:
        verbs: what `add_subparsers` returned
        name: of the verb
        summary: a few words for the list of verbs
        description: for the verb's own help
        examples: lines with an example each, and what else is worth saying
    """
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"{examples}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_device(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Declare --device.

    Args:
        parser: of a verb
        more: to be said of auto
    """
    parser.add_argument(
        "--device",
        choices=["auto", "cuda", "cpu"],
        default="auto",
        help=f"auto takes a GPU where there is one{more} (default: %(default)s)",
    )
