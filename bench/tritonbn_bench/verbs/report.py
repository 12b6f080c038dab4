"""`tritonbn-bench report`, and how a verb that measures ends."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import PASSED, UsageError, add_verb

if TYPE_CHECKING:
    from ..results import Results

__all__ = ["absent_extras", "add", "publish", "run"]


DEFAULT_OUT = Path("out/comparison")
# marks in Markdown, between which --all writes
INDEX, SPEED = "index", "speed"
EXAMPLES = """examples:
  tritonbn-bench report out/report                    redraw the page of a report
  tritonbn-bench report before.json after.json        what became slower from one to the other
  tritonbn-bench report A B --out out/comparison      the same of two folders
  tritonbn-bench report --all reports                 redraw each report in a folder, and its index

A file of results may be compressed (results.json.gz). Two reports are compared on one machine only;
times are divided by those of a copy in the same run.
"""


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "report",
        "redraw reports from their results, or compare two",
        "Redraw reports from their results, or compare two; nothing is measured.",
        EXAMPLES,
    )
    parser.set_defaults(verb=run)
    parser.add_argument(
        "reports",
        nargs="*",
        type=Path,
        metavar="DIR|FILE",
        help="folder with a results.json, or such a file; a second one is compared with the first",
    )
    parser.add_argument(
        "--all",
        type=Path,
        metavar="DIR",
        help=f"redraw every report in folders of DIR, and write their index into DIR/README.md, "
        f"between <!-- {INDEX} --> and <!-- /{INDEX} -->",
    )
    parser.add_argument(
        "--readme",
        type=Path,
        metavar="FILE",
        help=f"with --all: write what the newest report measured on a GPU says of speed into FILE, "
        f"between <!-- {SPEED} --> and <!-- /{SPEED} -->",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"folder of the page (default: that of the results; of a comparison: {DEFAULT_OUT})",
    )


def run(options: argparse.Namespace) -> int:
    """Redraw or compare; the exit code of the results, of the second where there are two."""
    from ..summary import exit_code

    absent = absent_extras()
    if absent:
        raise UsageError(f"{', '.join(absent)} missing: pip install 'tritonbn[report]'")
    if options.all is not None:
        if options.reports or options.out:
            raise UsageError("--all takes no other report and no --out: it redraws in place")
        return _redraw(options.all, options.readme)
    if options.readme is not None:
        raise UsageError("--readme needs --all: a table is made from the newest of all reports")
    if len(options.reports) not in (1, 2):
        raise UsageError(f"expected one report, or two to compare, got {len(options.reports)}")
    found = [_load(path) for path in options.reports]
    if len(found) == 1:
        place = options.reports[0]
        publish(found[0], options.out or (place.parent if place.is_file() else place))
    else:
        _compare(found[0], found[1], options.out or DEFAULT_OUT)
    return exit_code(found[-1].rows)


def _redraw(folder: Path, readme: Path | None) -> int:
    """Redraw every report in a folder, its index, and the table of a README."""
    from .. import collection
    from ..report import write_report

    # all that may be wrong is found before anything is written
    try:
        reports = collection.reports_in(folder)
        texts = {folder / "README.md": (INDEX, collection.index_of(reports))}
        if readme is not None:
            place = os.path.relpath(folder, readme.parent)
            texts[readme] = (SPEED, collection.speed_table(reports, Path(place).as_posix()))
        for path, (mark, content) in texts.items():
            texts[path] = (mark, collection.written_between(path.read_text(), mark, content))
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    for report in reports:
        print(f"report: {write_report(report.results, report.path)}")
    for path, (mark, text) in texts.items():
        path.write_text(text)
        print(f"{mark}: {path}")
    return PASSED


def _load(path: Path) -> Results:
    from ..results import Results

    try:
        return Results.load(path)
    except FileNotFoundError as error:
        raise UsageError(f"no results.json in {path}; make one with run") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} holds no results of this version: {error}") from error


def _compare(first: Results, second: Results, folder: Path) -> None:
    from ..report import write_comparison
    from ..report.blocks import Words
    from ..report.comparison import comparison_sections

    try:
        page = write_comparison(first, second, folder)
    except ValueError as error:
        raise UsageError(str(error)) from error
    for block in comparison_sections(first, second)[0].blocks:
        if isinstance(block, Words) and block.loud:
            print(block.text)
    print(f"comparison: {page}")


def publish(results: Results, folder: Path) -> None:
    """Write the report if the extras are there, then print its verdict and its path."""
    from ..results import Results as Table
    from ..verdict import verdict

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
    return [name for name in ("pandas", "matplotlib", "jinja2") if find_spec(name) is None]
