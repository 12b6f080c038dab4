"""Hardware counters of chosen cases: what Nsight Compute (ncu) counts of one call, beside the bytes
that the plan is expected to move. `python -m tritonbn_bench.counters --help` is the command."""
