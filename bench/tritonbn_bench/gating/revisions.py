"""Where the packages of a side lie: a working tree, a revision checked out beside it, or what is
installed. Standard library only: workers ask it too."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

__all__ = ["PACKAGES", "Sources", "checkout", "head_of", "in_checkout", "tree_hash"]

# package -> folder of a checkout that holds it
PACKAGES = {"tritonbn": ".", "tritonbn_kernels": "kernels"}


@dataclass(frozen=True)
class Sources:
    """The packages of one side.

    Attributes:
        label: what people call it: a revision, "working tree" or "installed"
        commit: hash of the commit they stand on, "" where there is none
        roots: what goes on the import path, in order
        tree: root of the checkout, None of what is installed
    """

    label: str
    commit: str
    roots: tuple[Path, ...]
    tree: Path | None = None

    @property
    def packages(self) -> tuple[Path, ...]:
        """Folder of each of PACKAGES."""
        return tuple(root / name for root, name in zip(self.roots, PACKAGES, strict=True))

    @property
    def digest(self) -> str:
        """Hash of every source file."""
        return tree_hash(self.packages)


def tree_hash(packages: Iterable[Path]) -> str:
    """Hash of the names and contents of all files of some packages, byte code left out."""
    found = hashlib.sha256()
    for package in packages:
        for path in sorted(package.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                content = path.read_bytes()
                name = path.relative_to(package.parent).as_posix()
                found.update(f"{name}\0{len(content)}\0".encode())
                found.update(content)
    return found.hexdigest()[:16]


def head_of(folder: Path) -> Sources:
    """The working tree that `folder` lies in if it is a checkout of tritonbn, else what is
    installed.

    Raises:
        ValueError: neither is there
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is not None and _holds_packages(Path(top)):
        return in_checkout(Path(top), "working tree")
    specs = [find_spec(name) for name in PACKAGES]
    origins = [Path(spec.origin) for spec in specs if spec is not None and spec.origin]
    if len(origins) < len(PACKAGES):
        raise ValueError(f"expected a checkout of tritonbn at {folder}, or an installed tritonbn")
    return Sources("installed", "", tuple(origin.resolve().parents[1] for origin in origins))


def in_checkout(root: Path, label: str) -> Sources:
    """The packages of a checkout whose root is known."""
    commit = _git(root, "rev-parse", "--short=12", "HEAD") or ""
    tree = root.resolve()
    roots = tuple((tree / folder).resolve() for folder in PACKAGES.values())
    return Sources(label, commit, roots, tree)


@contextmanager
def checkout(repository: Path, revision: str) -> Iterator[Sources]:
    """A revision of a repository in a working tree of its own, which is gone afterwards.

    Args:
        repository: root of a checkout
        revision: anything that git takes for a commit

    Raises:
        ValueError: there is no such revision, or it holds no tritonbn
    """
    commit = _git(repository, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if commit is None:
        raise ValueError(
            f"expected a revision of {repository}, got {revision}: git knows no such commit "
            "(a shallow clone lacks history: git fetch --unshallow, or fetch-depth: 0 in CI)"
        )
    # what a killed run left behind
    _git(repository, "worktree", "prune")
    with tempfile.TemporaryDirectory(prefix="tritonbn-base-") as folder:
        tree = Path(folder) / "base"
        # a hook of the user's is none of our business
        quiet = ("-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false")
        command = ["git", "-C", str(repository), *quiet, "worktree", "add", "--detach"]
        try:
            done = subprocess.run([*command, str(tree), commit], capture_output=True, text=True)
            if done.returncode != 0:
                raise ValueError(f"git could not check out {revision}: {done.stderr.strip()}")
            if not _holds_packages(tree):
                raise ValueError(f"expected tritonbn in {revision}, got a commit without it")
            yield in_checkout(tree, revision)
        finally:
            _git(repository, "worktree", "remove", "--force", str(tree))
            _git(repository, "worktree", "prune")


def _holds_packages(root: Path) -> bool:
    return all((root / at / name / "__init__.py").exists() for name, at in PACKAGES.items())


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers; None where it fails, or is not installed."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
