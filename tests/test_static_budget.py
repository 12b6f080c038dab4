"""Claims about the committed budget of compiled kernels: what it keeps, what counts as worse."""

import json
from pathlib import Path

import pytest

from tritonbn_bench.static import Access, KernelFigures, budget

KEY = "sm_90 8x8 channels_last bf16 | forward train | k"
STEP = "sm_90 8x8 channels_last bf16 | training step"
KEPT = {
    KEY: {"load x": 16, "store y": 16, "registers": 96, "cap": 168, "shared": 64, "stack": 8},
    STEP: {"launches": 2},
    "sm_80 8x8 channels_last bf16 | forward train | k": {"registers": 80},
}


def test_budget_keeps_the_widest_access_and_no_zeros() -> None:
    accesses = (
        Access("atomic", "sum_ptr", 4, 3, is_float_atomic=True),
        Access("load", "dy_ptr|x_ptr", 2, 1),
        Access("load", "x_ptr", 16, 4),
        Access("store", "partials_ptr", 4, 1),
    )
    figures = KernelFigures("k", "sm_90", 96, 8, 0, 64, 0, accesses, cap=168)
    assert budget.figures_of(figures) == {
        **{"registers": 96, "cap": 168, "shared": 64, "stack": 8, "float atomics": 3},
        **{"load x": 16, "load dy": 2},
    }


@pytest.mark.parametrize(
    ("key", "changes", "sentence"),
    [
        (KEY, {"load x": 2}, "load x 16 -> 2"),
        (KEY, {"store y": 0}, "store y 16 -> 0"),
        (KEY, {"spill": 8}, "spill 0 -> 8"),
        (KEY, {"stack": 16}, "stack 8 -> 16"),
        (KEY, {"shared": 128}, "shared 64 -> 128"),
        (KEY, {"fp64": 1}, "fp64 0 -> 1"),
        (KEY, {"float atomics": 1}, "float atomics 0 -> 1"),
        (STEP, {"launches": 3}, "launches 2 -> 3"),
    ],
    ids=["load", "store", "spill", "stack", "shared", "fp64", "atomics", "launches"],
)
def test_worse_figure_is_reported(key: str, changes: dict[str, int], sentence: str) -> None:
    now = {KEY: KEPT[KEY], STEP: KEPT[STEP]}
    now[key] = {**now[key], **changes}
    assert budget.compare(KEPT, now) == ([f"{key}: {sentence}"], [])


@pytest.mark.parametrize(
    ("key", "changes", "sentence"),
    [
        (KEY, {"registers": 168}, "registers 96 -> 168"),
        (KEY, {"stack": 0}, "stack 8 -> 0"),
        (KEY, {"load dy": 16}, "load dy 0 -> 16"),
        (STEP, {"launches": 1}, "launches 2 -> 1"),
    ],
    ids=["registers", "stack", "load", "launches"],
)
def test_other_change_is_noted_only(key: str, changes: dict[str, int], sentence: str) -> None:
    now = {KEY: KEPT[KEY], STEP: KEPT[STEP]}
    now[key] = {**now[key], **changes}
    assert budget.compare(KEPT, now) == ([], [f"{key}: {sentence}"])


def test_launch_that_is_not_in_the_budget_is_worse() -> None:
    key = KEY.replace("| k", "| another")
    worse, other = budget.compare(KEPT, {STEP: KEPT[STEP], key: {"registers": 8}})
    assert worse == [f"{key}: not in the budget"]
    # the case is there, its kernel is not; the other target was not asked for
    assert other == [f"{KEY}: no longer launched"]


def test_same_figures_say_nothing() -> None:
    assert budget.compare(KEPT, KEPT) == ([], [])


def test_part_of_a_budget_is_renewed_without_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "budgets" / "3.9.json"
    budget.write(path, KEPT, whole=True)
    assert budget.read(path) == KEPT
    renewed = {KEY: {"registers": 90}}
    budget.write(path, renewed, whole=False)
    other = "sm_80 8x8 channels_last bf16 | forward train | k"
    assert budget.read(path) == {**renewed, other: KEPT[other]}
    budget.write(path, renewed, whole=True)
    assert budget.read(path) == renewed


def test_budget_has_one_line_for_each_launch(tmp_path: Path) -> None:
    path = tmp_path / "3.9.json"
    budget.write(path, KEPT, whole=True)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(KEPT) + 2


def test_version_without_a_budget_has_none(tmp_path: Path) -> None:
    assert budget.read(tmp_path / "2.0.json") is None


def committed(version: str) -> dict[str, dict[str, int]]:
    """The budget file of a supported Triton."""
    found: dict[str, dict[str, int]] = json.loads(budget.path_of(version).read_text("utf-8"))
    return found


@pytest.mark.parametrize("version", ["3.6", "3.9"])
def test_committed_budget_allows_no_spill_to_kernels_that_read_twice(version: str) -> None:
    spilling = {key for key, figures in committed(version).items() if "spill" in figures}
    kernels = {key.rsplit(" | ", 1)[1] for key in spilling}
    assert all(kernel.startswith(("resident_", "rows_")) for kernel in kernels), kernels


@pytest.mark.parametrize("version", ["3.6", "3.9"])
def test_committed_budget_has_two_launches_where_data_is_read_once(version: str) -> None:
    found = committed(version)
    held = {key.split(" | ")[0] for key in found if "| resident_" in key or "| narrow_" in key}
    kernels = ("forward_kernel", "backward_kernel")
    for place in held:
        steps = [key for key in found if key.startswith(f"{place} | ") and " train | " in key]
        if all(key.endswith(kernels) for key in steps):
            assert found[f"{place} | training step"] == {"launches": 2}
    assert {place.split()[0] for place in held} >= {"sm_80", "sm_90", "sm_100"}
