"""Sections about speed: what it comes to, how it lies in the plane, and each case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..cases import DTYPES
from ..fusions import FUSIONS, NONE
from ..results import DROPPED, GRAPH_TIME, PEAK, RATIO, SAVED, SHARE, Row
from ..summary import (
    EAGER,
    OURS,
    UNFUSED,
    Speedup,
    family,
    of_sweep,
    speedups,
    tally,
    times,
)
from .blocks import Block, Draft, Section, Words
from .canvas import mode_words
from .frames import frame_of, group_lines
from .heatmaps import share_panels, speedup_panels
from .network_sections import networks_section
from .speed_pictures import (
    bytes_panels,
    fused_panels,
    mean_panels,
    throughput_panels,
)

__all__ = ["speed_sections"]

COPY = "copy"
JOBS = ("sweep", "resnet50", "networks", "model")


def speed_sections(draft: Draft) -> Iterator[Section]:
    """Sections of what was timed; none where nothing was."""
    if not times(draft.rows):
        return
    ratios = speedups(draft.rows)
    if ratios:
        yield _overview(draft, ratios)
    for section in (
        _plane(draft, ratios),
        _lines(draft),
        networks_section(draft, ratios),
        _fused(draft, ratios),
        _call_memory(draft),
    ):
        if section.blocks:
            yield section


def _overview(draft: Draft, ratios: Sequence[Speedup]) -> Section:
    ratios = of_sweep(ratios)
    rows = draft.used(ratios)
    head = (
        *("mode", "followed by", "dtype", "layout", "rival", "ran"),
        *("geomean", "95 % low", "high", "least", "most", "wins", "ties", "losses", "cases"),
    )
    plain = [item for item in ratios if item.case.fusion == NONE]
    outcomes = [(name, *tally(part), len(part)) for name, part in _by_rival(ratios).items()]
    blocks: list[Block] = [
        Words(
            "Ratio = time of the rival / time of tritonbn, above 1 tritonbn is faster. Both were "
            "timed in the same rounds; the interval is a bootstrap over rounds: how well these "
            "cases were measured, not how other shapes would do. A tie is a case whose interval "
            "does not lie beyond the margin of 3 % on either side: equal, or uncertain. Where the "
            "sweep was measured, this section is of the sweep alone."
        ),
        draft.table(
            rows,
            "outcomes",
            "Wins, ties and losses",
            ("rival", "faster", "tie", "slower", "cases"),
            outcomes,
        ),
    ]
    eager = [item for item in plain if item.rival in EAGER]
    if eager:
        blocks.append(
            draft.picture(
                rows,
                "means",
                "Geometric mean by mode, layout and dtype, BatchNorm alone",
                mean_panels(eager),
                "Mark: geometric mean; thick line: its 95 % interval; thin line: least to most.",
            )
        )
    lines = [
        (mode_words(key[0]), FUSIONS[str(key[1])].words, *key[2:]) for key in group_lines(ratios)
    ]
    blocks.append(draft.table(rows, "groups", "Ratio by mode, dtype and layout", head, lines))
    return Section("speed", "Speed", tuple(blocks))


def _by_rival(ratios: Sequence[Speedup]) -> dict[str, list[Speedup]]:
    found: dict[str, list[Speedup]] = {}
    for item in ratios:
        found.setdefault(f"{item.rival} ({item.backend})", []).append(item)
    return found


def _plane(draft: Draft, ratios: Sequence[Speedup]) -> Section:
    blocks: list[Block] = []
    swept = [item for item in ratios if item.case.job == "sweep" and item.rival in EAGER]
    panels = speedup_panels(swept)
    if panels:
        blocks.append(
            draft.picture(
                draft.used(swept),
                "plane-speedup",
                "Speedup over the batch x channels plane",
                panels,
                "Time of torch's layer / time of tritonbn; purple: tritonbn is faster, orange: "
                "slower, white: equal (logarithmic, full colour at 2 x). Hatched: the interval "
                "crosses the margin of 3 %, or there is none.",
            )
        )
    shares = [
        row
        for row in draft.of("sweep", quantity=SHARE)
        if row.provider == OURS and row.fusion == NONE
    ]
    panels = share_panels(shares, l2_bytes(draft)) if shares else []
    if panels:
        blocks.append(
            draft.picture(
                shares,
                "plane-share",
                "Percent of the copy's bandwidth over the plane",
                panels,
                "Bytes that must move / time, in % of the speed of a copy of as many bytes in the "
                "same rounds. L2: the bytes fit the L2 cache, where more than 100 % is possible.",
            )
        )
    return Section("plane", "Over batch size and channels", tuple(blocks))


def l2_bytes(draft: Draft) -> int:
    """Size of the L2 cache; 0 where nobody knows."""
    return int(draft.results.environment.get("l2_bytes") or 0)


def _lines(draft: Draft) -> Section:
    rows = draft.of("sweep")
    blocks: list[Block] = []
    for axis, words in (("batch", "batch size"), ("channels", "channels")):
        panels = throughput_panels(rows, axis)
        if panels:
            blocks.append(
                draft.picture(
                    [row for row in rows if row.quantity == "throughput"],
                    f"throughput-{axis}",
                    f"Throughput over {words}",
                    panels,
                    "GB/s = bytes that any algorithm must move / time, for every provider alike, "
                    "so a kernel that reads twice shows fewer. Band: 20th to 80th percentile.",
                )
            )
    panels = bytes_panels(draft.of(*JOBS))
    if panels:
        blocks.append(
            draft.picture(
                times(draft.of(*JOBS)).values(),
                "bytes",
                "Bytes against time",
                panels,
                "Each mark is a case. The line is a copy of as many bytes: the ceiling for large "
                "cases, and what a launch costs for small ones.",
            )
        )
    return Section("lines", "Throughput", tuple(blocks))


def _fused(draft: Draft, ratios: Sequence[Speedup]) -> Section:
    part = [item for item in ratios if item.rival == UNFUSED and item.case.job == "sweep"]
    panels = fused_panels(part)
    blocks: list[Block] = []
    if panels:
        blocks.append(
            draft.picture(
                draft.used(part),
                "fused",
                "One kernel against BatchNorm with operators behind it",
                panels,
                "Time of our BatchNorm followed by torch's operators / time of one kernel of ours.",
            )
        )
    return Section("fused", "Fused against unfused", tuple(blocks))


def _call_memory(draft: Draft) -> Section:
    blocks: list[Block] = []
    for quantity, name, title in (
        (SAVED, "saved", "Kept for the backward pass, in units of x"),
        (PEAK, "peak", "Most memory of a call besides its operands, in units of x"),
    ):
        rows = [
            row for row in draft.of(*JOBS, quantity=quantity) if row.batch and row.provider != COPY
        ]
        if rows:
            providers = list(dict.fromkeys(row.provider for row in rows))
            lines = _in_units_of_x(rows, providers)
            head = ("mode", "followed by", *providers)
            note = "Median over cases of bytes / bytes of x."
            blocks.append(draft.table(rows, name, title, head, lines, note))
    return Section("call-memory", "Memory of a call", tuple(blocks))


def _in_units_of_x(rows: Sequence[Row], providers: Sequence[str]) -> list[tuple[object, ...]]:
    """One line per mode and fusion, one column per provider."""
    frame = frame_of(rows)
    size = frame["batch"] * frame["channels"] * frame["space"] * frame["dtype"].map(DTYPES)
    frame["share"] = frame["value"] / size
    wide = frame.pivot_table(
        index=["mode", "fusion"], columns="provider", values="share", aggfunc="median", sort=False
    )
    return [
        (
            mode_words(mode),
            FUSIONS[fusion].words,
            *[
                float(line[name]) if name in line and line[name] == line[name] else None
                for name in providers
            ],
        )
        for (mode, fusion), line in wide.iterrows()
    ]


def case_section(draft: Draft) -> Section | None:
    """Every timed case: times, ratio to torch, share of the copy, remarks."""
    rows = draft.of(*JOBS)
    found = times(rows)
    if not found:
        return None
    asides = {(row.job, row.case, row.provider, row.quantity): row for row in rows}
    ratios = {(item.case.job, item.case.case, item.rival): item for item in speedups(rows)}
    providers = [
        name
        for name in (OURS, UNFUSED, "torch", "torch.compile", "copy")
        if any(family(row.provider) == name for row in found.values())
    ]
    cases: dict[tuple[str, str], dict[str, Row]] = {}
    for row in found.values():
        cases.setdefault((row.job, row.case), {})[family(row.provider)] = row
    lines = []
    for (job, case), by_name in cases.items():
        rival = by_name.get("torch")
        item = ratios.get((job, case, rival.provider)) if rival else None
        share = asides.get((job, case, OURS, SHARE))
        graph = asides.get((job, case, OURS, GRAPH_TIME))
        wall = asides.get((job, case, OURS, "wall time"))
        first = next(iter(by_name.values()))
        fits = (first.floor_bytes or 0) < l2_bytes(draft)
        remarks = ["host-bound"] if wall is not None and wall.host_bound else []
        remarks += ["fits L2"] if fits else []
        ends = item.interval.as_ratio()[1:] if item and item.interval else (None, None)
        lines.append(
            (
                job,
                case,
                *[_micro(by_name.get(name)) for name in providers],
                _micro(graph),
                rival.backend if rival else None,
                item.ratio if item else None,
                *ends,
                item.outcome if item else None,
                100 * share.value if share and share.value else None,
                ", ".join(remarks) or None,
            )
        )
    head = (
        *("job", "case", *[f"{name}, us" for name in providers], "graph replay, us"),
        *("torch ran", "torch / tritonbn", "low", "high", "outcome", "% of copy", "remarks"),
    )
    note = (
        "Device time, caches as said above; graph replay: tritonbn replayed by a CUDA graph; % of "
        "copy: bytes that must move / time, in % of the copy's speed in the same rounds."
    )
    table = draft.table(found.values(), "cases", "Every case", head, lines, note)
    return Section("cases", "Every case", (table,))


def _micro(row: Row | None) -> float | None:
    return None if row is None or row.value is None else 1e3 * row.value


def rounds_in_words(draft: Draft) -> str:
    """Rounds taken and dropped over all cases; empty where there were none."""
    dropped = draft.of(*JOBS, quantity=DROPPED)
    taken = sum(row.samples or 0 for row in dropped)
    ratios = [row for row in draft.of(*JOBS) if row.quantity.startswith(RATIO) and row.samples]
    if not taken or not ratios:
        return ""
    counts = [row.samples or 0 for row in ratios]
    lost = sum(row.value or 0.0 for row in dropped)
    return (
        f"{min(counts)} to {max(counts)} usable rounds a case, {lost / taken:.1%} of {taken} "
        "rounds dropped for a slow clock. "
    )
