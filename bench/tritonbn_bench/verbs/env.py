"""`tritonbn-bench env`."""

from __future__ import annotations

import argparse
from typing import Any

from .common import PASSED, add_verb

__all__ = ["add", "run"]


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = add_verb(
        verbs,
        "env",
        "print what a bug report needs",
        "Print machine and versions, as a bug report needs them.",
        "example:\n  tritonbn-bench env\n",
    )
    parser.set_defaults(verb=run)


def run(options: argparse.Namespace) -> int:
    """Print the environment; the exit code."""
    import torch

    from ..environment import collect

    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, value in collect(device, options.command).items():
        print(f"{name:<20} {'-' if value is None else value}")
    return PASSED
