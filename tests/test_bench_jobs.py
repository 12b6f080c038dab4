"""Jobs of a run: their order, what is done again, what is left out and why."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from torch.nn import functional

from tests.inputs import DEVICE
from tritonbn_bench import accuracy, endtoend, jobs, providers, stopwatch
from tritonbn_bench.cases import Case
from tritonbn_bench.inputs import Inputs
from tritonbn_bench.jobs import OutOfTime, Run, default_jobs, perform
from tritonbn_bench.providers import Prepared, Provider, results_of
from tritonbn_bench.results import Results, Row
from tritonbn_bench.stopwatch import FakeStopwatch

CASE = Case("forward_train", "fp32", "nchw", 4, 3, (2, 2), "sweep", "a test")


def _prepare(case: Case, inputs: Inputs) -> Prepared:
    def outputs() -> dict[str, object]:
        return dict(results_of(functional.batch_norm, inputs, case.mode))

    return Prepared("planted", lambda _: None, lambda: None, outputs, 1000)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of two cases with a quick and a compiling provider, on the fake timer."""
    planted = {
        "compiled": Provider("compiled", lambda _: True, _prepare, slow=True),
        "eager": Provider("eager", lambda _: True, _prepare),
    }
    monkeypatch.setattr(providers, "PROVIDERS", planted)
    monkeypatch.setattr(jobs, "suite", lambda name, quick: (CASE, replace(CASE, batch=5)))
    monkeypatch.setattr(stopwatch, "stopwatch_of", lambda device, cache: FakeStopwatch(0))
    return Run(Results({}), tmp_path, DEVICE.type)


def _measured(run: Run) -> list[tuple[str, int | None, str]]:
    rows = [row for row in run.results.rows if row.quantity == "time"]
    return [(row.job, row.batch, row.provider) for row in rows]


def test_what_compiles_comes_after_all_jobs_of_the_others(run: Run) -> None:
    perform(["resnet50", "sweep"], run)
    assert _measured(run) == [
        (job, batch, provider)
        for provider in ("eager", "compiled")
        for job in ("resnet50", "sweep")
        for batch in (4, 5)
    ]


def test_a_sweep_goes_on_where_it_stopped(run: Run) -> None:
    run.deadline = time.monotonic() - 1
    for done in range(1, 5):
        with pytest.raises(OutOfTime):
            perform(["sweep"], run)
        assert len(_measured(run)) == done
    perform(["sweep"], run)
    assert len(set(_measured(run))) == len(_measured(run)) == 4


def test_a_rival_that_comes_later_is_timed_beside_ours(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = {
        name: Provider(name, lambda _: True, _prepare, slow=name == "torch.compile")
        for name in ("tritonbn", "torch", "copy", "torch.compile")
    }
    monkeypatch.setattr(providers, "PROVIDERS", planted)
    perform(["sweep"], run)
    keys = [(row.key, row.quantity) for row in run.results.rows]
    assert len(set(keys)) == len(keys)
    for batch in (4, 5):
        found = {(row.provider, row.quantity) for row in run.results.rows if row.batch == batch}
        assert ("tritonbn", "ratio to torch") in found
        assert ("tritonbn", "ratio to torch.compile") in found
    before = list(run.results.rows)
    perform(["sweep"], run)
    assert run.results.rows == before


def test_training_steps_are_taken_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def rows(setting: endtoend.Setting, device: str) -> list[Row]:
        asked.append(setting.case)
        time = Row("endtoend", "measured", setting.case, "torch", "step time", data="normal")
        return [replace(time, provider=way) for way in endtoend.WAYS]

    monkeypatch.setattr(endtoend, "endtoend_rows", rows)
    for _ in range(2):
        perform(["endtoend"], run)
    wanted = endtoend.SETTINGS if run.device == "cuda" else endtoend.TINY
    assert asked == [setting.case for setting in wanted]


def test_only_the_providers_asked_for_are_measured(run: Run) -> None:
    run.providers = ("compiled",)
    perform(["sweep"], run)
    assert {provider for _, _, provider in _measured(run)} == {"compiled"}


def test_a_machine_without_a_gpu_does_everything_but_speed() -> None:
    assert default_jobs("cpu") == (
        *("accuracy", "training", "traffic", "fusion", "memory", "plan", "static", "host"),
    )
    assert set(default_jobs("cuda")) - set(default_jobs("cpu")) == {
        *("resnet50", "sweep", "networks", "endtoend"),
    }


def test_a_run_out_of_time_keeps_what_it_has(tmp_path: Path) -> None:
    run = Run(Results({}), tmp_path, "cpu", deadline=time.monotonic() - 1)
    with pytest.raises(OutOfTime):
        perform(["traffic"], run)
    assert len(run.results.rows) == 1


def test_a_job_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    run = Run(Results({}), tmp_path, "cpu")
    perform(["traffic"], run)
    rows = list(run.results.rows)
    perform(["traffic"], run)
    assert run.results.rows == rows


def test_without_scikit_learn_the_digits_are_skipped_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = Case("forward_eval", "fp32", "nchw", 4, 3, (8, 8), "accuracy", "", data="digits")
    monkeypatch.setattr(accuracy, "accuracy_cases", lambda **_: (digits,))
    monkeypatch.setattr(jobs, "find_spec", lambda _: None)
    run = Run(Results({}), tmp_path, "cpu")
    perform(["accuracy"], run)
    perform(["training"], run)
    assert [(row.job, row.status) for row in run.results.rows] == [
        ("accuracy", "skipped"),
        ("training", "skipped"),
    ]
    assert all("scikit-learn" in row.reason for row in run.results.rows)
