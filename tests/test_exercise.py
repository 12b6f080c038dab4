"""Claims about the exercise that a sanitizer watches: what it reaches, and that it sees a fault."""

from dataclasses import replace

import pytest

from tests import planted_barriers
from tests.inputs import DEVICE, INTERPRETED
from tritonbn_bench.cases import DTYPES
from tritonbn_bench.exercise import EXERCISES, PASSED_WORDS, Exercise, main, perform
from tritonbn_bench.plan_table import view_in
from tritonbn_kernels import group as group_module
from tritonbn_kernels import launch, pinned_plan
from tritonbn_kernels.outlook import DEVICES, outlook

# what the planner calls each family, and the tensors that it keeps
ONE_READ = {
    "planes": ("resident", "one read"),
    "narrow planes": ("narrow", "one read"),
    "rows": ("rows", "one read"),
    "hybrid of rows": ("rows", "hybrid"),
    "hybrid of narrow planes": ("narrow", "hybrid"),
}
TWO_READ = {
    "two reads, one launch, planes": "fused",
    "two reads, one launch, rows": "fused",
    "two reads, two launches, planes": "split",
    "two reads, two launches, rows": "split",
}
TRAINING = [exercise for exercise in EXERCISES if exercise.case.training]


def _id(exercise: Exercise) -> str:
    return f"{exercise.name}-{exercise.case.dtype}".replace(" ", "-")


@pytest.mark.slow
def test_every_result_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("greenlet", reason="cooperative schedules need greenlet")
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[:-1]] == [one.name for one in EXERCISES]
    assert all(line.endswith(" | right") for line in lines[:-1])
    assert lines[-1].endswith(PASSED_WORDS)


def test_every_family_trains_in_both_dtypes_alone_and_behind_an_addition() -> None:
    seen = {(one.name, one.case.dtype, one.case.fusion) for one in TRAINING}
    assert seen == {
        (name, *of)
        for name in (*ONE_READ, *TWO_READ)
        for of in (("fp32", "none"), ("bf16", "add_relu"))
    }
    modes = {one.case.mode for one in EXERCISES}
    assert modes == {"both_train", "forward_eval", "backward_eval"}


@pytest.mark.parametrize("device", ["h200", "mig16"])
@pytest.mark.parametrize("exercise", TRAINING, ids=_id)
def test_gpus_of_any_size_get_the_plan(exercise: Exercise, device: str) -> None:
    case = exercise.case
    view = view_in(case.shape, case.layout)
    with pinned_plan(**exercise.pins):
        for mode, tensors in (("forward_train", 2), ("backward_train", 3)):
            plan = outlook(mode, (view,) * tensors, DTYPES[case.dtype], DEVICES[device])
            # one warp alone needs no shared memory, and no barrier
            assert plan.plan.num_warps == 4
            if exercise.name in TWO_READ:
                assert plan.family == TWO_READ[exercise.name]
                continue
            assert (plan.family, plan.kind) == ONE_READ[exercise.name]
            # members that meet, and a program that owns more than one of their shares
            assert plan.members == 3
            assert plan.groups * plan.members >= plan.programs == exercise.pins["programs"]


@pytest.mark.skipif(not INTERPRETED, reason="the interpreter's schedule shows the fault")
def test_missing_barrier_is_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("greenlet", reason="cooperative schedules need greenlet")
    monkeypatch.setattr(group_module, "group_barrier", planted_barriers.removed)
    monkeypatch.setattr(launch, "_counters", {})
    assert main(["--only", "planes"]) == 4
    out = capsys.readouterr().out
    assert "planes | both_train/fp32/nchw/N9C3S448 | " in out
    assert "WRONG: y: error" in out
    assert PASSED_WORDS not in out


PLANES = next(one for one in EXERCISES if one.name == "planes")
NO_GROUPS = {**PLANES.pins, "splits": 1, "programs": 2}


@pytest.mark.parametrize(
    ("pins", "fault"),
    [
        ({"resident": 0, "fused": 1}, "expected resident_backward_kernel, resident_forward_kernel"),
        (NO_GROUPS, "expected programs to meet at a barrier"),
    ],
    ids=["other-kernels", "no-groups"],
)
def test_plan_that_was_not_followed_is_a_fault(pins: dict[str, int], fault: str) -> None:
    _, found = perform(replace(PLANES, pins=pins), DEVICE.type)
    assert found.startswith(fault)


def test_family_that_is_not_there_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "no such family"]) == 4
    assert "0 of 0" in capsys.readouterr().out
