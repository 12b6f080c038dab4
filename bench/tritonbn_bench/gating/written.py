"""What a gate leaves behind: files in a folder, and the summary of a CI job."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..environment import Environment
from ..judge.gate import CaseResult, GateResult, Total
from ..judge.intervals import Interval
from ..judge.outputs import junit, markdown, sentence, trend

__all__ = ["case_line", "plain_sentence", "summarise", "write_gate"]

SCHEMA = "tritonbn.gate/1"


def write_gate(
    folder: Path,
    result: GateResult,
    environment: Environment,
    facts: Mapping[str, Any],
    remarks: str,
    *,
    strict: bool,
) -> None:
    """Write gate.md, gate.xml, trend.json and gate.json, and add to the summary of a CI job.

    Args:
        folder: made if need be
        result: of the gate
        environment: in which it was measured
        facts: what else gate.json holds: sides, proof, rule, exit code
        remarks: Markdown for the page
        strict: as the exit code was made
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = f"## tritonbn-bench gate\n\n{markdown(result, environment, remarks)}"
    content = {
        "schema": SCHEMA,
        "environment": environment,
        **facts,
        "cases": [_plain(item) for item in result.cases],
        "totals": [_plain(item) for item in result.totals],
    }
    texts = {
        "gate.md": page,
        "gate.xml": junit(result, strict=strict),
        "trend.json": trend(result, environment),
        "gate.json": json.dumps(content, indent=1) + "\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    summarise(page)


def summarise(page: str) -> None:
    """Append to the summary of a GitHub job, where this is one."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path:
        with open(path, "a", encoding="utf-8") as summary:
            summary.write(page + "\n")


def plain_sentence(result: GateResult) -> str:
    """The verdict in one sentence, for a terminal."""
    return sentence(result).replace("**", "")


def case_line(item: CaseResult) -> str:
    """A case in a line, for a terminal."""
    figures = "-"
    if item.interval is not None:
        ratio, low, high = item.interval.as_ratio()
        figures = f"{ratio:.3f} ({low:.3f} ... {high:.3f}), margin {item.tau:.1%}"
    return "  ".join(filter(None, (f"{item.verdict.value:<16}", item.case, figures, item.reason)))


def _plain(item: CaseResult | Total) -> dict[str, Any]:
    """For JSON: intervals as ratios, [estimate, low, high]."""
    found = asdict(item)
    for name, value in vars(item).items():
        if isinstance(value, Interval):
            found[name] = value.as_ratio()
    if isinstance(item, CaseResult):
        found["ratios"] = {name: value.as_ratio() for name, value in item.ratios.items()}
    return {**found, "verdict": item.verdict.value}
