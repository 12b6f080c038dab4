"""Which rounds count, when they suffice, what one pass says, and the exit code of verdicts."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.judging import rounds_of
from tritonbn_bench.judge.decision import decide, enough, time_is_up, usable
from tritonbn_bench.judge.intervals import Interval
from tritonbn_bench.judge.rounds import BASE, HEAD, Round, take_round
from tritonbn_bench.judge.rule import RULE, Rule
from tritonbn_bench.judge.verdicts import Verdict, exit_code

ROOT = Path(__file__).resolve().parent.parent
TIMES = {BASE: 1.0, HEAD: 1.0}


def rounds_at(*clocks: float | None, throttled: tuple[str, ...] = ()) -> list[Round]:
    return [Round(TIMES, clock, throttled) for clock in clocks]


def test_rounds_below_nine_tenths_of_the_median_clock_are_dropped() -> None:
    rounds = rounds_at(1000.0, 1000.0, 1000.0, 901.0, 899.0)
    kept, dropped = usable(rounds, RULE)
    assert kept == tuple(rounds[:4])
    assert dropped == pytest.approx(0.2)


def test_one_boosted_round_makes_the_others_no_slower() -> None:
    assert usable(rounds_at(1000.0, 1000.0, 1200.0), RULE)[1] == 0


def test_a_machine_that_is_slow_throughout_keeps_its_rounds() -> None:
    assert usable(rounds_at(700.0, 700.0, 705.0), RULE)[1] == 0


def test_rounds_of_an_unknown_clock_are_kept() -> None:
    assert usable(rounds_at(None, None, 1000.0), RULE)[1] == 0


@pytest.mark.parametrize(
    ("reason", "dropped"),
    [
        ("HwThermalSlowdown", 1.0),
        ("sw_thermal_slowdown", 1.0),
        ("HW power brake slowdown", 1.0),
        ("hw_slowdown", 1.0),
        ("SwPowerCap", 0.0),
        ("gpu_idle", 0.0),
    ],
)
def test_heat_and_power_brake_drop_a_round_and_a_power_cap_does_not(
    reason: str, dropped: float
) -> None:
    assert usable(rounds_at(1000.0, throttled=(reason,)), RULE)[1] == dropped


def test_no_rounds_are_none_dropped() -> None:
    assert usable([], RULE) == ((), 0.0)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.031, 1.05, Verdict.REGRESSION),
        (1.029, 1.05, Verdict.INCONCLUSIVE),
        (0.96, 1.031, Verdict.INCONCLUSIVE),
        (0.96, 1.029, Verdict.PASS),
        (0.90, 0.972, Verdict.PASS),
        (0.90, 0.970, Verdict.IMPROVED),
        (math.nan, math.nan, Verdict.INCONCLUSIVE),
    ],
)
def test_a_pass_says_what_the_table_of_verdicts_says(
    low: float, high: float, verdict: Verdict
) -> None:
    interval = Interval(math.log(math.sqrt(low * high)), math.log(low), math.log(high))
    assert decide(interval, 0.03) is verdict


def test_narrow_rounds_suffice_from_the_fewest_on() -> None:
    suffice = enough(RULE, 0.03, HEAD, BASE)
    rounds = rounds_of(0.0)
    assert not suffice(rounds[: RULE.fewest - 1])
    assert suffice(rounds[: RULE.fewest])


def test_dropped_rounds_do_not_count_towards_the_fewest() -> None:
    hot = Round(TIMES, throttled=("hw_thermal_slowdown",))
    assert not enough(RULE, 0.03, HEAD, BASE)([*rounds_of(0.0)[: RULE.fewest - 1], hot])


def test_the_width_that_suffices_is_half_the_margin() -> None:
    # log ratios in [-0.05, 0.05] give eight rounds an interval of about +-0.03
    rounds = rounds_of(0.0, spread=0.05, count=8)
    assert not enough(RULE, 0.03, HEAD, BASE)(rounds)
    assert enough(RULE, 0.10, HEAD, BASE)(rounds)


def test_time_ends_rounds_of_any_width() -> None:
    clock = [0.0]
    suffice = enough(RULE, 0.03, HEAD, BASE, now=lambda: clock[0])
    confirmed = time_is_up(2 * RULE.seconds, now=lambda: clock[0])
    # compiling and checking come before the first round and do not count
    clock[0] = 1000.0
    assert not suffice(rounds_of(0.0, spread=0.5))
    assert not confirmed(())
    clock[0] += RULE.seconds
    assert suffice(rounds_of(0.0)[:1])
    assert not confirmed(())
    clock[0] += RULE.seconds
    assert confirmed(())


@pytest.mark.parametrize(
    ("found", "strict", "code"),
    [
        ([Verdict.PASS, Verdict.IMPROVED], True, 0),
        ([Verdict.NO_BASELINE, Verdict.SKIPPED], True, 0),
        ([Verdict.PASS, Verdict.INCONCLUSIVE], False, 0),
        ([Verdict.PASS, Verdict.INCONCLUSIVE], True, 3),
        ([Verdict.INCONCLUSIVE, Verdict.REGRESSION], True, 1),
        ([Verdict.REGRESSION, Verdict.ACCURACY], False, 4),
        ([], True, 0),
    ],
)
def test_the_gravest_verdict_gives_the_exit_code(
    found: list[Verdict], strict: bool, code: int
) -> None:
    assert exit_code(found, strict=strict) == code


@pytest.mark.parametrize(
    "fields",
    [{"margin": 0.0}, {"total_margin": 1.0}, {"confidence": 95.0}, {"fewest": 2}, {"rounds": 5}],
    ids=str,
)
def test_a_rule_that_makes_no_sense_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        replace(Rule(), **fields)  # type: ignore[arg-type]


def test_a_drift_within_a_round_cancels() -> None:
    clock = iter(range(100))
    sides = {side: lambda: math.exp(0.01 * next(clock)) for side in (BASE, HEAD, "copy")}
    for index in range(2):
        times = take_round(sides, index).times
        assert max(times.values()) == pytest.approx(min(times.values()))


def test_judging_needs_neither_torch_nor_triton() -> None:
    names = [path.stem for path in (ROOT / "bench/tritonbn_bench/judge").glob("[a-z]*.py")]
    imports = "\n".join(f"import tritonbn_bench.judge.{name}" for name in names)
    wanted = "import sys; print(sorted({'torch', 'triton', 'pandas'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{imports}\n{wanted}"],
        env={"PYTHONPATH": str(ROOT / "bench")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(names) > 10
    assert done.stdout.strip() == "[]"
