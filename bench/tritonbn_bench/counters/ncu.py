"""Nsight Compute's command line: how it is asked, and what its CSV says."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = [
    "BACKEND",
    "SECONDS",
    "Counted",
    "Kernel",
    "NotPossibleError",
    "count",
    "find_ncu",
    "kernels_of",
]

# the program that is profiled says what really runs in a line that begins so
BACKEND = "backend: "
# figure -> metric of ncu; sectors are of 32 bytes
METRICS = {
    "ns": "gpu__time_duration.sum",
    "dram_read": "dram__bytes_read.sum",
    "dram_written": "dram__bytes_write.sum",
    "l2_sectors": "lts__t_sectors.sum",
    "l2_sectors_written": "lts__t_sectors_srcunit_tex_op_write.sum",
    "l2_hit_percent": "lts__t_sector_hit_rate.pct",
}
# the section that holds the reasons of stalls, whatever a version of ncu knows of them
STALLS = "WarpStateStats"
_STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio")
# a warp that issues is not stalled
_NO_STALLS = ("selected",)
_UNITS = {
    **{"": 1.0, "%": 1.0, "sector": 1.0, "inst": 1.0, "warp": 1.0, "ratio": 1.0},
    **{"byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9},
    **{"ns": 1.0, "us": 1e3, "ms": 1e6, "s": 1e9},
    **{"nsecond": 1.0, "usecond": 1e3, "msecond": 1e6, "second": 1e9},
}
# what ncu says where no program can be profiled on this machine
REFUSED = (
    "ERR_NVGPUCTRPERM",
    "Failed to initialize the profiler",
    "LibraryNotLoaded",
    "driver resource was unavailable",
    "is not supported on",
)
_ERROR = "==ERROR=="
# a call takes about 15: imports, inputs, compilation, then a few passes of each kernel
SECONDS = 180.0


class NotPossibleError(Exception):
    """This machine has no counters for us; the text says why, in a line."""


@dataclass(frozen=True)
class Kernel:
    """What ncu counted of one launch.

    Attributes:
        name: of the kernel, without its template's arguments
        figures: by the keys of METRICS: ns, bytes, sectors, percent; what ncu had not is left out
        stalls: by reason, warps that wait for it at each instruction issued
    """

    name: str
    figures: dict[str, float]
    stalls: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Counted:
    """The launches of one call, and what really ran."""

    backend: str
    kernels: tuple[Kernel, ...]


def count(identifier: str, provider: str, seconds: float = SECONDS) -> Counted:
    """Profile one call of a provider in a process of its own.

    Args:
        identifier: id of a case
        provider: key of `providers.PROVIDERS`
        seconds: after which it is given up

    Raises:
        NotPossibleError: ncu is missing, or refuses this machine
        RuntimeError: the call failed, took too long, or launched no kernel
    """
    ncu = find_ncu()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ncu.csv"
        printed, code = _run([ncu, *_options(log)], [identifier, provider], seconds)
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    said = [line for line in (*text.splitlines(), *printed.splitlines()) if line.strip()]
    _raise_error(said, code)
    kernels = tuple(kernels_of(text.splitlines()))
    if not kernels:
        raise RuntimeError(_last(said) or "ncu saw no kernel")
    if not any(kernel.figures for kernel in kernels):
        raise RuntimeError(f"ncu's CSV has none of {', '.join(METRICS.values())}")
    backends = [line.removeprefix(BACKEND) for line in said if line.startswith(BACKEND)]
    return Counted(backends[-1] if backends else "", kernels)


def find_ncu() -> str:
    """The path of ncu.

    Raises:
        NotPossibleError: it is missing
    """
    ncu = shutil.which("ncu")
    if ncu is None:
        raise NotPossibleError("ncu (Nsight Compute) is missing")
    return ncu


def _options(log: Path) -> list[str]:
    """ncu's options. Clocks are left alone; every pass of a kernel starts with cold caches."""
    return [
        *("--csv", "--page", "raw", "--print-units", "base", "--log-file", str(log)),
        *("--profile-from-start", "off", "--target-processes", "application-only"),
        *("--clock-control", "none", "--cache-control", "all"),
        *("--metrics", ",".join(METRICS.values()), "--section", STALLS),
    ]


def _run(ncu: Sequence[str], arguments: Sequence[str], seconds: float) -> tuple[str, int]:
    """What the profiled program and ncu print, and the exit code."""
    program = [sys.executable, "-m", "tritonbn_bench.counters.child", *arguments]
    process = subprocess.Popen(
        [*ncu, *program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        # numbers as a program reads them
        env={**os.environ, "LC_ALL": "C"},
    )
    try:
        printed, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as late:
        raise RuntimeError(f"took longer than {seconds:.0f} s") from late
    finally:
        if process.poll() is None:
            # the program too: it would outlive ncu, and keep the GPU
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return printed, process.returncode


def _raise_error(said: Sequence[str], code: int) -> None:
    errors = [line.removeprefix(_ERROR).strip() for line in said if line.startswith(_ERROR)]
    for line in errors:
        if any(words in line for words in REFUSED):
            raise NotPossibleError(f"ncu: {line}")
    if errors or code:
        # what the program said last tells more than that it ended badly
        own = [line for line in said if not line.startswith(("==", '"'))]
        own = [line for line in own if not line.startswith(BACKEND)]
        raise RuntimeError(_last(own) or _last(errors) or f"ncu ended with exit code {code}")


def _last(lines: Sequence[str]) -> str:
    return lines[-1].strip()[:300] if lines else ""


def kernels_of(lines: Sequence[str]) -> Iterator[Kernel]:
    """The launches that ncu's CSV of raw figures lists, in order.

    A line of names, one of units, then one for each launch; lines of ncu's own before them are
    skipped.

    Raises:
        ValueError: a unit that is not known
    """
    starts = [number for number, line in enumerate(lines) if line.startswith('"ID"')]
    if not starts:
        return
    head, *rows = csv.reader(lines[starts[0] :])
    units: dict[str, str] = {}
    for row in rows:
        if len(row) != len(head):
            continue
        cells = dict(zip(head, row, strict=True))
        if not cells["ID"]:
            units = cells
        else:
            yield _kernel(cells, units)


def _kernel(cells: dict[str, str], units: dict[str, str]) -> Kernel:
    figures, stalls = {}, {}
    for name, metric in METRICS.items():
        value = _number(cells.get(metric, ""), units.get(metric, ""))
        if value is not None:
            figures[name] = value
    for column, text in cells.items():
        found = _STALL.fullmatch(column)
        value = _number(text, "") if found else None
        if found and value is not None and not _is_none(found[1]):
            stalls[found[1].replace("_", " ")] = value
    return Kernel(_short(cells["Kernel Name"]), figures, stalls)


def _is_none(reason: str) -> bool:
    """Whether this is no stall, or counts one a second time."""
    return reason in _NO_STALLS or reason.endswith("_not_issued")


def _number(text: str, unit: str) -> float | None:
    """A value in base units, None where ncu had none."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    if unit not in _UNITS:
        raise ValueError(f"expected a unit of {', '.join(filter(None, _UNITS))}, got {unit}")
    return value * _UNITS[unit] if value == value else None


def _short(name: str) -> str:
    """A kernel's own name: no return type, namespaces, template's or function's arguments."""
    plain = re.sub(r"\(anonymous namespace\)::|<unnamed>::|^void ", "", name)
    plain = re.split(r"[<(]", plain, maxsplit=1)[0]
    return plain.rsplit("::", 1)[-1].strip() or name
