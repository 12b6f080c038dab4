"""What every test stands on: the interpreter where no GPU is, a seed, and poisoned memory."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.utils.deterministic

# its one setting is a property of the module object, which the type stubs do not show
deterministic: Any = torch.utils.deterministic
HAS_GPU = torch.cuda.is_available()

if not HAS_GPU:
    # read when a kernel is decorated, hence before anything imports triton
    os.environ.setdefault("TRITON_INTERPRET", "1")
RUNS_ON_GPU = HAS_GPU and os.environ.get("TRITON_INTERPRET") != "1"
if not RUNS_ON_GPU:
    from tritonbn_bench.emulated import mend_interpreter

    mend_interpreter()
# the poison below switches deterministic algorithms on, and cuBLAS then asks for this
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_configure(config: pytest.Config) -> None:
    # torch's own layers beside ours may lack a deterministic form on a GPU: no finding of ours
    config.addinivalue_line(
        "filterwarnings", "ignore:.*does not have a deterministic implementation:UserWarning"
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not RUNS_ON_GPU:
        pytest.skip("needs kernels on a CUDA device: there is none, or the interpreter is chosen")


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test begins with the same random state."""
    torch.manual_seed(20150211)
    return 20150211


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill what `torch.empty` and its relatives return: NaN for floats, the largest integer else.

    torch fills inside the allocation, so outputs and scratch of every launcher are covered however
    they are allocated; memory that a kernel forgets to write, or reads too early, shows.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    yield
    deterministic.fill_uninitialized_memory = filled
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


@pytest.fixture
def launches() -> Iterator[list[Any]]:
    """The `LaunchRecord`s of all kernels that the test has launched so far."""
    import tritonbn_kernels

    with tritonbn_kernels.record_launches() as records:
        yield records
