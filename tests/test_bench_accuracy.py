"""The accuracy table: what it compares, and that it can turn red."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

import tritonbn
from tests.inputs import DEVICE
from tritonbn_bench.accuracy import DATA, FUSED, accuracy_cases, accuracy_rows, judge
from tritonbn_bench.cases import MODES, Case
from tritonbn_bench.inputs import make_inputs
from tritonbn_bench.providers import composed, results_of

CASE = Case("forward_train", "fp32", "nchw", 8, 4, (3, 3), "accuracy", "a test")
RESULTS = {
    "forward_train": ["y", "running_mean", "running_var"],
    "backward_train": ["dx", "dgamma", "dbeta"],
    "forward_eval": ["y"],
    "backward_eval": ["dx", "dgamma", "dbeta"],
    "both_train": ("y", "running_mean", "running_var", "dx", "dgamma", "dbeta"),
}


def _results(case: Case) -> list[str]:
    """Names of the results of a case."""
    more = not case.mode.startswith("forward") and case.fused.residual
    return [*RESULTS[case.mode], *(["dresidual"] if more else [])]


def test_cases_reach_every_dtype_layout_and_conditioning() -> None:
    cases = accuracy_cases()
    assert len({(case.id, case.data) for case in cases}) == len(cases)
    fused = [case for case in cases if case.fusion != "none"]
    assert {(case.mode, case.dtype, case.fusion) for case in fused} == {
        (mode, dtype, fusion)
        for mode in MODES[:4]
        for dtype in ("fp32", "fp16", "bf16", "fp64")
        for fusion in FUSED
    }
    assert {case.data for case in cases} == set(DATA)
    assert {case.dtype for case in cases} == {"fp32", "fp16", "bf16", "fp64"}
    assert {case.layout for case in cases} == {"nchw", "nhwc", "nc"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fusion", ["none", *FUSED])
def test_every_result_has_a_row_of_ours_with_its_bound_and_one_of_torchs(
    mode: str, fusion: str
) -> None:
    case = replace(CASE, mode=mode, fusion=fusion)
    rows = accuracy_rows(case, DEVICE.type)
    assert [row.quantity for row in rows[::2]] == [f"error of {name}" for name in _results(case)]
    assert {row.fusion for row in rows} == {fusion}
    assert {row.provider for row in rows[::2]} == {"tritonbn"}
    assert all(row.bound is not None and row.value <= row.bound for row in rows[::2])  # type: ignore[operator]
    assert {(row.provider, row.bound) for row in rows[1::2]} == {("torch", None)}
    assert {row.backend for row in rows[::2]} <= {"interpreter", "triton"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("factor", [1.001, float("nan")], ids=["one-permille", "nan"])
@pytest.mark.parametrize("fusion", ["none", "add_relu", "silu"])
def test_a_planted_error_turns_its_result_red(mode: str, factor: float, fusion: str) -> None:
    case = replace(CASE, mode=mode, fusion=fusion)
    inputs = make_inputs(case, "cpu")
    exact = results_of(composed(functional.batch_norm), inputs, mode)
    for name in _results(case):
        wrong = {**exact, name: exact[name] * factor}
        verdicts = judge(inputs, mode, wrong, exact)
        assert [verdict.name for verdict in verdicts if not verdict.passed] == [name]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("fusion", FUSED)
def test_the_oracle_of_a_fusion_is_torchs_float64(mode: str, dtype: str, fusion: str) -> None:
    inputs = make_inputs(replace(CASE, mode=mode, dtype=dtype, fusion=fusion), "cpu")
    leaves: dict[str, Any] = {
        name.removeprefix("d"): leaf.detach().double().requires_grad_()
        for name, leaf in inputs.leaves.items()
    }
    wide = replace(
        inputs,
        dy=inputs.dy.double(),
        running_mean=inputs.running_mean.double(),
        running_var=inputs.running_var.double(),
        **leaves,
    )
    exact = results_of(composed(functional.batch_norm), wide, mode)
    for verdict in judge(inputs, mode, exact, exact):
        assert verdict.error <= 1e-12, verdict


def test_dy_is_zero_where_rounding_decides_the_derivative() -> None:
    case = replace(CASE, mode="backward_train", dtype="bf16", fusion="add_relu", batch=256)
    inputs, other = make_inputs(case, "cpu"), make_inputs(replace(case, fusion="add_silu"), "cpu")
    with torch.no_grad():
        y = functional.batch_norm(inputs.x.float(), None, None, inputs.gamma, inputs.beta, True)
        beta, residual = inputs.beta.view(1, -1, 1, 1), inputs.residual
        assert residual is not None
        share = (y + residual).abs() / ((y - beta).abs() + beta.abs() + residual.abs())
    changed = inputs.dy != other.dy
    assert (inputs.dy[changed] == 0).all()
    # a rounding of bf16, 2^-7 of the terms of z
    assert share[changed].max() < 1.01 * 2**-7
    assert share[~changed].min() > 0.99 * 2**-7
    assert 0 < changed.double().mean() < 0.02


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
