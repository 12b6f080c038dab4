"""Claims about the measurement of host cost, which runs outside the interpreter: a subprocess."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tritonbn_bench.hostcost import time_in_turns
from tritonbn_bench.static.stub import missing_tool

ROOT = Path(__file__).resolve().parent.parent
# a fifth of the time of a small kernel would already be noticed; loaded machines run at a third of
# their speed, hence no tighter
GENEROUS_US = 60.0

pytestmark = pytest.mark.skipif(
    missing_tool() is not None, reason=f"the stub driver needs {missing_tool()}"
)


def run_hostcost(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with the real compiler unless `variables` say else."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, "-m", "tritonbn_bench.hostcost", *arguments],
        cwd=ROOT,
        env={**environment, **variables},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The figures of a short measurement."""
    path = tmp_path_factory.mktemp("hostcost") / "cost.json"
    done = run_hostcost("--sweeps", "60", "--block", "10", "--json", str(path))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_layer_launches_one_kernel_each_way(record: dict[str, Any]) -> None:
    assert (record["launches_forward"], record["launches_backward"]) == (1, 1)


def test_every_part_is_timed(record: dict[str, Any]) -> None:
    names = [cost["name"] for cost in record["costs"]]
    assert names[:2] == ["tritonbn forward + backward", "torch forward + backward"]
    assert {"kernels.batch_norm_forward", "kernels.batch_norm_backward"} <= set(names)
    assert all(0 < cost["minimum"] <= cost["median"] for cost in record["costs"])


def test_layer_costs_no_more_than_a_generous_bound(record: dict[str, Any]) -> None:
    ours, torchs = record["costs"][:2]
    assert ours["minimum"] - torchs["minimum"] < GENEROUS_US


def test_every_turn_begins_with_a_call_that_is_not_timed() -> None:
    made: list[str] = []
    calls: dict[str, Callable[[], object]] = {
        name: partial(made.append, name) for name in ("a", "b")
    }
    times = time_in_turns(calls, sweeps=2, block=3)
    # warmed up once, then there and back
    assert "".join(made) == "aaabbb" + 2 * "aaaabbbbbbbbaaaa"
    assert [len(times[name]) for name in "ab"] == [4, 4]


def test_interpreter_is_refused() -> None:
    done = run_hostcost("--sweeps", "1", TRITON_INTERPRET="1")
    assert done.returncode == 2
    assert "the interpreter launches nothing" in done.stderr
