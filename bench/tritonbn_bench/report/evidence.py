"""Sections that need no GPU: accuracy, training, host time, traffic, memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..fusions import FUSIONS, NONE
from ..results import RATIO, Row
from ..summary import HOST_DIFFERENCE, OURS, UNFUSED
from .accuracy_tables import error_lines, every_error
from .blocks import Block, Draft, Section, Words
from .canvas import BLUE, GREEN, GREY, SKY, VERMILION
from .step_pictures import (
    accuracy_panels,
    bar_panel,
    host_panel,
    loss_panels,
    memory_panels,
    traffic_panels,
)

__all__ = ["evidence_sections"]

# of a list that all cases may be in
MOST_CASES = 40

_TRAFFIC = {
    "traffic": (
        "Traffic of BatchNorm in ResNet-50",
        "Bytes that the 53 BatchNorm layers of ResNet-50 move in one training step. The floor "
        "reads x once forward (1R + 1W) and x and dy once backward (2R + 1W); kernels that read "
        "twice, such as torch's, move 2R + 1W and 4R + 1W; tritonbn's are what its plans for an "
        "H200 are expected to move (`tritonbn-bench plan resnet50`).",
    ),
    "fusion": (
        "Traffic with what follows BatchNorm",
        "The same layers with what follows them, ReLU behind 33 of them, addition and ReLU behind "
        "16. torch, and our BatchNorm unfused, move 3R + 2W more forward and 2R + 1W more backward "
        "for addition and ReLU as operators of their own, in place or not; in one kernel they cost "
        "a read of the residual, a write of its gradient, and a mask of one bit an element "
        "(`tritonbn-bench plan resnet50 --fused`).",
    ),
}


def evidence_sections(draft: Draft) -> Iterator[Section]:
    """In the order of the page."""
    yield _end_to_end(draft)
    yield _accuracy(draft)
    yield _training(draft)
    yield _host(draft)
    yield _traffic(draft)
    yield _memory(draft)


def _end_to_end(draft: Draft) -> Section:
    rows = draft.of("endtoend")
    speed = [row for row in rows if row.unit == "images/s"]
    blocks: list[Block] = []
    if speed:
        colours = {
            "torch": BLUE,
            "torch.compile": SKY,
            "tritonbn + torch.compile": GREEN,
        }
        panels = []
        for index, case in enumerate(dict.fromkeys(row.case for row in speed)):
            part = [row for row in speed if row.case == case]
            bars = [(row.provider, row.value or 0.0, row.low, row.high) for row in part]
            shades = [colours.get(row.provider, VERMILION) for row in part]
            panels.append(bar_panel(f"endtoend-{index}", case, "images/s", bars, shades))
        blocks.append(
            draft.picture(
                speed,
                "endtoend",
                "Training steps end to end",
                panels,
                "Training steps from the same weights on the same batch, in ways that take turns: "
                "forward, loss, backward, optimiser, by the host's clock until the device is done. "
                "`tritonbn` is `convert` of the network, `tritonbn fused` has addition and ReLU in "
                "our layers. A way whose losses differ from torch's by more than is allowed gets "
                "no figure. Lines: 20th to 80th percentile.",
            )
        )
    if rows:
        providers = tuple(dict.fromkeys(row.provider for row in rows))
        lines = []
        for case, quantity in dict.fromkeys((row.case, row.quantity) for row in rows):
            found = {
                row.provider: row for row in rows if (row.case, row.quantity) == (case, quantity)
            }
            first = next(iter(found.values()))
            values = [found[name].value if name in found else None for name in providers]
            label, figures = _as_read(first, values)
            lines.append((case, label, *figures, first.bound))
        head = ("case", "quantity", *providers, "allowed")
        blocks.append(draft.table(rows, "endtoend-table", "Figures of the steps", head, lines))
    return Section("endtoend", "End to end", tuple(blocks))


def _as_read(first: Row, values: Sequence[float | None]) -> tuple[str, list[float | None]]:
    """A quantity and its figures in the unit and the direction in which they are read."""
    if first.quantity.startswith(RATIO):
        rival = first.quantity.removeprefix(RATIO)
        return f"speed / that of {rival}", [1 / value if value else None for value in values]
    scale, unit = (1e9, "GB") if first.unit == "bytes" else (1.0, first.unit)
    label = first.quantity if unit == "1" else f"{first.quantity}, {unit}"
    return label, [None if value is None else value / scale for value in values]


def _accuracy(draft: Draft) -> Section:
    # one without a figure was not finite
    rows = [row for row in draft.rows if row.job == "accuracy" and row.status != "skipped"]
    ours = next((row for row in rows if row.provider == OURS), None)
    rival = next((row for row in rows if row.provider == "torch"), None)
    if ours is None or rival is None:
        return Section("accuracy", "Accuracy", ())
    plain = [row for row in rows if row.fusion == NONE]
    head = ("result", "dtype", "tritonbn", "torch", "bound", "% of bound", "% at least as near")
    where = ("mode", "layout", "data")
    blocks: list[Block] = [
        Words(
            f"Errors against float64 beside torch's own; tritonbn by {ours.backend}, torch by "
            f"{rival.backend}. running_mean is in units of the channel's std."
        ),
        draft.picture(
            plain,
            "accuracy",
            "Error against float64",
            accuracy_panels(plain),
            "Largest over layouts, by the conditioning of the data (mean over std of each "
            "channel); a mark on the lower edge: exact.",
        ),
        draft.table(
            plain,
            "accuracy-worst",
            "For each result and dtype the input nearest to its bound",
            (*head, *where),
            [line[1:] for line in error_lines(plain)],
            "At least as near: share of all inputs on which tritonbn is at least as near to "
            "float64 as torch.",
        ),
    ]
    fused = [row for row in rows if row.fusion != NONE]
    if fused:
        blocks.append(
            draft.table(
                fused,
                "accuracy-fused",
                "The same with what follows BatchNorm in one kernel",
                ("followed by", *head, *where),
                error_lines(fused),
                "torch by an operator each. Where rounding decides which derivative ReLU takes, "
                "the gradient that comes in is 0.",
            )
        )
    blocks.append(
        draft.table(
            rows,
            "accuracy-all",
            "All results",
            ("case", "data", "result", "tritonbn", "torch", "bound"),
            every_error(rows),
            folded=True,
        )
    )
    return Section("accuracy", "Accuracy", tuple(blocks))


def _training(draft: Draft) -> Section:
    rows = draft.of("training")
    losses = [row for row in rows if row.quantity == "loss"]
    figures = [row for row in rows if row.step is None]
    blocks: list[Block] = []
    if losses:
        blocks.append(
            draft.picture(
                losses,
                "training",
                "Losses on real data",
                loss_panels(losses),
                f"The guide's SimpleCNN ({losses[0].origin}) on handwritten digits, three times "
                "from the same weights with the same batches: torch's BatchNorm layers; "
                "`tritonbn.convert` of them, activations left to torch; and layers of ours with "
                f"the activations in them. fp32, kernels by {losses[-1].backend}.",
            )
        )
    if figures:
        blocks.append(
            draft.table(
                figures,
                "training-figures",
                "The three trainings side by side",
                ("quantity", "torch", UNFUSED, OURS, "allowed"),
                _side_by_side(figures, ("torch", UNFUSED, OURS)),
                "Launches of ours are counted by kernel and by the activation in it; of torch its "
                "operators are, each at least one launch. Kept for backward: every storage once, "
                "as autograd's hooks see it.",
            )
        )
    return Section("training", "Training on real data", tuple(blocks))


def _side_by_side(rows: Sequence[Row], providers: Sequence[str]) -> list[tuple[object, ...]]:
    """One line per quantity, one column per provider, and what is allowed."""
    found = {(row.quantity, row.provider): row for row in rows}
    lines: list[tuple[object, ...]] = []
    for quantity in dict.fromkeys(row.quantity for row in rows):
        cells = [found.get((quantity, provider)) for provider in providers]
        bound = next((row.bound for row in cells if row and row.bound is not None), None)
        unit = next(row.unit for row in cells if row is not None)
        label = quantity if unit == "1" else f"{quantity}, {unit}"
        values = [row.value if row else None for row in cells]
        # bytes to the last one
        lines.append((label, *[int(v) if v and v == int(v) else v for v in values], bound))
    return lines


def _host(draft: Draft) -> Section:
    blocks: list[Block] = []
    rows = [row for row in draft.of("host") if row.unit == "us"]
    if rows:
        least = [
            row
            for row in rows
            if row.quantity.endswith(", minimum") and row.quantity != HOST_DIFFERENCE
        ]
        bars = [
            (row.quantity.removesuffix(", minimum"), row.value or 0.0, None, None) for row in least
        ]
        colours = {"torch": BLUE, OURS: VERMILION}
        shades = [colours.get(row.provider, GREY) for row in least]
        note = (
            f"What the CPU spends per call of {rows[0].case}: Triton's own launcher, a CUDA "
            "library that does nothing, and torch's layer on the CPU in the same process, taking "
            "turns. No device takes part."
        )
        panel = bar_panel("host", "host time per call, minimum", "us", bars, shades)
        blocks.append(draft.picture(rows, "host", "Host time without a device", [panel], note))
        lines = [(row.quantity, row.provider, row.value) for row in rows]
        blocks.append(
            draft.table(
                rows,
                "host-figures",
                "Host time per call",
                ("what", "provider", "us"),
                lines,
                folded=True,
            )
        )
    blocks += _host_bound(draft)
    return Section("host", "Host overhead", tuple(blocks))


def _host_bound(draft: Draft) -> Iterator[Block]:
    """Device and wall time of what was timed, and the cases in which the host sets the pace."""
    timed = draft.of("sweep", "resnet50", "networks", "model")
    walls = [row for row in timed if row.quantity == "wall time"]
    device = {
        (row.job, row.case, row.provider): row.value or 0.0
        for row in timed
        if row.quantity == "time"
    }
    pairs = [
        (row.provider, device[row.job, row.case, row.provider], row.value or 0.0)
        for row in walls
        if (row.job, row.case, row.provider) in device
    ]
    if not pairs:
        return
    yield draft.picture(
        walls,
        "host-bound",
        "Wall time against device time",
        [host_panel(pairs)],
        "Calls in a row without waiting. Above the line the host sets the pace.",
    )
    bound = [
        row
        for row in walls
        if row.host_bound and row.provider == OURS and (row.job, row.case, OURS) in device
    ]
    if bound:
        bound.sort(key=lambda row: -(row.value or 0.0) / device[row.job, row.case, OURS])
        worst = bound[:MOST_CASES]
        lines = [
            (
                row.job,
                row.case,
                1e3 * device[row.job, row.case, OURS],
                1e3 * (row.value or 0.0),
                (row.value or 0.0) / device[row.job, row.case, OURS],
            )
            for row in worst
        ]
        head = ("job", "case", "device, us", "wall, us", "wall / device")
        which = f"The {len(worst)} worst of {len(bound)}" if len(worst) < len(bound) else "All"
        title = f"{which} cases of tritonbn in which the host sets the pace"
        yield draft.table(bound, "host-bound-cases", title, head, lines, folded=True)


def _traffic(draft: Draft) -> Section:
    blocks: list[Block] = []
    for job, (title, note) in _TRAFFIC.items():
        rows = draft.of(job)
        if not rows:
            continue
        blocks.append(draft.picture(rows, job, title, traffic_panels(rows, job), note))
        providers = tuple(dict.fromkeys(row.provider for row in rows))
        found = {(row.case, row.provider): row for row in rows}
        lines = []
        for case in dict.fromkeys(row.case for row in rows):
            columns = [found.get((case, provider)) for provider in providers]
            figures = [(row.value or 0.0) / 1e6 if row else None for row in columns]
            first = next(row for row in columns if row is not None)
            lines.append((case, FUSIONS[first.fusion].words, first.count, *figures, first.origin))
        head = ("case", "followed by", "layers", *[f"{name}, MB" for name in providers], "origin")
        blocks.append(
            draft.table(rows, f"{job}-shapes", "Every shape, MB", head, lines, folded=True)
        )
    return Section("traffic", "Traffic against the floor", tuple(blocks))


def _memory(draft: Draft) -> Section:
    rows = draft.of("memory")
    if not rows:
        return Section("memory", "Memory of a training step", ())
    note = (
        f"By accounting: activations of a training step of ResNet-50, N = {rows[0].batch}, "
        f"{rows[0].dtype}, what is kept of them for the backward pass, and their gradients; "
        "parameters, optimiser and workspaces left out. With ReLU a fused layer saves nothing "
        "here, for the next convolution keeps the result anyway, and pays for the mask; an "
        "activation that needs its argument again (SiLU) is where fusion saves a tensor, and "
        "memory_efficient gives up the input of BatchNorm where the activation can be inverted."
    )
    lines = [(row.data, row.backend, row.quantity, (row.value or 0.0) / 1e9) for row in rows]
    head = ("activation", "way", "quantity", "GB")
    return Section(
        "memory",
        "Memory of a training step",
        (
            draft.picture(rows, "memory", "ResNet-50 by accounting", memory_panels(rows), note),
            draft.table(rows, "memory-figures", "Figures", head, lines, folded=True),
        ),
    )
