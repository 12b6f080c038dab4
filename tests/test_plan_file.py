"""Plan files: followed where somebody asks for one, on its GPU, row by row, and nowhere else."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tritonbn
from tests.checks import operands
from tests.held import gradient_of, judge
from tests.inputs import DEVICE, lay_out, values
from tritonbn_bench import cli
from tritonbn_bench.plan_table import view_in
from tritonbn_kernels import clear_cache, pinned_plan, plan_file, record_launches
from tritonbn_kernels.launch import gpu_of
from tritonbn_kernels.normalize import normalize_kernel
from tritonbn_kernels.outlook import H200, outlook
from tritonbn_kernels.plan import pinned, row_pins
from tritonbn_kernels.plan_file import PlanFile, Regime, read, regime_of, rows_in_use

SHAPE = (4, 8, 8, 8)
FORWARD, BACKWARD = "forward_train", "backward_train"
GPU = gpu_of(normalize_kernel, torch.empty(1, device=DEVICE))
Written = Callable[..., Path]


def _regime(mode: str, layout: str = "nchw", itemsize: int = 2, fused: str = "nothing") -> Regime:
    tensors = 2 if mode.startswith("forward") else 3
    return regime_of(mode, (view_in(SHAPE, layout),) * tensors, itemsize, fused)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No plan is pinned and no file in use, before and after."""
    for name in ("TRITONBN_PLAN", "TRITONBN_PLAN_FILE"):
        monkeypatch.delenv(name, raising=False)
    clear_cache()
    yield monkeypatch
    monkeypatch.undo()
    tritonbn.use_plans(None)
    clear_cache()


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Writes a file of rows and returns its path."""

    def write(rows: dict[Regime, str], gpu: tuple[str, int] = GPU) -> Path:
        path = tmp_path / "plans.json"
        PlanFile("", gpu, rows).write(path)
        return path

    return write


def _kernels(layout: str = "contiguous", dtype: torch.dtype = torch.bfloat16) -> list[str]:
    """The kernels of one judged call, forward and backward."""
    call = operands(lay_out(values(SHAPE, dtype), layout))
    with record_launches() as launches:
        judge(call, gradient_of(call.x))
    return [launch.kernel.split("_")[0] for launch in launches]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    rows = {_regime(FORWARD): "one_read,block_c=2", _regime(BACKWARD, "nhwc"): "fused"}
    notes = {regime: [{"ratio": 0.9}] for regime in rows}
    PlanFile("", ("A GPU", 80), rows, notes, {"torch": "2"}).write(tmp_path / "a.json")
    found = read(tmp_path / "a.json")
    assert found == PlanFile(str(tmp_path / "a.json"), ("A GPU", 80), rows, notes, {"torch": "2"})
    assert str(found).endswith("a.json: 2 rows for A GPU (80 SMs)")
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_a_file_changes_the_plans_of_its_regime_alone(written: Written) -> None:
    assert _kernels() == ["resident", "resident"]
    found = tritonbn.use_plans(written({_regime(FORWARD): "fused"}))
    assert found is not None and tritonbn.plans_in_use() is found
    assert _kernels() == ["statistics", "resident"]
    assert _kernels("channels_last") == ["rows", "rows"]
    assert _kernels(dtype=torch.float32) == ["resident", "resident"]
    tritonbn.use_plans(written({_regime(BACKWARD): "split", _regime(FORWARD, "nhwc"): "split"}))
    assert _kernels() == ["resident", "gradients", "input"]
    assert _kernels("channels_last") == ["statistics", "normalize", "rows"]
    assert tritonbn.use_plans(None) is None
    assert _kernels() == ["resident", "resident"]


def test_a_layer_that_is_in_use_plans_anew(written: Written) -> None:
    layer = tritonbn.BatchNorm2d(8).to(DEVICE)
    x = torch.randn(SHAPE, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)

    def kernels() -> list[str]:
        with record_launches() as launches:
            layer(x).sum().backward()
        return [launch.kernel.split("_")[0] for launch in launches]

    for _ in range(3):
        assert kernels() == ["resident", "resident"]
    tritonbn.use_plans(written({_regime(FORWARD): "fused", _regime(BACKWARD): "fused"}))
    for _ in range(3):
        assert kernels() == ["statistics", "gradients"]


def test_what_follows_has_rows_of_its_own(written: Written) -> None:
    rows = {
        _regime(FORWARD, fused="activation"): "fused",
        _regime(FORWARD, fused="residual"): "split",
    }
    tritonbn.use_plans(written(rows))
    x = torch.randn(SHAPE, device=DEVICE, dtype=torch.bfloat16)

    def kernels(**fused: Any) -> list[str]:
        with record_launches() as launches:
            tritonbn.batch_norm(x, None, None, training=True, **fused)
        return [launch.kernel.split("_")[0] for launch in launches]

    assert kernels() == ["resident"]
    assert kernels(activation="relu") == ["statistics"]
    assert kernels(activation="relu", residual=x) == ["statistics", "normalize"]
    assert kernels(residual=x) == ["statistics", "normalize"]


def test_evaluation_has_rows_of_its_own(written: Written) -> None:
    statistics = (torch.zeros(8, device=DEVICE), torch.ones(8, device=DEVICE))
    x = torch.randn(SHAPE, device=DEVICE)
    tritonbn.use_plans(written({_regime("forward_eval", itemsize=4): "two_read,block_c=2"}))
    with record_launches() as launches:
        tritonbn.batch_norm(x, *statistics)
    assert [launch.constants["BLOCK_C"] for launch in launches] == [2]


def test_block_precedes_environment_precedes_file_precedes_table(
    written: Written, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("TRITONBN_PLAN_FILE", str(written({_regime(FORWARD): "split"})))
    clear_cache()
    assert _kernels()[:2] == ["statistics", "normalize"]
    # a row was measured as a whole: no field of it is left once another plan is asked for
    environment.setenv("TRITONBN_PLAN", "fused")
    clear_cache()
    assert _kernels() == ["statistics", "gradients"]
    with pinned_plan(resident=1):
        assert _kernels() == ["resident", "resident"]
    environment.setenv("TRITONBN_PLAN", "one_read")
    clear_cache()
    assert _kernels() == ["resident", "resident"]
    environment.delenv("TRITONBN_PLAN")
    clear_cache()
    with pinned_plan(num_warps=1):
        assert _kernels() == ["resident", "resident"]


def test_a_call_precedes_the_file_of_the_environment(
    written: Written, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("TRITONBN_PLAN_FILE", str(written({_regime(FORWARD): "split"})))
    clear_cache()
    assert _kernels()[:2] == ["statistics", "normalize"]
    tritonbn.use_plans(written({_regime(FORWARD): "fused"}))
    assert _kernels()[0] == "statistics" and len(_kernels()) == 2
    # of what the environment names, nothing is read again
    tritonbn.use_plans(None)
    assert _kernels()[:2] == ["statistics", "normalize"]


GOOD: dict[str, Any] = {
    "schema": plan_file.SCHEMA,
    "gpu": {"name": GPU[0], "sm_count": GPU[1]},
    "rows": [
        {
            "regime": {
                "mode": FORWARD,
                "family": "channels_first",
                "access": "whole",
                "itemsize": 2,
                "fused": "nothing",
                "channels": 8,
                "channel_bytes": 512,
            },
            "plan": "fused",
        }
    ],
}


def _changed(**changes: Any) -> dict[str, Any]:
    row = GOOD["rows"][0]
    regime = {**row["regime"], **changes.pop("regime", {})}
    return {**GOOD, "rows": [{**row, "regime": regime, **changes}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("{", "plans.json: Expecting property name", id="no-json"),
        pytest.param([], "expected a plan file of schema tritonbn.plans/1, got None", id="list"),
        pytest.param({**GOOD, "schema": "tritonbn.plans/9"}, "got 'tritonbn.plans/9'", id="schema"),
        pytest.param({**GOOD, "gpu": {"name": "x"}}, "expected 'sm_count', got none", id="gpu"),
        pytest.param({**GOOD, "rows": 3}, "not iterable", id="rows"),
        pytest.param({"schema": plan_file.SCHEMA, "gpu": GOOD["gpu"]}, "'rows'", id="no-rows"),
        pytest.param(_changed(plan="magic"), "row 1: expected plans of two_", id="plan"),
        pytest.param(_changed(plan="block_q=8"), "fields of block_c", id="unknown-pin"),
        pytest.param(_changed(plan="programs=1"), "fields of block_c", id="pin-of-tests"),
        pytest.param(_changed(plan="block_c=3"), "to be a power of two, got 3", id="pin-value"),
        pytest.param(_changed(plan=""), "expected a plan such as", id="empty-plan"),
        pytest.param(_changed(plan=None), "expected a plan such as", id="no-plan"),
        pytest.param(_changed(regime={"mode": "sideways"}), "expected mode to be one", id="mode"),
        pytest.param(_changed(regime={"itemsize": 3}), "expected itemsize to be", id="itemsize"),
        pytest.param(_changed(regime={"channels": 7}), "a power of two, got 7", id="channels"),
        pytest.param(_changed(regime={"channels": True}), "power of two, got True", id="bool"),
        pytest.param(_changed(regime={"colour": 1}), "expected a regime of", id="unknown-field"),
        pytest.param({**GOOD, "rows": GOOD["rows"] * 2}, "row 2: expected one row for", id="twice"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_refused(
    content: object, message: str, tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(GOOD))
    tritonbn.use_plans(path)
    tritonbn.use_plans(None)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=r"plans\.json: ") as caught:
        tritonbn.use_plans(path)
    assert message in str(caught.value)
    assert tritonbn.plans_in_use() is None
    environment.setenv("TRITONBN_PLAN_FILE", str(path))
    clear_cache()
    with pytest.raises(ValueError, match=r"^TRITONBN_PLAN_FILE: .*plans\.json: "):
        _kernels()


@pytest.mark.parametrize("gpu", [("another", GPU[1]), (GPU[0], GPU[1] + 1)], ids=["name", "sms"])
def test_a_file_for_another_gpu_is_refused(
    gpu: tuple[str, int], written: Written, environment: pytest.MonkeyPatch
) -> None:
    path = written({_regime(FORWARD): "fused"}, gpu)
    expected = rf"expected plans for {GPU[0]} with {GPU[1]} SMs, got .*1 rows for {gpu[0]}"
    with pytest.raises(ValueError, match=expected):
        tritonbn.use_plans(path)
    assert _kernels() == ["resident", "resident"]
    environment.setenv("TRITONBN_PLAN_FILE", str(path))
    clear_cache()
    with pytest.raises(ValueError, match=expected):
        _kernels()


def test_a_file_that_is_not_there_is_an_error(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError):
        tritonbn.use_plans(tmp_path / "none.json")
    environment.setenv("TRITONBN_PLAN_FILE", str(tmp_path / "none.json"))
    clear_cache()
    with pytest.raises(ValueError, match=r"TRITONBN_PLAN_FILE: .*none\.json"):
        tritonbn.plans_in_use()


def test_the_environment_is_read_once(written: Written, environment: pytest.MonkeyPatch) -> None:
    path = written({_regime(FORWARD): "fused"})
    environment.setenv("TRITONBN_PLAN_FILE", str(path))
    clear_cache()
    assert _kernels() == ["statistics", "resident"]
    path.unlink()
    with pinned_plan():
        assert _kernels() == ["statistics", "resident"]


IMPORT = """
import os, sys
opened = []
sys.addaudithook(lambda event, given: event == "open" and opened.append(str(given[0])))
import torch, tritonbn
named = [path for path in opened if path == os.environ["TRITONBN_PLAN_FILE"]]
from tritonbn_bench.emulated import mend_interpreter
mend_interpreter()
x = torch.ones(2, 3, 8, 8)
for _ in range(2):
    tritonbn.batch_norm(x, torch.zeros(3), torch.ones(3))
after = [path for path in opened if path == os.environ["TRITONBN_PLAN_FILE"]]
print(len(named), len(after), tritonbn.plans_in_use())
"""


def test_nothing_is_read_at_import(written: Written) -> None:
    path = written({_regime(FORWARD): "fused"}, ("interpreter", 1))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TRITON_INTERPRET": "1",
        "TRITONBN_PLAN_FILE": str(path),
    }
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == f"0 1 {path}: 1 rows for interpreter (1 SMs)\n", done.stderr


def test_calls_of_one_regime_differ_by_less_than_two_in_what_decides() -> None:
    def regime(*shape: int, layout: str = "nchw", itemsize: int = 2) -> Regime:
        return regime_of(FORWARD, (view_in(shape, layout),) * 2, itemsize, "nothing")

    first = regime(32, 256, 28, 28)
    assert regime(32, 200, 28, 28) == first == regime(40, 256, 28, 28)
    others = [
        regime(32, 257, 28, 28),
        regime(42, 256, 28, 28),
        regime(32, 256, 28, 28, itemsize=4),
        regime(32, 256, 28, 28, layout="nhwc"),
        # single elements, and two at a time
        regime(32 * 16, 256, 7, 7),
        regime(512, 256, 6, 7),
    ]
    assert len({first, *others}) == 7
    # rows are rows, whatever a row is
    assert regime(32 * 784, 256, layout="nc") == others[3]


def test_rows_are_those_of_the_thread_that_plans() -> None:
    found = []
    with row_pins({"block_c": 2}):
        thread = threading.Thread(target=lambda: found.append(pinned("block_c", 0)))
        thread.start()
        thread.join()
        found.append(pinned("block_c", 0))
    assert found == [0, 2]


def test_modelled_plans_follow_rows_for_their_device_alone(written: Written) -> None:
    views = (view_in(SHAPE, "nchw"),) * 2
    with rows_in_use({_regime(FORWARD): "fused"}):
        assert outlook(FORWARD, views, 2, H200).family == "fused"
    plan_file.use(read(written({_regime(FORWARD): "fused"}, ("another", 132))))
    assert outlook(FORWARD, views, 2, H200).family == "resident"
    plan_file.use(read(written({_regime(FORWARD): "fused"}, ("H200", 132))))
    assert outlook(FORWARD, views, 2, H200).family == "fused"


def test_plan_and_env_say_which_file_is_in_use(
    written: Written, environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written({_regime(FORWARD): "fused"}, ("H200", 132))
    environment.setenv("TRITONBN_PLAN_FILE", str(path))
    clear_cache()

    def said(*arguments: str) -> str:
        assert cli.main(arguments) == 0
        return capsys.readouterr().out

    named = f"plan file {path}: 1 rows for H200 (132 SMs)"
    out = said("plan", *map(str, SHAPE), "--device", "h200")
    assert f"\n{named}\n" in out and "  fused " in out
    out = said("plan", *map(str, SHAPE), "--device", "a100")
    assert f"\n{named}, not followed for A100\n" in out and "  fused " not in out
    out = said("plan", *map(str, SHAPE), "--device", "h200", "--json")
    assert json.loads(out)["plan_file"] == named.removeprefix("plan file ")
    assert f"plan_file            {path}: 1 rows for H200 (132 SMs)\n" in said("env")
    path.write_text("{}")
    clear_cache()
    assert "plan_file            not usable: TRITONBN_PLAN_FILE: " in said("env")
    assert cli.main(["plan", "8", "64"]) == 2
    assert "TRITONBN_PLAN_FILE: " in capsys.readouterr().err


def test_where_a_row_that_reads_once_cannot_be_had_the_table_plans() -> None:
    # doubles have no plan that reads once: the other fields of the row are of other tiles
    views = (view_in(SHAPE, "nchw"),) * 2
    table = outlook(FORWARD, views, 8, H200)
    with row_pins({"resident": 1, "num_warps": 16, "block_c": 8}):
        assert outlook(FORWARD, views, 8, H200) == table
    with row_pins({"resident": 0, "num_warps": 16, "block_c": 8}):
        assert outlook(FORWARD, views, 8, H200) != table
