"""The section on networks: their layers summed, shape by shape, and in a training step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..fusions import NONE
from ..networks import RESNET50
from ..summary import EAGER, UNFUSED, Speedup
from ..totals import layer_totals, step_gains
from .blocks import Block, Draft, Section, Table
from .canvas import FAKE, mode_words
from .speed_pictures import shape_panels

__all__ = ["networks_section"]


def networks_section(draft: Draft, ratios: Sequence[Speedup]) -> Section:
    """What the layers of networks take and save, and how they compare shape by shape."""
    blocks: list[Block] = [*_sums(draft), *_gains(draft), *_shapes(draft, ratios)]
    others = [
        item
        for item in ratios
        if item.case.job == "model" or (item.case.job == "networks" and item.rival in EAGER)
    ]
    if others:
        blocks.append(_every_layer(draft, others))
    return Section("networks", "Networks", tuple(blocks))


def _sums(draft: Draft) -> Iterator[Table]:
    """ms by mode, dtype and layout, one column per provider."""
    rows = [row for row in draft.of("resnet50") if row.quantity == "time"]
    for name, title, followed in (
        ("resnet50", "All 53 BatchNorm layers of ResNet-50", False),
        ("chains", "The same layers with what follows them", True),
    ):
        sums = layer_totals(rows, RESNET50, followed=followed)
        if not sums:
            continue
        providers = list(dict.fromkeys(group.provider for group in sums))
        lines = [
            (
                mode_words(group.mode),
                *(group.dtype, group.layout, group.batch),
                *[sums.get(group._replace(provider=provider)) for provider in providers],
            )
            for group in dict.fromkeys(group._replace(provider="") for group in sums)
        ]
        yield draft.table(
            rows,
            name,
            title,
            ("mode", "dtype", "layout", "N", *[f"{provider}, ms" for provider in providers]),
            lines,
            "Device time of each shape x number of its layers.",
        )


def _gains(draft: Draft) -> Iterator[Table]:
    """What the layers save of a training step: a projection, though from measured times."""
    gains = step_gains(draft.rows)
    if not gains:
        return
    head = (
        *("network", "layers with", "dtype", "layout", "N", "torch, ms", "tritonbn, ms"),
        *("saved, ms", "step at N", "torch's step, ms", "projected gain"),
    )
    lines = tuple(
        (
            gain.network,
            "what follows them" if gain.followed else "nothing",
            *(gain.dtype, gain.layout, gain.batch, gain.theirs, gain.ours),
            *(gain.theirs - gain.ours, gain.step_batch, gain.step, gain.projected),
        )
        for gain in gains
    )
    note = (
        "All BatchNorm layers forward + backward, from the measured time of each shape, by torch's "
        "layers and by ours. Where whole steps of the network were timed (end to end): torch's "
        "step, and its gain if the layers saved that much of it and nothing else changed, in "
        "proportion to the batch. The layers were timed with the caches said above, which a step "
        "does not have; what a step really gains stands under end to end."
    )
    kind = FAKE if draft.fake else "modelled"
    title = "Projected gain of a training step"
    yield Table("gains", title, kind, head, lines, note)


def _shapes(draft: Draft, ratios: Sequence[Speedup]) -> Iterator[Block]:
    for fused in (False, True):
        rivals = (*EAGER, UNFUSED) if fused else EAGER
        part = [
            item
            for item in ratios
            if item.case.job == "resnet50"
            and (item.case.fusion != NONE) == fused
            and item.rival in rivals
        ]
        if part:
            yield draft.picture(
                draft.used(part),
                "resnet50-fused-speedup" if fused else "resnet50-speedup",
                "ResNet-50's shapes" + (" with what follows in one kernel" if fused else ""),
                shape_panels(part),
                "Time of the rival / tritonbn; above 1 tritonbn is faster. Lines: 95 %.",
            )


def _every_layer(draft: Draft, ratios: Sequence[Speedup]) -> Table:
    lines = [
        (
            item.case.origin,
            mode_words(item.case.mode),
            item.case.dtype,
            item.case.layout,
            item.case.count,
            f"{item.rival} ({item.backend})",
            item.ratio,
            item.outcome,
        )
        for item in ratios
    ]
    head = ("layers", "mode", "dtype", "layout", "count", "rival", "ratio", "outcome")
    return draft.table(
        draft.used(ratios), "networks", "Layers of networks", head, lines, folded=True
    )
