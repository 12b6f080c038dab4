"""Claims about what `check --static` says of what its parts have found, and how it ends."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tritonbn_bench import cli
from tritonbn_bench.static import budget, launches, suite
from tritonbn_bench.static.traffic import PLANS
from tritonbn_bench.verbs import check

COMPILED = "sm_90 8x8 channels_last bf16 | forward train | k"
LAUNCHED = "sm_90 8x8 channels_last bf16 | forward train | k"
STEP = "sm_90 mlp N=8 channels_last bf16 | training step"
MOVED = "interpreter rows, 8x8 channels_last bf16 | forward train"
FOUND: dict[str, Any] = {
    "sm_90": {
        "figures": {COMPILED: {"load x": 16, "registers": 40}},
        "hints": {COMPILED: {"hints of load partials_ptr": "cg"}},
        "faults": [],
    },
    "launches": {
        "launches": {LAUNCHED: {"grid": 132, "num_warps": 4}, STEP: {"launches": 14}},
        "faults": [],
    },
    "traffic": {"traffic": {MOVED: {"moved x": 1.0, "all over floor": 1.02}}, "faults": []},
}

Ask = Callable[..., tuple[int, str, str]]
AS_IT_IS = suite._measured


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the parts find, for a test to change."""
    copy: dict[str, Any] = json.loads(json.dumps(FOUND))
    monkeypatch.setattr(suite, "_measured", lambda part, *_: copy[part])
    return copy


@pytest.fixture
def ask(
    found: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Ask:
    """Exit code, output and errors of `check --static --target sm_90` with budgets of its own."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        given = ["check", "--static", "--target", "sm_90", "--budgets", str(tmp_path / "budgets")]
        return cli.main([*given, *arguments]), *capsys.readouterr()

    return run


def test_budgets_that_were_accepted_are_passed(ask: Ask, tmp_path: Path) -> None:
    code, text, _ = ask("--update")
    assert code == 0
    files = sorted(path.name for path in (tmp_path / "budgets").iterdir())
    version = budget.version()
    assert files == sorted(
        [f"{version}.json", f"{version}.hints.json", "launch_plans.json", "traffic.json"]
    )
    assert all(file in text.splitlines()[-1] for file in files)
    code, text, _ = ask()
    assert (code, text.splitlines()[-1]) == (0, "check --static: passed")
    assert text.count("0 faults, 0 worse, 0 otherwise changed") == 4


def test_missing_budget_is_said_and_does_not_fail(ask: Ask, tmp_path: Path) -> None:
    code, text, _ = ask()
    assert code == 0
    assert text.count("not compared: NO BASELINE") == 4
    assert text.endswith("passed, 4 without a budget (accept one with --update)\n")
    ask("--update")
    (tmp_path / "budgets" / f"{budget.version()}.json").unlink()
    code, text, _ = ask()
    assert (code, text.count("NO BASELINE"), text.count("1 without a budget")) == (0, 1, 1)


WORSE: list[tuple[tuple[str, ...], Any, str]] = [
    (
        ("sm_90", "figures", COMPILED, "load x"),
        2,
        "forward train of 8x8 channels_last bf16 on sm_90, k: load x 16 -> 2 bytes",
    ),
    (
        ("sm_90", "hints", COMPILED),
        {},
        "forward train of 8x8 channels_last bf16 on sm_90, k: "
        "cache hints of load partials: cg -> plain",
    ),
    (
        ("launches", "launches", LAUNCHED, "grid"),
        66,
        "forward train of 8x8 channels_last bf16 on sm_90, k: grid 132 -> 66",
    ),
    (
        ("launches", "launches", STEP, "launches"),
        15,
        "training step of mlp N=8 channels_last bf16 on sm_90: launches 14 -> 15",
    ),
    (
        ("traffic", "traffic", MOVED, "moved x"),
        2.0,
        "forward train of rows, 8x8 channels_last bf16 on interpreter: x moved 1.0 -> 2.0 times",
    ),
]


@pytest.mark.parametrize(
    ("place", "value", "sentence"), WORSE, ids=[path[-1] for path, *_ in WORSE]
)
def test_worse_figure_fails_in_words_and_can_be_accepted(
    place: tuple[str, ...], value: object, sentence: str, ask: Ask, found: dict[str, Any]
) -> None:
    ask("--update")
    *way, last = place
    for name in way:
        found = found[name]
    found[last] = value
    code, text, _ = ask()
    assert (code, text.count(f"\nWORSE {sentence}\n")) == (1, 1)
    assert text.endswith("check --static: FAILED; if it is meant, accept it with --update\n")
    code, text, _ = ask("--update")
    assert (code, text.count(f"\naccepted {sentence}\n")) == (0, 1)
    assert ask()[0] == 0


def test_change_that_is_no_worse_is_told(ask: Ask, found: dict[str, Any]) -> None:
    ask("--update")
    found["sm_90"]["figures"][COMPILED]["registers"] = 48
    found["traffic"]["traffic"][MOVED]["moved x"] = 0.9
    code, text, _ = ask()
    assert code == 0
    assert (
        "\nchanged forward train of 8x8 channels_last bf16 on sm_90, k: registers 40 -> 48" in text
    )
    assert "on interpreter: x moved 1.0 -> 0.9 times\n" in text


@pytest.mark.parametrize("part", ["sm_90", "traffic"])
def test_fault_fails_though_it_be_accepted(part: str, ask: Ask, found: dict[str, Any]) -> None:
    found[part]["faults"] = [f"{COMPILED}: 8 bytes spilled"]
    for arguments in ((), ("--update",), ()):
        code, text, _ = ask(*arguments)
        assert code == 1
        said = "FAULT forward train of 8x8 channels_last bf16 on sm_90, k: 8 bytes spilled"
        assert said in text.splitlines()
        assert "FAILED, see FAULT" in text.splitlines()[-1]


def test_network_that_is_no_longer_launched_is_told(ask: Ask, found: dict[str, Any]) -> None:
    ask("--update")
    del found["launches"]["launches"][STEP]
    told = "changed training step of mlp N=8 channels_last bf16 on sm_90: no longer launched"
    code, text, _ = ask()
    assert (code, told in text.splitlines()) == (0, True)
    # of a part that was asked for, the rest is not missing
    assert told not in ask("--only", "8x8")[1].splitlines()


def test_page_is_written_and_appended_to_the_summary(
    ask: Ask, found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask("--update")
    summary = tmp_path / "summary.md"
    summary.write_text("before\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    found["sm_90"]["figures"][COMPILED]["load x"] = 2
    ask("--out", str(tmp_path / "out"))
    page = (tmp_path / "out" / "check.md").read_text(encoding="utf-8")
    assert summary.read_text(encoding="utf-8") == f"before\n{page}"
    assert page.startswith("## check --static: FAILED")
    assert "\n| traffic | 1 | 0 | 0 | 0 |\n" in page
    assert "\n- **WORSE** forward train of 8x8" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected --static"),
        (["--static", "--jobs", "0"], "expected at least one process for --jobs, got 0"),
    ],
    ids=["kind", "jobs"],
)
def test_wrong_usage_is_told(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert cli.main(["check", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_interpreter_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert cli.main(["check", "--static"]) == 2
    assert "the interpreter compiles nothing" in capsys.readouterr().err


def test_words_in_no_name_are_told_and_nothing_is_written(
    ask: Ask, found: dict[str, Any], tmp_path: Path
) -> None:
    for part in found.values():
        part |= {name: {} for name in part if name != "faults"}
    code, _, error = ask("--only", "no such case", "--update")
    assert (code, "expected words in the name of a case for --only" in error) == (2, True)
    assert not (tmp_path / "budgets").exists()


def test_part_that_cannot_run_stops_the_check(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(part: str, *rest: Any) -> dict[str, Any]:
        # an architecture that no driver stands for
        return AS_IT_IS("sm_1", *rest) if part == "traffic" else FOUND[part]

    monkeypatch.setattr(suite, "_measured", measured)
    code, _, error = ask("--only", "no such case", "--jobs", "1")
    assert code == 2
    assert "sm_1 could not be measured" in error and "KeyError" in error


def test_committed_budgets_know_every_plan_and_network() -> None:
    kept = budget.read(budget.FOLDER / "traffic.json")
    assert kept is not None
    titles = {budget.place_of(key).removeprefix("interpreter ") for key in kept}
    assert titles == {plan.title for plan in PLANS}
    assert len(kept) == 2 * len(PLANS)
    plans = budget.read(budget.FOLDER / "launch_plans.json")
    assert plans is not None
    steps = {title for title, _, _ in launches.network_cases()}
    assert steps == {budget.place_of(key).split(" ", 1)[1] for key in plans if "step" in key}


@pytest.mark.parametrize("version", ["3.6", "3.9"])
def test_committed_budgets_have_cache_hints_of_all_targets(version: str) -> None:
    figures, hints = (
        budget.read(budget.FOLDER / f"{version}{kind}.json") for kind in ("", ".hints")
    )
    assert figures is not None and hints is not None
    assert hints.keys() <= figures.keys()
    assert {key.split(" ", 1)[0] for key in hints} == {*check.TARGETS}
    # what other programs have written is read past the first cache
    kept = [line for line in hints.values() if line.get("hints of load partials_ptr") == "cg"]
    assert len(kept) > 50
