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
