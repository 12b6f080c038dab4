"""Outcomes of a search: kept in a file after every regime, told, and written as a plan file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tritonbn_kernels.plan_file import PlanFile, Regime

from ..cases import Case
from ..environment import Environment, same_machine
from ..files import write_whole
from ..judge.verdicts import Verdict
from .candidates import TABLE
from .trial import Outcome, Reading

__all__ = ["Record", "as_plan_file", "as_text"]

SCHEMA = "tritonbn.search/1"
# of the environment, what a plan file says about how it was made
_ORIGIN = ("date", "command", "tritonbn", "commit", "torch", "triton", "driver")


class Record:
    """Outcomes, and the environment in which they were measured.

    Args:
        folder: where they are kept
        environment: as `environment.collect` returns it
        outcomes: what is there already
    """

    def __init__(
        self, folder: Path, environment: Environment, outcomes: Iterable[Outcome] = ()
    ) -> None:
        self.folder = folder
        self.environment = environment
        self.outcomes = list(outcomes)

    @property
    def path(self) -> Path:
        """Of the file."""
        return self.folder / "search.json"

    @classmethod
    def resume(cls, folder: Path, environment: Environment) -> Record:
        """What an interrupted search left, less the regimes in which the table's plan failed; empty
        if it left nothing.

        Raises:
            ValueError: it is of another machine or other versions, or no such file
        """
        record = cls(folder, environment)
        if not record.path.exists():
            return record
        try:
            content = json.loads(record.path.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                raise ValueError(f"expected schema {SCHEMA}, got {content['schema']}")
            before = dict(content["environment"])
            outcomes = [_outcome(item) for item in content["outcomes"]]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{record.path} is no record of a search: {error}") from error
        different = same_machine(before, environment)
        # neither the package of a wheel nor a slice of a GPU shows in the others
        different += [n for n in ("sm_count", "tritonbn") if before.get(n) != environment.get(n)]
        if different:
            raise ValueError(
                f"{record.path} differs from this search in {', '.join(different)}; "
                "choose another --out, or leave out --resume to start again"
            )
        record.outcomes = [item for item in outcomes if TABLE not in item.failed]
        return record

    def holds(self, regime: Regime, cases: Iterable[Case]) -> bool:
        """Whether all of these cases took part in an outcome of their regime."""
        wanted = {case.id for case in cases}
        return any(item.regime == regime and wanted <= {*item.cases} for item in self.outcomes)

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome, in place of an earlier one of no other cases of its regime, in the file
        too, whole or not at all."""
        self.outcomes = [
            item
            for item in self.outcomes
            if item.regime != outcome.regime or not {*item.cases} <= {*outcome.cases}
        ]
        self.outcomes.append(outcome)
        content = {
            "schema": SCHEMA,
            "environment": self.environment,
            "outcomes": [asdict(item) for item in self.outcomes],
        }
        write_whole(self.path, json.dumps(content, indent=1) + "\n")


def _outcome(item: Mapping[str, Any]) -> Outcome:
    readings = tuple(
        Reading(**{**reading, "verdict": Verdict(reading["verdict"])})
        for reading in item["readings"]
    )
    known = {"regime": Regime(**item["regime"]), "cases": tuple(item["cases"])}
    return Outcome(**{**item, **known, "readings": readings})


def as_plan_file(
    outcomes: Iterable[Outcome], environment: Environment, gpu: tuple[str, int]
) -> PlanFile:
    """The rows that should change, as the package reads them.

    Args:
        outcomes: of any number of searches on this GPU
        environment: in which they were measured
        gpu: its name and SMs
    """
    by_regime: dict[Regime, list[Outcome]] = {}
    for outcome in outcomes:
        by_regime.setdefault(outcome.regime, []).append(outcome)
    # what other cases of the regime did not bear out is no row of it
    changed = [
        found[-1]
        for found in by_regime.values()
        if found[-1].plan and all(item.plan == found[-1].plan for item in found)
    ]
    return PlanFile(
        "",
        gpu,
        {outcome.regime: outcome.plan for outcome in changed},
        {outcome.regime: [asdict(item) for item in outcome.readings] for outcome in changed},
        {name: environment.get(name) for name in _ORIGIN},
    )


def as_text(outcomes: Iterable[Outcome], total: int) -> str:
    """The rows that should change with their measurements, or that none should.

    Args:
        outcomes: of the regimes that were searched
        total: regimes that were to be searched
    """
    found = list(outcomes)
    changed = [outcome for outcome in found if outcome.plan]
    lines = [f"{len(changed)} rows of the plan table should change:" if changed else ""]
    for outcome in changed:
        lines += ["", str(outcome.regime), f"  {outcome.plan}", *map(_line, outcome.readings)]
    if not changed:
        lines = ["no row should change" if found else "no regime was searched"]
    near = [
        item
        for item in found
        if item.readings and not item.plan and all(one.ratio < 1 for one in item.readings)
    ]
    if near:
        lines += ["", "faster at first sight, but not by more than the margin in every case:"]
        for outcome in near:
            lines += [f"  {outcome.regime}: {outcome.best}", *map(_line, outcome.readings)]
    lines += ["", f"searched {len(found)} of {total} regimes; plans: {_counts(found)}"]
    for word, kind in (("wrong", "wrong"), ("failed", "failed")):
        for outcome in found:
            for plan, reason in getattr(outcome, kind).items():
                lines.append(f"{word}: {plan}, {reason}")
    return "\n".join(lines)


def _line(reading: Reading) -> str:
    return (
        f"    {reading.case}: {reading.table_ms:.4f} -> {reading.plan_ms:.4f} ms, "
        f"x{reading.ratio:.3f} [{reading.low:.3f}, {reading.high:.3f}], {reading.rounds} rounds"
    )


def _counts(outcomes: Iterable[Outcome]) -> str:
    found = list(outcomes)
    counts = {
        "tried": sum(item.tried for item in found),
        "refused by a shape": sum(item.refused for item in found),
        "the same as another": sum(item.same for item in found),
        "failed": sum(len(item.failed) for item in found),
        "wrong": sum(len(item.wrong) for item in found),
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items())
