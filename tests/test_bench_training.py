"""The digits job, shrunk: three trainings from one start, and what would turn it red."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import tritonbn
from tests.inputs import DEVICE
from tritonbn_bench.saved import operators_of, saved_bytes
from tritonbn_bench.summary import LARGEST_GAP, OURS, SAVED_BYTES, STEP_LAUNCHES, UNFUSED
from tritonbn_bench.training import (
    Outcome,
    Trained,
    activation_in,
    assert_launched,
    train_three,
    training_rows,
)
from tritonbn_kernels import LaunchRecord

THEIRS = Trained((2.0, 1.0), {}, 4000, 16)
CONVERTED = Trained((2.0, 1.001), {"forward": 8, "backward": 8}, 4100, 16)
FUSED = Trained((2.0, 1.002), {"forward with relu": 8, "backward with relu": 8}, 3000, 8)
OUTCOME = Outcome(THEIRS, CONVERTED, FUSED, 4, "interpreter", (), True)


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    pytest.importorskip("sklearn", reason="needs scikit-learn for the digits")
    return train_three(DEVICE.type, steps=3)


@pytest.mark.parametrize("provider", [UNFUSED, OURS])
def test_training_follows_that_of_torchs_layers(outcome: Outcome, provider: str) -> None:
    assert outcome.gap(provider) < LARGEST_GAP
    assert outcome.fault(provider) == ""
    losses = outcome.trained[provider].losses
    assert len(losses) == len(outcome.torch.losses) == 3
    assert len(set(losses)) == 3


def test_the_kernels_ran_forward_and_backward_in_every_layer(outcome: Outcome) -> None:
    assert outcome.layers == 4
    assert outcome.torch.kernels == {}
    assert sum(outcome.unfused.kernels.values()) >= 2 * 4 * 3
    assert not any("with" in name for name in outcome.unfused.kernels)
    fused = {name: n for name, n in outcome.fused.kernels.items() if name.endswith(" with relu")}
    for direction in ("forward", "backward"):
        assert sum(n for name, n in fused.items() if direction in name) >= 4 * 3
    assert outcome.backend in ("interpreter", "triton")


def test_a_step_launches_what_its_layers_are(outcome: Outcome) -> None:
    # four layers, each BatchNorm and ReLU, forward and backward
    assert outcome.torch.step_launches == 4 * 2 * 2
    assert outcome.unfused.step_launches >= 4 * 2 * 2
    assert outcome.fused.step_launches == sum(outcome.fused.kernels.values()) // 3


def test_a_fused_step_keeps_no_more_than_torchs(outcome: Outcome) -> None:
    # but for the vectors: 12 bytes a channel and beta
    channels = 8 + 16 + 32 + 32
    assert 0 < outcome.fused.saved_bytes <= outcome.torch.saved_bytes + 16 * channels
    # what the last ReLU kept alone is gone: 32 channels in planes of 2 x 2
    gone = outcome.unfused.saved_bytes - outcome.fused.saved_bytes
    assert gone == 64 * 32 * 2 * 2 * 4


def test_conversion_keeps_keys_and_is_taken_back_exactly(outcome: Outcome) -> None:
    assert outcome.differing_keys == ()
    assert outcome.restored


def test_training_without_our_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn for the digits")
    monkeypatch.setattr(tritonbn, "backend", lambda _: "torch")
    with pytest.raises(RuntimeError, match="hands this network to torch"):
        train_three(DEVICE.type, steps=1)


def _launches(activation: str, count: int = 2) -> dict[str, list[LaunchRecord]]:
    """Of `count` calls of layers in each direction."""
    records = [LaunchRecord("kernel", (1, 1, 1), 4, {"A": activation}, None)] * count
    return {"forward": records, "backward": records}


RIGHT = {"torch": _launches("", 0), UNFUSED: _launches("identity"), OURS: _launches("relu")}


@pytest.mark.parametrize(
    ("launches", "message"),
    [
        pytest.param(
            {OURS: _launches("identity")},
            "2 calls of tritonbn layers to launch kernels with their activation forward, got 0",
            id="lost",
        ),
        pytest.param(
            {OURS: {**_launches("relu"), "backward": _launches("relu", 1)["backward"]}},
            "2 calls of tritonbn layers to launch kernels with their activation backward, got 1",
            id="lost-backward",
        ),
        pytest.param(
            {UNFUSED: _launches("identity", 1)},
            "2 calls of tritonbn unfused layers to launch kernels forward, got 1",
            id="torch-ran",
        ),
        pytest.param(
            {UNFUSED: _launches("relu")},
            "leave activations to torch, got 2 launches with one forward",
            id="where-none-is",
        ),
        pytest.param(
            {"torch": _launches("identity")}, "launch none of our kernels", id="not-torch"
        ),
    ],
)
def test_launches_that_are_not_the_layers_own_are_refused(
    launches: dict[str, dict[str, list[LaunchRecord]]], message: str
) -> None:
    assert_launched(RIGHT, 2)
    with pytest.raises(RuntimeError, match=message):
        assert_launched({**RIGHT, **launches}, 2)


@pytest.mark.parametrize(
    ("constants", "found"),
    [
        pytest.param({}, None, id="none"),
        pytest.param({"A": "identity", "B": ("identity", 0.0), "C": 3}, None, id="identity"),
        pytest.param({"A": "relu", "B": 0.0}, "relu", id="name"),
        pytest.param({"A": 1, "B": ("leaky_relu", 0.1, "mask", False)}, "leaky_relu", id="tuple"),
    ],
)
def test_the_activation_of_a_launch_is_read_from_its_constants(
    constants: dict[str, object], found: str | None
) -> None:
    assert activation_in(LaunchRecord("kernel", (1, 1, 1), 4, constants, None)) == found


@pytest.mark.parametrize(
    ("changes", "provider", "fault"),
    [
        pytest.param({}, OURS, "", id="nothing"),
        pytest.param(
            {"fused": replace(FUSED, losses=(2.0, 1.1))}, OURS, "the losses differ by 0.1", id="gap"
        ),
        pytest.param(
            {"unfused": replace(CONVERTED, losses=(2.0, float("nan")))},
            UNFUSED,
            "the losses differ by inf",
            id="nan",
        ),
        pytest.param({"differing_keys": ("a",)}, OURS, "state-dict keys differ: a", id="keys"),
        pytest.param({"restored": False}, UNFUSED, "revert(convert(network))", id="not-restored"),
    ],
)
def test_each_disagreement_is_found(changes: dict[str, object], provider: str, fault: str) -> None:
    found = replace(OUTCOME, **changes)  # type: ignore[arg-type]
    assert found.fault(provider).startswith(fault) and bool(found.fault(provider)) == bool(fault)
    gap = next(
        row
        for row in training_rows(found)
        if (row.provider, row.quantity) == (provider, "largest loss gap")
    )
    assert gap.status == ("failed" if fault else "ok")


def test_rows_hold_every_loss_and_the_figures_side_by_side() -> None:
    rows = training_rows(OUTCOME)
    losses = [row for row in rows if row.quantity == "loss"]
    assert [(row.provider, row.step, row.value) for row in losses] == [
        ("torch", 0, 2.0),
        ("torch", 1, 1.0),
        ("tritonbn unfused", 0, 2.0),
        ("tritonbn unfused", 1, 1.001),
        ("tritonbn", 0, 2.0),
        ("tritonbn", 1, 1.002),
    ]
    for quantity, values in ((SAVED_BYTES, [4000, 4100, 3000]), (STEP_LAUNCHES, [16, 16, 8])):
        assert [row.value for row in rows if row.quantity == quantity] == values


def test_saved_bytes_count_each_storage_once_and_no_parameter() -> None:
    layer = nn.Linear(3, 5)
    x = torch.ones(7, 3, requires_grad=True)

    def forward() -> torch.Tensor:
        y = layer(x).relu()
        # relu and the product keep the same y
        return torch.sum(y * y.view(5, 7).t())

    assert saved_bytes(forward, layer) == (7 * 3 + 7 * 5) * 4


def test_operators_are_those_of_batch_norm_and_relu_in_both_passes() -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 1))
    assert operators_of(network(torch.ones(4, 3)).sum()) == 4
    assert operators_of(network[0](torch.ones(4, 3)).sum()) == 0
