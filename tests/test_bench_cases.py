"""What is declared to be measured."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from tritonbn_bench.cases import (
    DTYPES,
    MODES,
    RESNET50,
    Case,
    fused_sweep_cases,
    grid_cases,
    network_cases,
    resnet50_cases,
    resnet50_fused_cases,
    suite,
    sweep_cases,
    vector_cases,
)
from tritonbn_bench.fusions import FUSIONS
from tritonbn_bench.networks import NETWORKS
from tritonbn_bench.providers import ACTIVATIONS
from tritonbn_kernels.activation_names import activation_of
from tritonbn_kernels.traffic import floor_bytes, unfused_bytes

CASE = Case("forward_train", "bf16", "nchw", 32, 256, (28, 28), "sweep", "a test")


def test_an_id_names_mode_dtype_layout_shape_and_what_follows() -> None:
    assert CASE.id == "forward_train/bf16/nchw/N32C256S784"
    assert replace(CASE, fusion="add_relu").id == "forward_train/bf16/nchw/N32C256S784/add_relu"
    assert CASE.shape == (32, 256, 28, 28)
    assert CASE.numel == 32 * 256 * 784
    assert CASE.itemsize == 2


@pytest.mark.parametrize(
    ("mode", "dtype", "layout", "plane", "message"),
    [
        pytest.param("train", "fp32", "nchw", (2, 2), "mode to be one of", id="mode"),
        pytest.param("forward_train", "int8", "nchw", (2, 2), "dtype to be one of", id="dtype"),
        pytest.param("forward_train", "fp32", "hwc", (2, 2), "layout to be one of", id="layout"),
        pytest.param("forward_train", "fp32", "nchw", (2,), "2 axes after C", id="plane"),
    ],
)
def test_a_case_that_cannot_be_is_refused(
    mode: str, dtype: str, layout: str, plane: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Case(mode, dtype, layout, 1, 1, plane, "sweep", "a test")


def test_a_case_that_nothing_known_follows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fusion to be one of none, relu, add_relu.*got relu7"):
        replace(CASE, fusion="relu7")


def test_every_fusion_is_an_activation_that_kernels_know() -> None:
    for name, fusion in FUSIONS.items():
        assert activation_of(fusion.activation)[0] == fusion.activation
        assert fusion.residual == name.startswith("add")
        assert fusion.activation in (*ACTIVATIONS, "identity")


def test_resnet50_has_53_layers_in_12_shapes() -> None:
    assert sum(layer.count for layer in RESNET50) == 53
    assert len({(layer.channels, layer.plane) for layer in RESNET50}) == len(RESNET50) == 12


def test_resnet50_layers_have_two_parameters_per_channel() -> None:
    # 53,120 is the number of BatchNorm parameters of the published network
    assert sum(2 * layer.channels * layer.count for layer in RESNET50) == 53_120


@pytest.mark.parametrize("name", ["sweep", "resnet50", "networks"])
@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
def test_ids_of_a_suite_are_unique(name: str, quick: bool) -> None:
    ids = [case.id for case in suite(name, quick=quick)]
    assert len(ids) == len(set(ids)) > 0


def test_the_lines_of_a_sweep_cross_in_one_case() -> None:
    cases = sweep_cases(dtypes=("fp32",), layouts=("nchw",))
    crossing = [case for case in cases if (case.batch, case.channels) == (32, 256)]
    assert sorted(case.mode for case in crossing) == ["backward_train", "forward_train"]
    assert all(case.batch == 32 or case.channels == 256 for case in cases)


def test_quick_is_a_part_of_the_whole() -> None:
    for name in ("sweep", "resnet50", "networks"):
        whole, quick = suite(name), suite(name, quick=True)
        assert {case.id for case in quick} < {case.id for case in whole}


def test_suites_hold_what_never_reaches_cudnn_and_real_activations() -> None:
    cases = vector_cases()
    assert any(case.layout == "nc" for case in cases)
    assert {case.dtype for case in cases if case.data == "digits"} == set(DTYPES) - {"fp64"}
    assert any(case.dtype == "bf16" for case in resnet50_cases())


def test_the_fused_layers_of_resnet50_are_those_that_something_follows() -> None:
    cases = resnet50_fused_cases(dtypes=("bf16",), layouts=("nchw",), modes=("forward_train",))
    counts: Counter[str] = Counter()
    for case in cases:
        counts[case.fusion] += case.count
    assert counts == {"relu": 33, "add_relu": 16}
    plain = resnet50_cases(dtypes=("bf16",), layouts=("nchw",), modes=("forward_train",))
    assert {case.shape for case in cases} == {case.shape for case in plain}


def test_the_fused_line_has_every_fusion_in_both_passes() -> None:
    cases = fused_sweep_cases((8,), dtypes=("bf16",), layouts=("nhwc",))
    assert {(case.mode, case.fusion) for case in cases} == {
        (mode, fusion)
        for mode in ("forward_train", "backward_train")
        for fusion in ("relu", "add_relu", "silu")
    }


@pytest.mark.parametrize("name", ["sweep", "resnet50"])
@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
def test_a_third_or_more_of_a_suite_is_fused(name: str, quick: bool) -> None:
    trained = ("forward_train", "backward_train")
    cases = [case for case in suite(name, quick=quick) if case.origin != "grid"]
    cases = [case for case in cases if case.mode in trained]
    assert 3 * sum(case.fusion != "none" for case in cases) >= len(cases)


def test_both_passes_move_what_each_moves() -> None:
    both = replace(CASE, mode="both_train", fusion="add_relu")
    passes = [replace(both, mode=mode) for mode in ("forward_train", "backward_train")]
    for formula in (floor_bytes, unfused_bytes):
        assert both.moved(formula) == sum(case.moved(formula) for case in passes)


def test_the_grid_reaches_far_ends_and_odd_counts_and_no_activation_is_huge() -> None:
    cases = grid_cases()
    batches, channels = ({getattr(case, name) for case in cases} for name in ("batch", "channels"))
    assert (min(batches), max(batches)) == (1, 1024)
    assert (min(channels), max(channels)) == (3, 4096)
    assert any(count % 2 for count in channels if count > 3)
    assert {case.batch for case in cases if case.channels == 3} == batches
    assert max(case.numel * case.itemsize for case in cases) <= 512 * 2**20
    assert not any(case in suite("sweep", quick=True) for case in cases if case.batch == 1024)


def test_the_sweep_has_every_mode_vectors_and_point_clouds() -> None:
    for quick in (False, True):
        cases = suite("sweep", quick=quick)
        assert {case.mode for case in cases} == set(MODES)
        assert {"nc", "ncl", "nchw"} <= {case.layout for case in cases}


def test_every_shape_of_every_network_is_a_case_that_names_it() -> None:
    cases = network_cases(dtypes=("bf16",), channels_last=False)
    forward = [case for case in cases if case.mode == "forward_train"]
    for network in NETWORKS.values():
        for layer in network.layers:
            (case,) = (
                case
                for case in forward
                if (case.channels, case.plane) == (layer.channels, layer.plane)
            )
            assert f"{network.name}: {layer.names}" in case.origin
    counts = sum(layer.count for network in NETWORKS.values() for layer in network.layers)
    assert sum(case.count for case in forward) == counts


def test_an_unknown_suite_is_refused() -> None:
    with pytest.raises(ValueError, match="sweep, resnet50 or networks"):
        suite("vgg")


@pytest.mark.parametrize(
    ("modules", "loaded"),
    [
        pytest.param(("cases", "results", "timer", "cli"), [], id="cases-and-commands"),
        # intervals are numpy's
        pytest.param(("summary", "judge.gate"), ["numpy"], id="statistics"),
    ],
)
def test_cases_results_and_statistics_import_without_torch(
    modules: tuple[str, ...], loaded: list[str]
) -> None:
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        f"import {', '.join(f'tritonbn_bench.{name}' for name in modules)}\n"
        "loaded = {'torch', 'triton', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "print(sorted(loaded))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{loaded}\n", "")
