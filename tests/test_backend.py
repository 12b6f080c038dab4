"""`backend` tells the truth about what runs, and `statistics` runs the same kernels."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tritonbn

from .agreement import DEVICE, assert_agreement, kernels_run_on


@pytest.mark.parametrize(
    "shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 4, 3)], ids=["nc", "ncl", "nchw", "ncdhw"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_statistics_are_mean_biased_variance_and_count(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = (torch.randn(shape, device=DEVICE) + 2.0).to(dtype)
    assert kernels_run_on(x)
    found = tritonbn.statistics(x)
    dims = [dim for dim in range(x.dim()) if dim != 1]
    kept_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    var, mean = torch.var_mean(x.double(), dims, correction=0)
    torch_var, torch_mean = torch.var_mean(x.to(kept_dtype), dims, correction=0)
    assert_agreement("mean", found.mean, torch_mean, mean)
    assert_agreement("var", found.var, torch_var, var)
    assert found.count == x.numel() // x.shape[1]


def test_statistics_run_torch_where_the_kernels_do_not() -> None:
    # no kernel takes a tensor under vmap
    x = torch.randn(3, 4, 2, device=DEVICE)
    found = torch.vmap(lambda one: tritonbn.statistics(one).mean)(x)
    assert found.shape == (3, 2)


class Subclass(Tensor):
    """A tensor that is not torch's own class."""


HANDED_TO_TORCH: dict[str, Callable[[], Tensor]] = {
    "integer": lambda: torch.ones(2, 3, device=DEVICE, dtype=torch.int64),
    "complex": lambda: torch.ones(2, 3, device=DEVICE, dtype=torch.complex64),
    "float8": lambda: torch.ones(2, 3, device=DEVICE).to(torch.float8_e4m3fn),
    "empty": lambda: torch.ones(0, 3, device=DEVICE),
    "subclass": lambda: torch.ones(2, 3, device=DEVICE).as_subclass(Subclass),
    "meta": lambda: torch.ones(2, 3, device="meta"),
    "sparse": lambda: torch.ones(2, 3, device=DEVICE).to_sparse(),
}


@pytest.mark.parametrize("kind", HANDED_TO_TORCH)
def test_backend_names_torch_for_what_the_kernels_do_not_take(kind: str) -> None:
    assert tritonbn.backend(HANDED_TO_TORCH[kind]()) == "torch"


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_backend_names_the_kernels_for_floating_point(
    dtype: torch.dtype, launches: list[Any]
) -> None:
    x = torch.ones(2, 3, device=DEVICE, dtype=dtype)
    assert tritonbn.backend(x) == ("triton" if x.is_cuda else "interpreter")
    tritonbn.batch_norm(x, None, None, training=True)
    assert len(launches) >= 1


def test_backend_is_torch_for_cpu_tensors_without_the_interpreter() -> None:
    program = (
        "import torch, tritonbn; x = torch.randn(2, 3); print(tritonbn.backend(x)); "
        "torch.manual_seed(0); "
        "assert torch.equal(tritonbn.batch_norm(x, None, None, training=True), "
        "torch.nn.functional.batch_norm(x, None, None, training=True))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["torch"]


def test_overrides_of_torch_function_see_the_call_of_torch() -> None:
    seen: list[tuple[object, int, tuple[str, ...]]] = []

    class Recorder(Tensor):
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> object:
            seen.append((func, len(args), tuple(sorted(kwargs or {}))))
            return None

    x = torch.ones(2, 3, device=DEVICE).as_subclass(Recorder)
    tritonbn.batch_norm(x, None, None, training=True)
    F.batch_norm(x, None, None, training=True)
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert seen[0][0] is F.batch_norm


def test_default_device_and_other_modes_keep_the_kernels(launches: list[Any]) -> None:
    x = torch.randn(2, 3, device=DEVICE)
    with torch.device(DEVICE):
        assert kernels_run_on(x)
        tritonbn.batch_norm(x, None, None, training=True)
    assert launches
