"""The tidy table: one row per figure, its columns fixed; JSON is the truth, CSV a copy.

Measured, modelled and static figures share the table and are told apart by `kind`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .environment import Environment, other_plans, same_machine
from .files import write_whole

if TYPE_CHECKING:
    import pandas

__all__ = [
    "ASIDE",
    "COLUMNS",
    "DROPPED",
    "ENVIRONMENT_COLUMNS",
    "GRAPH_TIME",
    "HOST_BOUND",
    "KINDS",
    "PEAK",
    "RATIO",
    "SAVED",
    "SHARE",
    "STEP_TIME",
    "Results",
    "Row",
    "throughput_row",
]

# quantities that reports look up
RATIO = "ratio to "
SHARE = "share of copy"
DROPPED = "dropped rounds"
PEAK = "peak memory of a call, operands left out"
SAVED = "saved for backward"
STEP_TIME = "step time"
# wall time over device time from which the host sets the pace
HOST_BOUND = 1.3
# figures beside others: where one cannot be had, the work need not be done again
GRAPH_TIME = "graph time"
ASIDE = (GRAPH_TIME,)
SCHEMA = "tritonbn.results/1"
NAME = "results.json"
KINDS = ("measured", "modelled", "static")
# repeated in every line of the CSV, so that a line can be read alone
ENVIRONMENT_COLUMNS = ("gpu", "driver", "torch", "cudnn", "triton", "commit", "date", "command")


def _column(meaning: str, default: Any) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Row:
    """One figure and what it is a figure of; `COLUMNS` says what each field means."""

    job: str = field(
        metadata={
            "meaning": "accuracy, sweep, resnet50, networks, model, endtoend, training, traffic, "
            "fusion, memory, plan, static or host"
        }
    )
    kind: str = field(metadata={"meaning": "measured, modelled (by formula) or static"})
    case: str = field(metadata={"meaning": "id: mode/dtype/layout/shape, or the job's own"})
    provider: str = field(metadata={"meaning": "who computed it"})
    quantity: str = field(metadata={"meaning": "what the value is"})
    unit: str = _column("unit of value, low, high and bound; 1 for a plain number", "1")
    value: float | None = _column("the figure; a median where samples were taken", None)
    low: float | None = _column(
        "20th percentile; of a ratio or a share the low end of its 95 % interval", None
    )
    high: float | None = _column(
        "80th percentile; of a ratio or a share the high end of its 95 % interval", None
    )
    bound: float | None = _column("largest value allowed", None)
    samples: int | None = _column("samples, or rounds, that count", None)
    floor_bytes: int | None = _column("bytes that any algorithm must move", None)
    mode: str = _column("forward, backward or both, train or eval", "")
    dtype: str = _column("dtype of the activations", "")
    layout: str = _column("order of the axes in memory", "")
    batch: int | None = _column("N", None)
    channels: int | None = _column("C", None)
    space: int | None = _column("values per sample and channel", None)
    data: str = _column("what the activations hold", "")
    origin: str = _column("where the shape comes from", "")
    count: int | None = _column("layers of the origin with this shape", None)
    fusion: str = _column("what follows BatchNorm in the call: none, relu, add_relu, ...", "none")
    backend: str = _column("the implementation that really ran", "")
    cache: str = _column(
        "state of the caches before a call: cold, hot, produced (cold, then the main operand "
        "written anew)",
        "",
    )
    host_bound: bool | None = _column(
        "of a wall time: whether it is more than 1.3 x the device time, so that the host sets the "
        "pace",
        None,
    )
    step: int | None = _column("training step", None)
    status: str = _column("ok, failed or skipped", "ok")
    reason: str = _column("why it failed or was skipped", "")

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"expected kind to be one of {', '.join(KINDS)}, got {self.kind}")

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What a resumed run looks up: a unit of work, which may give several rows."""
        return (self.job, self.case, self.data, self.provider)


COLUMNS: dict[str, str] = {column.name: column.metadata["meaning"] for column in fields(Row)}


def throughput_row(time: Row) -> Row:
    """The throughput of a row of time: floor bytes over time, in GB/s (1e9), for everybody alike.

    Raises:
        ValueError: the row holds no time in ms, or no bytes
    """
    if time.unit != "ms" or not time.floor_bytes or not (time.value and time.low and time.high):
        raise ValueError(f"expected a time in ms and floor bytes, got {time}")
    scale = time.floor_bytes / 1e6
    return replace(
        time,
        quantity="throughput",
        unit="GB/s",
        value=scale / time.value,
        low=scale / time.high,
        high=scale / time.low,
    )


class Results:
    """Rows and the environment they were measured in; saved after every unit of work.

    Args:
        environment: as `environment.collect` returns it
        rows: what is there already
    """

    def __init__(self, environment: Environment, rows: Iterable[Row] = ()) -> None:
        self.environment = environment
        self.rows = list(rows)

    @staticmethod
    def path(folder: Path) -> Path:
        """Where the JSON of a report lies, given its folder or itself; compressed where nothing
        else lies there."""
        # a pipe is as good as a file
        if folder.exists() and not folder.is_dir():
            return folder
        plain, packed = folder / NAME, folder / f"{NAME}.gz"
        return packed if packed.exists() and not plain.exists() else plain

    @classmethod
    def load(cls, folder: Path) -> Results:
        """What `save` wrote.

        Raises:
            OSError: no results lie in the folder, or they cannot be read
            ValueError: the file is no results file of this version; the text names it, and what is
                wrong
        """
        from .reading import parsed, unpacked

        path = cls.path(folder)
        try:
            return cls(*parsed(unpacked(path.read_bytes())))
        except ValueError as error:
            raise ValueError(f"{path} holds no results of this version: {error}") from error

    @classmethod
    def resume(cls, folder: Path, environment: Environment) -> Results:
        """What an interrupted run left, less what failed or was skipped; empty if it left nothing.

        Raises:
            ValueError: it was measured on another machine, or with other versions
        """
        if not cls.path(folder).exists():
            return cls(environment)
        found = cls.load(folder)
        different = same_machine(found.environment, environment)
        different += other_plans(found.environment, environment)
        if different:
            raise ValueError(
                f"the results in {folder} differ from this run in {', '.join(different)}; "
                "choose another --out, or leave out --resume to start again"
            )
        again = {row.key for row in found.rows if row.status != "ok" and row.quantity not in ASIDE}
        kept = [row for row in found.rows if row.key not in again]
        # each run of several may have measured other figures
        commands = f"{found.environment.get('command') or ''}; {environment.get('command') or ''}"
        merged = {
            "date": found.environment.get("date"),
            "command": "; ".join(dict.fromkeys(filter(None, commands.split("; ")))),
            "dirty": bool(found.environment.get("dirty") or environment.get("dirty")),
        }
        return cls({**environment, **merged}, kept)

    @staticmethod
    def put_aside(folder: Path) -> tuple[Path, Path] | None:
        """Rename the file that `save` would replace, in the place of one put aside before; what it
        was and what it is now, None if there is none."""
        path = folder / NAME
        if not path.exists():
            return None
        aside = folder / f"{NAME}.before"
        os.replace(path, aside)
        return path, aside

    def save(self, folder: Path) -> Path:
        """Write the JSON, whole or not at all, and return its path."""
        path = folder if folder.is_file() else folder / NAME
        write_whole(path, self.as_text())
        return path

    def as_text(self) -> str:
        """The JSON, a row in a line."""
        # a copy of fields is all there is to do, and asdict takes a hundred times as long
        rows = [[getattr(row, name) for name in COLUMNS] for row in self.rows]
        return _one_row_per_line({**self._head(list(COLUMNS)), "rows": rows})

    def as_columns(self, digits: int) -> str:
        """The JSON, a list for each column: read as the other, and half as large when compressed.

        Args:
            digits: significant ones of numbers that are not whole; those of training steps are
                always whole, for they are compared with one another
        """

        def rounded(row: Row, value: Any) -> Any:
            broken = isinstance(value, float) and math.isfinite(value) and value != int(value)
            return float(f"{value:.{digits}g}") if broken and row.step is None else value

        columns = {
            name: [rounded(row, getattr(row, name)) for row in self.rows] for name in COLUMNS
        }
        return json.dumps(self._head(columns), separators=(",", ":"))

    def _head(self, columns: Any) -> dict[str, Any]:
        return {"schema": SCHEMA, "environment": self.environment, "columns": columns}

    def done(self) -> set[tuple[str, str, str, str]]:
        """Keys of the work that need not be done again."""
        return {row.key for row in self.rows}

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows; one measured again takes the place of what it was before."""
        new = {(row.key, row.quantity, row.step) for row in rows}
        keys = {row.key for row in rows}
        self.rows = [
            row
            for row in self.rows
            if row.key not in keys or (row.key, row.quantity, row.step) not in new
        ]
        self.rows.extend(rows)

    def frame(self) -> pandas.DataFrame:
        """All rows, one column per entry of COLUMNS, in order."""
        import pandas

        return pandas.DataFrame([asdict(row) for row in self.rows], columns=list(COLUMNS))

    def write_csv(self, folder: Path) -> Path:
        """Write the frame with ENVIRONMENT_COLUMNS appended, and return its path."""
        frame = self.frame()
        for name in ENVIRONMENT_COLUMNS:
            frame[name] = self.environment.get(name)
        path = folder / "results.csv"
        frame.to_csv(path, index=False)
        return path


def _one_row_per_line(content: dict[str, Any]) -> str:
    """JSON whose rows stand on a line each: small, and a change in one row is a change in one."""
    rows = ",\n".join(json.dumps(row) for row in content["rows"])
    head = json.dumps({name: content[name] for name in content if name != "rows"}, indent=1)
    return f'{head[:-2]},\n "rows": [\n{rows}\n]}}\n'
