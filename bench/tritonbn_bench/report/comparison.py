"""Two reports of one machine, the second against the first: what became slower comes first.

Absolute times of two runs are not compared: a machine has slow days. Each run timed tritonbn and a
copy in the same rounds, so the ratio of the two ratios tells what changed, with an interval of
both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..environment import device_name, other_plans, same_machine
from ..fusions import FUSIONS
from ..judge.decision import decide
from ..judge.intervals import Interval, mean_of
from ..judge.rule import RULE
from ..judge.verdicts import Verdict
from ..results import PEAK, RATIO, SAVED, SHARE, STEP_TIME, Results, Row
from ..summary import FAKE_TIMER, OURS, WRONG, is_fake, is_ours, red, times
from ..verdict import counted
from .blocks import Block, Draft, Section, Table, Words
from .canvas import MODES
from .step_pictures import ratio_panel

__all__ = ["Change", "changes", "comparison_sections", "comparison_title"]

# they make two machines of one
_REFUSED = ("device", "gpu")
# expected to differ: it is what is compared
_EXPECTED = ("commit",)
_WORDS = {
    Verdict.REGRESSION: "slower",
    Verdict.IMPROVED: "faster",
    Verdict.PASS: "no slower",
    Verdict.INCONCLUSIVE: "uncertain",
}


@dataclass(frozen=True)
class Change:
    """A case of tritonbn in both reports.

    Attributes:
        before, after: rows of time
        by: what both were divided by
        interval: of the log of time after over time before, so divided
    """

    before: Row
    after: Row
    by: str
    interval: Interval

    @property
    def verdict(self) -> Verdict:
        """By the gate's rule; seen once, not confirmed."""
        return decide(self.interval, RULE.margin)


def comparison_title(first: Results, second: Results) -> str:
    """Name of the page."""
    return f"tritonbn {device_name(second.environment)}: {_name(second)} against {_name(first)}"


def _name(results: Results) -> str:
    environment = results.environment
    commit = str(environment.get("commit") or "?")
    return f"{commit} of {environment.get('date') or '?'}"


def comparison_sections(first: Results, second: Results) -> list[Section]:
    """What became of the first report in the second.

    Raises:
        ValueError: they were measured on different machines, or by different means
    """
    warnings = _warnings(first, second)
    draft = Draft(Results(second.environment, [*first.rows, *second.rows]))
    found, alone = changes(first, second)
    newly = _newly_red(first, second)
    sections = [
        Section("verdict", "Verdict", tuple(_verdict(found, newly, warnings, draft.fake))),
        _cases(draft, found, "slower", Verdict.REGRESSION),
        Section("red", "Newly red", (newly,) if newly else ()),
        _totals(draft, found),
        _cases(draft, found, "faster", Verdict.IMPROVED),
        _cases(draft, found, "uncertain", Verdict.INCONCLUSIVE),
        _cases(draft, found, "no slower", Verdict.PASS),
        _others(first, second, draft.fake),
        _alone(alone),
        _machines(first, second),
    ]
    return [section for section in sections if section.blocks]


def _warnings(first: Results, second: Results) -> list[str]:
    """In what the two differ besides the commit.

    Raises:
        ValueError: they may not be compared
    """
    different = same_machine(first.environment, second.environment)
    different += other_plans(first.environment, second.environment)
    refused = [name for name in different if name in _REFUSED]
    for name in refused:
        raise ValueError(
            f"expected two reports of one machine, got {name} "
            f"{first.environment.get(name)} and {second.environment.get(name)}"
        )
    if is_fake(first) != is_fake(second):
        raise ValueError("expected two reports that were measured, got one of a fake timer")
    states = [sorted({row.cache for row in times(one.rows).values()}) for one in (first, second)]
    if all(states) and states[0] != states[1]:
        raise ValueError(
            f"expected the same state of the caches, got {', '.join(states[0])} and "
            f"{', '.join(states[1])}"
        )
    return [
        f"{name}: {first.environment.get(name)} in A, {second.environment.get(name)} in B"
        for name in different
        if name not in _EXPECTED
    ]


def changes(first: Results, second: Results) -> tuple[list[Change], list[tuple[str, str]]]:
    """Cases of tritonbn in both, and case and report of those in one alone."""
    before, after = _ours(first), _ours(second)
    ratios = [_references(one) for one in (first, second)]
    found, alone = [], []
    for key, row in after.items():
        shared = [by for by in ratios[1].get(key, {}) if by in ratios[0].get(key, {})]
        if key in before and shared:
            by = shared[0]
            interval = ratios[1][key][by].less(ratios[0][key][by])
            found.append(Change(before[key], row, by, interval))
        elif key in before:
            alone.append((key[1], "both, with no copy or rival beside it in both"))
    alone += [(key[1], "A") for key in before if key not in after]
    alone += [(key[1], "B") for key in after if key not in before]
    return found, alone


def _ours(results: Results) -> dict[tuple[str, str], Row]:
    """Times of tritonbn by job and case: of calls, and of whole steps in each way of ours."""
    found = {
        (job, case): row
        for (job, case, provider), row in times(results.rows).items()
        if provider == OURS
    }
    for row in results.rows:
        place = _place(row)
        if place is not None and row.quantity == STEP_TIME and row.value:
            found[place] = replace(row, case=place[1])
    return found


def _place(row: Row) -> tuple[str, str] | None:
    """Job and case under which a row of tritonbn is compared, a whole step with its way; None of
    another's row."""
    if row.job == "endtoend":
        return (row.job, f"{row.case}, {row.provider}") if is_ours(row.provider) else None
    return (row.job, row.case) if row.provider == OURS else None


def _references(results: Results) -> dict[tuple[str, str], dict[str, Interval]]:
    """For each case what tritonbn was timed against, the copy first: log of its time over that."""
    found: dict[tuple[str, str], dict[str, Interval]] = {}
    for row in sorted(results.rows, key=lambda row: row.quantity != SHARE):
        place = _place(row)
        if place is None or not (row.value and row.low and row.high):
            continue
        value, low, high = (math.log(end) for end in (row.value, row.low, row.high))
        if row.quantity == SHARE:
            interval, by = Interval(-value, -high, -low), "copy"
        elif row.quantity.startswith(RATIO):
            interval, by = Interval(value, low, high), row.quantity.removeprefix(RATIO)
        else:
            continue
        found.setdefault(place, {})[by] = interval
    return found


def _verdict(
    found: Sequence[Change], newly: Table | None, warnings: Sequence[str], fake: bool
) -> Iterable[Words]:
    if fake:
        yield Words(FAKE_TIMER, loud=True)
    if newly:
        yield Words(f"{WRONG} {counted(len(newly.lines), 'check')} red in B only.", loud=True)
    count = {verdict: [item.verdict for item in found].count(verdict) for verdict in _WORDS}
    if not found:
        yield Words(
            "No speed is compared: no case was timed in both reports beside a copy or a rival.",
            loud=True,
        )
    else:
        first = (
            f"SLOWER: {count[Verdict.REGRESSION]} of {len(found)} cases of tritonbn are slower in B"
            if count[Verdict.REGRESSION]
            else f"No case of {len(found)} is slower in B"
        )
        yield Words(
            f"{first}; {count[Verdict.IMPROVED]} are faster, {count[Verdict.PASS]} are no slower, "
            f"{count[Verdict.INCONCLUSIVE]} are uncertain (margin {RULE.margin:.0%}).",
            loud=True,
        )
        yield Words(
            "B / A: time in B over time in A, each divided by the copy of the same rounds (by the "
            "rival where there is no copy), with the 95 % interval of both. Seen once and not "
            "confirmed: `tritonbn-bench gate` measures two versions side by side."
        )
    for warning in warnings:
        yield Words(f"WARNING: the reports differ in more than the code. {warning}.", loud=True)


def _line(item: Change) -> tuple[object, ...]:
    row = item.after
    return (
        row.case,
        *item.interval.as_ratio(),
        _WORDS[item.verdict],
        item.by,
        1e3 * (item.before.value or 0.0),
        1e3 * (row.value or 0.0),
        row.origin,
    )


def _cases(draft: Draft, found: Sequence[Change], name: str, verdict: Verdict) -> Section:
    chosen = [item for item in found if item.verdict == verdict]
    title = f"{name[0].upper()}{name[1:]}: {len(chosen)}"
    if not chosen:
        return Section(name, title, ())
    # the surest first
    chosen.sort(key=lambda item: -max(item.interval.low, -item.interval.high))
    head = ("case", "B / A", "low", "high", "verdict", "divided by", "A, us", "B, us", "origin")
    rows = [row for item in chosen for row in (item.before, item.after)]
    open_ = verdict in (Verdict.REGRESSION, Verdict.IMPROVED)
    key = f"cases-{name.replace(' ', '-')}"
    table = draft.table(rows, key, title, head, map(_line, chosen), folded=not open_)
    return Section(name.replace(" ", "-"), title, (table,))


def _totals(draft: Draft, found: Sequence[Change]) -> Section:
    groups: dict[tuple[str, str, str, str], list[Change]] = {}
    for item in found:
        row = item.after
        # whole steps stand for themselves, each in a line
        if row.mode in MODES:
            fused = FUSIONS[row.fusion].words
            groups.setdefault((row.mode, row.dtype, row.layout, fused), []).append(item)
    if not groups:
        return Section("totals", "Totals", ())
    rows = [row for part in groups.values() for item in part for row in (item.before, item.after)]
    means = {key: mean_of([item.interval for item in part]) for key, part in groups.items()}
    lines = [
        (
            MODES.get(key[0], key[0]),
            *key[1:],
            *means[key].as_ratio(),
            _WORDS[decide(means[key], RULE.total_margin)],
            len(groups[key]),
        )
        for key in sorted(groups)
    ]
    head = ("mode", "dtype", "layout", "followed by", "B / A", "low", "high", "verdict", "cases")
    panels = []
    for mode in MODES:
        bars = [
            (", ".join((*key[1:3], *key[3:] * (key[3] != "nothing"))), *means[key].as_ratio())
            for key in sorted(groups)
            if key[0] == mode
        ]
        if bars:
            label = "time in B / time in A"
            panels.append(
                ratio_panel(f"change-{mode}", MODES[mode], label, bars, RULE.total_margin)
            )
    note = f"Lines: 95 %; grey: within the margin of a geometric mean, {RULE.total_margin:.1%}."
    return Section(
        "totals",
        "Totals",
        (
            draft.picture(rows, "changes", "Geometric means of B / A", panels, note),
            draft.table(rows, "totals", "Geometric means of B / A", head, lines, note),
        ),
    )


def _newly_red(first: Results, second: Results) -> Table | None:
    known = {(row.key, row.quantity) for row in red(first.rows)}
    lines = tuple(
        (row.job, f"{row.case} {row.data}".strip(), row.provider, row.reason)
        for row in red(second.rows)
        if (row.key, row.quantity) not in known
    )
    head = ("job", "case", "provider", "reason")
    return Table("newly-red", "Red in B and not in A", "", head, lines) if lines else None


def _others(first: Results, second: Results, fake: bool) -> Section:
    """Bytes, launches and resources that changed, kind by kind."""
    before = {_figure(row): row for row in first.rows if _counts(row)}
    blocks: list[Block] = []
    pairs = [
        (before[_figure(row)], row)
        for row in second.rows
        if _counts(row) and _figure(row) in before and before[_figure(row)].value != row.value
    ]
    draft = Draft(second)
    draft.fake = fake
    for kind in ("measured", "modelled", "static"):
        part = [pair for pair in pairs if pair[1].kind == kind]
        if part:
            lines = [
                (new.job, f"{new.case} {new.data}", new.quantity, new.unit, old.value, new.value,
                 new.value / old.value if old.value and new.value else None)
                for old, new in part
            ]  # fmt: skip
            head = ("job", "case", "quantity", "unit", "A", "B", "B / A")
            rows = [row for pair in part for row in pair]
            blocks.append(draft.table(rows, f"changed-{kind}", "Figures that changed", head, lines))
    return Section("figures", "Bytes, launches and resources", tuple(blocks))


def _counts(row: Row) -> bool:
    """Whether a figure of ours is a count, which two runs should share."""
    counted = row.kind != "measured" or row.quantity in (SAVED, PEAK) or "launches" in row.quantity
    return counted and row.provider == OURS and row.value is not None


def _figure(row: Row) -> tuple[str, ...]:
    return (*row.key, row.quantity)


def _alone(alone: Sequence[tuple[str, str]]) -> Section:
    lines = tuple(alone)
    table = Table("alone", "Not compared", "", ("case", "timed in"), lines, folded=True)
    return Section("alone", "Not compared", (table,) if lines else ())


def _machines(first: Results, second: Results) -> Section:
    both = (first.environment, second.environment)
    names = [
        name
        for name in {**first.environment, **second.environment}
        if any(one.get(name) not in (None, "") for one in both)
    ]
    lines = tuple(
        (name, str(first.environment.get(name, "-")), str(second.environment.get(name, "-")))
        for name in names
    )
    table = Table("environments", "Machine and versions", "", ("what", "A", "B"), lines)
    return Section("method", "How they were measured", (table,))
