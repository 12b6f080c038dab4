"""`tritonbn-bench env`."""

from __future__ import annotations

import argparse
import os
import shutil
from typing import Any

from .common import PASSED, add_verb

__all__ = ["add", "run"]

# what a report or a test would be drawn or made with
LIBRARIES = ("numpy", "pandas", "matplotlib", "jinja2", "scikit-learn", "rich")
# of the environment, those that change what runs
VARIABLES = ("TRITON", "CUDA_", "HIP_", "PYTORCH_", "TORCHINDUCTOR_", "OMP_NUM_THREADS")


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
    for name, value in {**collect(device, options.command), **_around()}.items():
        print(f"{name:<20} {'-' if value is None else value}")
    return PASSED


def _around() -> dict[str, str | int | None]:
    """What decides how it runs here besides what results hold: libraries, compilers, variables."""
    from importlib import metadata

    import torch

    def version(library: str) -> str | None:
        try:
            return metadata.version(library)
        except metadata.PackageNotFoundError:
            return None

    return {
        "torch_cuda": torch.version.cuda,
        "torch_hip": torch.version.hip,
        "gpus": torch.cuda.device_count(),
        **{library: version(library) for library in LIBRARIES},
        # Triton builds its launchers with it
        "c_compiler": os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"),
        "triton_cache": os.environ.get("TRITON_CACHE_DIR") or "~/.triton/cache",
        **{name: os.environ[name] for name in sorted(os.environ) if name.startswith(VARIABLES)},
    }
