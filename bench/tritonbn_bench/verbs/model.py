"""`tritonbn-bench model`."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    INTERRUPTED,
    PASSED,
    UsageError,
    add_device,
    add_verb,
    check_folder,
    check_plans,
    put_aside,
)

if TYPE_CHECKING:
    from ..cases import Case
    from ..results import Row
    from ..stopwatch import Stopwatch

__all__ = ["add", "run"]

EXAMPLES = """examples:
  tritonbn-bench model my_package.models:resnet       its layers, and their speed on this GPU
  tritonbn-bench model train:make --compile           torch.compile as a rival too
  tritonbn-bench model train:make --device cpu        torch's own layers on this CPU

The function takes no arguments and returns the model and a sample input, or a tuple of inputs:

  def make():
      return MyModel(), torch.randn(32, 3, 224, 224)

One forward pass shows shapes, dtypes and layouts. Without a GPU the layers and the plans they get
are printed, and no speed: ours run on a GPU only.
"""


def add(verbs: Any) -> None:
    """Declare the verb."""
    model = add_verb(
        verbs,
        "model",
        "measure the BatchNorm layers of your model in its real shapes",
        "Find the BatchNorm layers of a model, print the plans they get, and time tritonbn "
        "against torch on each of them in turns.",
        EXAMPLES,
    )
    model.set_defaults(verb=run)
    model.add_argument("spec", metavar="package.module:function", help="makes model and input")
    model.add_argument(
        "--out",
        type=Path,
        default=Path("out/model"),
        metavar="DIR",
        help="folder of results.json (default: %(default)s)",
    )
    add_device(model, ", and measures nothing else")
    model.add_argument(
        "--cache",
        choices=["cold", "hot", "produced"],
        help="before each call: emptied, left as they are, or emptied and the main operand "
        "written anew (default: cold; on a CPU hot)",
    )
    model.add_argument(
        "--rounds", type=int, metavar="K", help="at most K rounds a case (default: 12)"
    )
    model.add_argument("--compile", action="store_true", help="measure torch.compile too")


def run(options: argparse.Namespace) -> int:
    """Print layers and plans, measure where that can be done; the exit code."""
    import torch

    from ..model_layers import ModelError, cases_of, layers_of, load_model
    from ..model_speed import layer_lines, plan_lines
    from ..plan_table import device_of
    from ..stopwatch import stopwatch_of

    gpu = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
    if options.device == "cuda" and not gpu:
        raise UsageError(
            "no CUDA device is visible, or TRITON_INTERPRET=1 is set; leave out --device for "
            "layers and plans"
        )
    if options.rounds is not None and options.rounds < 3:
        raise UsageError(f"expected --rounds of 3 or more, got {options.rounds}")
    device = "cuda" if gpu and options.device != "cpu" else "cpu"
    check_plans()
    # a CPU is measured where it is asked for
    measures = device == "cuda" or options.device == "cpu"
    if measures:
        check_folder(options.out)
    try:
        stopwatch = stopwatch_of(device, options.cache)
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        model, inputs = load_model(options.spec)
        inputs = tuple(
            value.to(device) if isinstance(value, torch.Tensor) else value for value in inputs
        )
        layers = layers_of(model.to(device), inputs)
    except ModelError as error:
        raise UsageError(str(error)) from error
    # what is measured needs its memory
    del model, inputs
    if not layers:
        print(f"{options.spec}: no BatchNorm layer was called in a forward pass")
        return PASSED
    cases = cases_of(layers, options.spec)
    print(f"{options.spec}: {len(layers)} calls of BatchNorm layers in a training step")
    print("\n".join(layer_lines(layers)), end="\n\n")
    planned, remark = device_of(None if gpu else "h200")
    print("\n".join([*plan_lines(cases, planned), *([remark] if remark else [])]), end="\n\n")
    if not cases:
        print("No speed was measured: no call is one that can be (see the last column above).")
        return PASSED
    if not measures:
        print(
            "No speed was measured: no GPU is visible, and tritonbn's kernels run on one only; on "
            "a CPU tritonbn hands its input to torch. --device cpu times torch's own layers."
        )
        return PASSED
    return _measured(options, cases, device, stopwatch)


def _measured(
    options: argparse.Namespace, cases: tuple[Case, ...], device: str, stopwatch: Stopwatch
) -> int:
    from ..clocks import clock_of
    from ..environment import collect
    from ..interruption import arriving
    from ..measure import SWEEP_RULE, Meter
    from ..model_speed import JOB, speed_lines, speed_rows
    from ..progress import progress
    from ..results import Results
    from ..summary import exit_code

    rule = SWEEP_RULE
    if options.rounds is not None:
        rule = replace(rule, rounds=options.rounds, fewest=min(rule.fewest, options.rounds))
    meter = Meter(device, stopwatch, clock_of(device), rule)
    # now, so that a second Ctrl-C has little time to come before what was measured is saved
    results = Results(collect(device, options.command))
    interrupted = False
    with progress(JOB, len(cases)) as advance:

        def keep(new: list[Row]) -> None:
            advance()
            results.add(new)

        try:
            with arriving():
                speed_rows(cases, meter, options.compile, keep)
        except KeyboardInterrupt:
            interrupted = True
            print("interrupted; what was measured is kept", file=sys.stderr)
    put_aside(options.out)
    path = results.save(options.out)
    print(_how(device, stopwatch.cache))
    print("\n".join(speed_lines(results.rows)))
    print(f"results: {path}")
    return INTERRUPTED if interrupted else exit_code(results.rows)


def _how(device: str, cache: str) -> str:
    if device == "cpu":
        return (
            f"CPU, torch's own kernels (tritonbn's run on a GPU only): wall time, {cache} caches, "
            "median of rounds"
        )
    return (
        f"Device time, {cache} caches, median of rounds in which the providers took turns; ratios "
        "below 1: tritonbn is faster, with 95 % intervals"
    )
