"""Plans to be tried: every kind, each once, none that a shape cannot have."""

import pytest

from tritonbn_bench.cases import Case
from tritonbn_bench.networks import NETWORKS
from tritonbn_bench.search.candidates import Proposals, _varied, expected_of, proposals_for
from tritonbn_bench.search.regimes import SUITES, cases_named, grouped, regime_of_case
from tritonbn_kernels.outlook import DEVICES, H200
from tritonbn_kernels.plan import pins_from
from tritonbn_kernels.plan_file import Regime
from tritonbn_kernels.traffic import MODES

TRAINING = MODES[0], MODES[2]


def _case(
    mode: str, layout: str, batch: int, channels: int, *plane: int, fusion: str = "none"
) -> Case:
    return Case(mode, "bf16", layout, batch, channels, plane, "a", "b", fusion=fusion)


def _proposed(*cases: Case) -> tuple[Regime, Proposals]:
    regime = regime_of_case(cases[0])
    return regime, proposals_for(regime, cases, H200)


@pytest.mark.parametrize("mode", TRAINING)
@pytest.mark.parametrize(
    ("size", "families"),
    [
        pytest.param(("nchw", 64, 64, 56, 56), {"resident", "fused", "split"}, id="planes"),
        pytest.param(("nchw", 64, 512, 7, 7), {"narrow", "fused", "split"}, id="narrow"),
        pytest.param(("nhwc", 64, 256, 28, 28), {"rows", "fused", "split"}, id="rows"),
        pytest.param(("nc", 4096, 1024), {"rows", "fused", "split"}, id="vectors"),
    ],
)
def test_every_kind_is_tried_and_every_plan_is_another(
    size: tuple[str, int, int], families: set[str], mode: str
) -> None:
    case = _case(mode, *size)
    regime, proposals = _proposed(case)
    planned = [expected_of(regime, case, H200, plan) for plan in proposals.plans]
    assert {item.family for item in planned} == families
    plans = {expected_of(regime, case, H200).plans, *(item.plans for item in planned)}
    assert len(plans) == 1 + len(proposals.plans)
    offered = list(_varied(regime, case, H200))
    assert len(set(offered)) == len(offered)
    assert len(proposals.plans) + proposals.refused + proposals.same == len(offered)
    assert proposals.same and proposals.refused
    # of what is asked for, nothing is dropped without a word
    for plan, item in zip(proposals.plans, planned, strict=True):
        pins = pins_from(plan)
        assert item.plan.num_warps == pins.get("num_warps", item.plan.num_warps)
        assert item.members == pins.get("splits", item.members)
        assert (item.kind == "two reads") == (not pins["resident"])
        assert (item.kind == "hybrid") == bool(pins.get("stream")) or item.family == "rows"


def test_hybrid_plans_are_tried_where_a_part_can_be_streamed() -> None:
    case = _case("backward_train", "nhwc", 256, 64, 56, 56)
    regime, proposals = _proposed(case)
    hybrid = [plan for plan in proposals.plans if plan.startswith("hybrid")]
    assert hybrid and {expected_of(regime, case, H200, plan).kind for plan in hybrid} == {"hybrid"}


@pytest.mark.parametrize("mode", ["forward_eval", "backward_eval"])
def test_evaluation_is_one_read_or_none_anyway(mode: str) -> None:
    _, proposals = _proposed(_case(mode, "nchw", 64, 64, 56, 56))
    assert proposals.plans
    assert all(plan.startswith("two_read,") for plan in proposals.plans)


def test_a_plan_must_be_possible_in_every_case() -> None:
    large = _case("forward_train", "nchw", 64, 64, 56, 56)
    # the same regime, but its channels cannot be split in halves of halves
    other = _case("forward_train", "nchw", 48, 40, 56, 56)
    assert regime_of_case(large) == regime_of_case(other)
    alone, together = _proposed(large)[1], _proposed(large, other)[1]
    assert set(together.plans) <= {*alone.plans, "one_read", "fused", "split"}
    assert together.plans


def test_what_follows_backward_halves_the_tiles_that_are_varied() -> None:
    plain = _case("backward_train", "nchw", 64, 64, 56, 56)
    added = _case("backward_train", "nchw", 64, 64, 56, 56, fusion="add_relu")
    plans = [expected_of(regime_of_case(case), case, H200, "fused").plan for case in (plain, added)]
    assert [vars(plan)["block_v"] for plan in plans] == [512, 256]


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_falls_into_regimes(name: str) -> None:
    cases = cases_named(name)
    groups = grouped(cases, TRAINING)
    wanted = {case.id for case in cases if case.mode in TRAINING and case.data == "normal"}
    members = [case.id for group in groups.values() for case in group]
    assert sorted(members) == sorted(wanted)
    for regime, group in groups.items():
        assert {regime_of_case(case) for case in group} == {regime}
    # a regime in evaluation is none of training's
    assert not grouped(cases, ["forward_eval"]).keys() & groups.keys()


@pytest.mark.parametrize("network", list(NETWORKS))
def test_every_network_has_cases(network: str) -> None:
    cases = cases_named(f"model:{network}")
    layers = NETWORKS[network].layers
    assert {(case.channels, case.plane) for case in cases} == {
        (layer.channels, layer.plane) for layer in layers
    }


def test_a_model_of_the_user_has_cases() -> None:
    cases = cases_named("model:tests.test_search_candidates:small_model")
    assert {case.shape for case in cases} == {(4, 8, 6, 6)}
    assert {"forward_train", "backward_train"} <= {case.mode for case in cases}


def small_model() -> object:
    """A model and its input, as `cases_named` takes them."""
    import torch

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    return network, torch.zeros(4, 3, 8, 8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fly", "expected cases of quick, resnet50, sweep, networks, model:NETWORK"),
        ("model:", "got 'model:'"),
        ("model:vgg", "expected a network of resnet18, "),
        ("model:no.such:thing", "expected a module no.such, got none"),
    ],
)
def test_what_is_no_set_of_cases_is_explained(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cases_named(name)


@pytest.mark.parametrize("device", list(DEVICES))
def test_every_device_has_plans_to_try(device: str) -> None:
    for case in cases_named("quick")[::5]:
        regime = regime_of_case(case)
        assert len(proposals_for(regime, [case], DEVICES[device]).plans) > 5
