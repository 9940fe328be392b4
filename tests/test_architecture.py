"""The rooms of gpprune, who may import whom, and what no file of the product may do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gpprune"

# primitives <- compile <- prune <- evals <- cli, and primitives <- compile <- gp <- cli.
# What every room may use: errors, progress, tables of entries, files that appear whole.
BASE = {"errors", "files", "progress", "tables"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "progress": set(),
    "tables": {"errors"},
    "primitives": BASE,
    "compile": BASE | {"primitives"},
    "prune": BASE | {"primitives", "compile"},
    "evals": BASE | {"primitives", "compile", "prune"},
    "gp": BASE | {"primitives", "compile"},
    "cli": BASE | {"primitives", "compile", "prune", "evals", "gp", ""},
    "": BASE | {"primitives", "compile", "prune", "evals", "gp", "cli"},
}
# Libraries that a room does without: the language and the search know no language models.
WITHOUT: dict[str, set[str]] = {
    "primitives": {"transformers", "datasets"},
    "compile": {"transformers", "datasets"},
    "gp": {"transformers", "datasets", "torch"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    """The room a file lies in; "" for the package's own `__init__` and `__main__`."""
    first = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first in ("__init__", "__main__") else first


def imports_of(file: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of the modules that a file imports anywhere, with their lines."""
    package = ("gpprune", *file.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def imported_rooms(file: Path) -> Iterator[tuple[str, int]]:
    """The rooms of gpprune that a file imports; "" for a name of the package itself."""
    for name, line in imports_of(file):
        parts = name.split(".")
        if parts[0] == "gpprune":
            inner = parts[1] if len(parts) > 1 else ""
            yield (inner if inner in MAY_IMPORT else ""), line


def short(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_every_file_lies_in_a_known_room():
    assert FILES
    assert {room_of(file) for file in FILES} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("file", FILES, ids=short)
def test_imports_follow_the_arrows(file: Path):
    room = room_of(file)
    allowed = MAY_IMPORT.get(room, set()) | {room}
    wrong = [(target, line) for target, line in imported_rooms(file) if target not in allowed]
    assert not wrong, f"{short(file)} in room {room!r} imports {wrong}"


@pytest.mark.parametrize("file", FILES, ids=short)
def test_rooms_do_without_the_libraries_of_others(file: Path):
    unwanted = WITHOUT.get(room_of(file), set())
    wrong = [(name, line) for name, line in imports_of(file) if name.split(".")[0] in unwanted]
    assert not wrong, f"{short(file)} imports {wrong}"


def test_arrows_have_no_cycle():
    rooms = {room: targets - {""} for room, targets in MAY_IMPORT.items() if room}
    while rooms:
        free = {room for room, targets in rooms.items() if not targets & rooms.keys()}
        assert free, f"a cycle among {sorted(rooms)}"
        rooms = {room: targets for room, targets in rooms.items() if room not in free}


# Names that turn text into code when called, and modules that do so when they load.
EVALUATORS = {"eval", "exec", "sympify", "parse_expr"}
EVALUATING_METHODS = {("gp", "compile"), ("PrimitiveTree", "from_string")}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}


def forbidden(tree: ast.AST) -> Iterator[str]:
    """What a file does that runs code out of data, a sentence each."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.split(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                names = names & {"sympify", "parse_expr"} | {(node.module or "").split(".")[0]}
            for name in names & (UNSAFE_MODULES | {"sympify", "parse_expr"}):
                yield f"line {node.lineno}: imports {name}"
        if isinstance(node, ast.Call):
            yield from forbidden_call(node)


def forbidden_call(node: ast.Call) -> Iterator[str]:
    function = node.func
    if isinstance(function, ast.Name) and function.id in EVALUATORS:
        yield f"line {node.lineno}: calls {function.id}"
    if isinstance(function, ast.Attribute):
        owner = getattr(function.value, "attr", getattr(function.value, "id", None))
        runs_text = owner in ("builtins", "sympy") and function.attr in EVALUATORS
        if runs_text or (owner, function.attr) in EVALUATING_METHODS:
            yield f"line {node.lineno}: calls {owner}.{function.attr}"
    for keyword in node.keywords:
        value = getattr(keyword.value, "value", None)
        if keyword.arg == "trust_remote_code" and value is not False:
            yield f"line {node.lineno}: trust_remote_code is not False"
        if keyword.arg == "weights_only" and value is not True:
            yield f"line {node.lineno}: weights_only is not True"


@pytest.mark.parametrize("file", FILES, ids=short)
def test_no_file_runs_code_out_of_data(file: Path):
    found = list(forbidden(ast.parse(file.read_text(encoding="utf-8"))))
    assert not found, f"{short(file)}: {found}"


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')",
        "exec(text)",
        "import pickle",
        "from pickle import loads",
        "import sympy\nsympy.sympify(text)",
        "from sympy import sympify",
        "from sympy.parsing.sympy_parser import parse_expr",
        "gp.compile(tree, pset)",
        "deap.gp.PrimitiveTree.from_string(text, pset)",
        "load(name, trust_remote_code=True)",
        "torch.load(path, weights_only=False)",
    ],
)
def test_the_check_sees_code_out_of_data(line: str):
    assert list(forbidden(ast.parse(line)))


@pytest.mark.parametrize("line", ["model.eval()", "kernel.compile(f)", "re.compile(x)"])
def test_the_check_lets_harmless_calls_pass(line: str):
    assert not list(forbidden(ast.parse(line)))
