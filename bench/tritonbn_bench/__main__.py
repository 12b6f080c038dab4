"""`python -m tritonbn_bench` is `tritonbn-bench`."""

import sys

from tritonbn_bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
