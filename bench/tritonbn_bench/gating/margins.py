"""Margins by case, as a self-check found them and a gate reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..environment import Environment
from ..judge.baseline import key_of

__all__ = ["Margins", "load_margins", "save_margins"]

SCHEMA = "tritonbn.margins/1"


@dataclass(frozen=True)
class Margins:
    """Margins of one machine.

    Attributes:
        by_case: shares
        key: as `judge.baseline.key_of`, of the machine they were found on
    """

    by_case: Mapping[str, float] = field(default_factory=dict)
    key: Mapping[str, str | None] = field(default_factory=dict)

    def differs(self, environment: Environment) -> str:
        """In what this machine is another one; empty if it is the same, or nothing is held."""
        here = key_of(environment) if self.key else {}
        return ", ".join(
            f"{name} {self.key.get(name)} there, {value} here"
            for name, value in here.items()
            if self.key.get(name) != value
        )


def save_margins(path: Path, margins: Mapping[str, float], environment: Environment) -> None:
    """Write what `load_margins` reads."""
    rounded = {case: round(margin, 6) for case, margin in margins.items()}
    content = {"schema": SCHEMA, "key": key_of(environment), "margins": rounded}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_margins(path: Path) -> Margins:
    """What `save_margins` wrote.

    Raises:
        ValueError: the file is not there, or holds no margins
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"expected margins in {path}, as selfcheck writes them: {error}") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"expected {path} to have the schema {SCHEMA}, got {schema}")
    try:
        by_case = {str(case): float(margin) for case, margin in content["margins"].items()}
        return Margins(by_case, content["key"])
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"expected margins and key in {path}, got {error!r}") from None
