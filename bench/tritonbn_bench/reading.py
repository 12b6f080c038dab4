"""A file of results, read with care: it may be damaged, of another version, or no such file."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import MISSING, fields
from types import NoneType
from typing import Any

from .environment import Environment
from .fusions import FUSIONS, NONE
from .results import COLUMNS, SCHEMA, Row

__all__ = ["parsed", "unpacked"]

# what a file may hold, by the type of a field; JSON knows whole numbers from others
_HELD: dict[Any, tuple[type, ...]] = {
    "str": (str,),
    "float | None": (float, int, NoneType),
    "int | None": (int, NoneType),
    "bool | None": (bool, NoneType),
}
_TYPES = {column.name: _HELD[column.type] for column in fields(Row)}
_FIGURES = ("value", "low", "high", "bound")
_REQUIRED = [column.name for column in fields(Row) if column.default is MISSING]


def unpacked(content: bytes) -> str:
    """The text of a file that may be compressed.

    Raises:
        ValueError: it is neither text nor text compressed by gzip
    """
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"it is damaged: {error}") from error
    return content.decode()


def parsed(text: str) -> tuple[Environment, list[Row]]:
    """Environment and rows of a file, given its text.

    Raises:
        ValueError: it is not what `Results.save` writes
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"expected JSON, got: {error}") from error
    schema = content.get("schema") if isinstance(content, dict) else type(content).__name__
    if schema != SCHEMA:
        raise ValueError(f"expected the schema {SCHEMA}, got {schema}")
    environment = content.get("environment")
    if not isinstance(environment, dict):
        raise ValueError(f"expected an environment by names, got {_short(environment)}")
    columns = content.get("columns")
    # by columns in what a page embeds, else by rows
    if isinstance(columns, dict):
        if not all(isinstance(values, list) for values in columns.values()):
            raise ValueError("expected a list for each column")
        lengths = {len(values) for values in columns.values()}
        if len(lengths) > 1:
            raise ValueError(f"expected columns of one length, got {sorted(lengths)}")
        rows: Any = list(zip(*columns.values(), strict=True))
    else:
        rows = content.get("rows")
        if not isinstance(rows, list):
            raise ValueError(f"expected a list of rows, got {_short(rows)}")
    return environment, _rows(_names(columns), rows)


def _names(columns: Any) -> list[str]:
    """The names of the columns; those that have a default may be missing."""
    if not isinstance(columns, dict | list) or not all(isinstance(name, str) for name in columns):
        raise ValueError(f"expected names of columns, got {_short(columns)}")
    names = list(columns)
    for name in names:
        if name not in COLUMNS:
            raise ValueError(f"expected columns of {', '.join(COLUMNS)}, got {_short(name)}")
    absent = [name for name in _REQUIRED if name not in names]
    if absent or len(set(names)) < len(names):
        raise ValueError(f"expected columns {', '.join(_REQUIRED)}, once each, got {names}")
    return names


def _rows(names: Sequence[str], lines: Sequence[Any]) -> list[Row]:
    rows = []
    for number, line in enumerate(lines, 1):
        if not isinstance(line, list | tuple) or len(line) != len(names):
            raise ValueError(f"expected {len(names)} values in row {number}, got {_short(line)}")
        values = dict(zip(names, line, strict=True))
        try:
            rows.append(_row(values))
        except ValueError as error:
            raise ValueError(f"row {number}, case {_short(values['case'])}: {error}") from error
    return rows


def _row(values: dict[str, Any]) -> Row:
    for name, value in values.items():
        if type(value) not in _TYPES[name]:
            expected = " or ".join(kind.__name__ for kind in _TYPES[name])
            raise ValueError(f"expected {name} to be {expected}, got {_short(value)}")
    for name in _FIGURES:
        figure = values.get(name)
        # JSON has no such numbers, and Python reads them all the same
        if figure is not None and not -math.inf < figure < math.inf:
            raise ValueError(f"expected {name} to be a finite number, got {figure}")
    fusion = values.get("fusion", NONE)
    if fusion not in FUSIONS:
        raise ValueError(
            f"expected fusion to be one of {', '.join(FUSIONS)}, got {_short(fusion)}: the file is "
            "of a newer version of tritonbn"
        )
    return Row(**values)


def _short(value: Any) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]} ..."
