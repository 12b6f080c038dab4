"""The accuracy table: what it compares, and that it can turn red."""

from dataclasses import replace

import pytest
from torch.nn import functional

import tritonbn
from tests.inputs import DEVICE
from tritonbn_bench.accuracy import DATA, accuracy_cases, accuracy_rows, judge
from tritonbn_bench.cases import MODES, Case
from tritonbn_bench.inputs import make_inputs
from tritonbn_bench.providers import results_of

CASE = Case("forward_train", "fp32", "nchw", 8, 4, (3, 3), "accuracy", "a test")
RESULTS = {
    "forward_train": ["y", "running_mean", "running_var"],
    "backward_train": ["dx", "dgamma", "dbeta"],
    "forward_eval": ["y"],
    "backward_eval": ["dx", "dgamma", "dbeta"],
}


def test_cases_reach_every_dtype_layout_and_conditioning() -> None:
    cases = accuracy_cases()
    assert len({(case.id, case.data) for case in cases}) == len(cases)
    assert {case.data for case in cases} == set(DATA)
    assert {case.dtype for case in cases} == {"fp32", "fp16", "bf16", "fp64"}
    assert {case.layout for case in cases} == {"nchw", "nhwc", "nc"}


@pytest.mark.parametrize("mode", MODES)
def test_every_result_has_a_row_of_ours_with_its_bound_and_one_of_torchs(mode: str) -> None:
    rows = accuracy_rows(replace(CASE, mode=mode), DEVICE.type)
    assert [row.quantity for row in rows[::2]] == [f"error of {name}" for name in RESULTS[mode]]
    assert {row.provider for row in rows[::2]} == {"tritonbn"}
    assert all(row.bound is not None and row.value <= row.bound for row in rows[::2])  # type: ignore[operator]
    assert {(row.provider, row.bound) for row in rows[1::2]} == {("torch", None)}
    assert {row.backend for row in rows[::2]} <= {"interpreter", "triton"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("factor", [1.001, float("nan")], ids=["one-permille", "nan"])
def test_a_planted_error_turns_its_result_red(mode: str, factor: float) -> None:
    inputs = make_inputs(CASE, "cpu")
    exact = results_of(functional.batch_norm, inputs, mode)
    for name in RESULTS[mode]:
        wrong = {**exact, name: exact[name] * factor}
        verdicts = judge(inputs, mode, wrong, exact)
        assert [verdict.name for verdict in verdicts if not verdict.passed] == [name]


def test_no_bound_is_kept_where_torch_itself_is_not_finite() -> None:
    inputs = make_inputs(CASE, "cpu")
    exact = results_of(functional.batch_norm, inputs, "forward_eval")
    broken = {"y": exact["y"] * float("inf")}
    (verdict,) = judge(inputs, "forward_eval", exact, broken)
    assert not verdict.passed
    assert verdict.reason == "y: torch's own result is not finite"


def test_accuracy_of_torch_is_never_reported_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tritonbn, "backend", lambda _: "torch")
    with pytest.raises(RuntimeError, match="to torch: nothing of ours"):
        accuracy_rows(CASE, DEVICE.type)
