"""Batch Normalization on hand-written Triton kernels: a drop-in for torch's layers and function."""

from . import blocks, reference
from ._convert import convert, revert
from ._plans import PlanFile, plans_in_use, use_plans
from ._warmup import WarmupReport, warmup
from .functional import backend, batch_norm, statistics
from .modules import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
)

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "PlanFile",
    "WarmupReport",
    "backend",
    "batch_norm",
    "blocks",
    "convert",
    "plans_in_use",
    "reference",
    "revert",
    "statistics",
    "use_plans",
    "warmup",
]
