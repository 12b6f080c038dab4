"""Pages that several tests look at, each drawn once."""

import atexit
import functools
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.full_results import full_results
from tritonbn_bench.jobs import Run, perform
from tritonbn_bench.results import Results, Row
from tritonbn_bench.training import Outcome, Trained, training_rows

__all__ = ["full_page", "full_table", "page_without_a_gpu", "table_without_a_gpu"]

TRAINED = Trained((2.0, 1.0), {}, 4000, 16)
FUSED = Trained((2.0, 1.0 + 1e-6), {"forward with relu": 8}, 3000, 8)


@functools.cache
def full_table() -> Results:
    """Results of every job on an imaginary GPU."""
    return full_results()


@functools.cache
def full_page() -> Path:
    """Their page."""
    return _drawn(full_table())


@functools.cache
def table_without_a_gpu() -> Results:
    """Results of a machine without a GPU: one red error, training, what is modelled and static."""
    run = Run(Results({"device": "cpu", "date": "2026-01-01 00:00 UTC"}), _folder(), "cpu")
    perform(["traffic", "fusion", "memory", "plan", "static"], run)
    run.add(training_rows(Outcome(TRAINED, TRAINED, FUSED, 4, "interpreter", (), True)))
    place = ("accuracy", "measured", "forward_train/fp32/nchw/N1C2S4")
    theirs = Row(*place, "torch", "error of y", value=1.0, data="digits")
    theirs = replace(theirs, mode="forward_train", dtype="fp32", layout="nchw")
    ours = replace(theirs, provider="tritonbn", value=0.0, bound=4.0, data="mean/std=0")
    red: dict[str, Any] = {"value": 5.0, "status": "failed", "reason": "y: error 5 is above 4"}
    run.add([replace(ours, data="digits", **red), theirs])
    run.add([ours, replace(theirs, data="mean/std=0")])
    return run.results


@functools.cache
def page_without_a_gpu() -> Path:
    """Their page."""
    return _drawn(table_without_a_gpu())


def _folder() -> Path:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _drawn(results: Results) -> Path:
    from tritonbn_bench.report import write_report

    return write_report(results, _folder())
