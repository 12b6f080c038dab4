"""Every static check of the repository, in order; the exit code is that of the first failure."""

import subprocess
import sys

CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("mypy", "scripts"),
)


def main() -> int:
    """Run the checks with this interpreter."""
    for check in CHECKS:
        print("+", *check, flush=True)
        code = subprocess.run([sys.executable, "-m", *check]).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
