"""Each family of plans once, on small inputs, each result checked: what a sanitizer watches.

    python -m tritonbn_bench.exercise

Plans are pinned, so that a GPU of any size runs the same ones: groups of three programs that meet
at a barrier, last members and last tiles that are partial, programs that own several items. Inputs
are made, and results judged against float64, on the CPU: a sanitizer sees hardly a kernel but ours.
Without a GPU the kernels run in Triton's interpreter.

Exit code: 0 every result is right and came from the plan that was asked for, 4 one is not, 2 no
device that was asked for is there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from .cases import Case
from .environment import choose_device

if TYPE_CHECKING:
    from tritonbn_kernels import LaunchRecord

    from .inputs import Inputs

__all__ = ["EXERCISES", "Exercise", "main", "perform"]

# last line of a run in which every result is right; the sanitizer's step looks for it
PASSED_WORDS = "every result agrees with float64"
# schedule of the programs that wait for one another, in the interpreter alone
SEED = 1


@dataclass(frozen=True)
class Exercise:
    """A call with its plan.

    Attributes:
        name: family of the plan
        case: what is computed
        pins: fields of `tritonbn_kernels.pinned_plan`
        kernels: beginnings of the names of every kernel that must be launched
        grouped: whether programs must have met at a barrier
    """

    name: str
    case: Case
    pins: dict[str, int]
    kernels: tuple[str, ...]
    grouped: bool = False


@dataclass(frozen=True)
class _Family:
    """A shape and pins for which one family of plans is chosen in training."""

    name: str
    layout: str
    shape: tuple[int, ...]
    pins: dict[str, int]
    kernels: tuple[str, ...]

    def exercise(self, mode: str, dtype: str, fusion: str) -> Exercise:
        """The family in one call; in eval its kernels are others, and no program waits."""
        batch, channels, *plane = self.shape
        sizes = (self.layout, batch, channels, tuple(plane))
        case = Case(mode, dtype, *sizes, "exercise", self.name, fusion=fusion)
        trains = mode.endswith("train")
        kernels = self.kernels if trains else _EVAL_KERNELS[mode]
        grouped = trains and self.pins.get("resident") == 1
        return Exercise(self.name, case, self.pins, kernels, grouped)


_EVAL_KERNELS = {"forward_eval": ("normalize",), "backward_eval": ("normalize", "gradients")}
# several warps, without which a reduction passes nothing through shared memory
_WARPS = {"num_warps": 4}
_THREE = {**_WARPS, "resident": 1, "splits": 3}
_ROWS = ("rows_forward", "rows_backward")
_FUSED = {**_WARPS, "resident": 0, "fused": 1, "block_c": 4, "block_v": 128}
_SPLIT = {**_WARPS, "resident": 0, "fused": 0, "splits": 3, "block_c": 4, "block_v": 32}
_TWO_READ = ("statistics", "gradients")
_TWO_LAUNCHES = ("statistics", "normalize", "gradients", "input_gradient")
_IMAGES = {**_THREE, "block_c": 16, "block_n": 2}
_PIXELS = {**_THREE, "block_c": 16, "block_n": 64}
# channels no multiple of a block, fewer programs than items, tiles that are partial
_FAMILIES = (
    _Family(
        "planes",
        "nchw",
        (9, 3, 16, 28),
        {**_THREE, "block_c": 2, "block_v": 128, "programs": 4},
        ("resident_forward", "resident_backward"),
    ),
    _Family("narrow planes", "nchw", (25, 24, 7, 7), {**_IMAGES, "programs": 5}, _ROWS),
    _Family("rows", "nhwc", (9, 24, 9, 7), {**_PIXELS, "programs": 5}, _ROWS),
    _Family(
        "hybrid of narrow planes",
        "nchw",
        (25, 24, 7, 7),
        {**_IMAGES, "pieces": 2, "stream": 2, "programs": 3},
        _ROWS,
    ),
    _Family(
        "hybrid of rows",
        "nhwc",
        (13, 24, 9, 7),
        {**_PIXELS, "pieces": 2, "stream": 2, "programs": 3},
        _ROWS,
    ),
    _Family("two reads, one launch, planes", "nchw", (6, 5, 7, 9), _FUSED, _TWO_READ),
    _Family(
        "two reads, one launch, rows", "nhwc", (9, 24, 9, 7), {**_FUSED, "block_c": 16}, _TWO_READ
    ),
    _Family("two reads, two launches, planes", "nchw", (6, 5, 8, 8), _SPLIT, _TWO_LAUNCHES),
    _Family(
        "two reads, two launches, rows",
        "nhwc",
        (9, 24, 9, 7),
        {**_SPLIT, "block_c": 16, "block_v": 64},
        _TWO_LAUNCHES,
    ),
)
# add_relu keeps a mask; dtypes change places, so that each family has both, and both of each
_TRAINING = (("fp32", "none"), ("bf16", "add_relu"))
_EVAL = (("two reads, one launch, planes", "fp32"), ("two reads, one launch, rows", "bf16"))
EXERCISES = (
    *(family.exercise("both_train", *of) for family in _FAMILIES for of in _TRAINING),
    *(
        family.exercise(mode, dtype, "add_relu")
        for mode in _EVAL_KERNELS
        for family in _FAMILIES
        for name, dtype in _EVAL
        if family.name == name
    ),
)


@contextmanager
def _planned(exercise: Exercise, device: str) -> Iterator[list[LaunchRecord]]:
    """The plan of an exercise, and the launches made inside."""
    from tritonbn_kernels import pinned_plan, record_launches

    from .emulated import cooperative
    from .providers import poisoned_memory

    with ExitStack() as stack:
        stack.enter_context(pinned_plan(**exercise.pins))
        if device == "cpu" and exercise.grouped:
            stack.enter_context(cooperative(SEED))
        stack.enter_context(poisoned_memory())
        yield stack.enter_context(record_launches())


def perform(exercise: Exercise, device: str) -> tuple[str, str]:
    """Run an exercise once.

    Args:
        exercise: what is run
        device: "cuda", or "cpu" in the interpreter

    Returns:
        the launches in words, and what is wrong, empty if nothing is
    """
    from torch.nn import functional

    import tritonbn

    from .accuracy import judge
    from .inputs import make_inputs
    from .providers import composed, results_of

    inputs = make_inputs(exercise.case, "cpu")
    mode = exercise.case.mode
    theirs = results_of(composed(functional.batch_norm), inputs, mode)
    with _planned(exercise, device) as launches:
        found = results_of(tritonbn.batch_norm, _moved(inputs, device), mode)
        ours = {name: value.cpu() for name, value in found.items()}
    faults = [_not_as_planned(exercise, launches)]
    faults += [verdict.reason for verdict in judge(inputs, mode, ours, theirs)]
    return _in_words(launches), "; ".join(filter(None, faults))


def _moved(inputs: Inputs, device: str) -> Inputs:
    """The same operands on a device, with gradients of their own."""
    from torch import Tensor

    moved: dict[str, Any] = {}
    for field in fields(inputs):
        value = getattr(inputs, field.name)
        if isinstance(value, Tensor):
            copy = value.detach().to(device)
            moved[field.name] = copy.requires_grad_(value.requires_grad)
    return replace(inputs, **moved)


def _not_as_planned(exercise: Exercise, launches: Sequence[LaunchRecord]) -> str:
    """What of the plan was not followed: the driver may refuse a grid, and two reads run then."""
    expected = {f"{name}_kernel" for name in exercise.kernels}
    seen = {launch.kernel for launch in launches}
    if seen != expected:
        return f"expected {', '.join(sorted(expected))}, got {', '.join(sorted(seen)) or 'nothing'}"
    if any(launch.constants.get("GROUPED", False) != exercise.grouped for launch in launches):
        return f"expected programs {'' if exercise.grouped else 'not '}to meet at a barrier"
    return ""


def _in_words(launches: Sequence[LaunchRecord]) -> str:
    """Kernels with their programs."""
    return ", ".join(
        f"{launch.kernel.removesuffix('_kernel')} x {launch.grid[0]}"
        f"{' grouped' if launch.constants.get('GROUPED') else ''}"
        for launch in launches
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all exercises with a line for each; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tritonbn_bench.exercise")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")
    parser.add_argument("--only", metavar="TEXT", default="", help="families with TEXT in the name")
    chosen = parser.parse_args(arguments)
    try:
        device = choose_device(chosen.device)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    from .measure import in_words

    failed = 0
    selected = [exercise for exercise in EXERCISES if chosen.only in exercise.name]
    for exercise in selected:
        try:
            words, fault = perform(exercise, device)
        except Exception as problem:
            words, fault = "not finished", in_words(problem)
        failed += bool(fault)
        outcome = f"WRONG: {fault}" if fault else "right"
        # at once: a sanitizer's own lines come between
        print(f"{exercise.name} | {exercise.case.id} | {words} | {outcome}", flush=True)
    if failed or not selected:
        print(f"{failed} of {len(selected)} exercises are wrong")
        return 4
    print(f"{len(selected)} exercises on {device}: {PASSED_WORDS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
