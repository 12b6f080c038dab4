"""Executables that tests put first on PATH in place of tools that need a GPU."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tritonbn_bench.results import Row
from tritonbn_bench.summary import LARGE

__all__ = [
    "CASE",
    "FIRST",
    "READ",
    "SECOND",
    "TWO_KERNELS",
    "WRITTEN",
    "Calls",
    "install_ncu",
    "ncu_csv",
    "put_on_path",
    "sweep_rows",
]

# what a stand-in was called with so far
Calls = Callable[[], list[list[str]]]

_HEAD = (
    *("ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream"),
    *("Block Size", "Grid Size", "Device", "CC"),
)
_METRICS = {
    "dram__bytes_read.sum": "byte",
    "dram__bytes_write.sum": "byte",
    "gpu__time_duration.sum": "ns",
    "lts__t_sector_hit_rate.pct": "%",
    "lts__t_sectors.sum": "sector",
    "lts__t_sectors_srcunit_tex_op_write.sum": "sector",
    "smsp__average_warp_latency_per_inst_issued.ratio": "warp",
    "smsp__average_warps_issue_stalled_barrier_not_issued_per_issue_active.ratio": "inst",
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio": "inst",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": "inst",
    "smsp__average_warps_issue_stalled_membar_per_issue_active.ratio": "inst",
    "smsp__average_warps_issue_stalled_selected_per_issue_active.ratio": "inst",
    "smsp__average_warps_issue_stalled_wait_per_issue_active.ratio": "inst",
}


def put_on_path(
    folder: Path, name: str, body: str, monkeypatch: pytest.MonkeyPatch, *, only: bool = False
) -> None:
    """Write an executable of Python and put its folder first on PATH.

    Args:
        folder: made if it is not there
        name: of the executable
        body: its source
        monkeypatch: takes it off again
        only: whether nothing else is on PATH
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(0o755)
    rest = "" if only else os.pathsep + os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{folder}{rest}")


def ncu_csv(*kernels: tuple[str, dict[str, str]], units: dict[str, str] | None = None) -> str:
    """What `ncu --csv --page raw` writes of these kernels.

    Args:
        kernels: name, and values by metric; others are `n/a`
        units: of metrics that have another than the base one
    """
    names = list(_METRICS)
    lines = [
        "==PROF== Connected to process 4242 (/usr/bin/python3.12)",
        '==PROF== Profiling "kernel" - 0: 0%....50%....100% - 9 passes',
        "==PROF== Disconnected from process 4242",
    ]
    rows = [[*_HEAD, *names], [""] * len(_HEAD) + [{**_METRICS, **(units or {})}[n] for n in names]]
    for number, (kernel, values) in enumerate(kernels):
        where = [str(number), "4242", "python3.12", "127.0.0.1", kernel, "1", "7"]
        where += ["(128, 1, 1)", "(264, 1, 1)", "0", "9.0"]
        rows.append([*where, *(values.get(name, "n/a") for name in names)])
    lines += [",".join(f'"{cell}"' for cell in row) for row in rows]
    return "\n".join(lines) + "\n"


def sweep_rows(case: str, share: float, ratios: dict[str, float], **columns: Any) -> list[Row]:
    """Rows of one case as the sweep writes them; ratios of our time to a rival's."""
    floor = columns.pop("floor_bytes", LARGE)
    row = Row("sweep", "measured", case, "tritonbn", "time", floor_bytes=floor)
    row = replace(row, **columns)
    time = replace(row, unit="ms", value=1.0, low=1.0, high=1.0)
    rows = [time, replace(row, quantity="share of copy", value=share)]
    for rival, ratio in ratios.items():
        rows.append(replace(time, provider=rival, value=1 / ratio))
        quantity = f"ratio to {rival}"
        rows.append(replace(row, quantity=quantity, value=ratio, low=ratio, high=ratio))
    return rows


CASE = "forward_train/bf16/nchw/N256C64S3136"
# of the case: x read once, y written once; the second kernel's output is still in the L2 cache
READ, WRITTEN = 102_760_448, 102_760_448
FIRST = {
    "dram__bytes_read.sum": f"{READ:,}",
    "dram__bytes_write.sum": "1,024.00",
    "gpu__time_duration.sum": "30,000",
    "lts__t_sector_hit_rate.pct": "20",
    "lts__t_sectors.sum": "3,000",
    "lts__t_sectors_srcunit_tex_op_write.sum": "32",
    "smsp__average_warps_issue_stalled_barrier_not_issued_per_issue_active.ratio": "99",
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio": "4",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": "10",
    "smsp__average_warps_issue_stalled_membar_per_issue_active.ratio": "0.5",
    "smsp__average_warps_issue_stalled_selected_per_issue_active.ratio": "1",
    "smsp__average_warps_issue_stalled_wait_per_issue_active.ratio": "2",
}
SECOND = {
    "dram__bytes_read.sum": "0",
    "dram__bytes_write.sum": "60,000,000",
    "gpu__time_duration.sum": "10,000",
    "lts__t_sector_hit_rate.pct": "60",
    "lts__t_sectors.sum": "1,000",
    "lts__t_sectors_srcunit_tex_op_write.sum": f"{WRITTEN // 32:,}",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": "2",
}
TWO_KERNELS = ncu_csv(("statistics_kernel", FIRST), ("normalize_kernel", SECOND))
# an ncu that writes this CSV, after the program's own lines, and keeps its arguments
STAND_IN = """
import json, sys
from pathlib import Path
arguments = sys.argv[1:]
with Path({calls!r}).open("a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
print({said!r})
Path(arguments[arguments.index("--log-file") + 1]).write_text({text!r})
sys.exit({code})
"""


def install_ncu(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    said: str = "backend: ATen native",
    code: int = 0,
) -> Calls:
    """Put an ncu on PATH that writes `text`, and returns what lists its arguments.

    Args:
        folder: for the executable, and for the arguments it is given
        monkeypatch: takes it off again
        text: of the log file
        said: by the program that is profiled
        code: its exit code
    """
    kept = folder / "calls"

    def calls() -> list[list[str]]:
        lines = kept.read_text().splitlines() if kept.exists() else []
        return [json.loads(line) for line in lines]

    body = STAND_IN.format(calls=str(kept), said=said, text=text, code=code)
    put_on_path(folder / "bin", "ncu", body, monkeypatch)
    return calls
