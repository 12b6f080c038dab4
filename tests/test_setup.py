"""Claims about the script that prepares an environment: rules (a) and (b), by stand-in Pythons."""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "environment.py"

# answers like a Python with the modules that the file `has` beside it names, and writes down how
# it was called; `venv` copies the stand-in, so that the new environment answers likewise
STAND_IN = """#!/bin/sh
here=$(dirname "$0")
echo "$@" >> {log}
case "$1 $2 $3" in
    "-m venv --without-pip") grep -q bare {has} || exit 1; target=$4 ;;
    "-m venv "*) grep -q ensurepip {has} || exit 1; target=$3 ;;
    "-m pip install") grep -q network {has} || exit 1
        [ "$4" = --target ] && touch "$5/pip" ; exit 0 ;;
    "-m pip download") grep -q network {has} ; exit $? ;;
    "-m pip "*) [ -e "$here/../pip" ] || [ -e "$here"/../lib/*/site-packages/pip ] ; exit $? ;;
    "-c "*) exit 0 ;;
    *) exit 1 ;;
esac
mkdir -p "$target/bin" "$target/lib/{name}/site-packages"
touch "$target/pyvenv.cfg"
cp "$0" "$target/bin/python"
[ "$2 $3" = "venv --without-pip" ] || touch "$target/pip"
"""


def load_script() -> ModuleType:
    """The script as a module: it belongs to no package."""
    spec = importlib.util.spec_from_file_location("environment_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


environment = load_script()


class Machine:
    """A stand-in Python in a folder of its own, and a record of what was asked of it."""

    def __init__(self, folder: Path, has: Sequence[str]) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.has = folder / "has"
        self.has.write_text("\n".join(has) + "\n")
        self.python = folder / "host" / "bin" / "python"
        self.python.parent.mkdir(parents=True)
        name = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.python.write_text(STAND_IN.format(log=self.log, has=self.has, name=name))
        self.python.chmod(0o755)
        if "pip" in has:
            (folder / "host" / "pip").touch()
        (folder / "pyproject.toml").write_text('report = ["absent-one"]\ntest = ["absent-two"]\n')

    def target(self, extras: Sequence[str] = ("report", "test")) -> object:
        """An environment to be made by the stand-in."""
        return environment.VirtualEnvironment(
            folder=self.folder / "venv",
            torch="torch==0",
            extras=tuple(extras),
            host=str(self.python),
            root=self.folder,
        )

    def installs(self) -> list[str]:
        """The calls so far that installed the checkout."""
        calls = self.log.read_text().splitlines() if self.log.exists() else []
        return [call for call in calls if call.startswith("-m pip install") and " -e " in call]


WAYS = {
    "ensurepip": ("ensurepip", "network"),
    "externally-managed-without-venv-package": ("bare", "pip", "network"),
}


@pytest.mark.parametrize("has", WAYS.values(), ids=WAYS)
def test_environment_is_made_with_what_the_host_offers(tmp_path: Path, has: list[str]) -> None:
    machine = Machine(tmp_path, has)
    target = machine.target()
    assert environment.prepare(target, ("report", "test")) == str(tmp_path / "venv/bin/python")
    assert len(machine.installs()) == 1


def test_one_resolve_installs_torch_and_the_checkout(tmp_path: Path) -> None:
    machine = Machine(tmp_path, WAYS["ensurepip"])
    environment.prepare(machine.target(), ("report", "test"))
    assert machine.installs() == [f"-m pip install torch==0 -e {tmp_path}[report,test]"]


def test_second_command_installs_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, WAYS["ensurepip"])
    for _ in range(2):
        environment.prepare(machine.target(), ("report", "test"))
    assert len(machine.installs()) == 1


def test_changed_project_file_installs_again(tmp_path: Path) -> None:
    machine = Machine(tmp_path, WAYS["ensurepip"])
    environment.prepare(machine.target(), ("report", "test"))
    with (tmp_path / "pyproject.toml").open("a") as stream:
        stream.write('lint = ["absent-three"]\n')
    environment.prepare(machine.target(), ("report", "test"))
    assert len(machine.installs()) == 2


def test_further_extra_keeps_the_installed_ones(tmp_path: Path) -> None:
    machine = Machine(tmp_path, WAYS["ensurepip"])
    environment.prepare(machine.target(("test",)), ("test",))
    environment.prepare(machine.target(("lint",)), ("lint",))
    environment.prepare(machine.target(("test",)), ("test",))
    assert [call.split("[")[1] for call in machine.installs()] == ["test]", "lint,test]"]


def test_interrupted_installation_does_not_count(tmp_path: Path) -> None:
    machine = Machine(tmp_path, WAYS["ensurepip"])
    environment.prepare(machine.target(), ("report", "test"))
    (tmp_path / "venv" / environment.STAMP).unlink()
    environment.prepare(machine.target(), ("report", "test"))
    assert len(machine.installs()) == 2


@pytest.mark.parametrize("has", [("ensurepip",), ("bare", "pip")], ids=["ensurepip", "bare"])
def test_without_network_nothing_is_made_and_missing_extras_are_named(
    tmp_path: Path, has: list[str]
) -> None:
    machine = Machine(tmp_path, has)
    with pytest.raises(environment.SetupError, match=r"no package.*lacks absent-one, absent-two"):
        environment.prepare(machine.target(), ("report", "test"))
    assert not (tmp_path / "venv").exists()


def test_empty_venv_uses_this_interpreter() -> None:
    assert environment.prepare(None, ()) == sys.executable


def test_no_means_of_making_an_environment_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    machine = Machine(tmp_path, ("network",))
    machine.python.write_text("#!/bin/false\n")
    with pytest.raises(environment.SetupError, match="install python3-venv"):
        environment.prepare(machine.target(), ("test",))


def test_folder_that_is_no_environment_is_left_alone(tmp_path: Path) -> None:
    machine = Machine(tmp_path, WAYS["ensurepip"])
    treasure = tmp_path / "venv" / "thesis.txt"
    treasure.parent.mkdir()
    treasure.write_text("a year of work")
    with pytest.raises(environment.SetupError, match="expected VENV to name a virtual environment"):
        environment.prepare(machine.target(), ("test",))
    assert treasure.exists()


@pytest.mark.parametrize(
    ("answers", "expected"),
    [("exit 0", "torch>=2.11,<2.16"), ("exit 9", "torch==2.13.0"), (None, "torch==2.13.0")],
    ids=["gpu", "driver-without-gpu", "no-tool"],
)
def test_default_torch_follows_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: str | None, expected: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if answers is not None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{answers}\n")
        tool.chmod(0o755)
    assert environment.default_torch() == expected


def test_names_of_an_extra_come_from_the_project_file() -> None:
    assert {"pytest", "hypothesis", "greenlet"} <= set(environment.requirements("test"))
    with pytest.raises(environment.SetupError, match="expected an extra"):
        environment.requirements("no-such-extra")


def test_checkout_roots_come_before_the_users_path() -> None:
    path = environment.checkout_environment({"PYTHONPATH": "elsewhere"})["PYTHONPATH"]
    assert path == f"{ROOT}:{ROOT / 'kernels'}:{ROOT / 'bench'}:elsewhere"


def run_make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`make` at the root with this interpreter and no virtual environment."""
    command = ["make", "--no-print-directory", *arguments, f"PYTHON={sys.executable}", "VENV="]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_make_names_its_targets() -> None:
    listed = [line.split()[1] for line in run_make("help").stdout.splitlines()]
    assert listed == ["help", "bench", "report", "test", "gpu", "lint", "clean"]


def test_make_runs_the_checkout_without_an_environment() -> None:
    done = run_make("test", "ARGS=--version")
    assert done.returncode == 0, done.stderr
    assert "no environment is to be made" in done.stdout
    assert "pytest" in done.stdout + done.stderr


def test_missing_extra_ends_with_code_two(tmp_path: Path) -> None:
    program = "import sys; sys.argv[0] = 'environment.py'; import environment as e; "
    program += "e.CORE = ('absent-core',); sys.exit(e.main(['test', '-c', '']))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=SCRIPT.parent,
        env={"VENV": "", "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "lacks absent-core" in done.stderr) == (2, True)
