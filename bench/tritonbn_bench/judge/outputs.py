"""What a gate's result is written as: Markdown for people, JUnit for CI, a trend for pages."""

from __future__ import annotations

import html
import json
import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence

from ..environment import Environment
from ..tables import folded, markdown_table
from .gate import CaseResult, GateResult, Total, group_of
from .intervals import Interval
from .rounds import BASE, HEAD, REFERENCE
from .verdicts import Verdict

__all__ = ["junit", "markdown", "sentence", "trend"]

# what a comment of a pull request may hold
MOST_BYTES = 64 * 1024
# for the lines between the parts, and what says that cases are left out
SPARE = 1024
# letters of a reason that a table shows; the JUnit file has all of them
LONGEST = 300
# these are shown open, the others folded
OPEN = (Verdict.ACCURACY, Verdict.REGRESSION, Verdict.INCONCLUSIVE)
NOT_MEASURED = (Verdict.NO_BASELINE, Verdict.SKIPPED)


def sentence(result: GateResult) -> str:
    """The verdict in one sentence, and what was counted."""
    count = Counter(item.verdict for item in result.everything)
    if count[Verdict.ACCURACY]:
        first = "**Wrong results**: a correctness check is red, so no speed was looked at there."
    elif count[Verdict.REGRESSION]:
        first = f"**Slower**: confirmed for {_worst(result)}."
    elif not any(item.interval for item in result.cases):
        first = "**Nothing was compared.**"
    elif any(item.warned for item in result.everything):
        first = "**Nothing was gated, but there are warnings.**"
    elif count[Verdict.INCONCLUSIVE]:
        first = "**No regression was confirmed, but not everything allows a verdict.**"
    else:
        first = "**No regression.**"
    cases = Counter(item.verdict for item in result.cases)
    counted = ", ".join(
        f"{cases[verdict]} {verdict.value}" for verdict in Verdict if cases[verdict]
    )
    return f"{first} {_counted(len(result.cases), 'case')}: {counted or 'none'}."


def markdown(result: GateResult, environment: Environment, remarks: str = "") -> str:
    """A summary for a CI job: verdict first, then what regressed, then the rest folded.

    At most 64 KiB; what does not fit is left out and counted.

    Args:
        result: of the gate
        environment: in which it was measured
        remarks: Markdown that is to stand above how it was measured
    """
    ordered = sorted(result.cases, key=_gravest_first)
    shown = [item for item in ordered if item.verdict in OPEN or item.warned]
    missing = [item for item in ordered if item.verdict in NOT_MEASURED]
    told = {item.case for item in (*shown, *missing)}
    rest = [item for item in ordered if item.case not in told]
    totals, how = _totals(result.totals), _how(result, environment)
    first = sentence(result)
    budget = MOST_BYTES - len((first + totals + remarks + how).encode()) - SPARE
    tables = []
    side = BASE if any(BASE in item.times for item in ordered) else REFERENCE
    for items, title in ((shown, ""), (missing, "Not judged"), (rest, "Every other case")):
        text, budget = _fitting(items, title, side, budget)
        tables.append(text)
    parts = (first, tables[0], totals, *tables[1:], remarks, how)
    return "\n\n".join(part for part in parts if part) + "\n"


def junit(result: GateResult, *, strict: bool = False) -> str:
    """JUnit XML: a test per case and total; no verdict is a skip, under `strict` a failure."""
    suite = ET.Element("testsuite", name="tritonbn-bench gate")
    failing = {Verdict.ACCURACY, Verdict.REGRESSION}
    failing |= {Verdict.INCONCLUSIVE} if strict else set()
    skipping = {Verdict.INCONCLUSIVE, *NOT_MEASURED} - failing
    everything = result.everything
    for item in everything:
        name = _name(item)
        group = group_of(name)[0] if isinstance(item, CaseResult) else "total"
        where = {"classname": f"tritonbn.gate.{_plain(group)}", "name": _plain(name)}
        test = ET.SubElement(suite, "testcase", where)
        text = _plain(": ".join(filter(None, (item.verdict.value, _figure(item), item.reason))))
        if item.verdict in failing:
            ET.SubElement(test, "failure", type=item.verdict.name, message=text).text = text
        elif item.verdict in skipping:
            ET.SubElement(test, "skipped", message=text)
        else:
            ET.SubElement(test, "system-out").text = text
    suite.set("tests", str(len(everything)))
    suite.set("failures", str(sum(item.verdict in failing for item in everything)))
    suite.set("skipped", str(sum(item.verdict in skipping for item in everything)))
    suite.set("errors", "0")
    suites = ET.Element("testsuites")
    suites.append(suite)
    ET.indent(suites)
    page: bytes = ET.tostring(suites, encoding="utf-8", xml_declaration=True)
    return page.decode() + "\n"


def trend(result: GateResult, environment: Environment) -> str:
    """JSON for github-action-benchmark (customSmallerIsBetter): ratios, never milliseconds."""
    entries = []
    for item in result.cases:
        side = REFERENCE if REFERENCE in item.ratios else BASE
        interval = item.ratios.get(side)
        if interval is None:
            continue
        ratio, low, high = interval.as_ratio()
        extra = {
            "verdict": item.verdict.value,
            "rounds": item.rounds,
            "ms": {name: round(value, 6) for name, value in item.times.items()},
            "gpu": _device(environment),
            **{name: environment.get(name) for name in ("torch", "triton", "commit")},
        }
        entries.append(
            {
                "name": f"{item.case} (head / {side})",
                "unit": "ratio",
                "value": round(ratio, 6),
                "range": f"{low:.4f} ... {high:.4f}",
                "extra": json.dumps(extra),
            }
        )
    return json.dumps(entries, indent=1) + "\n"


def _worst(result: GateResult) -> str:
    """How many regressed, and the one that did so most."""
    slower = [item for item in result.everything if item.verdict is Verdict.REGRESSION]
    worst = max(slower, key=lambda item: item.interval.estimate if item.interval else 0.0)
    cases = sum(isinstance(item, CaseResult) for item in slower)
    found = ((cases, "case"), (len(slower) - cases, "total"))
    counted = [_counted(number, name) for number, name in found if number]
    change = worst.interval.percent() if worst.interval else ""
    return f"{' and '.join(counted)}, the worst {change} (`{_name(worst)}`)"


def _counted(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _name(item: CaseResult | Total) -> str:
    return item.case if isinstance(item, CaseResult) else f"{item.mode}/{item.dtype}"


def _remark(item: CaseResult | Total) -> str:
    """The reason, short and with nothing that a page would take for a tag."""
    reason = " ".join(_plain(item.reason).split())
    short = reason if len(reason) <= LONGEST else f"{reason[:LONGEST]} ..."
    return html.escape(short, quote=False)


def _gravest_first(item: CaseResult) -> tuple[int, float]:
    worst = -item.interval.estimate if item.interval else 0.0
    return list(Verdict).index(item.verdict), worst


def _plain(text: str) -> str:
    """Without control characters, which XML has no way to write and pages no use for."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _figure(item: CaseResult | Total) -> str:
    return f"{_ratio(item.interval)}, margin {item.tau:.1%}" if item.interval else ""


def _ratio(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    ratio, low, high = interval.as_ratio()
    return f"{ratio:.3f} ({low:.3f} ... {high:.3f})"


def _totals(totals: Sequence[Total]) -> str:
    if not totals:
        return ""
    lines = [
        (
            item.mode,
            item.dtype,
            len(item.cases),
            _ratio(item.interval),
            f"{item.tau:.1%}",
            item.verdict.value,
            _remark(item),
        )
        for item in totals
    ]
    head = ("mode", "dtype", "cases", "geometric mean of ratios", "margin", "verdict", "remarks")
    return markdown_table(head, lines)


def _line(item: CaseResult, side: str) -> tuple[object, ...]:
    return (
        f"`{item.case}`",
        item.times.get(side),
        item.times.get(HEAD),
        _ratio(item.interval),
        f"{item.tau:.1%}",
        item.verdict.value,
        _remark(item),
    )


def _fitting(items: Sequence[CaseResult], title: str, side: str, budget: int) -> tuple[str, int]:
    """A table of as many items as fit, and the bytes that are left."""
    head = ("case", f"{side}, ms", "head, ms", "ratio", "margin", "verdict", "remarks")
    if not items:
        return "", budget
    lines = [_line(item, side) for item in items]
    while True:
        text = markdown_table(head, lines) if lines else ""
        left_out = len(items) - len(lines)
        if left_out:
            text = f"{text}\n\n{left_out} more cases are left out here for want of space.".strip()
        if title:
            text = folded(f"{title}: {len(items)}", text)
        size = len(text.encode())
        if size <= budget or not lines:
            return text, budget - size
        lines = lines[: int(len(lines) * min(0.95, max(budget, 0) / size))]


def _how(result: GateResult, environment: Environment) -> str:
    rounds = [item.rounds for item in result.cases if item.rounds]
    dropped = [item.dropped for item in result.cases if item.rounds]
    versions = ", ".join(
        f"{name} {environment[name]}"
        for name in ("driver", "torch", "cudnn", "triton", "commit")
        if environment.get(name)
    )
    measured = (
        f"{min(rounds)} to {max(rounds)} usable rounds a case, "
        f"{math.fsum(dropped) / len(dropped):.1%} of rounds dropped. "
        if rounds
        else ""
    )
    return (
        f"How measured: on {_device(environment) or environment.get('cpu') or 'a CPU'} "
        f"({versions}); each round times every side twice "
        f"in mirrored order. {measured}Ratios are times of the head over those it is judged by, "
        "with 95 % intervals from a bootstrap over rounds; a regression was seen in two passes."
    )


def _device(environment: Environment) -> object:
    """The GPU that was measured, None where a CPU was, whatever else is in the machine."""
    return None if environment.get("device") == "cpu" else environment.get("gpu")
