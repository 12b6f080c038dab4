"""The harness of tritonbn: accuracy, speed and training measured, and a report of them.

Top floor: it looks down at `tritonbn` and `tritonbn_kernels`, and nobody imports it.
Importing this package imports neither torch nor Triton; `tritonbn_bench.cli` holds the commands.
"""

__all__: list[str] = []
