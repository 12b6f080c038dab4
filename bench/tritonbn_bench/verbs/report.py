"""`tritonbn-bench report`, and how a verb that measures ends."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import UsageError, add_verb

if TYPE_CHECKING:
    from ..results import Results

__all__ = ["absent_extras", "add", "publish", "run"]


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "report",
        "redraw a report from its results",
        "Redraw a report from its results; nothing is measured.",
        "example:\n  tritonbn-bench report out/report\n",
    )
    parser.set_defaults(verb=run)
    parser.add_argument("folder", type=Path, metavar="DIR", help="where results.json lies")


def run(options: argparse.Namespace) -> int:
    """Redraw; the exit code of the results."""
    from ..results import Results
    from ..summary import exit_code

    absent = absent_extras()
    if absent:
        raise UsageError(f"{', '.join(absent)} missing: pip install 'tritonbn[report]'")
    try:
        results = Results.load(options.folder)
    except FileNotFoundError as error:
        raise UsageError(f"no results.json in {options.folder}; make one with run") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    publish(results, options.folder)
    return exit_code(results.rows)


def publish(results: Results, folder: Path) -> None:
    """Write the report if the extras are there, then print its verdict and its path."""
    from ..results import Results as Table
    from ..summary import verdict

    absent = absent_extras()
    if not absent:
        from ..report import write_report

        page = write_report(results, folder)
    for sentence in verdict(results):
        print(sentence)
    if absent:
        print(f"no report was drawn: {', '.join(absent)} missing (pip install 'tritonbn[report]')")
        print(f"results: {Table.path(folder)}")
    else:
        print(f"report: {page}")


def absent_extras() -> list[str]:
    """Libraries that a report needs and that are not installed."""
    return [name for name in ("pandas", "matplotlib") if find_spec(name) is None]
