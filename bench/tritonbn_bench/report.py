"""The index page of a report, in Markdown with its pictures, from the tidy table alone.

Every section says whether its figures are measured, or modelled by formula; what ran in the
interpreter is never called a speed.
"""

from __future__ import annotations

from pathlib import Path

from .environment import device_name
from .fusions import NONE
from .plots import draw
from .results import COLUMNS, Results
from .summary import (
    OURS,
    UNFUSED,
    chain_times,
    failed,
    geomean,
    network_times,
    speedups,
    times,
    verdict,
)
from .tables import (
    case_table,
    error_tables,
    folded,
    markdown_table,
    side_by_side,
    traffic_table,
)

__all__ = ["write_report"]

_ENVIRONMENT = {
    "date": "date",
    "command": "command",
    "device": "kernels ran on",
    "gpu": "GPU",
    "compute_capability": "compute capability",
    "sm_count": "SMs",
    "l2_bytes": "L2, bytes",
    "driver": "driver",
    "power_limit_w": "power limit, W",
    "max_sm_clock_mhz": "highest SM clock, MHz",
    "torch": "torch",
    "cudnn": "cuDNN",
    "triton": "triton",
    "triton_fp_fusion": "TRITON_DEFAULT_FP_FUSION",
    "python": "Python",
    "system": "system",
    "cpu": "CPU",
    "cores": "cores",
    "commit": "commit",
    "dirty": "uncommitted changes",
}


def write_report(results: Results, folder: Path) -> Path:
    """Draw the pictures, write `results.csv` and `index.md`, and return the path of the page.

    Raises:
        ImportError: pandas or matplotlib is missing
    """
    pictures = draw(results, folder / "pictures")
    results.write_csv(folder)
    links = {name: path.relative_to(folder).as_posix() for name, path in pictures.items()}
    sections = [
        _top(results),
        _machine(results),
        _speed(results, links),
        _resnet50(results, links),
        _vectors(results),
        _accuracy(results, links),
        _training(results, links),
        _endtoend(results),
        _host(results),
        _traffic(results, links),
        _fusion(results, links),
        _memory(results, links),
        _failures(results),
        _files(),
    ]
    page = folder / "index.md"
    page.write_text("\n\n".join(text for text in sections if text) + "\n")
    return page


def _picture(links: dict[str, str], name: str, words: str) -> str:
    return f"![{words}]({links[name]})" if name in links else ""


def _section(title: str, *parts: str) -> str:
    return "\n\n".join([f"## {title}", *[part for part in parts if part]])


def _top(results: Results) -> str:
    date = str(results.environment.get("date") or "").split(" ")[0]
    lines = [f"# tritonbn {device_name(results.environment)}, {date}"]
    lines += [
        f"- **{sentence}**" if i == 0 else f"- {sentence}"
        for i, sentence in enumerate(verdict(results))
    ]
    return f"{lines[0]}\n\n" + "\n".join(lines[1:])


def _machine(results: Results) -> str:
    known = [
        (words, results.environment[name])
        for name, words in _ENVIRONMENT.items()
        if results.environment.get(name) not in (None, "")
    ]
    how = (
        "Correctness comes before speed: a result that breaks the bound gets no figure. "
        "The bound: twice (torch's own error + one rounding of the largest value), for sums "
        "twice `eps * sqrt(m) * rms(summand)` more. Outputs are filled with NaN before a kernel "
        "writes them."
    )
    if times(results.rows):
        how += (
            " Providers of a case take turns in rounds; a ratio is that of times of the same "
            "rounds, with a 95 % interval. Device time by CUDA events; with cold caches a buffer "
            "of max(256 MB, 4 x L2) is read before every call, and the device waits until the "
            "call is issued; random data with a mean away from zero; median, 20th and 80th "
            "percentile of the rounds. "
            "GB/s = bytes that any algorithm must move / time, for every provider alike, so a "
            "kernel that reads twice shows fewer. Host-bound: calls in a row take more than "
            "1.3 x the device time each. Clocks were not locked; rounds at a low clock are "
            "dropped where the driver tells it."
        )
    return _section("Machine and method", markdown_table(("", "value"), known), how)


def _speed(results: Results, links: dict[str, str]) -> str:
    groups: dict[tuple[str, ...], list[float]] = {}
    backends: dict[tuple[str, ...], set[str]] = {}
    for item in speedups(results.rows):
        groups.setdefault(item.group, []).append(item.ratio)
        backends.setdefault(item.group, set()).add(item.backend)
    pictures = [
        _picture(links, name, f"Measured {name.replace('-', ' ')}")
        for name in sorted(links)
        if name.startswith("throughput")
    ]
    if not groups:
        return ""
    table = markdown_table(
        (
            *("job", "mode", "followed by", "dtype", "layout", "rival", "ran"),
            *("geomean", "least", "most", "cases"),
        ),
        [
            (
                *group,
                " / ".join(sorted(backends[group])),
                geomean(ratios),
                min(ratios),
                max(ratios),
                len(ratios),
            )
            for group, ratios in sorted(groups.items())
        ],
    )
    note = (
        "Ratio = time of the rival / time of tritonbn; above 1 tritonbn is faster. With what "
        f"follows it in one kernel of ours; `{UNFUSED}` is our BatchNorm with torch's operators "
        "behind it, torch adds and rectifies in place."
    )
    return _section("Speed (measured)", note, *pictures, folded("Every group of cases", table))


def _resnet50(results: Results, links: dict[str, str]) -> str:
    rows = [row for row in results.rows if row.job == "resnet50"]
    if not times(rows):
        return ""
    note = "Device time of all 53 BatchNorm layers: time of each shape x number of layers."
    chains = chain_times(rows)
    fused = (
        "The same layers with what follows them in the network: ReLU behind 33, addition and ReLU "
        "behind 16, nothing behind 4."
    )
    return _section(
        "ResNet-50 (measured)",
        note,
        _totals(network_times(rows)),
        _picture(links, "resnet50-speedup", "Measured speedup by shape"),
        *([fused, _totals(chains)] if chains else []),
        _picture(links, "resnet50-fused-speedup", "Measured speedup with what follows"),
        case_table(rows, _l2_bytes(results)),
    )


def _totals(totals: dict[tuple[str, str, str, str], float]) -> str:
    """ms by mode, dtype and layout, one column per provider."""
    providers = list(dict.fromkeys(key[3] for key in totals))
    groups = list(dict.fromkeys(key[:3] for key in totals))
    return markdown_table(
        ("mode", "dtype", "layout", *[f"{provider}, ms" for provider in providers]),
        [(*group, *[totals.get((*group, provider)) for provider in providers]) for group in groups],
    )


def _vectors(results: Results) -> str:
    rows = [
        row
        for row in results.rows
        if row.job == "sweep" and (row.layout == "nc" or row.data == "digits" or row.fusion != NONE)
    ]
    if not times(rows):
        return ""
    return _section(
        "Without a plane, real activations, and fused calls (measured)",
        case_table(rows, _l2_bytes(results)),
    )


def _l2_bytes(results: Results) -> int:
    return int(results.environment.get("l2_bytes") or 0)


def _accuracy(results: Results, links: dict[str, str]) -> str:
    rows = [row for row in results.rows if row.job == "accuracy" and row.value is not None]
    ours = next((row for row in rows if row.provider == OURS), None)
    rival = next((row for row in rows if row.provider == "torch"), None)
    if ours is None or rival is None:
        return ""
    note = (
        "For each result and dtype the input that comes nearest to its bound; `at least as near` "
        "is the share of all inputs on which tritonbn is at least as near to float64 as torch. "
        "running_mean in units of the channel's std. "
        f"tritonbn by {ours.backend}, torch by {rival.backend}."
    )
    worst, fused, every = error_tables(rows)
    picture = _picture(links, "accuracy", "Measured error against float64")
    behind = (
        "With what follows BatchNorm in the same kernel; torch by an operator each. Where rounding "
        "decides which derivative ReLU takes, the gradient that comes in is 0."
    )
    return _section(
        "Accuracy (measured)",
        note,
        worst,
        picture,
        *([behind, fused] if fused else []),
        folded("All results", every),
    )


def _training(results: Results, links: dict[str, str]) -> str:
    rows = [row for row in results.rows if row.job == "training"]
    figures = [row for row in rows if row.step is None and row.value is not None]
    if not figures:
        return ""
    note = (
        f"The guide's SimpleCNN ({figures[0].origin}) on handwritten digits, three times from the "
        "same weights with the same batches: torch's BatchNorm layers; `tritonbn.convert` of them, "
        "activations left to torch; and layers of ours with the activations in them. Launches of "
        "ours are counted by kernel and by the activation in it; of torch its operators are, each "
        "at least one launch. Kept for backward: every storage once, as autograd's hooks see it."
    )
    table = side_by_side(figures, ("torch", UNFUSED, OURS))
    return _section(
        "Training on real data (measured)",
        note,
        table,
        _picture(links, "training", "Measured losses of the three networks"),
    )


def _endtoend(results: Results) -> str:
    rows = [row for row in results.rows if row.job == "endtoend" and row.value is not None]
    if not rows:
        return ""
    note = (
        "Training steps from the same weights on the same batch, in five ways that take turns: "
        "forward, loss, backward, optimiser, by the host's clock until the device is done. "
        "`tritonbn` is `convert` of the network, `tritonbn fused` has addition and ReLU in our "
        "layers. A way whose losses differ from torch's by more than is allowed gets no figure."
    )
    lines = [
        (row.case, row.provider, row.quantity, row.value, row.low, row.high, row.unit, row.bound)
        for row in rows
    ]
    head = ("case", "way", "quantity", "value", "low", "high", "unit", "allowed")
    return _section("End to end (measured)", note, markdown_table(head, lines))


def _host(results: Results) -> str:
    rows = [row for row in results.rows if row.job == "host" and row.value is not None]
    if not rows:
        return ""
    note = (
        f"What the CPU spends per call of {rows[0].case}: Triton's own launcher, a CUDA library "
        "that does nothing, and torch's layer on the CPU in the same process, taking turns."
    )
    table = markdown_table(("what", "us"), [(row.quantity, row.value) for row in rows])
    return _section("Host cost (measured, no device)", note, table)


def _traffic(results: Results, links: dict[str, str]) -> str:
    rows = [row for row in results.rows if row.job == "traffic"]
    if not rows:
        return ""
    note = (
        "By formula, not measured: bytes that the 53 BatchNorm layers of ResNet-50 move in one "
        "training step. The floor reads x once forward (1R + 1W) and x and dy once backward "
        "(2R + 1W); kernels that read twice, such as torch's, move 2R + 1W and 4R + 1W; tritonbn's "
        "are what its plans for an H200 are expected to move (`tritonbn-bench plan resnet50`)."
    )
    picture = _picture(links, "traffic", "Modelled bytes per training step")
    return _section(
        "Traffic (modelled)", note, picture, folded("Every shape, MB", traffic_table(rows))
    )


def _fusion(results: Results, links: dict[str, str]) -> str:
    rows = [row for row in results.rows if row.job == "fusion"]
    if not rows:
        return ""
    note = (
        "By formula, not measured: the same layers with what follows them, ReLU behind 33 of them, "
        "addition and ReLU behind 16. torch, and our BatchNorm unfused, move 3R + 2W more forward "
        "and 2R + 1W more backward for addition and ReLU as operators of their own, in place or "
        "not; in one kernel they cost a read of the residual, a write of its gradient, and a mask "
        "of one bit an element (`tritonbn-bench plan resnet50 --fused`)."
    )
    picture = _picture(links, "fusion", "Modelled bytes with what follows")
    return _section(
        "Traffic with what follows BatchNorm (modelled)",
        note,
        picture,
        folded("Every shape, MB", traffic_table(rows)),
    )


def _memory(results: Results, links: dict[str, str]) -> str:
    rows = [row for row in results.rows if row.job == "memory"]
    if not rows:
        return ""
    note = (
        "Computed by accounting, not measured: activations of a training step of ResNet-50, what "
        "is kept of them for the backward pass, and their gradients; parameters, optimiser and "
        "workspaces left out. With ReLU a fused layer saves nothing here, for the next convolution "
        "keeps the result anyway, and pays for the mask; an activation that needs its argument "
        "again (SiLU) is where fusion saves a tensor, and `memory_efficient` gives up the input of "
        "BatchNorm where the activation can be inverted."
    )
    lines = [(row.data, row.backend, row.quantity, (row.value or 0.0) / 1e9) for row in rows]
    table = markdown_table(("activation", "way", "quantity", "GB"), lines)
    picture = _picture(links, "memory", "Memory of a training step, computed by accounting")
    return _section("Memory (computed by accounting)", note, picture, folded("Figures", table))


def _failures(results: Results) -> str:
    rows = failed(results.rows)
    if not rows:
        return _section("Failures and skips", "None.")
    table = markdown_table(
        ("job", "case", "provider", "status", "reason"),
        [
            (row.job, f"`{row.case}` {row.data}", row.provider, row.status, row.reason)
            for row in rows
        ],
    )
    return _section("Failures and skips", table)


def _files() -> str:
    meanings = markdown_table(
        ("column", "meaning"), [(f"`{name}`", meaning) for name, meaning in COLUMNS.items()]
    )
    note = (
        "`results.json` is the truth (schema, environment, rows), `results.csv` the same rows "
        "with the environment's versions repeated; `tritonbn-bench report DIR` draws this page "
        "from them without measuring anything."
    )
    return _section("Files", note, folded("Columns", meanings))
