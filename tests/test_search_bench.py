"""The bench of a search: each plan is followed while it is checked and timed."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tritonbn
from tests.inputs import INTERPRETED
from tritonbn_bench.cases import Case
from tritonbn_bench.environment import Environment
from tritonbn_bench.judge.rule import RULE
from tritonbn_bench.judge.verdicts import Verdict
from tritonbn_bench.providers import PROVIDERS, Prepared
from tritonbn_bench.search.bench import Bench
from tritonbn_bench.search.candidates import TABLE, Proposals, proposals_for
from tritonbn_bench.search.record import Record, as_plan_file, as_text
from tritonbn_bench.search.regimes import regime_of_case
from tritonbn_bench.search.trial import Outcome, PlanTimes, Reading, try_plans
from tritonbn_bench.timer import Work
from tritonbn_kernels import clear_cache, plan_file, record_launches
from tritonbn_kernels.outlook import H200, Device
from tritonbn_kernels.plan import INTERPRETER

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="times are made up, kernels interpreted")

HERE = Device("interpreter", INTERPRETER, H200.copy_speed, H200.l2_speed)
# the interpreter takes its time
RULE_HERE = replace(RULE, rounds=3, fewest=3)
ONCE = 2


def _case(mode: str, layout: str = "nchw", fusion: str = "none") -> Case:
    return Case(mode, "bf16", layout, 2, 8, (4, 4), "a", "b", fusion=fusion)


class PlanStopwatch:
    """Times by the plan in use; the call is run, so that its launches can be seen.

    Args:
        ms: of each plan, 1 of those that are not named
        runs: whether blocks run their call
    """

    cache = "fake"

    def __init__(self, ms: dict[str, float], runs: bool = False) -> None:
        self.ms, self.runs = ms, runs
        self.seen: dict[str, set[tuple[str, ...]]] = {}

    def calls_for(self, work: Work) -> int:
        return 1

    def wall(self, work: Work) -> float:
        return 1.0

    def block(self, work: Work, calls: int) -> float:
        plans = plan_file.in_use()
        assert plans is not None
        plan = next(iter(plans.rows.values()), TABLE)
        if self.runs:
            state = work.setup()
            with record_launches() as launches:
                work.call(state)
            names = tuple(launch.kernel.split("_")[0] for launch in launches)
            self.seen.setdefault(plan, set()).add(names)
        # the last digits differ, as those of a real clock do
        return self.ms.get(plan, 1.0) * (1 + 1e-6 * torch.rand(()).item())


@pytest.fixture(autouse=True)
def unpinned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("TRITONBN_PLAN", raising=False)
    monkeypatch.delenv("TRITONBN_PLAN_FILE", raising=False)
    clear_cache()
    yield
    tritonbn.use_plans(None)
    clear_cache()


def _search(case: Case, ms: dict[str, float]) -> Outcome:
    """A trial of three plans in the interpreter, with made-up times."""
    proposals = Proposals(("fused", "split", "one_read,block_c=2"), 0, 0)
    bench = Bench("cpu", PlanStopwatch(ms))
    return try_plans(regime_of_case(case), [case], proposals, bench, RULE_HERE)


@pytest.mark.parametrize(
    "case",
    [
        _case("forward_train"),
        _case("forward_eval"),
        _case("backward_train", "nhwc"),
        _case("backward_train", fusion="add_relu"),
    ],
    ids=lambda case: case.id,
)
def test_all_plans_that_would_be_tried_are_right(case: Case) -> None:
    regime = regime_of_case(case)
    plans = proposals_for(regime, [case], HERE).plans
    assert len(plans) > 5
    times = Bench("cpu", PlanStopwatch({}))(regime, case, plans, 0, lambda rounds: False)
    assert times == PlanTimes((), {}, {})


KERNELS: dict[str, dict[str, tuple[str, ...]]] = {
    TABLE: {"forward_train": ("resident",), "backward_train": ("resident",)},
    "fused": {"forward_train": ("statistics",), "backward_train": ("gradients",)},
    "split": {
        "forward_train": ("statistics", "normalize"),
        "backward_train": ("gradients", "input"),
    },
}


@pytest.mark.parametrize("mode", ["forward_train", "backward_train"])
def test_a_plan_is_followed_in_its_pass_while_it_is_timed(mode: str) -> None:
    stopwatch = PlanStopwatch({"split": 0.5}, runs=True)
    case = _case(mode)
    times = Bench("cpu", stopwatch)(
        regime_of_case(case), case, ["fused", "split"], 2, lambda rounds: False
    )
    assert len(times.rounds) == 2
    assert all(item.times["split"] < 0.6 < item.times["fused"] for item in times.rounds)
    # of a backward pass the forward pass before it follows the table, and is not timed
    assert stopwatch.seen == {plan: {names[mode]} for plan, names in KERNELS.items()}
    assert tritonbn.plans_in_use() is None


def test_what_is_found_is_written_and_followed(tmp_path: Path) -> None:
    case = _case("forward_train")
    outcome = _search(case, {"split": 0.8, "fused": 0.9})
    assert outcome.plan == "split"
    assert [round(reading.ratio, 2) for reading in outcome.readings] == [0.8]
    gpu = (HERE.name, HERE.profile.sm_count)
    as_plan_file([outcome], {"torch": "2"}, gpu).write(tmp_path / "plans.json")
    plans = tritonbn.use_plans(tmp_path / "plans.json")
    assert plans is not None and plans.rows == {outcome.regime: "split"}
    assert plans.origin["torch"] == "2" and str(plans.notes[outcome.regime]).count("ratio") == 1
    with record_launches() as launches:
        x = torch.randn(case.shape, dtype=torch.bfloat16)
        tritonbn.batch_norm(x, None, None, training=True)
    assert [launch.kernel for launch in launches] == ["statistics_kernel", "normalize_kernel"]
    text = as_text([outcome], 3)
    assert text.startswith("1 rows of the plan table should change:\n")
    assert f"\n  split\n    {case.id}: 1.0000 -> 0.8000 ms, x0.800 [0.800, 0.800], 6 rounds" in text
    assert "\nsearched 1 of 3 regimes; plans: " in text


def _sabotaged(monkeypatch: pytest.MonkeyPatch, change: Callable[[Prepared], Prepared]) -> None:
    ours = PROVIDERS["tritonbn"]

    def prepare(case: Case, inputs: Any) -> Prepared:
        return change(ours.prepare(case, inputs))

    monkeypatch.setitem(PROVIDERS, "tritonbn", replace(ours, prepare=prepare))


def _follows(plan: str) -> bool:
    plans = plan_file.in_use()
    return plans is not None and plan in plans.rows.values()


def test_an_inaccurate_plan_is_refused_however_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(prepared: Prepared) -> Prepared:
        def outputs() -> dict[str, torch.Tensor]:
            results = prepared.outputs()
            if _follows("split"):
                results["y"][1, 2, 3, 3] += 0.25
            return results

        return replace(prepared, outputs=outputs)

    _sabotaged(monkeypatch, change)
    outcome = _search(_case("forward_train"), {"split": 0.5, "fused": 0.9})
    assert outcome.plan == "fused"
    assert list(outcome.wrong) == ["split"] and "above the bound" in outcome.wrong["split"]
    assert "\nwrong: split, forward_train/bf16/nchw/N2C8S16: y: " in as_text([outcome], 1)


def test_a_plan_that_nobody_can_launch_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def change(prepared: Prepared) -> Prepared:
        def call(state: object) -> object:
            if _follows("fused"):
                raise RuntimeError("out of resources")
            if _follows("split"):
                calls.append("split")
                if len(calls) > ONCE:
                    raise RuntimeError("lost in a round")
            return prepared.call(state)

        return replace(prepared, call=call)

    _sabotaged(monkeypatch, change)
    case = _case("forward_train")
    plans = ["fused", "split", "one_read,block_c=2"]
    bench = Bench("cpu", PlanStopwatch({}, runs=True))
    times = bench(regime_of_case(case), case, plans, 2, lambda rounds: False)
    assert times.failed == {
        "fused": "RuntimeError: out of resources",
        "split": "RuntimeError: lost in a round",
    }
    assert [sorted(item.times) for item in times.rounds] == [["one_read,block_c=2", TABLE]] * 2


def test_what_the_driver_refuses_is_no_plan_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another plan runs in its place, and gives right results."""
    refused: list[str] = []

    def change(prepared: Prepared) -> Prepared:
        def outputs() -> dict[str, torch.Tensor]:
            refused.extend(["a plan was refused"] if _follows("split") else [])
            return prepared.outputs()

        return replace(prepared, outputs=outputs)

    _sabotaged(monkeypatch, change)
    monkeypatch.setattr("tritonbn_bench.search.bench.fallbacks", lambda: refused)
    outcome = _search(_case("forward_train"), {"split": 0.5})
    assert (outcome.plan, outcome.wrong) == ("", {})
    assert outcome.failed == {"split": "forward_train/bf16/nchw/N2C8S16: a plan was refused"}


def test_a_case_too_large_for_the_device_is_said_of_the_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def too_large(*arguments: object) -> None:
        raise MemoryError("too large")

    monkeypatch.setattr("tritonbn_bench.search.bench.make_inputs", too_large)
    outcome = _search(_case("forward_train"), {})
    assert outcome.failed == {TABLE: "forward_train/bf16/nchw/N2C8S16: MemoryError: too large"}


def test_a_record_is_kept_whole_and_read_back(tmp_path: Path) -> None:
    environment: Environment = {"device": "cuda", "gpu": "H200"}
    case = _case("forward_train")
    regime = regime_of_case(case)
    reading = Reading(case.id, 1.0, 0.8, 0.8, 0.79, 0.81, 40, Verdict.IMPROVED)
    found = Outcome(regime, (case.id,), 3, 2, 1, "split", "split", (reading,), {"fused": "no"})
    lost = replace(found, regime=replace(regime, itemsize=4), failed={TABLE: "lost"}, plan="")
    record = Record(tmp_path, environment)
    record.add(replace(found, plan=""))
    record.add(lost)
    record.add(found)
    again = Record.resume(tmp_path, environment)
    # a regime that failed is searched again
    assert again.outcomes == [found]
    assert again.holds(regime, [case])
    assert not again.holds(regime, [case, replace(case, batch=3)])
    with pytest.raises(ValueError, match="differs from this search in gpu; choose another --out"):
        Record.resume(tmp_path, {**environment, "gpu": "H100"})
    record.path.write_text('{"schema": "another"}')
    with pytest.raises(ValueError, match=r"search\.json is no record of a search: expected schema"):
        Record.resume(tmp_path, environment)
    assert Record.resume(tmp_path / "none", environment).outcomes == []
