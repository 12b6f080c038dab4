"""A small repository of tritonbn with a base and a head, for tests of gates."""

import json
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# a few us a call: what is timed does not matter here
SMALL = {
    "mode": "forward_train",
    "dtype": "fp32",
    "layout": "nchw",
    "batch": 4,
    "channels": 16,
    "plane": [8, 8],
}
HARMLESS = "\n# a word more, so that sources differ\n"
# every tenth of y is wrong by far more than any bound
WRONG = """

_right = batch_norm


def batch_norm(*arguments: Any, **named: Any) -> Tensor:
    return _right(*arguments, **named) + 0.1
"""


def git(folder: Path, *arguments: str) -> str:
    """What git answers."""
    settings = ("user.name=tests", "user.email=tests@localhost", "commit.gpgsign=false")
    who = [word for setting in settings for word in ("-c", setting)]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def make_repository(folder: Path, *changes: str) -> Path:
    """A repository with our packages: a commit of them, then one for each change.

    Args:
        folder: where it is made
        changes: appended to tritonbn/functional.py, one after another
    """
    ignored = shutil.ignore_patterns("__pycache__")
    for package in ("tritonbn", "kernels/tritonbn_kernels"):
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    (folder / ".gitignore").write_text("__pycache__/\nout/\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "base")
    for change in changes:
        with (folder / "tritonbn" / "functional.py").open("a") as file:
            file.write(change)
        git(folder, "commit", "--quiet", "-am", "head")
    return folder


def case_file(path: Path, *changes: dict[str, object]) -> Path:
    """A file of cases: the small one, changed in turn."""
    path.write_text(json.dumps([{**SMALL, **change} for change in changes or ({},)]))
    return path
