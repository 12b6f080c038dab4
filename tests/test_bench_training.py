"""The digits job, shrunk: converted beside unconverted training, and what would turn it red."""

from dataclasses import replace

import pytest

import tritonbn
from tests.inputs import DEVICE
from tritonbn_bench.summary import LARGEST_GAP
from tritonbn_bench.training import Outcome, train_pair, training_rows

OUTCOME = Outcome((2.0, 1.0), (2.0, 1.001), 16, 4, "interpreter", (), True)


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    pytest.importorskip("sklearn", reason="needs scikit-learn for the digits")
    return train_pair(DEVICE.type, steps=3)


def test_converted_training_follows_the_unconverted_one(outcome: Outcome) -> None:
    assert outcome.gap < LARGEST_GAP
    assert outcome.fault == ""
    assert len(outcome.losses) == len(outcome.torch_losses) == 3
    assert len(set(outcome.losses)) == 3


def test_the_kernels_ran_forward_and_backward_in_every_layer(outcome: Outcome) -> None:
    assert outcome.layers == 4
    assert outcome.launches >= 2 * 4 * 3
    assert outcome.backend in ("interpreter", "triton")


def test_conversion_keeps_keys_and_is_taken_back_exactly(outcome: Outcome) -> None:
    assert outcome.differing_keys == ()
    assert outcome.restored


def test_training_without_our_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn for the digits")
    monkeypatch.setattr(tritonbn, "backend", lambda _: "torch")
    with pytest.raises(RuntimeError, match="hands this network to torch"):
        train_pair(DEVICE.type, steps=1)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        pytest.param({}, "", id="nothing"),
        pytest.param({"losses": (2.0, 1.1)}, "the losses differ by 0.1", id="gap"),
        pytest.param({"losses": (2.0, float("nan"))}, "the losses differ by inf", id="nan"),
        pytest.param({"differing_keys": ("a",)}, "state-dict keys differ: a", id="keys"),
        pytest.param({"restored": False}, "revert(convert(network))", id="not-restored"),
    ],
)
def test_each_disagreement_is_found(changes: dict[str, object], fault: str) -> None:
    found = replace(OUTCOME, **changes)  # type: ignore[arg-type]
    assert found.fault.startswith(fault) and bool(found.fault) == bool(fault)
    gap = next(row for row in training_rows(found) if row.quantity == "largest loss gap")
    assert gap.status == ("failed" if fault else "ok")


def test_rows_hold_every_loss_of_both() -> None:
    losses = [row for row in training_rows(OUTCOME) if row.quantity == "loss"]
    assert [(row.provider, row.step, row.value) for row in losses] == [
        ("torch", 0, 2.0),
        ("torch", 1, 1.0),
        ("tritonbn", 0, 2.0),
        ("tritonbn", 1, 1.001),
    ]
