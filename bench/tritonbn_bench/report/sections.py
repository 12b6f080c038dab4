"""The page in its order: verdict, machine and method, speed, then what needs no GPU, then data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..environment import device_name
from ..results import COLUMNS, HOST_BOUND, Results
from ..summary import FAKE_TIMER, NO_SPEED, WRONG, failed, times
from ..verdict import verdict
from .blocks import Draft, Picture, Section, Table, Words
from .evidence import evidence_sections
from .kernels import plans_section, resources_section
from .speed_sections import case_section, rounds_in_words, speed_sections

__all__ = ["sections_of", "title_of"]

_ENVIRONMENT = {
    "timer": "timer",
    "date": "date",
    "command": "command",
    "device": "kernels ran on",
    "gpu": "GPU",
    "compute_capability": "compute capability",
    "sm_count": "SMs",
    "l2_bytes": "L2, bytes",
    "memory_bytes": "memory, bytes",
    "driver": "driver",
    "power_limit_w": "power limit, W",
    "max_sm_clock_mhz": "highest SM clock, MHz",
    "ecc": "ECC",
    "torch": "torch",
    "cudnn": "cuDNN",
    "triton": "triton",
    "triton_fp_fusion": "TRITON_DEFAULT_FP_FUSION",
    "plan": "TRITONBN_PLAN",
    "plan_file": "plan file",
    "reserve_sms": "TRITONBN_RESERVE_SMS",
    "plain_launch": "TRITONBN_PLAIN_LAUNCH",
    "quick": "fewer cases (--quick)",
    "python": "Python",
    "system": "system",
    "cpu": "CPU",
    "cores": "cores",
    "tritonbn": "tritonbn",
    "commit": "commit",
    "dirty": "uncommitted changes",
}
_CACHES = {
    "cold": "cold caches: a buffer of max(256 MB, 4 x L2) is read before every call",
    "hot": "hot caches: as the call before left them",
    "produced": "produced caches: emptied, then the main operand is written anew",
    "fake": "no caches at all: a fake timer made the times up",
}


def title_of(results: Results) -> str:
    """Name of the report."""
    date = str(results.environment.get("date") or "").split(" ")[0]
    return f"tritonbn {device_name(results.environment)}, {date}".rstrip(", ")


def sections_of(results: Results) -> list[Section]:
    """Every section that the rows allow, in the order of the page."""
    draft = Draft(results)
    found = []
    for section in _all(draft):
        # what an interrupted run left may be too little for a picture
        blocks = tuple(
            block
            for block in (section.blocks if section else ())
            if not isinstance(block, Picture) or block.panels
        )
        if section and blocks:
            found.append(replace(section, blocks=blocks))
    return found


def _all(draft: Draft) -> Iterator[Section | None]:
    yield _verdict(draft)
    yield _machine(draft)
    yield from speed_sections(draft)
    yield from evidence_sections(draft)
    yield plans_section(draft)
    yield resources_section(draft)
    yield _failures(draft)
    yield case_section(draft)
    yield _columns()


def _verdict(draft: Draft) -> Section:
    sentences = verdict(draft.results)
    loud = [text in (FAKE_TIMER, NO_SPEED) or text.startswith(WRONG) for text in sentences]
    # what is said first is said loudest
    loud[0] = True
    words = [Words(*pair) for pair in zip(sentences, loud, strict=True)]
    return Section("verdict", "Verdict", tuple(words))


def _machine(draft: Draft) -> Section:
    environment = draft.results.environment
    known = tuple(
        (words, str(environment[name]))
        for name, words in _ENVIRONMENT.items()
        if environment.get(name) not in (None, "")
    )
    table = Table("environment", "Machine and versions", "", ("what", "value"), known)
    return Section("method", "How it was measured", (Words(_method(draft)), table))


def _method(draft: Draft) -> str:
    text = (
        "Correctness comes before speed: a result that breaks the bound gets no figure. The bound: "
        "twice (torch's own error + one rounding of the largest value), for sums twice "
        "eps * sqrt(m) * rms(summand) more. Outputs are filled with NaN before a kernel writes "
        "them. "
    )
    found = times(draft.rows).values()
    if not found:
        return text
    caches = dict.fromkeys(row.cache for row in found)
    states = "; ".join(_CACHES.get(cache, cache) for cache in caches)
    timer = "Time by the host's clock"
    if draft.fake:
        timer = "Time by a fake timer"
    elif draft.results.environment.get("device") == "cuda":
        timer = "Device time by CUDA events, the device waiting until a call is issued"
    return (
        f"{text}{timer}; {states}. In each round every provider is timed twice, forwards and "
        "backwards through them. "
        f"{rounds_in_words(draft)}Times are medians over rounds with 20th and 80th percentile; "
        "ratios are means over rounds with 95 % intervals from a bootstrap. Data are random with a "
        f"mean away from zero. Host-bound: calls in a row take more than {HOST_BOUND:g} x the "
        "device time each. Clocks were not locked; rounds at a low clock are dropped where the "
        "driver tells it."
    )


def _failures(draft: Draft) -> Section:
    rows = failed(draft.rows)
    if not rows:
        return Section("failures", "Failures and skips", (Words("None."),))
    lines = tuple(
        (
            row.job,
            f"{row.case} {row.data}".strip(),
            row.provider,
            row.quantity,
            row.status,
            row.reason,
        )
        for row in rows
    )
    head = ("job", "case", "provider", "quantity", "status", "reason")
    title = f"{len(rows)} figures are missing or red"
    return Section("failures", "Failures and skips", (Table("failures", title, "", head, lines),))


def _columns() -> Section:
    table = Table(
        "columns",
        "Columns of the data",
        "",
        ("column", "meaning"),
        tuple(COLUMNS.items()),
        folded=True,
    )
    note = (
        "results.json is the truth (schema, environment, rows), results.csv the same rows with the "
        "versions repeated; `tritonbn-bench report DIR` draws this page from them without "
        "measuring anything. The copy inside the page is rounded to six digits."
    )
    return Section("data", "Data", (Words(note), table))
