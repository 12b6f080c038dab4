"""Baseline files: whole or not at all, found by their key, and only ever joined to their like."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.judging import CASE, ENVIRONMENT, SECOND, Scripted, rounds_of
from tritonbn_bench.judge.baseline import (
    Baseline,
    Stored,
    accept,
    find,
    key_of,
    load,
    path_of,
    save,
)
from tritonbn_bench.judge.gate import GateResult, against_baseline
from tritonbn_bench.judge.rounds import Measured
from tritonbn_bench.judge.rule import RULE

OTHER_DRIVER = {**ENVIRONMENT, "driver": "580.2"}


def measured(reference: float, case: str = CASE) -> GateResult:
    """A run whose reference is slower than the head by a share."""
    rounds = rounds_of(0.0, reference=reference, copy=-0.5)
    return against_baseline([case], Scripted({case: [rounds]}), None)


def accepted(*references: float) -> Baseline:
    """A baseline after one run with each of these references."""
    found: Baseline | None = None
    for reference in references:
        found = accept(measured(reference), ENVIRONMENT, found)
    assert found is not None
    return found


def stored_at(folder: Path, baseline: Baseline) -> Path:
    return save(baseline, path_of(folder, baseline.key))


def test_a_file_holds_what_the_note_lists_and_comes_back_the_same(tmp_path: Path) -> None:
    path = stored_at(tmp_path, accepted(0.2, 0.21))
    content = json.loads(path.read_text())
    assert content["schema"] == "tritonbn.baseline/1"
    assert set(content["key"]) == {"gpu", "sm", "driver", "torch", "cudnn", "triton"}
    line = content["cases"][CASE]
    assert line["ratio_ref"] == pytest.approx(1 / math.sqrt(1.2 * 1.21), abs=1e-5)
    assert line["ci"][0] < line["ratio_ref"] < line["ci"][1]
    assert line["ratio_copy"] == pytest.approx(2.0)
    assert line["runs"] == 2
    assert line["sd_runs"] == pytest.approx(math.log(1.21 / 1.2) / math.sqrt(2), abs=1e-5)
    assert line["ms"] == pytest.approx(1.0)
    assert load(path) == accepted(0.2, 0.21)
    assert path.parent.name == "nvidia-h200"
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_a_case_takes_a_line(tmp_path: Path) -> None:
    both = accept(measured(0.2, SECOND), ENVIRONMENT, accepted(0.2))
    lines = stored_at(tmp_path, both).read_text().splitlines()
    assert sum(CASE in line for line in lines) == sum(SECOND in line for line in lines) == 1


def test_an_empty_baseline_is_a_valid_file(tmp_path: Path) -> None:
    empty = Baseline(key_of(ENVIRONMENT), ENVIRONMENT)
    assert load(stored_at(tmp_path, empty)) == empty


def test_a_write_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored_at(tmp_path, accepted(0.2))
    before = path.read_text()

    def broken(self: Path, text: str, encoding: str) -> None:
        with self.open("w", encoding=encoding) as file:
            file.write(text[: len(text) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", broken)
    with pytest.raises(OSError, match="disk full"):
        save(accepted(0.3), path)
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "to be JSON, got"),
        ("[]", "schema tritonbn.baseline/1, got list"),
        ('{"schema": "tritonbn.baseline/2"}', "got tritonbn.baseline/2"),
        ('{"schema": "tritonbn.baseline/1"}', "to hold key, env and cases"),
        (
            '{"schema": "tritonbn.baseline/1", "key": {"gpu": "a", "sm": null, "driver": null, '
            '"torch": null, "cudnn": null, "triton": null}, "env": {}, "cases": {"a": {"ms": 1}}}',
            "log_ratios",
        ),
    ],
    ids=["torn", "list", "newer", "empty", "case-without-ratios"],
)
def test_a_file_that_is_no_baseline_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        load(path)
    assert str(raised.value).startswith(f"expected {path} to ")


def test_the_exact_key_gates(tmp_path: Path) -> None:
    stored_at(tmp_path, accepted(0.2))
    stored_at(tmp_path, accept(measured(0.5), OTHER_DRIVER))
    found, how = find(tmp_path, ENVIRONMENT)
    assert found == accepted(0.2)
    assert how.startswith("exact: gpu NVIDIA H200, sm 9.0, driver 570.1")


def test_other_versions_on_the_same_gpu_only_warn(tmp_path: Path) -> None:
    path = stored_at(tmp_path, accepted(0.2))
    for place in (tmp_path, path):
        found, how = find(place, {**OTHER_DRIVER, "triton": "3.6.1"})
        assert found is not None
        assert "driver 570.1 instead of 580.2, triton 3.6.0 instead of 3.6.1" in found.differs
        assert how.startswith("near, so it only warns: ")


def test_of_several_that_are_near_the_nearest_then_the_latest_is_taken(tmp_path: Path) -> None:
    environments: list[dict[str, str | int | float | bool | None]] = [
        {**ENVIRONMENT, "driver": "1", "date": "2026-01-02"},
        {**ENVIRONMENT, "driver": "2", "date": "2026-01-03"},
        {**ENVIRONMENT, "driver": "3", "torch": "2.12.0", "date": "2026-01-04"},
    ]
    for environment in environments:
        stored_at(tmp_path, accept(measured(0.2), environment))
    found, _ = find(tmp_path, ENVIRONMENT)
    assert found is not None
    assert found.key["driver"] == "2"


@pytest.mark.parametrize(
    "change",
    [{"gpu": "NVIDIA A100"}, {"triton": "3.7.0"}, {"compute_capability": "10.0"}],
    ids=str,
)
def test_another_gpu_or_minor_version_of_triton_has_no_baseline(
    tmp_path: Path, change: dict[str, str]
) -> None:
    path = stored_at(tmp_path, accepted(0.2))
    for place in (tmp_path, path):
        found, how = find(place, {**ENVIRONMENT, **change})
        assert found is None
        assert how.startswith("nothing is stored for gpu ")
        assert how.endswith("tritonbn-bench baseline --accept")


def test_a_folder_that_is_not_there_holds_nothing_and_a_file_must_be_there(tmp_path: Path) -> None:
    assert find(tmp_path / "a", ENVIRONMENT)[0] is None
    with pytest.raises(FileNotFoundError):
        find(tmp_path / "a.json", ENVIRONMENT)


def test_without_a_gpu_the_cpu_is_the_key() -> None:
    key = key_of({**ENVIRONMENT, "device": "cpu", "cpu": "A CPU"})
    assert (key["gpu"], key["sm"], key["driver"], key["cudnn"]) == ("A CPU", None, None, None)
    assert key_of({})["gpu"] == "cpu"


def test_accepting_again_keeps_every_run() -> None:
    stored = accepted(0.20, 0.21, 0.19).cases[CASE]
    assert [math.exp(-run[0]) for run in stored.log_ratios] == pytest.approx([1.2, 1.21, 1.19])
    assert stored.arm >= accepted(0.2).cases[CASE].arm


def test_the_margin_comes_from_five_runs_and_not_from_four() -> None:
    runs = [0.20, 0.26, 0.20, 0.26, 0.20]
    assert accepted(*runs[:4]).cases[CASE].margin == 0
    found = accepted(*runs)
    spread = math.log(1.26 / 1.2) * math.sqrt(0.3)
    assert found.cases[CASE].margin == pytest.approx(math.expm1(3 * spread))
    result = against_baseline([CASE], Scripted({CASE: [rounds_of(0.0, reference=0.2)]}), found)
    assert result.cases[0].tau == found.cases[CASE].margin > RULE.margin


def test_an_accepted_change_begins_a_new_record() -> None:
    """Else the old level would be averaged into the new one, and its runs into the spread."""
    steady = [0.20, 0.21, 0.19, 0.20, 0.21]
    stored = accepted(*steady, 0.40, 0.41).cases[CASE]
    assert [math.exp(-run[0]) for run in stored.log_ratios] == pytest.approx([1.40, 1.41])


def test_the_noise_of_a_case_is_no_change() -> None:
    assert len(accepted(0.20, 0.26).cases[CASE].log_ratios) == 2
    assert len(accepted(0.20, 0.26, 0.20, 0.26, 0.20, 0.26).cases[CASE].log_ratios) == 6


def test_the_record_does_not_grow_without_end() -> None:
    before = replace(accepted(0.2).cases[CASE], log_ratios=((-math.log(1.2), None),) * 60)
    full = Baseline(key_of(ENVIRONMENT), ENVIRONMENT, {CASE: before})
    assert len(accept(measured(0.2), ENVIRONMENT, full).cases[CASE].log_ratios) == 50


def test_cases_that_were_not_measured_stay() -> None:
    found = accept(measured(0.3, SECOND), ENVIRONMENT, accepted(0.2))
    assert set(found.cases) == {CASE, SECOND}
    assert found.cases[CASE] == accepted(0.2).cases[CASE]


def test_wrong_results_are_not_accepted() -> None:
    wrong = Scripted({CASE: [Measured(CASE, fault="y is off")], SECOND: [0.0]})
    with pytest.raises(ValueError, match=f"expected every correctness check to pass, got .*{CASE}"):
        accept(against_baseline([CASE, SECOND], wrong, None), ENVIRONMENT)


def test_nothing_measured_is_not_accepted() -> None:
    skipped = Scripted({CASE: [Measured(CASE, skipped="no GPU")]})
    with pytest.raises(ValueError, match="expected at least one case"):
        accept(against_baseline([CASE], skipped, None), ENVIRONMENT)


def test_another_key_is_joined_to_nothing_unless_told_to_begin_anew() -> None:
    with pytest.raises(ValueError, match=r"same key, got one of driver 570.1 instead of 580.2"):
        accept(measured(0.2), OTHER_DRIVER, accepted(0.2))
    anew = accept(measured(0.2), OTHER_DRIVER, accepted(0.3), another_key=True)
    assert anew.key["driver"] == "580.2"
    assert len(anew.cases[CASE].log_ratios) == 1


def test_a_case_measured_without_a_copy_has_no_witness(tmp_path: Path) -> None:
    stored = Stored(((0.1, None),), 0.01, 1.0)
    assert stored.copy is None
    lone = Baseline(key_of(ENVIRONMENT), ENVIRONMENT, {CASE: stored})
    path = stored_at(tmp_path, lone)
    assert json.loads(path.read_text())["cases"][CASE]["ratio_copy"] is None
    assert load(path) == lone
