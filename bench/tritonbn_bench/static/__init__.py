"""What can be said of the compiled kernels without running them: no GPU is needed.

`driver` pretends to be one of four devices, `metrics` reads what the compiler made, `plans` calls
the real launchers over a list of shapes, `check` judges. `python -m tritonbn_bench.static` prints
the table. It must run in a process without TRITON_INTERPRET.
"""

from .driver import TARGETS, FakeDriver, Target, active_driver
from .metrics import Access, KernelFigures, examine

__all__ = [
    "TARGETS",
    "Access",
    "FakeDriver",
    "KernelFigures",
    "Target",
    "active_driver",
    "examine",
]
