"""`tritonbn-bench plan`."""

from __future__ import annotations

import argparse
from typing import Any

from .common import PASSED, UsageError, add_verb

__all__ = ["add", "run"]

EXAMPLES = """examples:
  tritonbn-bench plan resnet50 --batch 256 --layout nhwc    every layer of a network
  tritonbn-bench plan 32 64 56 56 --dtype fp32              one shape, N C H W
  tritonbn-bench plan resnet50 --batch 256 --fused          with additions and activations
  TRITONBN_PLAN=two_read tritonbn-bench plan resnet18       the same with a plan pinned

networks: resnet18, resnet50, resnet101, mobilenet_v2, efficientnet_b0, densenet121, unet,
resnet3d18, mlp. Times and traffic are modelled, not measured; no GPU is needed.
"""


def add(verbs: Any) -> None:
    """Declare the verb."""
    plan = add_verb(
        verbs,
        "plan",
        "print which kernels a network or a shape gets, and what is expected of them",
        "Print the plan of every BatchNorm layer, its modelled traffic and time; with "
        "--fused those of the layer and what follows it.",
        EXAMPLES,
    )
    plan.set_defaults(verb=run)
    plan.add_argument(
        "what", nargs="+", metavar="NETWORK|SIZE", help="a network, or sizes N C [D] [H W]"
    )
    plan.add_argument("--batch", type=int, metavar="N", help="of a network (default: 32)")
    plan.add_argument(
        "--dtype",
        choices=["fp32", "fp16", "bf16", "fp64"],
        default="bf16",
        help="of the activations (default: %(default)s)",
    )
    plan.add_argument(
        "--layout",
        choices=["nc", "ncl", "nlc", "nchw", "nhwc", "ncdhw", "ndhwc"],
        help="order of the axes in memory (default: channels first)",
    )
    plan.add_argument(
        "--device",
        choices=["h200", "h100", "a100", "mig16", "local"],
        help="mig16: a slice of 16 SMs; local: this machine's GPU, the default if there is one, "
        "else h200",
    )
    plan.add_argument(
        "--fused",
        action="store_true",
        help="with what follows each BatchNorm, in the same kernel and as operators of its own",
    )
    plan.add_argument("--json", action="store_true", help="print figures for a program")


def run(options: argparse.Namespace) -> int:
    """Print the plans; the exit code."""
    from .. import fused_table, plan_table

    table = fused_table if options.fused else plan_table
    try:
        device, remark = plan_table.device_of(options.device)
        wanted = plan_table.request(
            options.what, options.batch, options.dtype, options.layout, device
        )
        print((table.as_json if options.json else table.as_text)(wanted, remark))
    except ValueError as error:
        raise UsageError(str(error)) from error
    return PASSED
