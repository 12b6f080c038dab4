"""Providers of a case in the same rounds: ratios, who is timed beside whom, what is left out."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tests.inputs import DEVICE
from tritonbn_bench.cases import Case
from tritonbn_bench.footprint import SAVED, kept_bytes
from tritonbn_bench.inputs import Inputs, make_inputs
from tritonbn_bench.judge.rule import RULE
from tritonbn_bench.measure import Meter, time_together
from tritonbn_bench.providers import PROVIDERS, Prepared, Provider, results_of
from tritonbn_bench.results import Results, Row
from tritonbn_bench.stopwatch import FakeStopwatch
from tritonbn_bench.sweep import Unit, measure, planned
from tritonbn_bench.timer import Work
from tritonbn_kernels.traffic import floor_bytes

CASE = Case("forward_train", "fp32", "nchw", 4, 3, (2, 2), "sweep", "a test")
MEGABYTE = 10**6


def _provider(name: str, moved_bytes: int, *, slow: bool = False) -> Provider:
    """A provider whose results are torch's, and which the fake stopwatch times by its bytes."""

    def prepare(case: Case, inputs: Inputs) -> Prepared:
        def outputs() -> dict[str, torch.Tensor]:
            return results_of(functional.batch_norm, inputs, case.mode)

        return Prepared(f"{name}'s", lambda _: None, lambda: None, outputs, moved_bytes)

    return Provider(name, lambda _: True, prepare, slow=slow)


OURS, TORCH = _provider("tritonbn", 100 * MEGABYTE), _provider("torch", 150 * MEGABYTE)
COPY, COMPILED = _provider("copy", 80 * MEGABYTE), _provider("torch.compile", 110, slow=True)


class _Drifting(FakeStopwatch):
    """A machine that gets slower with every block: the second half takes twice as long."""

    blocks = 0

    def block(self, work: Work, calls: int) -> float:
        self.blocks += 1
        return super().block(work, calls) * (1 + self.blocks / 100)


def _meter(stopwatch: FakeStopwatch | None = None, rounds: int = 20) -> Meter:
    stopwatch = FakeStopwatch(0, launch_ms=0.0) if stopwatch is None else stopwatch
    return Meter("cpu", stopwatch, rule=replace(RULE, rounds=rounds))


def _rows(unit: Unit, meter: Meter) -> dict[tuple[str, str], Row]:
    rows: list[Row] = []
    measure("sweep", [unit], meter, rows.extend)
    return {(row.provider, row.quantity): row for row in rows}


def test_a_ratio_has_an_interval_that_holds_the_truth() -> None:
    rows = _rows(Unit(CASE, (OURS, TORCH, COPY)), _meter())
    row = rows["tritonbn", "ratio to torch"]
    assert row.low is not None and row.high is not None and row.value is not None
    assert row.low < 100 / 150 < row.high
    assert row.low < row.value < row.high
    assert (row.backend, row.samples) == ("tritonbn's / torch's", rows["torch", "time"].samples)
    assert ("torch", "ratio to tritonbn") not in rows and ("tritonbn", "ratio to copy") not in rows


def test_the_share_of_a_copy_is_speed_over_speed_in_the_same_rounds() -> None:
    rows = _rows(Unit(CASE, (OURS, TORCH, COPY)), _meter())
    for name, moved in (("tritonbn", 100), ("torch", 150)):
        row = rows[name, "share of copy"]
        truth = CASE.moved(floor_bytes) / (moved * MEGABYTE)
        assert row.value == pytest.approx(truth, rel=0.02)
        assert row.low is not None and row.high is not None and row.low < truth < row.high
    assert ("copy", "share of copy") not in rows


def test_a_drift_of_the_machine_moves_times_and_no_ratio() -> None:
    meter = _meter(_Drifting(0, launch_ms=0.0, noise=0.001))
    rows = _rows(Unit(CASE, (OURS, TORCH)), meter)
    assert rows["tritonbn", "ratio to torch"].value == pytest.approx(100 / 150, rel=0.003)
    time = rows["tritonbn", "time"]
    assert time.high is not None and time.low is not None and time.high > 1.1 * time.low


def test_rounds_stop_when_the_ratios_are_known_and_go_on_when_not() -> None:
    works = {name: Work(lambda _: None, moved_bytes=MEGABYTE) for name in ("tritonbn", "torch")}
    quiet = time_together(works, _meter(FakeStopwatch(0, noise=0.001)), "tritonbn")
    loud = time_together(works, _meter(FakeStopwatch(0, noise=0.2)), "tritonbn")
    assert (quiet.taken, loud.taken) == (RULE.fewest, RULE.rounds)
    # without a first there is no ratio to wait for
    assert time_together(works, _meter(), "nobody").taken == RULE.rounds


def test_rounds_stop_at_the_time_cap() -> None:
    works = {name: Work(lambda _: None, moved_bytes=MEGABYTE) for name in ("tritonbn", "torch")}
    meter = _meter(FakeStopwatch(0, noise=0.2))
    capped = replace(meter, rule=replace(meter.rule, seconds=0.0))
    assert time_together(works, capped, "tritonbn").taken == 2


def test_rounds_at_a_low_clock_do_not_count_and_are_counted() -> None:
    def clock() -> Iterator[float]:
        for index in range(10**6):
            # four blocks make a round of two sides
            yield 1000.0 if index // 4 == 1 else 1980.0

    readings = clock()
    meter = replace(_meter(), clock=lambda: (next(readings), ()))
    rows = _rows(Unit(CASE, (OURS, TORCH)), meter)
    dropped = rows["tritonbn", "dropped rounds"]
    assert dropped.value == 1
    assert dropped.samples == (rows["tritonbn", "time"].samples or 0) + 1


def test_without_a_steady_clock_nobody_gets_a_figure() -> None:
    meter = replace(_meter(rounds=8), clock=lambda: (1980.0, ("hw thermal slowdown",)))
    rows = _rows(Unit(CASE, (OURS, TORCH)), meter)
    assert {row.status for row in rows.values()} == {"failed"}
    assert "got 0 of 8" in rows["tritonbn", "time"].reason


def test_one_that_fails_in_the_middle_leaves_the_others_their_figures() -> None:
    class Failing(FakeStopwatch):
        blocks = 0

        def block(self, work: Work, calls: int) -> float:
            rival = work.moved_bytes == 150 * MEGABYTE
            self.blocks += rival
            if rival and self.blocks == 5:
                raise MemoryError("no room")
            return super().block(work, calls)

    rows = _rows(Unit(CASE, (OURS, TORCH, COPY)), _meter(Failing(0)))
    assert rows["torch", "time"].reason == "MemoryError: no room"
    assert rows["tritonbn", "time"].value and rows["tritonbn", "share of copy"].value
    assert ("tritonbn", "ratio to torch") not in rows


def test_ours_and_the_copy_are_timed_again_beside_who_comes_later() -> None:
    (unit,) = planned([CASE], [COMPILED], beside=[OURS, TORCH, COPY, COMPILED])
    assert [one.name for one in unit.wanted] == ["torch.compile"]
    assert [one.name for one in unit.beside] == ["tritonbn", "copy"]
    rows = _rows(unit, _meter(FakeStopwatch(0)))
    assert {name for name, quantity in rows if quantity == "time"} == {"torch.compile"}
    assert rows["tritonbn", "ratio to torch.compile"].value
    assert rows["torch.compile", "share of copy"].value


def test_who_is_done_is_not_measured_again_unless_ours_is_missing() -> None:
    every = [OURS, TORCH, COPY]

    def units(*done: str) -> list[tuple[list[str], list[str]]]:
        found = planned([CASE], every, lambda _, provider: provider.name in done)
        return [
            ([one.name for one in unit.wanted], [one.name for one in unit.beside]) for unit in found
        ]

    assert units() == [(["tritonbn", "torch", "copy"], [])]
    assert units("tritonbn", "copy") == [(["torch"], ["tritonbn", "copy"])]
    assert units("torch", "copy") == [(["tritonbn", "torch", "copy"], [])]
    assert units("tritonbn", "torch", "copy") == []


def test_a_figure_measured_again_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    old = Row("sweep", "measured", "a", "torch", "time", unit="ms", value=1.0)
    results = Results({"device": "cuda"}, [old, replace(old, provider="copy")])
    results.add([replace(old, value=2.0), replace(old, quantity="wall time")])
    assert [(row.provider, row.quantity, row.value) for row in results.rows] == [
        ("copy", "time", 1.0),
        ("torch", "time", 2.0),
        ("torch", "wall time", 1.0),
    ]


def test_a_graph_that_cannot_be_captured_is_not_tried_in_every_resumed_run(
    tmp_path: Path,
) -> None:
    time = Row("sweep", "measured", "a", "torch", "time", unit="ms", value=1.0)
    graph = replace(time, quantity="graph time", value=None, status="skipped", reason="no")
    failed = replace(time, provider="torch.compile", value=None, status="failed")
    Results({"device": "cuda"}, [time, graph, failed]).save(tmp_path)
    again = Results.resume(tmp_path, {"device": "cuda"})
    assert again.done() == {time.key}


@pytest.mark.parametrize("mode", ["forward_train", "backward_train", "both_train"])
def test_an_operand_written_anew_changes_no_result(mode: str) -> None:
    case = replace(CASE, mode=mode)
    inputs = make_inputs(case, DEVICE.type)
    prepared = PROVIDERS["torch"].prepare(case, inputs)
    before = prepared.outputs()
    operand = inputs.dy if mode == "backward_train" else inputs.x
    version = operand._version
    for _ in range(2):
        state = prepared.work.setup()
        prepared.work.produce()
        prepared.work.call(state)
    assert operand._version == version + 2
    after = prepared.outputs()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def _kept(provider: str, case: Case) -> int | None:
    inputs = make_inputs(case, DEVICE.type)
    return kept_bytes(PROVIDERS[provider].prepare(case, inputs), inputs)


def test_what_is_kept_for_backward_is_the_input_and_what_else_a_way_needs() -> None:
    case = replace(CASE, batch=8, channels=4, plane=(16, 16), fusion="silu")
    tensor, vectors = case.numel * 4, 10 * 4 * 4
    ours, theirs = _kept("tritonbn", case), _kept("torch", case)
    assert ours is not None and theirs is not None
    # SiLU needs its argument again; in one kernel it is computed anew
    assert tensor <= ours <= tensor + vectors
    assert 2 * tensor <= theirs <= 2 * tensor + vectors
    assert _kept("torch", replace(case, mode="forward_eval")) is None
    assert _kept("copy", case) is None


def test_saved_bytes_are_in_the_rows_of_who_has_a_backward_pass() -> None:
    rows: list[Row] = []
    unit = Unit(CASE, (PROVIDERS["tritonbn"], PROVIDERS["copy"]))
    measure("sweep", [unit], Meter(DEVICE.type, FakeStopwatch(0)), rows.extend)
    saved = {row.provider: row for row in rows if row.quantity == SAVED}
    assert list(saved) == ["tritonbn"]
    assert saved["tritonbn"].unit == "bytes" and saved["tritonbn"].value


def test_all_sides_take_turns_in_mirrored_order() -> None:
    order: list[int] = []

    class Noting(FakeStopwatch):
        def block(self, work: Work, calls: int) -> float:
            order.append(work.moved_bytes // MEGABYTE)
            return super().block(work, calls)

    works = {
        name: Work(lambda _: None, moved_bytes=moved * MEGABYTE)
        for name, moved in (("tritonbn", 1), ("torch", 2), ("copy", 3))
    }
    time_together(works, _meter(Noting(0), rounds=8), "nobody")
    assert order[:12] == [1, 2, 3, 3, 2, 1, 3, 2, 1, 1, 2, 3]


def test_a_time_is_the_median_of_its_rounds() -> None:
    timed = time_together(
        {"a": Work(lambda _: None, moved_bytes=4 * MEGABYTE)}, _meter(rounds=8), "a"
    )
    assert len(timed.times("a")) == 8
    assert math.prod(timed.times("a")) ** (1 / 8) == pytest.approx(0.001, rel=0.02)
