"""The rooms of gpprune, who may import whom, and what no file of the product may do."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gpprune"

# primitives <- compile <- prune <- evals <- cli, and primitives <- compile <- gp <- cli.
# What every room may use: errors, progress, tables of entries, files that appear whole.
BASE = ("errors", "files", "journal", "memory", "progress", "scratch", "tables")

# The floors, lowest first: whoever stands later may import those named, whole rooms here.
ROOMS: dict[str, tuple[str, ...]] = {
    "primitives": (),
    "compile": ("primitives",),
    "prune": ("primitives", "compile"),
    "evals": ("primitives", "compile", "prune"),
    "gp": ("primitives", "compile"),
    "discover": ("primitives", "compile", "prune", "evals", "gp"),
    "cli": ("primitives", "compile", "prune", "evals", "gp", "discover"),
}
# The same inside a room, of its sub-rooms and of files that stand on a floor of their own.
SUB_ROOMS: dict[str, dict[str, tuple[str, ...]]] = {
    "primitives": {
        "types": (),
        "nodes": (),
        "vocabulary": ("nodes",),
        "weights": ("types", "nodes", "vocabulary"),
        "units": ("types", "nodes", "vocabulary", "weights"),
        "language": ("types", "nodes", "vocabulary", "weights", "units"),
        "parser": ("types", "nodes", "weights", "language"),
        "canonical": ("types", "nodes", "weights", "units"),
        "formula": ("nodes", "weights", "units", "canonical", "language", "parser"),
        "transposed": ("types", "weights", "formula"),
        "published": ("nodes", "weights", "language", "formula"),
    },
    "compile": {
        "cache": (),
        "memory": (),
        "simpler": (),
        "program": ("simpler",),
        "reductions": ("program",),
        "backends": ("program", "reductions"),
        "cpp": ("cache", "program", "reductions", "backends"),
        "kernels": ("memory", "program", "backends", "cpp"),
        "behaviour": ("program", "backends"),
        "sources": (),
        "python": ("program", "reductions", "sources"),
        "render": ("python",),
        "profiles": (),
    },
    "prune": {
        "model": (),
        "select": (),
        "measure": ("model",),
        "update": ("measure", "select"),
        "allocate": ("model", "measure", "select"),
        "recover": ("model",),
        "schedule": (),
        "orders": ("measure", "update"),
        "recipe": ("schedule", "orders", "allocate", "measure", "select", "update"),
        "zeros": ("model", "measure", "select", "allocate", "recipe"),
        "step": ("model", "measure", "select", "update"),
        "coupled": ("model", "measure", "select", "update", "allocate", "recipe", "zeros"),
        "report": ("model", "coupled"),
        "stage": ("model", "measure"),
        "once": (
            *("model", "measure", "select", "update"),
            *("recipe", "zeros", "step", "coupled", "stage"),
        ),
        "kept": ("model", "recipe", "coupled", "report"),
        "shots": (
            *("model", "measure", "recover"),
            *("orders", "recipe", "coupled", "report", "stage", "once", "kept"),
        ),
        "pruner": (
            *("model", "measure", "orders", "coupled", "recipe", "zeros", "report", "shots"),
        ),
        "checkpoint": ("model", "recipe", "report"),
        "inspection": ("model", "select", "report", "checkpoint"),
    },
    "gp": {
        "settings": (),
        "fitness": (),
        "outcome": (),
        "state": (),
        "archive": ("outcome",),
        "variation": (),
        "paired": ("archive", "outcome"),
        "breeding": ("outcome", "settings", "variation"),
        "engine": ("archive", "breeding", "outcome", "paired", "settings", "state", "variation"),
        "screen": ("outcome",),
        "fidelity": ("fitness", "outcome", "paired", "screen", "settings"),
        "rundir": ("outcome", "settings", "state"),
        "judging": ("fidelity", "fitness", "outcome", "paired", "screen", "settings"),
        "workers": ("fidelity", "fitness", "judging", "outcome", "settings"),
        "search": (
            *("archive", "engine", "fidelity", "fitness", "judging", "outcome", "rundir"),
            *("screen", "settings", "state", "workers"),
        ),
    },
    "discover": {
        "texts": (),
        "workbench": ("texts",),
        "rivals": (),
        "goals": ("texts", "workbench", "rivals"),
        "stored": ("texts", "workbench", "goals"),
        "findings": ("texts", "workbench", "rivals", "goals"),
        "report": ("goals", "findings"),
        "search": ("texts", "workbench", "goals", "stored", "report", "findings"),
        "runs": ("report",),
        "contenders": ("report", "stored"),
        "describe": ("contenders", "runs"),
        "judges": ("workbench",),
        "compare": ("texts", "workbench", "contenders", "judges"),
        "sharing": ("texts", "workbench", "contenders"),
        "transfer": ("texts", "workbench", "rivals", "stored", "contenders", "judges"),
        "checkpoints": ("texts", "workbench", "contenders", "compare"),
        "plots": ("runs", "sharing", "transfer"),
        "watch": ("goals", "stored", "report", "runs", "plots"),
    },
}
# Libraries that a room does without: the language and the search know no language models.
WITHOUT: dict[str, set[str]] = {
    "primitives": {"transformers", "datasets"},
    "compile": {"transformers", "datasets"},
    "gp": {"transformers", "datasets", "torch"},
    "cli": {"torch", "transformers", "datasets"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def place_of(module: Sequence[str]) -> tuple[str, str]:
    """The room, and the place in it, of a module's parts after the package's name.

    ("", "") is the package itself; the place is "" for a room's own `__init__`.
    """
    parts = [part for part in module if part not in ("__init__", "__main__")]
    room = parts[0] if parts else ""
    return room, parts[1] if len(parts) > 1 and room in SUB_ROOMS else ""


def file_place(file: Path) -> tuple[str, str]:
    return place_of(file.relative_to(PACKAGE).with_suffix("").parts)


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


def imported_places(file: Path) -> Iterator[tuple[str, str, int]]:
    """The rooms and places of gpprune that a file imports, with the lines."""
    for name, line in imports_of(file):
        parts = name.split(".")
        if parts[0] != "gpprune":
            continue
        room, place = place_of(parts[1:])
        known = room in ROOMS or room in BASE
        inside = place in SUB_ROOMS.get(room, {})
        yield (room if known else ""), (place if inside else ""), line


def short(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_every_file_lies_in_a_known_place():
    assert FILES
    for file in FILES:
        room, place = file_place(file)
        assert room in ROOMS or room in BASE or room == "", short(file)
        assert place == "" or place in SUB_ROOMS[room], short(file)


@pytest.mark.parametrize("file", FILES, ids=short)
def test_imports_follow_the_arrows(file: Path):
    room, place = file_place(file)
    if room == "":  # the package's own __init__ and __main__ show all rooms
        return
    wrong = []
    for target, inner, line in imported_places(file):
        if target == room:
            # a room's __init__ shows all of it; a file of the room does not import through that
            fine = place == "" or inner == place or inner in SUB_ROOMS[room][place]
        else:
            fine = target in (*ROOMS.get(room, ()), *BASE)
            fine = fine or (room == "cli" and target == "")  # the version
        if not fine:
            wrong.append((target, inner, line))
    assert not wrong, f"{short(file)} in {room}/{place} imports {wrong}"


def test_nothing_imports_the_command_line_but_the_entry():
    for file in FILES:
        if file_place(file)[0] != "cli" and file.name != "__main__.py":
            assert not any(room == "cli" for room, _, _ in imported_places(file)), short(file)
    for file in sorted((ROOT / "benchmarks").glob("*.py")):
        assert not any(name.startswith("gpprune.cli") for name, _ in imports_of_any(file)), file


def imports_of_any(file: Path) -> Iterator[tuple[str, int]]:
    """The modules that a file outside the package imports by their full names."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=short)
def test_rooms_do_without_the_libraries_of_others(file: Path):
    unwanted = WITHOUT.get(file_place(file)[0], set())
    wrong = [(name, line) for name, line in imports_of(file) if name.split(".")[0] in unwanted]
    assert not wrong, f"{short(file)} imports {wrong}"


@pytest.mark.parametrize("arrows", [ROOMS, *SUB_ROOMS.values()], ids=["rooms", *SUB_ROOMS])
def test_arrows_have_no_cycle(arrows: dict[str, tuple[str, ...]]):
    seen: set[str] = set()
    for place, below in arrows.items():
        assert set(below) <= seen, f"{place} imports {set(below) - seen}, which stand later"
        seen.add(place)


def test_the_arrows_are_drawn_in_the_documentation():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for title, arrows in {"": ROOMS, **SUB_ROOMS}.items():
        for place, below in arrows.items():
            name = f"{title}/{place}" if title else place
            line = f"    {name} <- {', '.join(below)}" if below else f"    {name}"
            assert f"\n{line}\n" in page, f"docs/architecture.md does not say {line.strip()!r}"


def test_no_file_is_long_without_a_reason_and_no_folder_full():
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        doc = ast.get_docstring(ast.parse(text)) or ""
        assert text.count("\n") <= 300 or "lines" in doc, f"{short(file)} is long and says not why"
    for folder in {file.parent for file in FILES}:
        assert len(list(folder.glob("*.py"))) <= 14, f"{short(folder)} is full"


def test_the_command_line_is_thin():
    files = sorted((PACKAGE / "cli").glob("*.py"))
    assert sum(file.read_text(encoding="utf-8").count("\n") for file in files) < 1700


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
