"""The command line: `tritonbn-bench VERB`. A verb's heavy imports come when it runs, so that
`--help` answers at once."""

from __future__ import annotations

import argparse
import shlex
import sys
import traceback
from collections.abc import Sequence

from .interruption import noted
from .verbs import baseline, check, env, gate, model, plan, report, run, search, selfcheck
from .verbs.common import EXIT_CODES, INTERRUPTED, USAGE, UsageError, words_of

__all__ = ["main"]

# in the order of the help
VERBS = (run, model, plan, report, gate, check, baseline, selfcheck, search, env)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code.

    Args:
        arguments: of the command line, without the program's name; of this process if None
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        options = _parser().parse_args(given)
    except SystemExit as stop:
        # argparse has printed what is wrong, or the help
        return int(stop.code or 0)
    options.command = shlex.join(["tritonbn-bench", *given])
    try:
        with noted():
            return int(options.verb(options))
    except UsageError as error:
        print(f"tritonbn-bench: {error}", file=sys.stderr)
        return USAGE
    except OSError as error:
        if error.filename is None:
            traceback.print_exc()
        else:
            print(f"tritonbn-bench: {words_of(error)}", file=sys.stderr)
        return USAGE
    except Exception:
        # 1 would say that something became slower
        traceback.print_exc()
        return USAGE
    except KeyboardInterrupt:
        print("tritonbn-bench: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tritonbn-bench",
        description="Accuracy, speed and training of tritonbn on this machine, and a report.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb in VERBS:
        verb.add(verbs)
    return parser
