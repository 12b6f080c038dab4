"""What can be said of the compiled kernels without running them: no GPU is needed.

`driver` pretends to be one of four devices, `metrics` and `accesses` read what the compiler made,
`plans` calls the real launchers over a list of shapes, `check` judges, `budget` compares. `python
-m tritonbn_bench.static` prints the table. It must run in a process without TRITON_INTERPRET.

`suite` is `tritonbn-bench check --static`: some of these shapes, the launch plans of networks
(`launches`) and bytes moved (`traffic`), each measured by a `worker`. `model_plans` are those of a
user's model.
"""

from .accesses import Access
from .driver import TARGETS, FakeDriver, Target, active_driver
from .metrics import KernelFigures, examine

__all__ = [
    "TARGETS",
    "Access",
    "FakeDriver",
    "KernelFigures",
    "Target",
    "active_driver",
    "examine",
]
