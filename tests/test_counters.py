"""Claims about hardware counters: which cases are counted, what ncu's CSV means, what is said."""

from dataclasses import replace

import pytest

from tests.standins import CASE, FIRST, READ, TWO_KERNELS, WRITTEN, ncu_csv, sweep_rows
from tritonbn_bench.cases import suite
from tritonbn_bench.counters.choice import FIXED, case_of, worst
from tritonbn_bench.counters.ncu import Kernel, kernels_of
from tritonbn_bench.counters.record import Expected, Record, expected_of_case
from tritonbn_bench.summary import LARGE
from tritonbn_kernels.outlook import H200


def test_csv_of_two_kernels_is_read() -> None:
    first, second = kernels_of(TWO_KERNELS.splitlines())
    assert (first.name, second.name) == ("statistics_kernel", "normalize_kernel")
    assert first.figures["dram_read"] == READ
    assert first.figures["dram_written"] == 1024
    assert first.figures["ns"] == 30_000
    assert first.stalls == {"barrier": 4, "long scoreboard": 10, "membar": 0.5, "wait": 2}
    assert second.stalls == {"long scoreboard": 2}


def test_units_other_than_the_base_are_scaled() -> None:
    text = ncu_csv(
        ("a", {"dram__bytes_read.sum": "1.5", "gpu__time_duration.sum": "2"}),
        units={"dram__bytes_read.sum": "Mbyte", "gpu__time_duration.sum": "us"},
    )
    (kernel,) = kernels_of(text.splitlines())
    assert kernel.figures == {"dram_read": 1.5e6, "ns": 2e3}


def test_unknown_unit_is_an_error() -> None:
    text = ncu_csv(("a", {"dram__bytes_read.sum": "1"}), units={"dram__bytes_read.sum": "furlong"})
    with pytest.raises(ValueError, match="got furlong"):
        list(kernels_of(text.splitlines()))


@pytest.mark.parametrize(
    ("full", "short"),
    [
        ("void at::native::reduce_kernel<512, 1, Op<float>>(Op<float>)", "reduce_kernel"),
        ("at::native::(anonymous namespace)::transform<float>(float*)", "transform"),
        ("void cudnn::<unnamed>::bn_fw<float, 4>(float)", "bn_fw"),
        ("rows_forward_kernel", "rows_forward_kernel"),
    ],
)
def test_kernels_go_by_their_own_names(full: str, short: str) -> None:
    (kernel,) = kernels_of(ncu_csv((full, FIRST)).splitlines())
    assert kernel.name == short


def _record(*kernels: Kernel, provider: str = "tritonbn", planned: int = READ + WRITTEN) -> Record:
    expected = Expected("two launches", planned, READ + WRITTEN)
    return Record(CASE, provider, "triton", kernels, expected)


def test_figures_of_kernels_are_summed() -> None:
    record = _record(*kernels_of(TWO_KERNELS.splitlines()))
    assert record.total("ns") == 40_000
    assert record.total("dram_written") == 60_001_024
    # of the second the L2 cache holds what memory has not got yet
    assert record.l2_written == WRITTEN + 1024
    assert record.moved == READ + WRITTEN + 1024
    assert record.l2_hit_percent == pytest.approx((3 * 20 + 1 * 60) / 4)
    assert record.stalls == [("long scoreboard", 8.0), ("barrier", 3.0), ("wait", 1.5)]


def test_figure_that_a_kernel_lacks_is_not_summed() -> None:
    first, second = kernels_of(TWO_KERNELS.splitlines())
    del second.figures["dram_read"]
    record = _record(first, second)
    assert record.total("dram_read") is None
    assert record.moved is None
    assert not record.deviates


@pytest.mark.parametrize(
    ("share", "deviates"), [(1.0, False), (1.09, False), (1.11, True), (0.89, True), (0.91, False)]
)
def test_ten_percent_more_or_less_than_the_plan_deviate(share: float, deviates: bool) -> None:
    record = _record(*kernels_of(TWO_KERNELS.splitlines()))
    assert record.moved is not None
    planned = replace(record.expected, plan_bytes=int(record.moved / share))
    assert replace(record, expected=planned).deviates is deviates


def test_plan_is_tritonbn_s_alone_and_the_floor_everybody_s() -> None:
    record = _record(*kernels_of(TWO_KERNELS.splitlines()), provider="torch")
    assert record.of_plan is None
    assert record.of_floor == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("name", ["sweep", "resnet50", "networks"])
def test_every_id_of_a_suite_is_a_case_again(name: str) -> None:
    for case in suite(name):
        again = case_of(case.id)
        assert (again.id, again.numel) == (case.id, case.numel)


@pytest.mark.parametrize("wrong", ["", "forward/fp32", "forward_train/fp99/nchw/N1C1S1"])
def test_no_id_is_an_error(wrong: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        case_of(wrong)


def test_fixed_cases_are_large_and_cover_passes_dtypes_and_layouts() -> None:
    cases = [case_of(one) for one in FIXED]
    assert len({(case.mode, case.dtype, case.layout) for case in cases}) == len(FIXED) == 8
    assert all(expected_of_case(case, H200).floor_bytes >= LARGE for case in cases)


def test_expected_bytes_are_the_planner_s() -> None:
    both = case_of("both_train/bf16/nhwc/N256C256S3136/add_relu")
    passes = [replace(both, mode=mode) for mode in both.passes]
    parts = [expected_of_case(case, H200) for case in passes]
    whole = expected_of_case(both, H200)
    # a hybrid plan, which reads a part again
    assert all(part.plan_bytes > part.floor_bytes for part in parts)
    assert whole.plan_bytes == sum(part.plan_bytes for part in parts)
    assert whole.plan == "; ".join(part.plan for part in parts)


SWEEP = [
    *sweep_rows("fast", 0.9, {"torch": 0.5, "torch.compile": 0.6}),
    *sweep_rows("slow", 0.3, {"torch": 0.5}),
    *sweep_rows("slower", 0.2, {"torch": 0.5}),
    # loses to one of its rivals
    *sweep_rows("beaten", 0.8, {"torch": 0.4, "torch.compile": 1.5}),
    # beaten by ourselves alone
    *sweep_rows("unfused", 0.7, {"torch": 0.5, "tritonbn unfused": 2.0}),
    *sweep_rows("small", 0.01, {"torch": 3.0}, floor_bytes=LARGE - 1),
    *sweep_rows("layer", 0.01, {"torch": 3.0}, job="resnet50"),
    *sweep_rows("modelled", 0.01, {"torch": 3.0}, kind="modelled"),
]


def test_slowest_against_a_copy_come_first_and_then_against_the_best_rival() -> None:
    assert worst(SWEEP, 2) == ("slower", "slow", "beaten")
    assert worst(SWEEP, 1) == ("slower",)
    assert worst([], 2) == ()
