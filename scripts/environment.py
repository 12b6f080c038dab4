"""The interpreter a command of the Makefile runs in: prepared if need be, then started.

    python scripts/environment.py EXTRAS ARGUMENT...

EXTRAS are names of pyproject's optional dependencies (`report,test`); the ARGUMENTs go to the
interpreter. Read from the environment: VENV (folder, `.venv`), TORCH (requirement; a default by
whether a GPU is seen), GPU_MACHINE (not empty: rule (a) below, whatever else is set).

(a) VENV is empty, or nothing can be fetched: nothing is made and nothing is installed, the
    interpreter that runs this script uses the checkout through PYTHONPATH.
(b) Otherwise a virtual environment is made and one resolve installs torch and the checkout. A
    stamp in it, made of pyproject.toml and the choices above, avoids repeats.

Exit code 2 with a sentence that names what is missing; otherwise the exit code of the command.
Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE_ROOTS = (".", "kernels", "bench")
CORE = ("torch", "triton", "numpy")
STAMP = "tritonbn-stamp.json"


class SetupError(Exception):
    """What is missing, in words for the user; becomes exit code 2."""


def is_silent_success(command: Sequence[str], timeout: float = 120.0) -> bool:
    """Whether `command` exists and exits with 0; its output is dropped, timeout in seconds."""
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=timeout, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def default_torch() -> str:
    """The requirement for torch: one known version where no GPU answers, a range where one does."""
    for tool in (["nvidia-smi", "-L"], ["rocm-smi", "--showid"]):
        if is_silent_success(tool, timeout=30.0):
            return "torch>=2.11,<2.16"
    return "torch==2.13.0"


def requirements(extra: str, root: Path = ROOT) -> list[str]:
    """The distribution names that pyproject.toml lists under the optional dependency `extra`."""
    # python 3.10 has no tomllib, and the file keeps each extra a plain list of strings
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(rf"\b{re.escape(extra)}\s*=\s*\[(.*?)\]", text, re.DOTALL)
    if found is None:
        raise SetupError(f"expected an extra of pyproject.toml, got {extra!r}")
    return re.findall(r'"([A-Za-z0-9._-]+)', found.group(1))


def missing(extras: Sequence[str], root: Path = ROOT) -> list[str]:
    """Distributions that this interpreter lacks: the core ones and those of `extras`, in order."""
    names = [*CORE, *(name for extra in extras for name in requirements(extra, root))]
    absent = []
    for name in dict.fromkeys(names):
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
    return absent


@dataclass(frozen=True)
class VirtualEnvironment:
    """Rule (b): where the environment lies, what goes into it, which interpreter makes it."""

    folder: Path
    torch: str
    extras: tuple[str, ...]
    host: str = sys.executable
    root: Path = ROOT

    @property
    def python(self) -> str:
        """Path of the environment's interpreter."""
        return str(self.folder / "bin" / "python")

    def stamp(self, extras: Sequence[str]) -> dict[str, object]:
        """What an installation depends on; written last, so that half of one never counts."""
        project = (self.root / "pyproject.toml").read_bytes()
        return {
            "project": hashlib.sha256(project).hexdigest(),
            "root": str(self.root),
            "host": self.host,
            "torch": self.torch,
            "extras": sorted(extras),
        }

    def read_stamp(self) -> dict[str, object]:
        """The stamp of the last finished installation; empty where there is none."""
        try:
            found = json.loads((self.folder / STAMP).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def installed_extras(self) -> list[str]:
        """Extras of the last finished installation, whatever it was made from."""
        found = self.read_stamp().get("extras")
        return [str(extra) for extra in found] if isinstance(found, list) else []

    def is_ready(self) -> bool:
        """Whether nothing has to be installed: same state, and at least the extras asked for."""
        installed = self.installed_extras()
        return (
            set(self.extras) <= set(installed)
            and self.read_stamp() == self.stamp(installed)
            and is_silent_success([self.python, "-c", ""])
        )

    def ways_to_make(self) -> list[list[list[str]]]:
        """Command sequences, tried in order, that end with an environment which has pip."""
        folder, bare = str(self.folder), [self.host, "-m", "venv", "--without-pip"]
        name = f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = str(self.folder / "lib" / name / "site-packages")
        return [
            [[self.host, "-m", "venv", folder]],
            # no ensurepip (Debian without python3-venv); a target is free of PEP 668's ban
            [[*bare, folder], [self.host, "-m", "pip", "install", "--target", packages, "pip"]],
            [[self.host, "-m", "virtualenv", folder]],
            [["uv", "venv", "--seed", "--python", self.host, folder]],
        ]

    def make(self) -> bool:
        """Make the environment unless a usable one of this host is there; whether it has pip.

        Raises SetupError where the folder is somebody else's or no way of making one exists.
        """
        has_pip = [self.python, "-m", "pip", "--version"]
        of_this_host = self.read_stamp().get("host", self.host) == self.host
        if of_this_host and is_silent_success(has_pip):
            return True
        for way in self.ways_to_make():
            self.remove()
            if all(is_silent_success(command, timeout=600.0) for command in way):
                if is_silent_success(has_pip):
                    return True
        self.remove()
        # a pip that could fetch nothing is a matter of the network, not of the set-up
        if is_silent_success([self.host, "-m", "pip", "--version"]):
            return False
        raise SetupError(
            f"expected venv, pip, virtualenv or uv to make {self.folder}, got none that works: "
            "install python3-venv, or use an interpreter with torch and triton and set VENV="
        )

    def remove(self) -> None:
        """Delete the folder; SetupError if it holds anything but a virtual environment."""
        if not self.folder.exists():
            return
        if any(self.folder.iterdir()) and not (self.folder / "pyvenv.cfg").exists():
            raise SetupError(f"expected VENV to name a virtual environment, got {self.folder}")
        shutil.rmtree(self.folder)

    def can_fetch(self) -> bool:
        """Whether pip gets hold of a package the build needs anyway: a network, or a mirror."""
        with tempfile.TemporaryDirectory() as folder:
            options = ["--no-deps", "--retries", "0", "--timeout", "15", "--dest", folder]
            download = [self.python, "-m", "pip", "download", *options, "setuptools>=77"]
            return is_silent_success(download)

    def install(self) -> None:
        """ONE resolve for torch and the checkout with its extras, then the stamp."""
        kept = [extra for extra in self.installed_extras() if extra not in self.extras]
        extras = sorted({*self.extras, *kept})
        (self.folder / STAMP).unlink(missing_ok=True)
        print(f"installing {self.torch} and the checkout into {self.folder}", flush=True)
        project = f"{self.root}[{','.join(extras)}]"
        command = [self.python, "-m", "pip", "install", self.torch, "-e", project]
        if subprocess.run(command, stdin=subprocess.DEVNULL).returncode != 0:
            raise SetupError(f"expected pip to install {self.torch} and the checkout, it failed")
        stamp = json.dumps(self.stamp(extras), indent=1)
        (self.folder / STAMP).write_text(stamp + "\n", encoding="utf-8")


def checkout_environment(environment: Mapping[str, str], root: Path = ROOT) -> dict[str, str]:
    """A copy of `environment` in which the three source roots of the checkout are importable."""
    paths = [str((root / folder).resolve()) for folder in SOURCE_ROOTS]
    if environment.get("PYTHONPATH"):
        paths.append(environment["PYTHONPATH"])
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


def use_checkout(extras: Sequence[str], reason: str, root: Path = ROOT) -> str:
    """Rule (a): this interpreter, if nothing is missing in it; SetupError names what is."""
    absent = missing(extras, root)
    if absent:
        raise SetupError(f"{reason}, and {sys.executable} lacks {', '.join(absent)}")
    print(f"{reason}: {sys.executable} runs the checkout as it is", flush=True)
    return sys.executable


def prepare(target: VirtualEnvironment | None, extras: Sequence[str]) -> str:
    """Path of the interpreter to run: the environment's (rule b) or this one (rule a)."""
    if target is None:
        return use_checkout(extras, "no environment is to be made")
    if target.is_ready():
        return target.python
    made_before = target.folder.exists()
    if target.make() and target.can_fetch():
        target.install()
        return target.python
    if not made_before:
        target.remove()
    return use_checkout(extras, "no package can be fetched", target.root)


def main(arguments: Sequence[str]) -> int:
    """Prepare, then become the command; returns only when something is missing."""
    # a fresh machine may well offer an older one
    if sys.version_info < (3, 10):  # noqa: UP036
        print(f"expected Python 3.10 or newer, got {sys.version.split()[0]}: set PYTHON")
        return 2
    extras = tuple(arguments[0].split(","))
    venv = os.environ.get("VENV", ".venv")
    target = None
    try:
        # an interpreter that lives in VENV would delete itself to make room for a new one
        if venv and Path(sys.prefix).resolve() != (ROOT / venv).resolve():
            torch = os.environ.get("TORCH") or default_torch()
            target = VirtualEnvironment(ROOT / venv, torch, extras)
        python = prepare(target, extras)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 2
    environment = dict(os.environ)
    if python == sys.executable:
        environment = checkout_environment(environment)
    os.execve(python, [python, *arguments[1:]], environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
