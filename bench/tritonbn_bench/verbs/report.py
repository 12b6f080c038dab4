"""`tritonbn-bench report`, and how a verb that measures ends."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import PASSED, UsageError, add_verb, check_folder

if TYPE_CHECKING:
    from ..collection import Report
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
    if options.out is not None:
        check_folder(options.out)
    found = [_load(path) for path in options.reports]
    if len(found) == 1:
        place = options.reports[0]
        publish(found[0], options.out or (place if place.is_dir() else place.parent))
    else:
        _compare(found[0], found[1], options.out or DEFAULT_OUT)
    return exit_code(found[-1].rows)


def _redraw(folder: Path, readme: Path | None) -> int:
    """Redraw every report in a folder, its index, and the table of a README."""
    from .. import collection

    # what may be wrong with an input or a figure is found before anything is written; that a disk
    # is full is found too late for that
    places = {INDEX: folder / "README.md", **({} if readme is None else {SPEED: readme})}
    try:
        reports = collection.reports_in(folder)
        _filled(places, dict.fromkeys(places, ""))
    except ValueError as error:
        raise UsageError(str(error)) from error
    for report in reports:
        check_folder(report.path, "a report")
    with tempfile.TemporaryDirectory() as scratch:
        drawn = _drawn(reports, Path(scratch))
        contents = {INDEX: collection.index_of(reports)}
        if readme is not None:
            place = os.path.relpath(folder, readme.parent)
            contents[SPEED] = collection.speed_table(reports, Path(place).as_posix())
        for report, pages in zip(reports, drawn, strict=True):
            print(f"report: {_put(pages, report.path)}")
    for path, text in _filled(places, contents).items():
        path.write_text(text, encoding="utf-8")
    for mark, path in places.items():
        print(f"{mark}: {path}")
    return PASSED


def _filled(places: Mapping[str, Path], contents: Mapping[str, str]) -> dict[Path, str]:
    """Texts of files with contents between their marks; both marks may stand in one file.

    Raises:
        ValueError: the marks do not
    """
    from ..collection import written_between

    texts: dict[Path, str] = {}
    for mark, path in places.items():
        one = path.resolve()
        try:
            before = texts[one] if one in texts else path.read_text(encoding="utf-8")
            texts[one] = written_between(before, mark, contents[mark])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return texts


def _drawn(reports: Sequence[Report], scratch: Path) -> list[Path]:
    """Folders with the pages of reports, where nobody looks for them yet."""
    from ..report import write_report

    folders = []
    for number, report in enumerate(reports):
        folders.append(scratch / str(number))
        try:
            write_report(report.results, folders[-1])
        except ValueError as error:
            raise UsageError(
                f"{report.path}: it cannot be drawn, so nothing was written: {error}"
            ) from error
        except Exception:
            # a traceback does not tell whose figures they are
            print(
                f"tritonbn-bench: {report.path}: it cannot be drawn, so nothing was written",
                file=sys.stderr,
            )
            raise
    return folders


def _put(drawn: Path, folder: Path) -> Path:
    """Copy a page over what a report's folder has of it; where it is."""
    # as `write_report` does: what an earlier page showed and this one does not
    for stale in (folder / "pictures").glob("*.svg"):
        stale.unlink()
    for file in drawn.rglob("*"):
        if file.is_file():
            place = folder / file.relative_to(drawn)
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, place)
    return folder / "index.html"


def _load(path: Path) -> Results:
    from ..results import Results

    try:
        return Results.load(path)
    except FileNotFoundError as error:
        raise UsageError(f"no results.json in {path}; make one with run") from error
    except ValueError as error:
        raise UsageError(str(error)) from error


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
