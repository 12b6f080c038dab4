"""Every static check of the repository, all of them even if one fails; exit code 1 if any does."""

import subprocess
import sys

CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
)


def main() -> int:
    """Run the checks with this interpreter."""
    failed = False
    for check in CHECKS:
        print("+", *check, flush=True)
        failed |= subprocess.run([sys.executable, "-m", *check]).returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
