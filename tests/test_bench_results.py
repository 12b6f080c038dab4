"""The tidy table, its files, and how an interrupted run goes on."""

import csv
import gzip
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tritonbn_bench.environment import Environment, device_name
from tritonbn_bench.results import (
    COLUMNS,
    ENVIRONMENT_COLUMNS,
    Results,
    Row,
    throughput_row,
)

ENVIRONMENT: dict[str, str | int | float | bool | None] = {
    "device": "cuda",
    "gpu": "imaginary",
    "torch": "2.11.0",
    "date": "2026-01-01",
}
TIME = Row(
    "sweep",
    "measured",
    "forward_train/fp32/nchw/N1C2S4",
    "tritonbn",
    "time",
    unit="ms",
    value=2.0,
    low=1.0,
    high=4.0,
    floor_bytes=8_000_000,
)


def test_every_column_says_what_it_means() -> None:
    assert all(COLUMNS.values())
    assert {"value", "low", "high", "unit", "kind", "backend", "floor_bytes"} <= set(COLUMNS)


def test_a_figure_is_measured_modelled_or_static() -> None:
    with pytest.raises(ValueError, match="kind to be one of measured, modelled, static"):
        replace(TIME, kind="guessed")


def test_throughput_is_floor_bytes_over_time_in_units_of_1e9() -> None:
    row = throughput_row(TIME)
    assert (row.unit, row.value, row.low, row.high) == ("GB/s", 4.0, 2.0, 8.0)


def test_no_throughput_comes_from_a_row_without_a_time() -> None:
    with pytest.raises(ValueError, match="time in ms and floor bytes"):
        throughput_row(replace(TIME, value=None, status="failed"))


def test_json_gives_back_what_was_saved(tmp_path: Path) -> None:
    saved = Results(ENVIRONMENT, [TIME, replace(TIME, provider="torch", reason="a | and\n a line")])
    saved.save(tmp_path)
    loaded = Results.load(tmp_path)
    assert loaded.rows == saved.rows
    assert loaded.environment == ENVIRONMENT
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_what_is_compressed_is_read_as_it_is(tmp_path: Path) -> None:
    saved = Results(ENVIRONMENT, [TIME])
    packed = tmp_path / "results.json.gz"
    packed.write_bytes(gzip.compress(saved.as_text().encode()))
    for place in (tmp_path, packed):
        assert Results.load(place).rows == [TIME]
    # what is measured next stands beside it, and comes first
    Results(ENVIRONMENT).save(tmp_path)
    assert Results.load(tmp_path).rows == []
    assert Results.load(packed).rows == [TIME]


@pytest.mark.parametrize("content", [b"\x1f\x8b", b"\x1f\x8b and more", b"\xff", b"{"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(ValueError):
        Results.load(tmp_path)


def test_a_list_for_each_column_gives_back_the_rows(tmp_path: Path) -> None:
    third = replace(TIME, value=1 / 3, step=None)
    step = replace(third, job="training", step=0)
    path = tmp_path / "columns.json"
    path.write_text(Results(ENVIRONMENT, [third, step]).as_columns(digits=6))
    loaded = Results.load(path)
    # what is compared with one another step by step is whole
    assert loaded.rows == [replace(third, value=0.333333), step]
    assert loaded.environment == ENVIRONMENT


def test_an_empty_table_is_valid_json(tmp_path: Path) -> None:
    Results(ENVIRONMENT).save(tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == []


def test_a_file_of_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"schema": "another/1"}')
    with pytest.raises(ValueError, match=r"schema tritonbn\.results/1"):
        Results.load(tmp_path)


def _content(**changes: object) -> dict[str, object]:
    return {**json.loads(Results(ENVIRONMENT, [TIME]).as_text()), **changes}


def _changed(name: str, value: object) -> dict[str, object]:
    """The content with another value in its one row."""
    row = [value if column == name else getattr(TIME, column) for column in COLUMNS]
    return _content(rows=[row])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param([], "expected the schema tritonbn.results/1, got list", id="list"),
        pytest.param(_content(environment=[]), "expected an environment by names", id="place"),
        pytest.param(
            _content(columns=None), "expected names of columns, got None", id="no-columns"
        ),
        pytest.param(_content(columns=[["a"]]), "expected names of columns", id="odd-columns"),
        pytest.param(_content(columns=["job"]), "expected columns job, kind, case", id="few"),
        pytest.param(_content(columns=[*COLUMNS, "job"]), "once each, got", id="a-column-twice"),
        pytest.param(_content(columns=[*COLUMNS, "mood"]), "got 'mood'", id="unknown-column"),
        pytest.param(_content(columns={"job": 1}), "a list for each column", id="column-no-list"),
        pytest.param(
            _content(columns={"job": [], "kind": ["a"]}), "of one length, got [0, 1]", id="lengths"
        ),
        pytest.param(_content(rows=None), "expected a list of rows, got None", id="no-rows"),
        pytest.param(_content(rows=[7]), "values in row 1, got 7", id="row-no-list"),
        pytest.param(_content(rows=[["a"]]), "values in row 1, got ['a']", id="short-row"),
        pytest.param(_changed("kind", "guessed"), "expected kind to be one of", id="kind"),
        pytest.param(_changed("case", ["a"]), "expected case to be str, got ['a']", id="type"),
        pytest.param(_changed("count", 1.5), "count to be int or NoneType, got 1.5", id="count"),
        pytest.param(_changed("value", "2"), "got '2'", id="text"),
        pytest.param(_changed("fusion", "tea"), "the file is of a newer version", id="fusion"),
    ],
)
def test_what_is_no_results_file_is_refused_by_name(
    tmp_path: Path, content: object, words: str
) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        Results.load(tmp_path)
    assert str(caught.value).startswith(f"{path} holds no results of this version: ")


@pytest.mark.parametrize("column", ["value", "low", "high", "bound"])
@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf], ids=str)
def test_a_figure_that_is_no_number_is_refused_by_name(
    tmp_path: Path, column: str, figure: float
) -> None:
    Results(ENVIRONMENT, [replace(TIME, **{column: figure})]).save(tmp_path)  # type: ignore[arg-type]
    words = f"case '{TIME.case}': expected {column} to be a finite number, got {figure}"
    with pytest.raises(ValueError, match=re.escape(words)):
        Results.load(tmp_path)


def test_columns_that_came_later_may_be_missing(tmp_path: Path) -> None:
    first = ["job", "kind", "case", "provider", "quantity"]
    content = _content(columns=first, rows=[[getattr(TIME, name) for name in first]])
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert Results.load(tmp_path).rows[0].key == TIME.key


def test_results_are_put_aside_in_the_place_of_older_ones(tmp_path: Path) -> None:
    assert Results.put_aside(tmp_path) is None
    for rows in ([TIME], []):
        path = Results(ENVIRONMENT, rows).save(tmp_path)
        aside = tmp_path / "results.json.before"
        assert Results.put_aside(tmp_path) == (path, aside)
        assert not path.exists() and Results.load(aside).rows == rows


def test_the_frame_has_the_columns_in_order() -> None:
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    frame = Results(ENVIRONMENT, [TIME]).frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(COLUMNS)
    assert frame.loc[0, "value"] == 2.0


def test_a_line_of_the_csv_names_its_machine(tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="needs pandas")
    path = Results(ENVIRONMENT, [TIME]).write_csv(tmp_path)
    with path.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert list(lines[0]) == [*COLUMNS, *ENVIRONMENT_COLUMNS]
    assert lines[0]["gpu"] == "imaginary"
    assert float(lines[0]["value"]) == 2.0


def test_a_resumed_run_keeps_figures_and_does_failures_again(tmp_path: Path) -> None:
    failed = replace(TIME, provider="torch.compile", value=None, status="failed")
    skipped = replace(TIME, provider="copy", value=None, status="skipped")
    Results(ENVIRONMENT, [TIME, failed, skipped]).save(tmp_path)
    resumed = Results.resume(tmp_path, {**ENVIRONMENT, "date": "2026-01-02"})
    assert resumed.rows == [TIME]
    assert resumed.done() == {TIME.key}
    assert resumed.environment["date"] == "2026-01-01"


def test_a_run_in_parts_names_each_command_once(tmp_path: Path) -> None:
    first = {**ENVIRONMENT, "command": "run --only sweep", "dirty": True}
    second = {**ENVIRONMENT, "command": "run --only endtoend --resume", "dirty": False}
    Results(first, [TIME]).save(tmp_path)
    for _ in range(2):
        resumed = Results.resume(tmp_path, second)
        resumed.save(tmp_path)
    assert resumed.environment["command"] == "run --only sweep; run --only endtoend --resume"
    # some of it was measured with changes that no commit holds
    assert resumed.environment["dirty"] is True


def test_figures_under_other_plans_or_launches_are_not_mixed_in(tmp_path: Path) -> None:
    Results(ENVIRONMENT, [TIME]).save(tmp_path)
    for name in ("plan", "plan_file", "reserve_sms", "plain_launch"):
        with pytest.raises(ValueError, match=f"differ from this run in {name};"):
            Results.resume(tmp_path, {**ENVIRONMENT, name: "1"})


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        pytest.param({"device": "cuda", "gpu": "H"}, "on H", id="gpu"),
        pytest.param({"device": "cuda"}, "on an unknown GPU", id="gpu-unknown"),
        pytest.param(
            {"device": "cpu", "triton_interpret": "1"},
            "without a GPU, in Triton's interpreter",
            id="interpreter",
        ),
        # a model on the CPU runs torch's own kernels
        pytest.param({"device": "cpu"}, "without a GPU", id="cpu"),
    ],
)
def test_a_title_says_what_ran(environment: Environment, name: str) -> None:
    assert device_name(environment) == name


def test_nothing_to_resume_is_a_fresh_start(tmp_path: Path) -> None:
    assert Results.resume(tmp_path, ENVIRONMENT).rows == []


def test_figures_of_another_machine_are_not_mixed_in(tmp_path: Path) -> None:
    Results(ENVIRONMENT, [TIME]).save(tmp_path)
    with pytest.raises(ValueError, match="differ from this run in gpu, torch"):
        Results.resume(tmp_path, {**ENVIRONMENT, "gpu": "another", "torch": "2.13.0"})


def test_saving_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    results = Results(ENVIRONMENT, [TIME])
    results.save(tmp_path)
    results.add([replace(TIME, reason=object())])  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        results.save(tmp_path)
    assert Results.load(tmp_path).rows == [TIME]
