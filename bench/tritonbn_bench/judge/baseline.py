"""Stored ratios: time of tritonbn by the reference and by a copy, on one GPU and its versions.

One JSON file per key, one case a line, so that a diff of it can be read. Absolute times are kept
for the reader alone: no verdict rests on them.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..environment import Environment
from ..files import write_whole
from .decision import decide
from .intervals import Interval
from .rounds import COPY, HEAD, REFERENCE
from .verdicts import Verdict

if TYPE_CHECKING:
    from .gate import CaseResult, GateResult

__all__ = ["ACCEPT", "Baseline", "Stored", "accept", "find", "key_of", "load", "path_of", "save"]

SCHEMA = "tritonbn.baseline/1"
ACCEPT = "tritonbn-bench baseline --accept"
# runs of which a case's spread is known well enough to widen its margin, and those remembered
RUNS_FOR_MARGIN, RUNS_KEPT = 5, 50
# name in the key -> names in the environment, in order of preference
KEY = {
    "gpu": "gpu",
    "sm": "compute_capability",
    "driver": "driver",
    "torch": "torch",
    "cudnn": "cudnn",
    "triton": "triton",
}
# an accepted change begins a new record, once the spread is known well enough to tell it from
# noise: runs at another level say nothing about either
CHANGED = (Verdict.REGRESSION, Verdict.IMPROVED)
Key = dict[str, "str | None"]


@dataclass(frozen=True)
class Stored:
    """What is known of a case.

    Attributes:
        log_ratios: of every run, oldest first: ln(head / reference), ln(head / copy) or None
        arm: half width of the interval of the log ratio to the reference, the widest of the runs
        milliseconds: per call of the head in the last run, for the reader
        config_hash: of the configuration that ran, where the measurer told it
    """

    log_ratios: tuple[tuple[float, float | None], ...]
    arm: float
    milliseconds: float
    config_hash: str = ""

    @property
    def reference(self) -> Interval:
        """Log ratio of the head to the reference."""
        mean = statistics.fmean(run[0] for run in self.log_ratios)
        return Interval(mean, mean - self.arm, mean + self.arm)

    @property
    def copy(self) -> Interval | None:
        """Log ratio of the head to the copy; a witness, of which the estimate alone counts."""
        found = [run[1] for run in self.log_ratios if run[1] is not None]
        if not found:
            return None
        mean = statistics.fmean(found)
        return Interval(mean, mean, mean)

    @property
    def spread(self) -> float | None:
        """Standard deviation of the log ratio to the reference over runs, None for one run."""
        found = [run[0] for run in self.log_ratios]
        return statistics.stdev(found) if len(found) > 1 else None

    @property
    def margin(self) -> float:
        """Three times the spread, once five runs tell it; a share."""
        known = len(self.log_ratios) >= RUNS_FOR_MARGIN
        return math.expm1(3 * (self.spread or 0.0)) if known else 0.0


@dataclass(frozen=True)
class Baseline:
    """Stored ratios of one GPU and its versions.

    Attributes:
        key: as `key_of`
        environment: in which the last run was accepted
        cases: by id
        differs: how its key is another than that of the machine that asks; "" where it gates
    """

    key: Key
    environment: Environment
    cases: Mapping[str, Stored] = field(default_factory=dict)
    differs: str = ""


def key_of(environment: Environment) -> Key:
    """What must agree for stored ratios to hold: the GPU and the versions that move them.

    Without a GPU the CPU stands in its place.
    """
    found = {name: environment.get(source) for name, source in KEY.items()}
    if environment.get("device") == "cpu" or not found["gpu"]:
        found.update(gpu=environment.get("cpu") or "cpu", sm=None, driver=None, cudnn=None)
    return {name: None if value is None else str(value) for name, value in found.items()}


def path_of(folder: Path, key: Mapping[str, str | None]) -> Path:
    """Where the file of a key lies: `<folder>/<gpu>/<key>.json`."""
    rest = [f"{name}{value}" for name, value in key.items() if name != "gpu" and value]
    return folder / _slug(str(key["gpu"])) / f"{_slug('-'.join(rest))}.json"


def find(place: Path, environment: Environment) -> tuple[Baseline | None, str]:
    """What is stored for this machine, and how it was found, in words.

    The exact key gates. The same GPU with the same minor version of triton only warns; of several
    the one that differs in least is taken, then the latest by its date.

    Args:
        place: the folder of all baselines, or a file
        environment: as `environment.collect` returns it

    Raises:
        ValueError: a file is no baseline
        FileNotFoundError: `place` names a JSON file that is not there
    """
    key = key_of(environment)
    exact = path_of(place, key)
    if place.is_file() or place.suffix == ".json":
        paths = [place]
    else:
        paths = [exact] if exact.is_file() else sorted(exact.parent.glob("*.json"))
    stored = sorted(
        (found for path in paths if _related((found := load(path)).key, key)),
        key=lambda item: str(item.environment.get("date")),
        reverse=True,
    )
    if not stored:
        return None, f"nothing is stored for {_words(key)}; accept with: {ACCEPT}"
    nearest = min(stored, key=lambda item: len(_differences(item.key, key)))
    differences = ", ".join(_differences(nearest.key, key))
    if not differences:
        return nearest, f"exact: {_words(key)}"
    differs = f"the baseline has {differences}"
    return replace(nearest, differs=differs), f"near, so it only warns: {differs}"


def accept(
    result: GateResult,
    environment: Environment,
    before: Baseline | None = None,
    *,
    another_key: bool = False,
) -> Baseline:
    """A baseline of these results, joined to what was stored before.

    Args:
        result: of `gate.against_baseline`, with ratios to the reference
        environment: in which it was measured
        before: of the same key; its runs are kept, but for cases of five runs or more that
            changed by more than their margin
        another_key: start anew where the key of `before` is another one

    Raises:
        ValueError: a correctness check is red, nothing was measured, or the keys differ
    """
    wrong = [item.case for item in result.cases if item.verdict is Verdict.ACCURACY]
    if wrong:
        raise ValueError(f"expected every correctness check to pass, got red: {', '.join(wrong)}")
    measured = [item for item in result.cases if REFERENCE in item.ratios]
    if not measured:
        raise ValueError("expected at least one case with a ratio to the reference, got none")
    key = key_of(environment)
    if before is not None and before.key != key:
        if not another_key:
            raise ValueError(
                "expected a baseline of the same key, got one of "
                f"{', '.join(_differences(before.key, key))}"
            )
        before = None
    cases = dict(before.cases) if before else {}
    cases.update({item.case: _stored(item, cases.get(item.case)) for item in measured})
    return Baseline(key, environment, cases)


def load(path: Path) -> Baseline:
    """What `save` wrote.

    Raises:
        FileNotFoundError: there is no such file
        ValueError: it is no baseline of this version
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"expected {path} to be JSON, got: {error}") from None
    schema = content.get("schema") if isinstance(content, dict) else type(content).__name__
    if schema != SCHEMA:
        raise ValueError(f"expected {path} to have the schema {SCHEMA}, got {schema}")
    try:
        key = {name: content["key"][name] for name in KEY}
        cases = {case: _from_json(line) for case, line in content["cases"].items()}
        return Baseline(key, dict(content["env"]), cases)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"expected {path} to hold key, env and cases as {SCHEMA} has them, got {error!r}"
        ) from None


def save(baseline: Baseline, path: Path) -> Path:
    """Write it, whole or not at all, one case a line, and return the path."""
    head = {"schema": SCHEMA, "key": baseline.key, "env": baseline.environment}
    lines = ",\n".join(
        f"  {json.dumps(case)}: {json.dumps(_to_json(stored))}"
        for case, stored in sorted(baseline.cases.items())
    )
    text = f'{json.dumps(head, indent=1)[:-2]},\n "cases": {{\n{lines}\n }}\n}}\n'
    write_whole(path, text)
    return path


def _stored(result: CaseResult, before: Stored | None) -> Stored:
    reference, copy = result.ratios[REFERENCE], result.ratios.get(COPY)
    run = (reference.estimate, copy.estimate if copy else None)
    config = result.labels.get("config_hash", "")
    now = Stored((run,), reference.half_width, result.times[HEAD], config)
    if before is None:
        return now
    known = len(before.log_ratios) >= RUNS_FOR_MARGIN
    margin = max(result.tau, before.margin)
    if known and decide(reference.less(before.reference), margin) in CHANGED:
        return now
    runs = (*before.log_ratios, run)[-RUNS_KEPT:]
    return replace(now, log_ratios=runs, arm=max(now.arm, before.arm))


def _to_json(stored: Stored) -> dict[str, Any]:
    ratio, low, high = stored.reference.as_ratio()
    copy = stored.copy
    return {
        "ratio_ref": round(ratio, 6),
        "ci": [round(low, 6), round(high, 6)],
        "ratio_copy": round(math.exp(copy.estimate), 6) if copy else None,
        "sd_runs": None if stored.spread is None else round(stored.spread, 6),
        "runs": len(stored.log_ratios),
        "log_ratios": stored.log_ratios,
        "arm": stored.arm,
        "ms": stored.milliseconds,
        "config_hash": stored.config_hash,
    }


def _from_json(line: Mapping[str, Any]) -> Stored:
    runs = tuple(
        (float(reference), None if copy is None else float(copy))
        for reference, copy in line["log_ratios"]
    )
    if not runs:
        raise ValueError("a case without runs")
    return Stored(runs, float(line["arm"]), float(line["ms"]), str(line["config_hash"]))


def _related(stored: Mapping[str, str | None], key: Mapping[str, str | None]) -> bool:
    """Same GPU and minor version of triton."""
    minors = [str(item["triton"]).split(".")[:2] for item in (stored, key)]
    return all(stored[name] == key[name] for name in ("gpu", "sm")) and minors[0] == minors[1]


def _differences(stored: Mapping[str, str | None], key: Mapping[str, str | None]) -> list[str]:
    return [
        f"{name} {stored[name]} instead of {key[name]}" for name in KEY if stored[name] != key[name]
    ]


def _words(key: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {value}" for name, value in key.items() if value is not None)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
