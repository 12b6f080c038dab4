"""Claims about the source itself: arrows between the floors, sizes, exports, forbidden words.

Every rule is a function from (path, text) to the sentences it has against them, and every rule is
shown a planted fault that it must find.
"""

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80

# the package folder of each floor
FLOORS = {
    "kernels": "kernels/tritonbn_kernels/",
    "tritonbn": "tritonbn/",
    "bench": "bench/tritonbn_bench/",
}
# from each folder, the packages it must not look at; tests may look at everything
FORBIDDEN_ARROWS = {
    "kernels": {"tritonbn", "tritonbn_bench", "tests", "scripts"},
    "tritonbn": {"tritonbn_bench", "tests", "scripts"},
    "bench": {"tests", "scripts"},
    "scripts": {"tritonbn", "tritonbn_kernels", "tritonbn_bench", "tests"},
}
PURE_PYTHON = {
    "kernels/tritonbn_kernels/activation_names.py",
    "kernels/tritonbn_kernels/outlook.py",
    "kernels/tritonbn_kernels/plan.py",
    "kernels/tritonbn_kernels/plan_file.py",
    "kernels/tritonbn_kernels/traffic.py",
}
# knowledge of autograd: functions with a backward live in the first file, the second and third
# only ask whether a transform or a forward-mode level is active
AUTOGRAD_FILES = {
    "tritonbn/_operators.py",
    "tritonbn/functional.py",
    "tritonbn/_layer_calls.py",
    "tritonbn/_second_order.py",
}
# written in pieces, or this file would break its own rule
FORBIDDEN_TEXT = {
    "path of one machine": r"(?<![\w.])/(?:wo" + r"rk|ro" + r"ot|home/\w+)/",
    "package registry": r"\b(?:files\.pythonhosted|pypi|registry\.npmjs)\." + r"org\b",
    "word of a workplace": r"(?i)\b(?:sub-?ag" + r"ents?|this ses" + r"sion|device to" + r"ol)\b",
    "open end": r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b(?! ?\(?#\d)",
}

Rule = Callable[[str, str], Iterator[str]]


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every absolute import, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def arrows_point_down(path: str, text: str) -> Iterator[str]:
    """bench -> tritonbn -> kernels, and nothing back."""
    forbidden = FORBIDDEN_ARROWS.get(path.split("/")[0], set())
    for line, module in imported_modules(ast.parse(text)):
        if module.split(".")[0] in forbidden:
            yield f"{path}:{line} imports {module}"


def plans_are_pure_python(path: str, text: str) -> Iterator[str]:
    """Plans and traffic are arithmetic on sizes: neither torch nor Triton is in them."""
    if path in PURE_PYTHON:
        for line, module in imported_modules(ast.parse(text)):
            if module.split(".")[0] in {"torch", "triton"}:
                yield f"{path}:{line} imports {module}"


def autograd_has_one_home(path: str, text: str) -> Iterator[str]:
    """`torch.autograd` is named in one file of the lower floors (and where transforms are seen)."""
    if path.split("/")[0] not in {"kernels", "tritonbn"} or path in AUTOGRAD_FILES:
        return
    tree = ast.parse(text)
    for line, module in imported_modules(tree):
        if module.startswith("torch.autograd"):
            yield f"{path}:{line} imports {module}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.autograd":
            yield f"{path}:{node.lineno} uses torch.autograd"


def backward_is_defined_once(path: str, text: str) -> Iterator[str]:
    """Of the lower floors `_operators.py` alone subclasses `autograd.Function`; bench times one."""
    if path.split("/")[0] not in {"kernels", "tritonbn"} or path == "tritonbn/_operators.py":
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            bases = [ast.unparse(base) for base in node.bases]
            if any(base.endswith("autograd.Function") or base == "Function" for base in bases):
                yield f"{path}:{node.lineno} defines a Function"


def files_are_short(path: str, text: str) -> Iterator[str]:
    """A file that outgrows the limit has two subjects."""
    count = len(text.splitlines())
    if count > MAX_FILE_LINES:
        yield f"{path} has {count} lines, at most {MAX_FILE_LINES}"


def functions_are_short(path: str, text: str) -> Iterator[str]:
    """The same for functions, decorators and docstring counted."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(item.lineno for item in node.decorator_list)])
            count = (node.end_lineno or first) - first + 1
            if count > MAX_FUNCTION_LINES:
                yield f"{path}:{node.lineno} {node.name} has {count} lines"


def exports_are_sorted(path: str, text: str) -> Iterator[str]:
    """`__all__` is a plain sorted list or tuple without repeats."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
            # ruff's order: constants, classes, then the rest
            key = [(0 if n.isupper() else 1 if n[:1].isupper() else 2, n) for n in names]
            if key != sorted(set(key)):
                yield f"{path}:{node.lineno} has an unsorted __all__"


def faces_list_their_names(path: str, text: str) -> Iterator[str]:
    """The faces of the lower floors declare `__all__`."""
    faces = {f"{folder}__init__.py" for floor, folder in FLOORS.items() if floor != "bench"}
    if path in faces and "__all__" not in text:
        yield f"{path} has no __all__"


def imports_name_what_they_take(path: str, text: str) -> Iterator[str]:
    """No star imports."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            yield f"{path}:{node.lineno} imports *"


def text_speaks_of_the_project_alone(path: str, text: str) -> Iterator[str]:
    """No path of one machine, no registry host, no word of a workplace, no open end."""
    for kind, pattern in FORBIDDEN_TEXT.items():
        for found in re.finditer(pattern, text):
            line = text.count("\n", 0, found.start()) + 1
            yield f"{path}:{line} {kind}: {found.group()!r}"


LONG_FUNCTION = "def f():\n" + "    pass\n" * MAX_FUNCTION_LINES
# rule -> (path, text) of a fault that it must find
PLANTED: dict[Rule, tuple[str, str]] = {
    arrows_point_down: ("kernels/tritonbn_kernels/a.py", "def f():\n    import tritonbn.modules"),
    plans_are_pure_python: ("kernels/tritonbn_kernels/plan.py", "from torch import Tensor"),
    autograd_has_one_home: ("tritonbn/modules.py", "import torch\ntorch.autograd.grad()"),
    backward_is_defined_once: ("tritonbn/functional.py", "class F(autograd.Function): ..."),
    files_are_short: ("tests/test_a.py", "\n" * (MAX_FILE_LINES + 1)),
    functions_are_short: ("tests/test_a.py", LONG_FUNCTION),
    exports_are_sorted: ("tritonbn/__init__.py", "__all__ = ['revert', 'convert']"),
    faces_list_their_names: ("tritonbn/__init__.py", "from .functional import batch_norm"),
    imports_name_what_they_take: ("tritonbn/a.py", "from .modules import *"),
    text_speaks_of_the_project_alone: ("README.md", "see /wo" + "rk/notes"),
}
OTHER_FAULTS: list[tuple[Rule, str, str]] = [
    (arrows_point_down, "tritonbn/a.py", "from tritonbn_bench import cases"),
    (arrows_point_down, "bench/tritonbn_bench/a.py", "import tests.tolerances"),
    (autograd_has_one_home, "kernels/tritonbn_kernels/a.py", "from torch.autograd import grad"),
    (autograd_has_one_home, "kernels/tritonbn_kernels/a.py", "from torch import autograd"),
    (text_speaks_of_the_project_alone, "a.md", "https://py" + "pi.org/simple"),
    (text_speaks_of_the_project_alone, "a.md", "a sub" + "agent wrote it"),
    (text_speaks_of_the_project_alone, "a.py", "# TO" + "DO later"),
]
FAULTS = [*((rule, *fault) for rule, fault in PLANTED.items()), *OTHER_FAULTS]


def tracked_files() -> list[str]:
    """Paths under version control, relative to the root; every text file where there is no git."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode == 0:
        return [name for name in listing.stdout.splitlines() if (ROOT / name).is_file()]
    hidden = re.compile(r"(^|/)(\.|build/|dist/|__pycache__)")
    found = (str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file())
    return [name for name in found if not hidden.search(name)]


def sources(rule: Rule) -> Iterator[tuple[str, str]]:
    """Path and text of every file that `rule` speaks about."""
    for name in tracked_files():
        path = ROOT / name
        if rule is text_speaks_of_the_project_alone or name.endswith(".py"):
            content = path.read_bytes()
            if b"\0" not in content:
                yield name, content.decode("utf-8", errors="replace")


@pytest.mark.parametrize("rule", PLANTED, ids=lambda rule: rule.__name__)
def test_source_keeps_the_rule(rule: Rule) -> None:
    files = list(sources(rule))
    assert files
    assert [fault for path, text in files for fault in rule(path, text)] == []


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    FAULTS,
    ids=[f"{rule.__name__}-{index}" for index, (rule, _, _) in enumerate(FAULTS)],
)
def test_rule_finds_a_planted_fault(rule: Rule, path: str, text: str) -> None:
    assert list(rule(path, text)) != []


def test_floors_are_where_the_rules_look() -> None:
    assert all((ROOT / folder / "__init__.py").exists() for folder in FLOORS.values())
    assert all((ROOT / name).exists() for name in PURE_PYTHON)


def test_folders_that_hold_packages_are_no_packages() -> None:
    folders = ("kernels", "bench", "reports")
    assert not any((ROOT / name / "__init__.py").exists() for name in folders)
