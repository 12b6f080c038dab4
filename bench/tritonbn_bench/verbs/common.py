"""What every verb shares: exit codes, and the errors that a user can put right."""

from __future__ import annotations

import argparse
import errno
import math
import shlex
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
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
    "add_minutes",
    "add_verb",
    "check_folder",
    "check_plans",
    "nonnegative",
    "put_aside",
    "words_of",
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


_ADVICE = {
    errno.ENOENT: "see whether the path is right",
    errno.EEXIST: "a file stands where a folder should: choose another path",
    errno.ENOTDIR: "a file stands where a folder should: choose another path",
    errno.EISDIR: "a folder stands where a file should: choose another path",
    errno.EACCES: "see to its permissions, or choose another path",
    errno.EPERM: "see to its permissions, or choose another path",
    errno.EROFS: "choose a path that can be written to",
    errno.ENOSPC: "make room, or choose another path",
}


class UsageError(Exception):
    """Something the user can put right; the text says how."""


def words_of(error: OSError) -> str:
    """What is wrong with a file, and what may help; of an error that names one."""
    advice = _ADVICE.get(error.errno or 0, "see to it, or choose another path")
    return f"{error.filename}: {error.strerror}; {advice}"


def check_folder(folder: Path, option: str = "--out") -> None:
    """See that a folder is there or can be made, and can be written to; to be called before
    anything is measured, for it would be lost. Nothing is left behind.

    Args:
        folder: that will be written to
        option: that named it

    Raises:
        UsageError: it cannot
    """
    made: list[Path] = []
    try:
        for part in (*reversed(folder.parents), folder):
            if not part.exists():
                part.mkdir()
                made.append(part)
        # permissions do not tell: root has them all, and /proc takes no file
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".tritonbn-"):
            pass
    except OSError as error:
        raise UsageError(
            f"expected a folder for {option} that can be written to, got {folder}: "
            f"{error.strerror}; choose another"
        ) from error
    finally:
        for part in reversed(made):
            # unless somebody has put something into it meanwhile
            with suppress(OSError):
                part.rmdir()


def check_plans() -> None:
    """See that the plans that the environment asks for can be had.

    Raises:
        UsageError: TRITONBN_PLAN or TRITONBN_PLAN_FILE is wrong
    """
    from tritonbn_kernels.plan import environment_pins
    from tritonbn_kernels.plan_file import in_use

    try:
        environment_pins()
        in_use()
    except ValueError as error:
        raise UsageError(f"{error}; correct it or unset it") from error


def put_aside(folder: Path) -> None:
    """Keep the results that a new measurement in a folder replaces, and say so."""
    from ..results import Results

    kept = Results.put_aside(folder)
    if kept is not None:
        before, now = (shlex.quote(str(path)) for path in kept)
        print(
            f"earlier results are in {now} now; to have them back: mv {now} {before}",
            file=sys.stderr,
        )


def nonnegative(text: str) -> float:
    """A type of argparse: a finite number that is 0 or more.

    Raises:
        ArgumentTypeError: it is another, or none
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # false of a NaN too
    if 0 <= value < math.inf:
        return value
    raise argparse.ArgumentTypeError(f"expected a finite number of 0 or more, got {text!r}")


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


def add_minutes(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Declare --minutes.

    Args:
        parser: of a verb
        meaning: for its help, of M minutes
    """
    parser.add_argument("--minutes", type=nonnegative, metavar="M", help=meaning)


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
