"""Shapes, layouts and plans that nobody thought of: drawn by hypothesis, judged by the oracle."""

import pytest

pytest.importorskip("hypothesis", reason="needs hypothesis, of the extra 'test'")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tritonbn_kernels
from tests.checks import check_backward, check_forward, operands
from tests.inputs import lay_out, values

LAYOUTS = {
    2: ["contiguous", "transposed", "channel_slice"],
    3: ["contiguous", "transposed", "batch_slice", "space_slice"],
    4: ["contiguous", "channels_last", "channel_slice", "channels_last_slice", "space_transposed"],
    5: ["contiguous", "channels_last_3d", "batch_slice", "expanded"],
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# the draws are the same on every machine: a failure here is a failure anywhere
few_examples = settings(max_examples=50, deadline=None, derandomize=True, database=None)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[tuple[int, ...], str]:
    """A shape and a layout it can have. At least four values per channel: with two or three, dx
    may cancel to nothing, see `tolerances.cancelling_budget`."""
    dims = draw(st.integers(2, 5))
    batch = draw(st.integers(4, 9))
    channels = draw(st.sampled_from([1, 2, 3, 5, 8, 17, 33]))
    space = [draw(st.integers(1, 9 if dims < 5 else 4)) for _ in range(dims - 2)]
    return (batch, channels, *space), draw(st.sampled_from(LAYOUTS[dims]))


@st.composite
def plans(draw: st.DrawFn) -> dict[str, int]:
    """One read, or two with tiles and splits; every combination is allowed on every shape."""
    if draw(st.booleans()):
        return {"resident": 1, "splits": 1, "block_v": draw(st.sampled_from([16, 64, 256]))}
    plan = {
        "block_c": draw(st.sampled_from([1, 4, 16])),
        "block_v": draw(st.sampled_from([16, 64, 256])),
        "fused": draw(st.integers(0, 1)),
    }
    if not plan["fused"]:
        plan["splits"] = draw(st.integers(1, 5))
    return plan


@few_examples
@given(shapes(), plans(), st.sampled_from(DTYPES), st.booleans(), st.integers(0, 2**31))
def test_any_shape_layout_plan_and_dtype_keeps_the_budget(
    shape_and_layout: tuple[tuple[int, ...], str],
    plan: dict[str, int],
    dtype: torch.dtype,
    training: bool,
    seed: int,
) -> None:
    shape, layout = shape_and_layout
    torch.manual_seed(seed)
    call = operands(lay_out(values(shape, dtype), layout))
    dy = values(shape, dtype)
    with tritonbn_kernels.pinned_plan(**plan):
        saved = check_forward(call, training)
        check_backward(call, dy, training, saved=saved)
