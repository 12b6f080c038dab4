"""Two processes with two versions of tritonbn: told apart, taking turns, judged, and ended."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import pytest

from tests.gating_repository import ROOT, WRONG, make_repository
from tritonbn_bench.cases import Case
from tritonbn_bench.gating import sides as sides_module
from tritonbn_bench.gating.measurer import Stop, TwoProcesses
from tritonbn_bench.gating.revisions import Sources, in_checkout
from tritonbn_bench.gating.sides import Proof, Side, SideError, Sides
from tritonbn_bench.gating.suites import Trial
from tritonbn_bench.judge.rounds import BASE, COPY, HEAD, REFERENCE, Round

CASE = Case("forward_train", "fp32", "nchw", 4, 16, (8, 8), "gate", "a test")
TRIALS = {
    trial.id: trial
    for trial in (
        Trial(CASE),
        Trial(replace(CASE, mode="backward_train"), "layer"),
        Trial(replace(CASE, fusion="add_relu"), "layer"),
    )
}
# prints where the answers go, and more than a pipe holds
LOUD = "\nprint('x' * 70_000, flush=True)\nimport os\nos.system('echo from a child')\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return in_checkout(make_repository(tmp_path_factory.mktemp("base"), LOUD), "base")


@pytest.fixture(scope="module")
def head() -> Sources:
    return in_checkout(ROOT, "working tree")


@pytest.fixture(scope="module")
def sides(base: Sources, head: Sources) -> Iterator[Sides]:
    with Sides(head, base, "cpu") as found:
        found.look()
        yield found


def _measurer(sides: Sides) -> TwoProcesses:
    return TwoProcesses(sides, TRIALS, Stop())


def test_sides_differ_in_process_packages_and_sources(
    sides: Sides, base: Sources, head: Sources
) -> None:
    first, second = sides.hellos[BASE], sides.hellos[HEAD]
    assert first["pid"] != second["pid"]
    assert first["packages"] == [str(package) for package in base.packages]
    assert second["packages"] == [str(package) for package in head.packages]
    assert (first["digest"], second["digest"]) == (base.digest, head.digest)
    assert first["digest"] != second["digest"]


@pytest.mark.parametrize("case", TRIALS)
def test_a_round_times_every_side(sides: Sides, case: str) -> None:
    found = _measurer(sides)(case, 2, lambda rounds: False)
    assert (found.fault, found.skipped, len(found.rounds)) == ("", "", 2)
    assert all(set(one.times) == {BASE, HEAD, REFERENCE, COPY} for one in found.rounds)
    assert all(value > 0 for one in found.rounds for value in one.times.values())
    assert found.labels == {BASE: "torch", HEAD: "torch", REFERENCE: "torch CPU", "cache": "hot"}


def test_rounds_end_when_there_are_enough(sides: Sides) -> None:
    found = _measurer(sides)(next(iter(TRIALS)), 9, lambda rounds: len(rounds) == 3)
    assert len(found.rounds) == 3


def test_a_planted_slowdown_proves_two_sides_and_is_taken_back(sides: Sides) -> None:
    measurer = _measurer(sides)
    proof = measurer.prove()
    assert proof is not None and proof.passed
    assert proof.case == next(iter(TRIALS))
    found = measurer(proof.case, 8, lambda rounds: False)
    assert abs(math.log(_ratio(found.rounds))) < math.log1p(proof.planted) / 2


@pytest.mark.parametrize("case", TRIALS)
def test_a_slowdown_is_planted_in_the_head_alone_in_every_kind_of_call(
    sides: Sides, case: str
) -> None:
    measurer = _measurer(sides)
    measurer.planted = 1.0
    found = measurer(case, 4, lambda rounds: False)
    assert 1.5 < _ratio(found.rounds) < 2.6


def test_one_process_behind_both_handles_is_caught(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sides._sides, BASE, sides[HEAD])
    with pytest.raises(SideError, match="the two sides are one: base and head are the same proc"):
        sides.look()
    with pytest.raises(SideError, match=r"the two sides are one: head was slowed by 20%.* by [+-]"):
        _measurer(sides).prove()


def test_a_slowdown_that_shows_in_the_base_is_no_proof() -> None:
    # a launch more on a GPU may cost more than was planted
    assert Proof("a", 0.2, 0.19).passed and Proof("a", 0.2, 0.6).passed
    assert not any(Proof("a", 0.2, seen).passed for seen in (0.0, -0.17, 0.05))


def test_a_side_with_other_packages_than_it_was_given_is_caught(
    sides: Sides, head: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sides[BASE], "sources", head)
    with pytest.raises(SideError, match="base: expected packages"):
        sides.look()


def test_what_a_side_cannot_do_is_told_with_its_name_and_it_goes_on(sides: Sides) -> None:
    with pytest.raises(SideError, match=r"^base: ValueError: expected mode to be one of"):
        wrong = {**asdict(CASE), "mode": "sideways"}
        sides[BASE].ask("prepare", case=wrong, via="function", seed=0, cache=None)
    assert sides[BASE].ask("hello")["pid"] == sides[BASE].pid


def test_no_case_is_begun_after_a_stop(sides: Sides) -> None:
    stop = Stop(minutes=0.0)
    found = TwoProcesses(sides, TRIALS, stop)(next(iter(TRIALS)), 8, lambda rounds: False)
    assert (found.rounds, found.skipped) == ((), "no time left")
    stop.interrupted = True
    assert stop.reason == "interrupted"


def test_wrong_results_of_the_head_are_a_fault_and_those_of_the_base_are_skipped(
    sides: Sides, tmp_path: Path, head: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Side("wrong", in_checkout(make_repository(tmp_path, WRONG), "wrong"), head, "cpu")
    right, case = sides[HEAD], next(iter(TRIALS))
    try:
        monkeypatch.setattr(sides, "_sides", {BASE: right, HEAD: wrong})
        found = _measurer(sides)(case, 1, lambda rounds: False)
        assert found.rounds == ()
        assert found.fault.startswith("y: error")
        monkeypatch.setattr(sides, "_sides", {BASE: wrong, HEAD: right})
        found = _measurer(sides)(case, 1, lambda rounds: False)
        assert (found.fault, found.rounds) == ("", ())
        assert found.skipped.startswith("base cannot do it: y: error")
    finally:
        wrong.close()


def test_a_side_that_cannot_start_is_named_with_its_last_words(
    tmp_path: Path, head: Sources
) -> None:
    for package in ("tritonbn", "kernels/tritonbn_kernels"):
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('no way')")
    side = Side("base", in_checkout(tmp_path, "broken"), head, "cpu")
    try:
        with pytest.raises(SideError, match=r"(?s)base .* exit code 1; .*RuntimeError: no way"):
            side.ask("hello")
    finally:
        side.close()


# a parent that is killed closes nothing in order
KILLED = """
import os, pathlib, signal
from tritonbn_bench.gating.revisions import in_checkout
from tritonbn_bench.gating.sides import Side

head = in_checkout(pathlib.Path({root!r}), "head")
print(Side("head", head, head, "cpu").pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_their_parent() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED.format(root=str(ROOT))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    worker = int(done.stdout)
    until = time.monotonic() + 30
    while _runs(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(worker)


def test_no_worker_inherits_the_interpreter(head: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    environment = sides_module._environment(head, "cpu")
    assert "TRITON_INTERPRET" not in environment
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["PYTHONPATH"].split(os.pathsep)[:2] == [str(root) for root in head.roots]


def test_a_side_that_hangs_is_ended_and_named(sides: Sides) -> None:
    side = sides[BASE]
    # whichever of its processes is alive
    os.killpg(side.pid, signal.SIGSTOP)
    with pytest.raises(SideError, match=r"base \(process \d+\) did not answer hello in 0.2 s"):
        side.ask("hello", patience=0.2)
    with pytest.raises(SideError, match=r"base \(process \d+\) "):
        side.ask("hello")
    assert not side.alive


def _ratio(rounds: Sequence[Round]) -> float:
    return median(one.times[HEAD] / one.times[BASE] for one in rounds)


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
