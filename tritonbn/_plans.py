"""Plan files: what `tritonbn-bench search --write` found faster on one GPU, used when asked for."""

from __future__ import annotations

import os

import torch

from tritonbn_kernels import plan_file
from tritonbn_kernels.launch import gpu_of
from tritonbn_kernels.normalize import normalize_kernel
from tritonbn_kernels.plan_file import PlanFile

from .functional import backend

__all__ = ["PlanFile", "plans_in_use", "use_plans"]


def use_plans(path: str | os.PathLike[str] | None) -> PlanFile | None:
    """Plan by the rows of a plan file from now on, where it has one for a call.

    It is read here and now, and precedes the file that the environment variable TRITONBN_PLAN_FILE
    names; plans that TRITONBN_PLAN pins precede both. To be called before a training or between
    two: another plan may round sums otherwise; and after `torch.cuda.set_device`, for the current
    GPU is looked at. All GPUs that a process trains on must be of the file's kind.

    Args:
        path: as `tritonbn-bench search --write` wrote it; None for no file but the environment's.

    Returns:
        what was read, text for people by `str`; None for None.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no plan file, a row is none, or it is for another GPU than the current.
        RuntimeError: no GPU is visible, and the interpreter is not chosen: no plan is made here.
    """
    found = None
    if path is not None:
        found = plan_file.read(path)
        x = torch.empty(1, 1, device="cuda" if torch.cuda.is_available() else "cpu")
        if backend(x) == "torch":
            raise RuntimeError(f"expected a GPU to use the plans of {path} on, got none")
        found.check(gpu_of(normalize_kernel, x))
    plan_file.use(found)
    return found


def plans_in_use() -> PlanFile | None:
    """The plan file that calls follow, None where all plans are those of the table.

    Raises:
        ValueError: TRITONBN_PLAN_FILE names a file that cannot be read or is none.
    """
    return plan_file.in_use()
