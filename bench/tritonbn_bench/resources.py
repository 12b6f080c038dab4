"""What is known of our kernels without a GPU: plans by architecture, and resources of binaries.

Plans and what is expected of them are modelled; registers, stack, shared memory and widths are read
from the committed budgets, which are made of binaries that never ran.
"""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path

from .cases import DTYPES, resnet50_cases
from .results import Row

__all__ = ["OVER_FLOOR", "plan_rows", "static_rows"]

BUDGETS = Path(__file__).with_name("static") / "budgets"
# of a budget's figures: whose greatest is told, and whose least, with their units
MOST = {"registers": "1", "stack": "bytes", "spill": "bytes", "shared": "bytes"}
LEAST = ("load x", "load dy", "store y", "store dx")
OVER_FLOOR = "bytes moved over the floor"
DEVICES = ("h200", "h100", "a100", "mig16")


def budget_version() -> str:
    """Minor version of Triton whose budget is told: the installed one's if there is one, else the
    newest."""
    known = sorted(
        (path.stem for path in BUDGETS.glob("*.json") if re.fullmatch(r"\d+\.\d+", path.stem)),
        key=lambda name: [int(part) for part in name.split(".")],
    )
    try:
        installed = ".".join(metadata.version("triton").split(".")[:2])
    except metadata.PackageNotFoundError:
        installed = ""
    return installed if installed in known else known[-1]


def static_rows() -> list[Row]:
    """Resources of every kernel by target and dtype: the worst of all plans in the budget."""
    version = budget_version()
    content = json.loads((BUDGETS / f"{version}.json").read_text(encoding="utf-8"))
    groups: dict[tuple[str, str, str], list[dict[str, int]]] = {}
    for key, figures in content.items():
        place, *_, kernel = key.split(" | ")
        target, *words = place.split(" ")
        dtype = next(word for word in words if word in DTYPES)
        if kernel != "training step":
            groups.setdefault((target, kernel, dtype), []).append(figures)
    rows = []
    for (target, kernel, dtype), launches in sorted(groups.items()):
        found = {
            f"{name}, most": (unit, max(figures.get(name, 0) for figures in launches))
            for name, unit in MOST.items()
        }
        for name in LEAST:
            widths = [figures[name] for figures in launches if name in figures]
            if widths:
                found[f"{name}, least width"] = ("bytes", min(widths))
        found["launches"] = ("1", len(launches))
        rows += [
            Row(
                "static",
                "static",
                kernel,
                "tritonbn",
                quantity,
                unit=unit,
                value=float(value),
                dtype=dtype,
                # two targets of a kernel are two units of work
                data=f"{target} {dtype}",
                origin=target,
                backend=f"triton {version}",
            )
            for quantity, (unit, value) in found.items()
        ]
    return rows + _counted_rows()


def _counted_rows() -> list[Row]:
    """Bytes that each family of plans moves, as the interpreter's meter counted them for the
    committed budget."""
    path = BUDGETS / "traffic.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return [
        Row(
            "static",
            "static",
            key.split(" | ")[0].removeprefix("interpreter "),
            "tritonbn",
            OVER_FLOOR,
            value=figures["all over floor"],
            data=key.split(" | ")[1],
            origin="counted in the interpreter",
        )
        for key, figures in content.items()
    ]


def plan_rows() -> list[Row]:
    """Plans of ResNet-50's BatchNorm layers on every device that the model knows."""
    from tritonbn_kernels.layout import view_of
    from tritonbn_kernels.outlook import DEVICES as KNOWN
    from tritonbn_kernels.outlook import outlook

    rows = []
    for name in DEVICES:
        for case in resnet50_cases(dtypes=("bf16",)):
            image = case.channels * case.space
            steps = (case.space, 1) if case.layout == "nchw" else (1, case.channels)
            view = view_of((case.batch, case.channels, case.space), (image, *steps))
            assert view is not None, case
            tensors = 2 if case.mode.startswith("forward") else 3
            expected = outlook(case.mode, (view,) * tensors, case.itemsize, KNOWN[name])
            figures = {
                "launches": ("1", expected.launches),
                "programs": ("1", expected.programs),
                "kept on the chip": ("%", 100 * expected.held_share),
                "modelled time": ("us", 1e6 * expected.seconds),
                "of the floor": ("us", 1e6 * expected.floor_seconds),
                "of two reads": ("us", 1e6 * expected.two_read_seconds),
            }
            columns = {**case.columns, "data": name, "origin": KNOWN[name].name}
            rows += [
                Row(
                    "plan",
                    "modelled",
                    case.id,
                    "tritonbn",
                    quantity,
                    unit=unit,
                    value=float(value),
                    backend=f"{expected.kind}, {expected.family}",
                    **columns,
                )
                for quantity, (unit, value) in figures.items()
            ]
    return rows
