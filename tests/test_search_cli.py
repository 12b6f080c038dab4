"""`tritonbn-bench search` as a user meets it, with and without a GPU."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.processes import Process, bench
from tests.searching import Effect, FakeMeter, fake_machine
from tritonbn_bench import cli
from tritonbn_bench.search import machine
from tritonbn_bench.search.candidates import TABLE
from tritonbn_kernels import clear_cache
from tritonbn_kernels.plan_file import read

# a small set of cases: three layers, forward and backward
MLP = ("--cases", "model:mlp")
SEARCHING = ("-m", "tests.searching")
Search = Callable[..., tuple[int, str, str]]


@pytest.fixture
def search(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Search]:
    """Exit code, output and errors of a search of MLP; with an `effect`, on a machine of ours."""
    for name in ("TRITONBN_PLAN", "TRITONBN_PLAN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    clear_cache()

    def run(
        *arguments: str, effect: Effect | None = None, meter: FakeMeter | None = None
    ) -> tuple[int, str, str]:
        if effect is not None or meter is not None:
            meter = meter or FakeMeter(effect or (lambda plan, case: 1.0))
            monkeypatch.setattr(machine, "local_machine", fake_machine(meter))
        given = arguments if "--cases" in arguments else (*MLP, *arguments)
        code = cli.main(["search", "--out", str(tmp_path / "out"), *given])
        return code, *capsys.readouterr()

    yield run
    monkeypatch.undo()
    clear_cache()


def _fused_is_fast(plan: str, case: object) -> float:
    return 0.8 if plan == "fused" else 1.0


def test_help_has_examples() -> None:
    done = bench("search", "--help")
    code, out, errors = done.returncode, done.stdout, done.stderr
    assert (code, errors) == (0, "")
    assert out.startswith("usage: tritonbn-bench search")
    assert out.count("\n  tritonbn-bench search ") == 5 and "exit codes:" in out


def test_the_list_needs_no_gpu() -> None:
    done = bench("search", "--list", *MLP, "--device", "h200")
    code, out, errors = done.returncode, done.stdout, done.stderr
    assert (code, errors) == (0, "")
    assert out.startswith("plans that a search on H200 would try\n")
    regimes = [line for line in out.splitlines() if line.startswith(("forward_", "backward_"))]
    assert len(regimes) == 6 and out.count("\n  table: ") == 6
    assert "\n  split,block_c=" in out and ", 4 warps\n" in out
    assert out.count("the same as another\n") == 6
    assert out.splitlines()[-1].endswith(" plans in 6 regimes")


def test_without_a_gpu_it_is_said_why_nothing_can_be_searched() -> None:
    done = bench("search")
    code, out, errors = done.returncode, done.stdout, done.stderr
    assert (code, out) == (2, "")
    reason = "TRITON_INTERPRET=1 is set" if torch.cuda.is_available() else "no GPU is visible"
    assert errors == (
        f"tritonbn-bench: nothing can be searched here ({reason}): plans are compared by their "
        "times on a GPU, and times in Triton's interpreter say nothing about them; --list prints "
        "what a GPU would try\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("--cases", "tea"), "expected cases of quick, resnet50, sweep,", id="cases"),
        pytest.param(("--cases", "model:vgg"), "expected a network of resnet18,", id="network"),
        pytest.param(("--modes", "both_train"), "expected modes of forward_train,", id="mode"),
        pytest.param(("--modes", "forward_eval"), "got none of model:mlp", id="no-cases"),
        pytest.param(("--rounds", "7"), "expected --rounds of at least 8, got 7", id="rounds"),
        pytest.param(("--rounds", "x"), "invalid int value: 'x'", id="no-number"),
        pytest.param(("--device", "a100"), "expected --device a100 with --list only", id="device"),
        pytest.param(("--list", "--device", "local"), "expected a GPU for --device", id="local"),
        pytest.param(("--device", "h800"), "invalid choice: 'h800'", id="unknown-device"),
    ],
)
def test_a_users_error_is_explained_with_exit_code_2(
    arguments: tuple[str, ...], message: str, search: Search
) -> None:
    code, out, errors = search(*arguments, effect=_fused_is_fast)
    assert (code, out) == (2, "")
    assert message in errors


def test_a_pinned_plan_is_in_the_way(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONBN_PLAN", "two_read")
    clear_cache()
    code, _, errors = search(effect=_fused_is_fast)
    assert (code, "TRITONBN_PLAN precedes every plan to be tried: unset it" in errors) == (2, True)


def test_rows_that_should_change_are_printed_and_written(search: Search, tmp_path: Path) -> None:
    path = tmp_path / "plans.json"
    code, out, errors = search("--write", str(path), effect=_fused_is_fast)
    assert code == 0
    assert "search: 6 of 6 in" in errors
    assert out.startswith("on H200, 132 SMs:\n6 rows of the plan table should change:\n")
    assert out.count("\n  fused\n    ") == 6
    assert "\nsearched 6 of 6 regimes; plans: " in out
    assert out.endswith(f'written: {path}; tritonbn.use_plans("{path}") follows it\n')
    plans = read(path)
    assert plans.gpu == ("H200", 132) and set(plans.rows.values()) == {"fused"}
    measured = json.loads(path.read_text())["rows"][0]["measured"][0]
    assert measured["high"] < 0.97 and measured["rounds"] == 40
    assert "--write" in str(plans.origin["command"])


def test_where_none_should_change_nothing_is_written(search: Search, tmp_path: Path) -> None:
    path = tmp_path / "plans.json"
    code, out, _ = search("--write", str(path), effect=lambda plan, case: 1.0)
    assert code == 0
    assert out.startswith("on H200, 132 SMs:\nno row should change\n")
    assert out.endswith(f"nothing was written to {path}: no row should change\n")
    assert not path.exists()


def test_a_wrong_plan_gives_exit_code_4(search: Search) -> None:
    code, out, _ = search(meter=FakeMeter(lambda plan, case: 1.0, wrong={"split": "y: error 3"}))
    assert code == 4
    assert "\nwrong: split, forward_train/bf16/nc/" in out


def test_a_case_that_cannot_be_measured_is_searched_again(search: Search) -> None:
    code, out, errors = search(meter=FakeMeter(_fused_is_fast, failed={TABLE: "no memory"}))
    assert code == 0
    assert out.count(": no memory") == 6
    assert "regimes without times are searched again with --resume" in errors
    _, out, _ = search("--resume", effect=_fused_is_fast)
    assert "6 rows of the plan table should change" in out


def test_time_is_over_and_it_goes_on(search: Search) -> None:
    code, out, errors = search("--minutes", "0", effect=_fused_is_fast)
    assert code == 0
    assert "time is over; go on with --resume" in errors
    assert "\nsearched 1 of 6 regimes; " in out
    meter = FakeMeter(_fused_is_fast)
    _, out, errors = search("--resume", meter=meter)
    assert "search: 5 of 5 in" in errors and "6 rows of the plan table should change" in out
    # what is done is not measured again
    assert len({case for case, _, _ in meter.calls}) == 5
    # without --resume it begins anew
    assert "\nsearched 1 of 6 regimes; " in search("--minutes", "0", effect=_fused_is_fast)[1]


def test_an_interrupted_search_keeps_what_was_measured_and_goes_on(tmp_path: Path) -> None:
    arguments = (*MLP, "--out", str(tmp_path), "--resume")
    record = tmp_path / "search.json"
    with Process(*arguments, python=SEARCHING) as process:
        process.interrupt(record.exists)
        done = process.end()
    assert done.returncode == 130, done.stderr
    assert "interrupted; go on with --resume" in done.stderr
    assert "Traceback" not in done.stderr
    kept = json.loads(record.read_text())["outcomes"]
    assert 1 <= len(kept) < 6
    assert f"searched {len(kept)} of 6 regimes" in done.stdout
    with Process(*arguments, python=SEARCHING) as process:
        done = process.end()
    assert done.returncode == 0, done.stderr
    assert "6 rows of the plan table should change" in done.stdout
    assert json.loads(record.read_text())["outcomes"][: len(kept)] == kept
