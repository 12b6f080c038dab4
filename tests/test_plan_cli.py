"""`tritonbn-bench plan` as a user meets it, with and without a GPU."""

import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tritonbn_bench import cli
from tritonbn_bench.cases import DTYPES
from tritonbn_bench.networks import NETWORKS
from tritonbn_bench.plan_table import LAYOUTS, device_of, view_in
from tritonbn_kernels import clear_cache, launch
from tritonbn_kernels.layout import CHANNELS_FIRST, CHANNELS_LAST
from tritonbn_kernels.outlook import DEVICES
from tritonbn_kernels.plan import DeviceProfile

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Ask]:
    """Exit code, output and errors of `tritonbn-bench plan`, on a machine without a GPU."""
    monkeypatch.delenv("TRITONBN_PLAN", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    clear_cache()

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["plan", *arguments])
        return code, *capsys.readouterr()

    yield run
    monkeypatch.undo()
    clear_cache()


@pytest.mark.parametrize("network", list(NETWORKS))
def test_every_network_has_a_table_for_both_passes(network: str, ask: Ask) -> None:
    code, out, err = ask(network, "--batch", "8")
    assert (code, err) == (0, "")
    assert out.startswith(NETWORKS[network].name)
    for name in ("forward", "backward"):
        assert f"\n{name}, modelled, not measured\n" in out
    assert out.count("\nall layers ") == 2


@pytest.mark.parametrize(
    ("axes", "layout"), [(axes, layout) for axes in LAYOUTS for layout in LAYOUTS[axes]]
)
def test_a_shape_is_planned_in_every_layout(axes: int, layout: str, ask: Ask) -> None:
    shape = ("8", "64", "6", "28", "28")[:axes]
    code, out, err = ask(*shape, "--layout", layout, "--dtype", "fp32")
    assert (code, err) == (0, "")
    assert f"fp32, {layout}\n" in out
    assert "x".join(shape) in out
    assert "all layers" not in out


def test_default_layout_is_that_of_torch(ask: Ask) -> None:
    for shape, layout in (
        (("8", "64"), "nc"),
        (("8", "64", "9"), "ncl"),
        (("resnet3d18",), "ncdhw"),
    ):
        assert f", {layout}\n" in ask(*shape)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("vgg",), "expected a network of resnet18, resnet50,", id="network"),
        pytest.param(("resnet50", "3"), "got resnet50 3", id="network-and-size"),
        pytest.param(("8",), "expected 2 to 5 sizes N C [D] [H W], got 8", id="one-size"),
        pytest.param(("8", "1", "1", "1", "1", "1"), "expected 2 to 5 sizes", id="six-sizes"),
        pytest.param(("8", "c"), "expected 2 to 5 sizes N C [D] [H W], got 8 c", id="no-size"),
        pytest.param(("8", "0"), "expected positive sizes, got 8 0", id="zero"),
        pytest.param(("8", "-3"), "expected positive sizes, got 8 -3", id="negative"),
        pytest.param(("0", "3"), "expected a positive batch size, got 0", id="no-batch"),
        pytest.param(("mlp", "--batch", "0"), "expected a positive batch size, got 0", id="batch"),
        pytest.param(
            ("8", "3", "--batch", "8"), "expected --batch with a network only", id="two-batches"
        ),
        pytest.param(
            ("resnet50", "--layout", "ndhwc"),
            "expected a layout of 4 axes, nchw or nhwc, got ndhwc",
            id="layout",
        ),
        pytest.param(("mlp", "--dtype", "int8"), "invalid choice: 'int8'", id="dtype"),
        pytest.param(
            ("mlp", "--device", "local"),
            "expected a GPU for --device local, got none (no GPU is visible)",
            id="local",
        ),
    ],
)
def test_a_users_error_is_explained_with_exit_code_2(
    arguments: tuple[str, ...], message: str, ask: Ask
) -> None:
    code, out, err = ask(*arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_help_names_every_network_layout_dtype_and_device(ask: Ask) -> None:
    code, out, _ = ask("--help")
    assert code == 0
    words = out.replace(",", " ").replace(".", " ").replace("{", " ").replace("}", " ").split()
    layouts = [layout for axes in LAYOUTS.values() for layout in axes]
    assert {*NETWORKS, *DEVICES, *DTYPES, *layouts, "local"} <= set(words)


def test_json_holds_what_the_table_shows(ask: Ask) -> None:
    code, out, _ = ask("resnet50", "--batch", "64", "--device", "h200", "--json")
    record = json.loads(out)
    assert (code, record["note"]) == (0, "modelled, not measured")
    assert (record["batch"], record["dtype"], record["layout"]) == (64, "bf16", "nchw")
    assert record["device"]["sm_count"] == 132
    for name in ("forward", "backward"):
        layers, total = record[name]["layers"], record[name]["total"]
        assert sum(layer["count"] for layer in layers) == 53
        assert total["seconds"] == pytest.approx(sum(x["count"] * x["seconds"] for x in layers))
        assert total["floor_seconds"] < total["seconds"] < total["two_read_seconds"]
        assert all(len(layer["plans"]) == layer["launches"] for layer in layers)
    _, text, _ = ask("resnet50", "--batch", "64", "--device", "h200")
    assert f"{1e6 * record['forward']['total']['seconds']:.0f}" in text


# ms forward and backward of ResNet-50 in bf16 at N = 256 on a device that copies 4.3 TB/s, worked
# out by hand: 11.11 M outputs an image, half of them before add + ReLU, 37 % before ReLU
BY_HAND = {
    "two reads, operators": (8.23, 10.05),
    "one read, operators": (6.91, 7.40),
    "one read, fused": (3.34, 4.67),
}


def test_totals_with_what_follows_are_those_worked_out_by_hand(ask: Ask) -> None:
    _, out, _ = ask("resnet50", "--batch", "256", "--fused", "--device", "h200", "--json")
    record = json.loads(out)
    for way, pair in BY_HAND.items():
        found = [1e3 * record[name]["at_copy_speed"][way] for name in ("forward", "backward")]
        assert found == pytest.approx(pair, rel=0.01)


@pytest.mark.parametrize("network", list(NETWORKS))
def test_one_kernel_is_expected_to_beat_operators_in_every_network(network: str, ask: Ask) -> None:
    code, out, err = ask(network, "--batch", "64", "--fused", "--device", "h200", "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    for name in ("forward", "backward"):
        layers, total = record[name]["layers"], record[name]["total"]
        assert sum(layer["count"] for layer in layers) == sum(
            layer.count for layer in NETWORKS[network].layers
        )
        assert total["fused_bytes"] == sum(x["count"] * x["fused_bytes"] for x in layers)
        assert total["floor_seconds"] < total["fused_seconds"] < total["unfused_seconds"]
        assert total["unfused_seconds"] < total["torch_seconds"]
        for layer in layers:
            assert layer["floor_bytes"] <= layer["fused_bytes"] <= layer["unfused_bytes"] + 1e5
            if layer["followed_by"] == "none":
                assert layer["fused_seconds"] == layer["unfused_seconds"]


def test_a_plan_that_reads_twice_reads_the_mask_twice(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bytes_of(mode: str) -> tuple[float, float]:
        clear_cache()
        _, out, _ = ask("256", "64", "56", "56", "--fused", "--device", "h200", "--json")
        layers = json.loads(out)[mode]["layers"]
        added = next(layer for layer in layers if layer["followed_by"] == "add_relu")
        alone = next(layer for layer in layers if layer["followed_by"] == "relu")
        return added["fused_bytes"] - alone["fused_bytes"], alone["fused_bytes"]

    tensor = 256 * 64 * 56 * 56 * 2
    # but for beta, 64 words that an activation alone reads
    assert bytes_of("backward")[0] == pytest.approx(tensor * (1 + 1 / 16), abs=300)
    monkeypatch.setenv("TRITONBN_PLAN", "two_read")
    assert bytes_of("backward")[0] == pytest.approx(tensor * (1 + 2 / 16), abs=300)
    assert bytes_of("forward")[0] == pytest.approx(tensor * (1 + 1 / 16), abs=300)


def test_the_table_of_what_follows_has_rows_shares_and_totals(ask: Ask) -> None:
    code, out, err = ask("resnet50", "--batch", "256", "--fused")
    assert (code, err) == (0, "")
    assert "share of the bytes of BatchNorm by what follows: ReLU 37%, add + ReLU 50%" in out
    assert out.count("modelled, not measured") == 4
    row = next(line for line in out.splitlines() if line.startswith("256x1024x14x14"))
    assert row.split()[1:5] == ["6", "add", "+", "ReLU"]
    for way in ("torch, expected", "fused, expected", "one read, fused, at the speed of a copy"):
        assert f"\n{way}" in out
    _, out, _ = ask("8", "64", "--fused")
    assert "followed by" in out and "all layers" not in out


def test_without_a_gpu_an_h200_is_planned_for_and_it_is_said(ask: Ask) -> None:
    _, out, _ = ask("8", "64")
    assert "\nno GPU is visible: planned for an H200 (see --device)\n" in out
    _, out, _ = ask("8", "64", "--device", "a100")
    assert "\nA100: 108 SMs" in out and "no GPU" not in out


def test_pinned_plan_is_printed_and_said(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONBN_PLAN", "split,splits=3")
    clear_cache()
    _, out, _ = ask("32", "64", "56", "56")
    assert "\nTRITONBN_PLAN pins resident=0, fused=0, splits=3\n" in out
    assert out.count("3 members, 2 launches") == 2
    monkeypatch.setenv("TRITONBN_PLAN", "magic")
    clear_cache()
    code, _, err = ask("32", "64", "56", "56")
    assert (code, "TRITONBN_PLAN: expected plans of two_read" in err) == (2, True)


@pytest.mark.parametrize(
    ("name", "sms", "speed", "remark"),
    [
        pytest.param("NVIDIA H200", 132, 4.3e12, "", id="h200"),
        pytest.param("NVIDIA A100-SXM4-80GB", 108, 1.65e12, "", id="a100"),
        pytest.param("NVIDIA H200 MIG 1g.18gb", 16, 4.3e12 * 16 / 132, "an H200 in", id="slice"),
        pytest.param("NVIDIA GeForce", 66, 4.3e12 / 2, "those of an H200 in", id="unknown"),
    ],
)
def test_local_gpu_gets_its_own_profile_and_the_speeds_of_its_name(
    name: str, sms: int, speed: float, remark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = DeviceProfile(sms, reserved_sms=1)
    stub: Any = SimpleNamespace(
        is_available=lambda: True, current_device=lambda: 0, get_device_name=lambda: name
    )
    monkeypatch.setattr(torch, "cuda", stub)
    monkeypatch.setattr(launch, "interpreted", lambda kernel: False)
    monkeypatch.setattr(launch, "device_profile", lambda kernel, index: profile)
    device, said = device_of(None)
    assert (device.name, device.profile) == (name, profile)
    assert device.copy_speed == pytest.approx(speed)
    assert remark in said and bool(remark) == bool(said)


def test_layouts_are_read_as_they_lie() -> None:
    shape = (8, 64, 6, 28, 28)
    for axes in LAYOUTS.values():
        for layout in axes:
            last = layout == "nc" or not layout.startswith("nc")
            view = view_in(shape[: len(layout)], layout)
            assert view.family == (CHANNELS_LAST if last else CHANNELS_FIRST)
            assert view.n_channels == 64
