"""`tritonbn-bench check --static --model`: the plans of a user's model, kept and compared."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import tritonbn
from tritonbn_bench import cli
from tritonbn_kernels import clear_cache

Ask = Callable[..., tuple[int, str, str]]


class Block(nn.Module):
    """A convolution, and a BatchNorm of ours that adds its input back."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn = tritonbn.BatchNorm2d(16, activation="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.bn(self.conv(x), residual=x)
        return y


def make(batch: int = 4, frozen: bool = False) -> tuple[nn.Module, torch.Tensor]:
    """A stem of torch's, a block of ours and a head."""
    stem = nn.BatchNorm2d(16)
    layers = [nn.Conv2d(3, 16, 3), stem, nn.ReLU(), Block(), nn.Flatten(), nn.BatchNorm1d(4096)]
    return nn.Sequential(*layers[: 4 if frozen else 6]), torch.randn(batch, 3, 18, 18)


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Exit code, output and errors of a check of the model above."""
    for name in ("TRITONBN_PLAN", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    models = SimpleNamespace(
        make=make,
        shorter=lambda: make(frozen=True),
        bare=lambda: (nn.ReLU(), torch.randn(2)),
        strange=lambda: (nn.Sequential(nn.BatchNorm2d(4)), torch.randn(2, 6, 4, 5)[:, 1:5]),
    )
    monkeypatch.setitem(sys.modules, "models_of_a_user", models)

    def run(*arguments: str, function: str = "make") -> tuple[int, str, str]:
        plans = str(tmp_path / "kept" / "plans.json")
        given = ["--static", "--model", f"models_of_a_user:{function}", "--plans", plans]
        return cli.main(["check", *given, *arguments]), *capsys.readouterr()

    return run


def kept(tmp_path: Path) -> dict[str, Any]:
    """The plans as they lie in the file."""
    found: dict[str, Any] = json.loads((tmp_path / "kept" / "plans.json").read_text("utf-8"))
    return found


def rewrite(tmp_path: Path, **changes: object) -> None:
    """Change what is kept of the forward pass of the stem."""
    found = kept(tmp_path)
    line = found["devices"]["H200"]["1 | 4x16x16x16 nchw fp32 | forward train"]
    line |= changes
    (tmp_path / "kept" / "plans.json").write_text(json.dumps(found), encoding="utf-8")


def test_plans_are_printed_kept_and_passed(ask: Ask, tmp_path: Path) -> None:
    code, text, _ = ask()
    assert code == 0
    assert "3 BatchNorm layers; modelled, not measured" in text
    assert "NO BASELINE" in text.splitlines()[-1]
    assert ask("--update")[1].splitlines()[-1].endswith("plans.json")
    lines = kept(tmp_path)["devices"]["H200"]
    assert [key.split(" | ")[:2] for key in lines][::2] == [
        ["1", "4x16x16x16 nchw fp32"],
        ["3.bn", "4x16x16x16 nchw fp32 add_relu"],
        ["5", "4x4096 nc fp32"],
    ]
    assert lines["1 | 4x16x16x16 nchw fp32 | forward train"]["launches"] == 1
    code, text, _ = ask()
    assert (code, text.splitlines()[-1]) == (0, "check --static: passed")


def test_bytes_of_a_layer_are_those_that_its_plan_moves(ask: Ask, tmp_path: Path) -> None:
    ask("--update")
    lines = kept(tmp_path)["devices"]["H200"]
    tensor, vector = 4 * 16 * 16 * 16 * 4, 16 * 4
    assert (
        lines["1 | 4x16x16x16 nchw fp32 | forward train"]["moved_bytes"] == 2 * tensor + 9 * vector
    )
    # x and the residual read, y and the mask of a bit for each element written
    fused = lines["3.bn | 4x16x16x16 nchw fp32 add_relu | forward train"]["moved_bytes"]
    assert fused == 3 * tensor + tensor // 16 + 9 * vector


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"launches": 0}, "launches 0 -> 1"),
        ({"moved_bytes": 1000}, "moved bytes 1000 -> "),
        ({"plan": "another", "asked_bytes": 7}, "plan another -> one read: "),
    ],
    ids=["launches", "bytes", "plan-and-bytes"],
)
def test_worse_plan_fails_and_can_be_accepted(
    changes: dict[str, object], sentence: str, ask: Ask, tmp_path: Path
) -> None:
    ask("--update")
    rewrite(tmp_path, **changes)
    code, text, _ = ask()
    assert code == 1
    worse = [line for line in text.splitlines() if line.startswith("WORSE ")]
    assert len(worse) == 1
    assert worse[0].startswith("WORSE forward train of 1, 4x16x16x16 nchw fp32: ")
    assert sentence in worse[0]
    assert "accept it with --update" in text.splitlines()[-1]
    assert ask("--update")[0] == 0
    assert ask()[0] == 0


@pytest.mark.parametrize(
    "changes", [{"plan": "another"}, {"moved_bytes": 10**9}, {"launches": 2}], ids=str
)
def test_other_or_better_plan_is_told(changes: dict[str, object], ask: Ask, tmp_path: Path) -> None:
    ask("--update")
    rewrite(tmp_path, **changes)
    code, text, _ = ask()
    assert code == 0
    assert "\nchanged forward train of 1, 4x16x16x16 nchw fp32: " in text


def test_pinned_plan_that_reads_twice_is_worse(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear_cache()
    ask("--update")
    monkeypatch.setenv("TRITONBN_PLAN", "two_read")
    clear_cache()
    try:
        code, text, _ = ask()
    finally:
        monkeypatch.delenv("TRITONBN_PLAN")
        clear_cache()
    assert code == 1
    assert "TRITONBN_PLAN pins" in text
    assert "WORSE forward train of 5, 4x4096 nc fp32: plan one read: " in text


def test_layer_that_is_gone_or_new_is_told(ask: Ask) -> None:
    ask("--update")
    code, text, _ = ask(function="shorter")
    assert code == 0
    assert "\nchanged forward train of 5, 4x4096 nc fp32: gone\n" in text
    ask("--update", function="shorter")
    code, text, _ = ask()
    assert code == 0
    assert "\nchanged forward train of 5, 4x4096 nc fp32: new, one read: " in text


def test_every_device_has_plans_of_its_own(ask: Ask, tmp_path: Path) -> None:
    ask("--update")
    code, text, _ = ask("--device", "a100")
    assert (code, "NO BASELINE" in text) == (0, True)
    ask("--device", "a100", "--update")
    assert list(kept(tmp_path)["devices"]) == ["A100", "H200"]


def test_view_without_a_plan_is_listed(ask: Ask) -> None:
    code, text, _ = ask(function="strange")
    assert code == 0
    assert "none: a view with strides (120, 20, 5, 1)" in text


def test_page_has_the_table(ask: Ask, tmp_path: Path) -> None:
    ask("--out", str(tmp_path / "out"))
    page = (tmp_path / "out" / "check.md").read_text(encoding="utf-8")
    assert "\n| layer | input | pass | plan | launches | MB | over floor |\n| --- |" in page
    assert "\n| 3.bn | 4x16x16x16 nchw fp32 add_relu | backward train | one read" in page


@pytest.mark.parametrize(
    ("function", "said"),
    [("bare", "expected BatchNorm layers"), ("absent", "expected absent in models_of_a_user")],
)
def test_model_that_cannot_be_checked_is_told(
    function: str, said: str, ask: Ask, tmp_path: Path
) -> None:
    code, _, error = ask("--update", function=function)
    assert (code, said in error) == (2, True)
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("text", ["not json", "[]", '{"schema": "another/1", "devices": {}}'])
def test_file_of_something_else_is_refused_and_left(text: str, ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "kept" / "plans.json"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    code, _, error = ask("--update")
    assert (code, "expected" in error and "plans.json" in error) == (2, True)
    assert path.read_text(encoding="utf-8") == text
