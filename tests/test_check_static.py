"""`tritonbn-bench check --static` from end to end: the same on every machine, and faults planted in
the sources of our own kernels are reported in words."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = (".", "kernels", "bench")
PACKAGES = ("tritonbn", "kernels/tritonbn_kernels", "bench/tritonbn_bench")
# a case of each part
CASE = "8x35x17x19 channels_last bf16 add relu"
ONLY = (CASE, "mlp N=32", "rows, alone")


@dataclass(frozen=True)
class Clone:
    """A copy of the sources, with a cache and budgets of its own."""

    folder: Path
    hash_seed: str

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Begin `check --static` of a few cases."""
        environment = {name: value for name, value in os.environ.items() if "TRITON" not in name}
        environment.pop("GITHUB_STEP_SUMMARY", None)
        environment |= {
            "PYTHONPATH": os.pathsep.join(str(self.folder / floor) for floor in FLOORS),
            "PYTHONHASHSEED": self.hash_seed,
            "PYTHONDONTWRITEBYTECODE": "1",
            "TRITON_CACHE_DIR": str(self.folder / "cache"),
        }
        command = [sys.executable, "-m", "tritonbn_bench", "check", "--static", "--jobs", "1"]
        command += ["--target", "sm_90", "--budgets", "budgets", "--out", "out"]
        for words in ONLY:
            command += ["--only", words]
        return subprocess.Popen(
            [*command, *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def change(self, path: str, before: str, after: str) -> None:
        """Plant a fault in a kernel."""
        file = self.folder / "kernels" / "tritonbn_kernels" / path
        text = file.read_text(encoding="utf-8")
        assert before in text, path
        file.write_text(text.replace(before, after), encoding="utf-8")

    def files(self) -> dict[str, bytes]:
        """Budgets and page, by name."""
        found = [*(self.folder / "budgets").iterdir(), self.folder / "out" / "check.md"]
        return {path.name: path.read_bytes() for path in found}


def finished(run: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output."""
    output, errors = run.communicate(timeout=600)
    assert not errors, errors
    return run.returncode, output


@pytest.fixture(scope="module")
def clones(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clone, Clone]:
    """Two, in folders of other length, with budgets written by a first check of each."""
    made = []
    for name, seed in (("one", "1"), ("a/second/clone", "2")):
        folder = tmp_path_factory.mktemp("clones") / name
        for package in PACKAGES:
            unread = shutil.ignore_patterns("__pycache__", "budgets")
            shutil.copytree(ROOT / package, folder / package, ignore=unread)
        made.append(Clone(folder, seed))
    first, second = made
    outputs = [finished(run) for run in [clone.start("--update") for clone in made]]
    assert outputs[0][0] == 0, outputs[0][1]
    assert outputs[0] == outputs[1]
    return first, second


@pytest.mark.slow
def test_two_clones_with_fresh_caches_say_the_same_to_the_byte(
    clones: tuple[Clone, Clone],
) -> None:
    first, second = (clone.files() for clone in clones)
    assert len(first) == 5
    assert first == second


@pytest.mark.slow
def test_what_was_accepted_is_passed_and_a_fault_in_the_sources_is_reported(
    clones: tuple[Clone, Clone],
) -> None:
    sound, faulty = clones
    # partial results of other programs read through the first cache, and everything done twice
    faulty.change("statistics.py", ', cache_modifier=".cg"', "")
    faulty.change("launch.py", "self.grid = (programs, 1, 1)", "self.grid = (programs, 2, 1)")
    runs = [sound.start(), faulty.start()]
    code, text = finished(runs[0])
    assert (code, text.splitlines()[-1]) == (0, "check --static: passed")
    code, text = finished(runs[1])
    assert code == 1
    worse = [line for line in text.splitlines() if line.startswith("WORSE ")]
    hints = f"WORSE train of {CASE} on sm_90, statistics_kernel: cache hints of load partials: "
    assert f"{hints}cg -> plain" in worse
    assert any(line.endswith("_kernel: grid y 0 -> 2") for line in worse)
    assert any("x moved 1.0 -> 2.0 times" in line for line in worse)
