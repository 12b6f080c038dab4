"""Training steps in five ways: they agree, launch our kernels, and are timed in turns."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.inputs import DEVICE
from tritonbn_bench import endtoend
from tritonbn_bench.endtoend import (
    LARGEST_SHARE,
    SETTINGS,
    TINY,
    WAYS,
    Setting,
    StepStopwatch,
    Trainer,
    endtoend_rows,
    trainers_of,
)
from tritonbn_bench.judge.rule import RULE
from tritonbn_bench.measure import Meter
from tritonbn_bench.resnet import ResNet
from tritonbn_bench.results import Row
from tritonbn_bench.stopwatch import FakeStopwatch
from tritonbn_bench.timer import Work

# the smallest with a shortcut: five BatchNorm layers
SMALL = replace(TINY[0], blocks=(1,), image=8)


def test_the_network_is_resnet50() -> None:
    with torch.device("meta"):
        network = ResNet()
    assert sum(parameter.numel() for parameter in network.parameters()) == 25_557_032
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == 53


def test_with_fused_layers_the_state_is_the_same() -> None:
    plain, fused = (ResNet((1, 1), 4, 10, fused=flag) for flag in (False, True))
    assert list(plain.state_dict()) == list(fused.state_dict())
    fused.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(images), fused.eval()(images))


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Five ways of a tiny network with the speed of an imaginary machine."""
    meter = Meter(DEVICE.type, FakeStopwatch(0), rule=replace(RULE, rounds=8))
    return endtoend_rows(SMALL, DEVICE.type, meter)


def _of(rows: list[Row], quantity: str) -> dict[str, Row]:
    return {row.provider: row for row in rows if row.quantity == quantity}


def test_the_five_agree_with_torch(rows: list[Row]) -> None:
    assert [row.reason for row in rows if row.status != "ok"] == []
    shares = _of(rows, "largest share by which a loss differs from torch's")
    assert list(shares) == list(WAYS)
    assert all(
        row.value is not None and row.value <= LARGEST_SHARE["bf16"] for row in shares.values()
    )


def test_ours_launch_a_kernel_in_every_layer_and_pass(rows: list[Row]) -> None:
    launches = _of(rows, "launches of ours in a step")
    assert list(launches) == ["tritonbn", "tritonbn fused"]
    assert all((row.value or 0) >= 2 * 5 for row in launches.values())


def test_a_fused_step_without_its_relus_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)
    network = ResNet((1,), 4, 10, fused=True).to(DEVICE)
    trainer = Trainer(network, SMALL, images.to(DEVICE), labels.to(DEVICE))
    faults: dict[str, str] = {}
    endtoend._launches(SMALL, "tritonbn fused", trainer, faults)
    assert faults == {}
    monkeypatch.setattr(endtoend, "activation_in", lambda record: None)
    endtoend._launches(SMALL, "tritonbn fused", trainer, faults)
    assert "8 with ReLU, got 10, 0" in faults["tritonbn fused"]


def test_speed_is_images_over_the_time_of_a_step(rows: list[Row]) -> None:
    steps, images = _of(rows, "step time"), _of(rows, "images per second")
    assert list(images) == list(WAYS)
    for name, row in images.items():
        step = steps[name].value
        assert step is not None and row.value == pytest.approx(1e3 * SMALL.batch / step)
    ratios = _of(rows, "ratio to torch")
    assert list(ratios) == list(WAYS[1:])
    assert all(row.low < 1 < row.high for row in ratios.values() if row.low and row.high)


class _WithoutBranches(ResNet):
    """A ResNet whose branches lose their weight, as by a kernel that forgets gamma."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for name, parameter in self.stages.named_parameters():
            if name.endswith("bn3.weight"):
                parameter.data.zero_()
        return super().forward(images)


def test_a_way_that_disagrees_gets_a_reason_and_no_figure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setting = replace(SMALL, dtype="fp32")

    def planted(setting: Setting, device: str) -> dict[str, Trainer]:
        random = torch.Generator().manual_seed(0)
        images = torch.randn(4, 3, 8, 8, generator=random).to(device)
        labels = torch.randint(10, (4,), generator=random).to(device)
        made = {}
        for name, kind in (
            ("torch", ResNet),
            ("torch.compile", _WithoutBranches),
            # has no layer of ours
            ("tritonbn", ResNet),
        ):
            torch.manual_seed(0)
            made[name] = Trainer(kind((1,), 4, 10).to(device), setting, images, labels)
        return made

    monkeypatch.setattr(endtoend, "trainers_of", planted)
    monkeypatch.setattr(endtoend, "WAYS", ("torch", "torch.compile", "tritonbn"))
    monkeypatch.setattr(endtoend, "FUSED", "tritonbn")
    rows = endtoend_rows(setting, DEVICE.type, Meter("cpu", FakeStopwatch(0)))
    failed = {row.provider: row.reason for row in rows if row.status == "failed"}
    assert "losses differ from torch's by" in failed["torch.compile"]
    assert "expected 10 launches of ours in a step, 0 with ReLU, got 0, 0" in failed["tritonbn"]
    figures = [row.provider for row in rows if row.quantity == "step time"]
    assert figures == ["torch"]


def test_where_torch_fails_nothing_is_timed_for_nothing_tells_right_from_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failing(Trainer):
        def step(self, _: object = None) -> torch.Tensor:
            raise RuntimeError("out of memory")

    def planted(setting: Setting, device: str) -> dict[str, Trainer]:
        images, labels = torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)
        kinds = {"torch": Failing, "torch.compile": Trainer, "tritonbn": Failing}
        return {
            name: kind(ResNet((1,), 4, 10), setting, images, labels) for name, kind in kinds.items()
        }

    monkeypatch.setattr(endtoend, "trainers_of", planted)
    monkeypatch.setattr(endtoend, "WAYS", ("torch", "torch.compile", "tritonbn"))
    rows = endtoend_rows(SMALL, "cpu", Meter("cpu", FakeStopwatch(0)))
    assert [(row.provider, row.status, row.value) for row in rows] == [
        ("torch", "failed", None),
        ("torch.compile", "skipped", None),
        ("tritonbn", "failed", None),
    ]
    assert "torch failed, and nothing else tells right from wrong" in rows[1].reason


def test_without_a_gpu_no_speed_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def alone(setting: Setting, device: str) -> dict[str, Trainer]:
        images, labels = torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)
        return {"torch": Trainer(ResNet((1,), 4, 10), SMALL, images, labels)}

    monkeypatch.setattr(endtoend, "trainers_of", alone)
    monkeypatch.setattr(endtoend, "WAYS", ("torch",))
    monkeypatch.setattr(endtoend, "CONVERTED", "torch")
    monkeypatch.setattr(endtoend, "FUSED", "torch")
    rows = endtoend_rows(SMALL, "cpu")
    assert not {"step time", "ratio to torch"} & {row.quantity for row in rows}


def test_settings_are_both_dtypes_in_both_layouts() -> None:
    assert {(one.dtype, one.layout) for one in SETTINGS} == {
        (dtype, layout) for dtype in ("bf16", "fp32") for layout in ("nchw", "nhwc")
    }
    assert len({one.case for one in (*SETTINGS, *TINY)}) == 6


def test_images_and_weights_have_the_layout_of_the_setting() -> None:
    for layout, memory_format in (
        ("nhwc", torch.channels_last),
        ("nchw", torch.contiguous_format),
    ):
        for trainer in trainers_of(replace(SMALL, layout=layout), "cpu").values():
            weight = next(p for p in trainer.network.parameters() if p.dim() == 4)
            assert weight.is_contiguous(memory_format=memory_format)
            assert trainer._images.is_contiguous(memory_format=memory_format)


def test_a_block_is_the_mean_of_steps_in_a_row() -> None:
    durations = iter([0.0] * 3 + [0.004] * 3 + [0.0, 0.008])

    def step(_: object) -> None:
        import time

        time.sleep(next(durations))

    stopwatch = StepStopwatch("cpu", block_ms=10.0)
    assert stopwatch.calls_for(Work(step)) == 3
    assert 4.0 <= stopwatch.block(Work(step), 2) < 8.0


def test_own_bytes_are_parameters_buffers_and_momentum() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 10))
    trainer = Trainer(network, SMALL, torch.randn(4, 3, 2, 2), torch.zeros(4, dtype=torch.long))
    parameters = sum(parameter.numel() * 4 for parameter in network.parameters())
    buffers = 2 * 4 * 4 + 8
    assert trainer.own_bytes == parameters + buffers
    trainer.step()
    assert trainer.own_bytes == 2 * parameters + buffers
