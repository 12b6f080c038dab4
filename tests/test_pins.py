"""Whatever TRITONBN_PLAN asks for ends in a right result, by the plan or by two reads."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from tests.checks import operands
from tests.held import gradient_of, judge
from tests.inputs import INTERPRETED, lay_out, values
from tritonbn_kernels import clear_cache, pinned_plan, record_launches
from tritonbn_kernels.layout import view_of
from tritonbn_kernels.plan import DeviceProfile
from tritonbn_kernels.residency import plan_resident
from tritonbn_kernels.row_plans import plan_rows

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="asks for more than a compiler can take")

ROWS = ((4, 64, 4, 4), "channels_last")
IMAGES = ((4, 24, 5, 3), "contiguous")
PLANES = ((4, 8, 8, 8), "contiguous")


@pytest.fixture(autouse=True)
def unpinned() -> Iterator[None]:
    clear_cache()
    yield
    clear_cache()


@contextmanager
def _called(shape: tuple[int, ...], layout: str, plan: str) -> Iterator[list[str]]:
    """The kernels of one judged call with this TRITONBN_PLAN."""
    with pytest.MonkeyPatch.context() as environment, record_launches() as launches:
        environment.setenv("TRITONBN_PLAN", plan)
        call = operands(lay_out(values(shape, torch.bfloat16), layout))
        judge(call, gradient_of(call.x))
        yield [launch.kernel.split("_")[0] for launch in launches]


@pytest.mark.parametrize("tensor", [ROWS, IMAGES], ids=["channels-last", "images"])
@pytest.mark.parametrize("plan", [
    pytest.param("one_read,block_c=65536", id="block-wider-than-the-tensor"),
    pytest.param("one_read,block_n=1048576", id="tile-longer-than-the-tensor"),
    pytest.param("hybrid", id="hybrid-where-no-program-may-wait"),
    pytest.param("hybrid,block_c=8", id="hybrid-of-narrow-blocks"),
])  # fmt: skip
def test_pinned_rows_are_right(tensor: tuple[tuple[int, ...], str], plan: str) -> None:
    with _called(*tensor, plan) as kernels:
        assert kernels == ["rows", "rows"]


@pytest.mark.parametrize(("tensor", "plan"), [
    pytest.param(ROWS, "one_read,block_c=2", id="block-narrower-than-an-access"),
    pytest.param(ROWS, "hybrid,stream=100", id="stream"),
    pytest.param(ROWS, "one_read,pieces=1000", id="pieces"),
    pytest.param(PLANES, "one_read,block_v=8,pieces=33", id="pieces-of-planes"),
    pytest.param(ROWS, "one_read,splits=2", id="rows-that-would-wait-for-ever"),
    pytest.param(PLANES, "one_read,splits=2", id="planes-that-would-wait-for-ever"),
])  # fmt: skip
def test_pins_that_cannot_be_are_two_reads(tensor: tuple[tuple[int, ...], str], plan: str) -> None:
    with _called(*tensor, plan) as kernels:
        assert kernels == ["statistics", "gradients"]


def test_row_longer_than_a_tile_is_no_plan() -> None:
    view = view_of((3, 256, 49), (256 * 49, 49, 1))
    assert view is not None
    with pinned_plan(resident=1, block_c=256):
        assert plan_rows((view, view), 2, DeviceProfile(132), 1) is None


@pytest.mark.parametrize("streams", [1, 2])
def test_planes_larger_than_registers_are_two_reads(streams: int) -> None:
    view = view_of((32, 256, 3136), (256 * 3136, 3136, 1))
    assert view is not None
    with pinned_plan(resident=1, block_c=256):
        assert plan_resident(view, 2, DeviceProfile(132), 8, streams) is None
