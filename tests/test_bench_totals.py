"""Times of layers summed over networks, and what they come to in a training step."""

from dataclasses import replace
from math import prod

import pytest

from tritonbn_bench.networks import NETWORKS, RESNET50, Layer
from tritonbn_bench.results import Row
from tritonbn_bench.totals import Group, layer_totals, step_gains

COST = {"none": 1.0, "relu": 2.0, "add_relu": 3.0}
FORWARD = Group("forward_train", "fp32", "nchw", 64, "tritonbn")


def _row(provider: str, layer: Layer, fusion: str, value: float, **changes: str) -> Row:
    row = Row("resnet50", "measured", "", provider, "time", unit="ms", value=value)
    row = replace(row, mode="forward_train", dtype="fp32", layout="nchw", batch=64, fusion=fusion)
    row = replace(row, channels=layer.channels, space=prod(layer.plane), **changes)  # type: ignore[arg-type]
    return replace(row, case=f"{row.mode}, {row.channels}, {row.space}, {fusion}")


def _rows(
    provider: str, scale: float = 1.0, layers: tuple[Layer, ...] = RESNET50, **changes: str
) -> list[Row]:
    """1 ms for every layer alone, 2 behind ReLU, 3 behind addition and ReLU, times `scale`."""
    return [
        _row(provider, layer, fusion, scale * COST[fusion], **changes)
        for layer in layers
        for fusion in ("none", *dict(layer.followed))
        if fusion in COST
        if provider != "tritonbn unfused" or fusion != "none"
    ]


def test_each_shape_counts_as_often_as_it_occurs() -> None:
    assert layer_totals(_rows("tritonbn"), RESNET50) == {FORWARD: 53.0}


def test_what_is_unfinished_has_no_sum() -> None:
    ours, theirs = _rows("tritonbn"), _rows("torch")
    lacking = [row for row in theirs if row.channels != 2048]
    assert list(layer_totals([*ours, *lacking], RESNET50)) == [FORWARD]
    # nor where an interruption left everyone as many
    part = [row for row in ours if row.channels != 2048]
    assert layer_totals([*part, *lacking], RESNET50) == {}


def test_what_is_unfused_only_has_no_sum_of_layers_alone() -> None:
    rows = [*_rows("tritonbn"), *_rows("tritonbn unfused")]
    assert list(layer_totals(rows, RESNET50)) == [FORWARD]


def test_each_layer_is_taken_with_what_follows_it() -> None:
    rows = [*_rows("tritonbn"), *_rows("tritonbn unfused")]
    part = [row for row in _rows("torch") if row.fusion != "add_relu"]
    found = layer_totals([*rows, *part], RESNET50, followed=True)
    total = 33 * 2.0 + 16 * 3.0 + 4 * 1.0
    # a rival that lacks cases has no total
    assert found == {
        FORWARD._replace(provider=name): total for name in ("tritonbn", "tritonbn unfused")
    }


def test_where_ours_alone_is_missing_an_unfused_chain_has_no_sum() -> None:
    assert layer_totals(_rows("tritonbn unfused"), RESNET50, followed=True) == {}


def _step(milliseconds: float, dtype: str = "fp32", batch: int = 128) -> Row:
    case = f"ResNet-50 training step/{dtype}/nchw/N{batch}"
    row = Row("endtoend", "measured", case, "torch", "step time", unit="ms", batch=batch)
    return replace(row, value=milliseconds)


def _both() -> list[Row]:
    """torch takes 3 and 2 times as long as we do."""
    return [
        row
        for mode, theirs in (("forward_train", 3.0), ("backward_train", 2.0))
        for provider, scale in (("tritonbn", 1.0), ("torch", theirs))
        for row in _rows(provider, scale, mode=mode)
    ]


def test_the_gain_of_a_step_is_what_the_layers_save_of_it() -> None:
    steps = [_step(2000.0), _step(1.0, "bf16"), replace(_step(1.0), provider="tritonbn")]
    alone, followed = step_gains([*_both(), *steps])
    assert (alone.network, alone.followed, alone.batch) == ("ResNet-50", False, 64)
    assert (alone.theirs, alone.ours) == (53.0 * 5, 53.0 * 2)
    # of twice as many samples
    assert (alone.step, alone.step_batch) == (2000.0, 128)
    assert alone.projected == pytest.approx(2000 / (2000 - 2 * 3 * 53))
    assert followed.followed
    assert followed.projected == pytest.approx(2000 / (2000 - 2 * 3 * 118))


def test_the_step_of_the_nearest_batch_is_taken_whatever_the_order() -> None:
    steps = [_step(2000.0), _step(1100.0, batch=64), _step(9000.0, batch=512)]
    for order in (steps, steps[::-1]):
        alone, _ = step_gains([*_both(), *order])
        assert (alone.step, alone.step_batch) == (1100.0, 64)
        assert alone.projected == pytest.approx(1100 / (1100 - 3 * 53))


def test_without_a_step_there_is_no_gain_but_what_is_saved() -> None:
    alone, _ = step_gains(_both())
    assert (alone.step, alone.projected) == (None, None)


def test_layers_that_save_more_than_a_step_give_no_gain() -> None:
    alone, _ = step_gains([*_both(), _step(2 * 159.0)])
    assert alone.projected is None


def test_every_network_whose_layers_were_timed_has_a_gain() -> None:
    rows = [
        replace(row, job="networks")
        for provider, scale in (("tritonbn", 1.0), ("torch", 2.0))
        for mode in ("forward_train", "backward_train")
        for row in _rows(provider, scale, NETWORKS["mlp"].layers, mode=mode)
    ]
    (gain,) = step_gains(rows)
    assert (gain.network, gain.theirs, gain.ours) == ("MLP", 4.0 * 7, 2.0 * 7)
