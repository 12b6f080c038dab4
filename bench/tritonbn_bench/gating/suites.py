"""The cases of a gate: few enough to be run for every change, or the user's own. Pure Python."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ..cases import Case, resnet50_cases

__all__ = ["SUITES", "Trial", "trials"]

SUITES = ("quick", "resnet50")
FUNCTION, LAYER = "function", "layer"


@dataclass(frozen=True)
class Trial:
    """A case and the way into tritonbn that is timed.

    Attributes:
        case: what is computed
        via: "function" for `tritonbn.batch_norm`, "layer" for a layer that is called
    """

    case: Case
    via: str = FUNCTION

    def __post_init__(self) -> None:
        if self.via not in (FUNCTION, LAYER):
            raise ValueError(f"expected via to be {FUNCTION} or {LAYER}, got {self.via}")

    @property
    def id(self) -> str:
        """Name in results and baselines."""
        return self.case.id if self.via == FUNCTION else f"{self.case.id}/{self.via}"


def trials(name: str, device: str) -> Mapping[str, Trial]:
    """The trials of a suite or a file, by id.

    "quick" is a handful, on a CPU of less than 0.1 ms a call; "resnet50" is every BatchNorm shape
    of ResNet-50 forward and backward, in bf16 at a batch of 64 on a GPU, in fp32 at a batch of 1 on
    a CPU. A file is a JSON list of objects with the fields of `cases.Case` (mode, dtype, layout,
    batch, channels, plane; fusion if any) and, if it is not the function, via.

    Args:
        name: one of SUITES, or path of a file
        device: "cuda" or "cpu"

    Raises:
        ValueError: no such suite or file, or it describes no case
    """
    if name == "quick":
        found = _quick_cuda() if device == "cuda" else _quick_cpu()
    elif name == "resnet50":
        options = (64, ("bf16",)) if device == "cuda" else (1, ("fp32",))
        found = [Trial(case) for case in resnet50_cases(*options)]
    else:
        found = _from_file(Path(name))
    return {trial.id: trial for trial in found}


def _quick_cpu() -> list[Trial]:
    """Less than 0.1 ms a call: on a CPU tritonbn runs torch's kernels, and what a change can slow
    is the way to them. Larger buffers gain nothing but noise of the caches."""
    forward = Case("forward_train", "fp32", "nchw", 8, 32, (8, 8), "gate", "small on a CPU")
    return [
        Trial(forward),
        Trial(replace(forward, mode="backward_train")),
        Trial(replace(forward, mode="forward_eval"), LAYER),
    ]


def _quick_cuda() -> list[Trial]:
    """A shape of each family of kernels: large and small planes, both layouts, fused, no plane."""
    large = Case("forward_train", "bf16", "nchw", 64, 256, (56, 56), "gate", "ResNet-50, stage 1")
    small = replace(large, channels=512, plane=(7, 7), origin="ResNet-50, stage 4")
    forward = [
        large,
        small,
        replace(large, layout="nhwc", channels=256, plane=(28, 28), origin="ResNet-50, stage 2"),
        replace(large, fusion="add_relu"),
        replace(large, layout="nc", batch=4096, channels=1024, plane=(), origin="perceptron"),
    ]
    backward = [replace(case, mode="backward_train") for case in forward]
    return [*map(Trial, forward), *map(Trial, backward), Trial(small, LAYER)]


def _from_file(path: Path) -> list[Trial]:
    known = {field.name for field in fields(Case)}
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"expected cases {', '.join(SUITES)} or a file, got {path}") from error
    except ValueError as error:
        raise ValueError(f"expected JSON in {path}: {error}") from error
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"expected a list of cases in {path}, got {type(listed).__name__}")
    found = []
    for number, entry in enumerate(listed, 1):
        try:
            via = entry.pop("via", FUNCTION)
            unknown = sorted(set(entry) - known)
            if unknown:
                raise ValueError(f"expected fields of a case, got {unknown[0]}")
            named = {"suite": "gate", "origin": str(path), **entry}
            found.append(Trial(Case(**{**named, "plane": tuple(named["plane"])}), via))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, case {number}: {error}") from error
    return found
