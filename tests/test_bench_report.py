"""The report, drawn from the fake timer's figures and from those of a machine without a GPU."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tritonbn_bench.cases import Case, suite
from tritonbn_bench.environment import Environment
from tritonbn_bench.jobs import Run, perform
from tritonbn_bench.providers import PROVIDERS
from tritonbn_bench.results import Results, Row
from tritonbn_bench.speed_rows import time_rows
from tritonbn_bench.stopwatch import FakeStopwatch
from tritonbn_bench.summary import NO_SPEED
from tritonbn_bench.sweep import planned
from tritonbn_bench.tables import case_table, markdown_table
from tritonbn_bench.timer import Samples, Work
from tritonbn_bench.training import Outcome, Trained, training_rows
from tritonbn_kernels.traffic import floor_bytes, two_read_bytes, unfused_bytes

pytest.importorskip("pandas", reason="needs pandas")
pytest.importorskip("matplotlib", reason="needs matplotlib")

from tritonbn_bench.report import write_report

GPU: Environment = {"device": "cuda", "gpu": "Imaginary GPU", "date": "2026-01-01 00:00 UTC"}
# GB/s (1e9) of imaginary kernels
BANDWIDTHS = {
    "tritonbn": 4000.0,
    "tritonbn unfused": 4000.0,
    "torch": 2500.0,
    "torch channels_last": 2000.0,
    "torch.compile": 3000.0,
    "copy": 4300.0,
}

FORMULAS = {"copy": floor_bytes, "tritonbn": two_read_bytes, "torch.compile": two_read_bytes}
TRAINED = Trained((2.0, 1.0), {}, 4000, 16)
FUSED = Trained((2.0, 1.0 + 1e-6), {"forward with relu": 8}, 3000, 8)


def _backend(case: Case, provider: str) -> str:
    if provider.startswith("torch") and provider != "torch.compile":
        return "ATen native" if case.dtype == "bf16" or case.layout == "nc" else "cuDNN"
    names = {"tritonbn": "triton", "tritonbn unfused": "triton, then torch"}
    return {**names, "torch.compile": "Inductor", "copy": "copy_"}[provider]


def fake_rows(job: str, cases: Sequence[Case]) -> list[Row]:
    """Rows as a GPU would give them, of every provider."""
    rows = []
    stopwatches = {
        name: FakeStopwatch(seed, bandwidth_gb_s=BANDWIDTHS[name])
        for seed, name in enumerate(PROVIDERS)
    }
    for unit in planned(cases, list(PROVIDERS.values())):
        for provider in unit.wanted:
            moved = unit.case.moved(FORMULAS.get(provider.name, unfused_bytes))
            stopwatch, work = stopwatches[provider.name], Work(lambda _: None, moved_bytes=moved)
            blocks = tuple(stopwatch.block(work, 1) for _ in range(5))
            samples = Samples(blocks, stopwatch.wall(work), stopwatch.cache)
            backend = _backend(unit.case, provider.name)
            rows += time_rows(job, unit.case, provider.name, backend, samples)
    return rows


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a full sweep on an imaginary GPU, with one rival that failed."""
    # the lines are drawn, the grid is not
    lines = [case for case in suite("sweep") if case.origin != "grid"]
    rows = fake_rows("sweep", lines) + fake_rows("resnet50", suite("resnet50"))
    failed = replace(rows[0], provider="torch.compile", case="x", value=None, status="failed")
    results = Results(GPU, [*rows, replace(failed, reason="RuntimeError: no | compiler")])
    return write_report(results, tmp_path_factory.mktemp("measured"))


def test_a_measured_report_leads_with_the_ratio_to_each_rival_by_its_backend(
    measured: Path,
) -> None:
    text = measured.read_text()
    assert text.startswith("# tritonbn on Imaginary GPU, 2026-01-01\n")
    top = text.split("## ")[0]
    for rival in ("torch (cuDNN)", "torch (ATen native)", "torch.compile (Inductor)"):
        assert rival in top
    assert NO_SPEED not in text


def test_a_measured_report_has_its_pictures(measured: Path) -> None:
    names = {path.stem for path in (measured.parent / "pictures").iterdir()}
    assert names == {
        "throughput-forward_train-batch",
        "throughput-forward_train-channels",
        "throughput-backward_train-batch",
        "throughput-backward_train-channels",
        "resnet50-speedup",
        "resnet50-fused-speedup",
    }
    text = measured.read_text()
    for name in names:
        assert f"](pictures/{name}.png)" in text
        assert (measured.parent / f"pictures/{name}.png").read_bytes().startswith(b"\x89PNG")


def test_fused_calls_are_compared_with_ours_unfused_and_never_averaged_with_others(
    measured: Path,
) -> None:
    text = measured.read_text()
    top = text.split("## ")[0]
    assert "fused with what follows: " in top
    # every case of the imaginary GPU moves what its formula says: 3R + 2W against 2R + 1W for ReLU
    rows = [line.split(" | ") for line in text.splitlines() if "| tritonbn unfused |" in line]
    forward = [row for row in rows if row[:3] == ["| sweep", "forward_train", "relu"]]
    assert len(forward) == 3 * 2
    assert all(1.3 < float(row[7]) <= 5 / 3 + 0.05 for row in forward)
    assert {row[2] for row in rows} == {"relu", "add_relu", "silu"}


def test_totals_with_what_follows_are_given_beside_those_of_batch_norm_alone(
    measured: Path,
) -> None:
    section = measured.read_text().split("## ResNet-50 (measured)")[1].split("## ")[0]
    alone, fused = section.split("The same layers with what follows")
    assert "tritonbn unfused, ms" not in alone and "tritonbn unfused, ms" in fused
    assert "![Measured speedup with what follows](pictures/resnet50-fused-speedup.png)" in fused


def test_a_failure_is_listed_with_its_reason(measured: Path) -> None:
    section = measured.read_text().split("## Failures and skips")[1]
    assert "RuntimeError: no \\| compiler" in section


def test_the_curves_are_labelled_by_what_ran() -> None:
    from tritonbn_bench.plots import figures

    rows = fake_rows("sweep", [case for case in suite("sweep") if case.dtype != "fp16"])
    picture = figures(Results(GPU, rows))["throughput-forward_train-batch"]
    labels = [axes.get_legend_handles_labels()[1] for axes in picture.axes]
    assert all(axes.get_legend() is not None for axes in picture.axes)
    assert [axes.get_title() for axes in picture.axes] == ["fp32", "bf16"]
    assert "torch nchw (cuDNN)" in labels[0]
    assert "torch nchw (ATen native)" in labels[1]
    assert "torch channels_last (ATen native)" in labels[1]
    assert "tritonbn nhwc (triton)" in labels[0]


def test_the_curves_hold_the_figures_of_the_rows() -> None:
    from tritonbn_bench.plots import figures

    rows = fake_rows("sweep", [case for case in suite("sweep") if case.dtype == "fp32"])
    (axes,) = figures(Results(GPU, rows))["throughput-backward_train-channels"].axes
    curve = next(line for line in axes.lines if str(line.get_label()).startswith("tritonbn nchw"))
    expected = {
        row.channels: row.value
        for row in rows
        if (row.mode, row.layout, row.provider) == ("backward_train", "nchw", "tritonbn")
        and row.quantity == "throughput"
        and (row.batch, row.space) == (32, 784)
    }
    found = dict(zip(curve.get_xdata(), curve.get_ydata(), strict=True))  # type: ignore[arg-type]
    assert found == expected


@pytest.fixture(scope="module")
def unmeasured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a machine without a GPU: training, traffic, one red accuracy row."""
    folder = tmp_path_factory.mktemp("unmeasured")
    run = Run(Results({"device": "cpu"}), folder, "cpu")
    perform(["traffic", "fusion", "memory"], run)
    run.add(training_rows(Outcome(TRAINED, TRAINED, FUSED, 4, "interpreter", (), True)))
    accuracy = Row(
        "accuracy", "measured", "forward_train/fp32/nchw/N1C2S4", "tritonbn", "error of y"
    )
    accuracy = replace(accuracy, mode="forward_train", dtype="fp32", layout="nchw", data="digits")
    ours = replace(accuracy, value=5.0, bound=4.0, status="failed", reason="y: error 5 is above 4")
    run.add([ours, replace(accuracy, provider="torch", value=1.0)])
    return write_report(run.results, folder)


def test_without_a_gpu_the_page_says_so_first_and_shows_no_throughput(unmeasured: Path) -> None:
    text = unmeasured.read_text()
    assert text.splitlines()[2] == f"- **{NO_SPEED}**"
    assert "GB/s" not in text
    assert not list((unmeasured.parent / "pictures").glob("throughput*"))


def test_modelled_bytes_are_never_called_measured(unmeasured: Path) -> None:
    text = unmeasured.read_text()
    section = text.split("## Traffic (modelled)")[1].split("## ")[0]
    assert "By formula, not measured" in section
    assert "![Modelled bytes" in section


def test_what_follows_and_memory_are_called_modelled_and_accounted(unmeasured: Path) -> None:
    text = unmeasured.read_text()
    section = text.split("## Traffic with what follows BatchNorm (modelled)")[1].split("## ")[0]
    assert "By formula, not measured" in section and "pictures/fusion.png" in section
    section = text.split("## Memory (computed by accounting)")[1].split("## ")[0]
    assert "not measured" in section and "pictures/memory.png" in section
    top = text.split("## ")[0]
    assert "BatchNorm of ResNet-50 with what follows it in bf16, nchw moves" in top
    assert "Memory computed by accounting: a training step of ResNet-50, N = 256" in top


def test_the_three_trainings_stand_side_by_side(unmeasured: Path) -> None:
    text = unmeasured.read_text()
    assert "16 (torch), 16 (tritonbn unfused), 8 (tritonbn)" in text.split("## ")[0]
    section = text.split("## Training on real data (measured)")[1].split("## ")[0]
    assert "| quantity | torch | tritonbn unfused | tritonbn | allowed |" in section
    assert "in a step, parameters left out, bytes | 4000 | 4000 | 3000 | - |" in section
    assert "| launches of forward with relu | - | - | 8 | - |" in section


def test_a_red_result_is_in_the_verdict_and_in_the_failures(unmeasured: Path) -> None:
    text = unmeasured.read_text()
    assert "Accuracy: 0 of 1 results keep the bound" in text.split("## ")[0]
    assert "y: error 5 is above 4" in text.split("## Failures and skips")[1]


def test_redrawing_from_the_file_gives_the_same_page_and_pictures(tmp_path: Path) -> None:
    run = Run(Results({"device": "cpu"}), tmp_path, "cpu")
    perform(["traffic", "fusion", "memory"], run)
    run.results.save(tmp_path)
    page = write_report(run.results, tmp_path)
    pictures = [tmp_path / "pictures" / f"{name}.png" for name in ("traffic", "fusion", "memory")]
    before = [file.read_bytes() for file in (page, *pictures)]
    write_report(Results.load(tmp_path), tmp_path)
    assert [file.read_bytes() for file in (page, *pictures)] == before


def test_a_table_aligns_numbers_right_and_escapes_bars() -> None:
    table = markdown_table(("a", "b"), [("x|y", 1.5), (None, 20000.0)])
    assert table.splitlines() == ["| a | b |", "| --- | ---: |", "| x\\|y | 1.5 |", "| - | 20000 |"]


def test_cases_are_marked_where_the_host_or_the_l2_cache_decides() -> None:
    case = Case("forward_train", "fp32", "nchw", 1, 2, (2, 2), "resnet50", "a test")
    fast, slow = (Samples((0.01,) * 5, wall, "cold") for wall in (0.0129, 0.0131))
    remarks = {}
    for name, samples, l2_bytes in (("none", fast, 0), ("L2", fast, 10**6), ("host", slow, 0)):
        rows = time_rows("resnet50", case, "tritonbn", "triton", samples)
        line = next(line for line in case_table(rows, l2_bytes).splitlines() if case.id in line)
        remarks[name] = line.split("|")[-2].strip()
    assert remarks == {"none": "", "L2": "fits L2", "host": "host-bound"}


def test_traffic_of_resnet50_is_the_formula_times_the_layers(tmp_path: Path) -> None:
    run = Run(Results({"device": "cpu"}), tmp_path, "cpu")
    perform(["traffic"], run)
    rows = [row for row in run.results.rows if row.dtype == "fp32" and row.provider == "floor"]
    assert {row.kind for row in rows} == {"modelled"}
    # two passes in two layouts, and the floor knows no layout
    assert sum(row.count or 0 for row in rows) == 2 * 2 * 53
    floors = [[row.value for row in rows if row.layout == layout] for layout in ("nchw", "nhwc")]
    assert floors[0] == floors[1]
    first = next(row for row in rows if row.mode == "forward_train" and row.space == 112**2)
    # x read once, y written once, and 9 vectors of 64 channels
    assert first.value == 2 * 4 * 64 * 64 * 112**2 + 9 * 64 * 4


def test_modelled_bytes_with_what_follows_are_those_of_the_plan(tmp_path: Path) -> None:
    run = Run(Results({"device": "cpu"}), tmp_path, "cpu")
    perform(["fusion"], run)
    rows = run.results.rows
    assert {row.kind for row in rows} == {"modelled"}
    # two passes in two layouts by four providers
    assert sum(row.count or 0 for row in rows) == 2 * 2 * 4 * 53
    first = next(row for row in rows if (row.provider, row.fusion) == ("torch", "add_relu"))
    tensor = 64 * 256 * 56 * 56 * 2
    assert first.mode == "forward_train" and first.space == 56 * 56
    assert first.value == (5 + 3) * tensor + 9 * 256 * 4
    perform(["fusion", "memory"], run)
    assert run.results.rows[: len(rows)] == rows
    memory = [row for row in run.results.rows if row.job == "memory"]
    assert len({(row.key, row.quantity) for row in memory}) == len(memory) == 3 * 4 * 2
