"""A search seen from outside: its status while it runs, and the page that tells of it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sqlite3
import tomllib
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import gpprune
from gpprune.cli import run
from gpprune.compile import render
from gpprune.discover import Texts
from gpprune.discover.watch import run_status, write_page
from gpprune.errors import GppruneError, UsageError
from gpprune.evals import NEXT_TOKEN, shown
from gpprune.gp import RunDirectory, front
from gpprune.primitives import ALLOCATIONS, METRIC, published

FEW = gpprune.SearchSettings(population=14, offspring=8, generations=2)
MATHML = "{http://www.w3.org/1998/Math/MathML}math"


@pytest.fixture(scope="module")
def text(tiny_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text(tiny_text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def goal(tiny_model_dir: Path, text: Path) -> gpprune.MetricGoal:
    texts = Texts(str(text), str(text), 3, 32, 3)
    return gpprune.MetricGoal(texts, str(tiny_model_dir), pattern="model", dtype="float32")


@pytest.fixture(scope="module")
def finished(goal: gpprune.MetricGoal, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    gpprune.discover(goal, out=out, settings=FEW)
    return out


@pytest.fixture(scope="module")
def stopped(goal: gpprune.MetricGoal, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that was broken off in a generation, without a report."""
    out = tmp_path_factory.mktemp("runs") / "stopped"

    def break_off(event: Any) -> None:
        if event.evaluated == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpprune.discover(
            goal, out=out, settings=FEW.replaced(seed=1, population=14), observer=break_off
        )
    return out


# Status


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_finished_search_is_told_as_its_report_has_it(finished: Path) -> None:
    before = contents(finished)
    found, document = run_status(finished), json.loads((finished / "report.json").read_text())
    assert (found.state, found.left, found.reported) == ("finished", 0, True)
    assert (found.generation, found.generations) == (2, 2)
    assert found.judged == document["evaluated"]
    assert found.archive_hits == document["archive_hits"]
    assert found.seconds_left is None
    assert "finished" in found.sentences[0]
    assert contents(finished) == before


def test_a_search_is_running_while_a_process_has_it(stopped: Path) -> None:
    with RunDirectory.open(stopped) as own, own.exclusive():
        assert run_status(stopped).state == "running"
    assert run_status(stopped).state == "stopped"


def test_a_stopped_search_says_how_much_is_left(stopped: Path) -> None:
    found = run_status(stopped)
    assert found.judged == 17
    asked = found.judged + found.left
    population = sum(1 for _ in RunDirectory.open(stopped).outcomes() if _.generation == 0)
    assert asked == population + 2 * FEW.offspring
    assert found.hourly is not None and found.seconds_left is not None
    assert found.seconds_left == pytest.approx(3600 * found.left / found.hourly)
    assert any(f"gpprune resume {stopped}" in sentence for sentence in found.sentences)
    assert not found.reported


def test_the_command_says_how_far_a_search_is(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", str(finished)]) == 0
    assert "generation 2 of 2" in capsys.readouterr().out
    assert run(["status", str(finished), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == run_status(finished).as_dict()
    assert run(["status", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_a_search_that_goes_on_past_its_end_is_not_finished(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")

    def break_off(event: Any) -> None:
        if event.generation == 4 and event.outcome is not None:
            status = run_status(tmp_path / "run")
            assert (status.state, status.generation, status.left) == ("running", 4, None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpprune.discover.resume(tmp_path / "run", generations=9, observer=break_off)
    found = run_status(tmp_path / "run")
    assert (found.state, found.generation, found.seconds_left) == ("stopped", 4, None)
    assert any("gpprune resume" in sentence for sentence in found.sentences)


def test_a_search_of_another_fitness_has_a_status_too(tmp_path: Path) -> None:
    settings = FEW.replaced(generations=1)
    with RunDirectory.create(tmp_path / "run", settings, {}) as own:
        gpprune.evolve(
            METRIC, gpprune.gp.FunctionFitness(lambda formula: 1.0 + formula.depth), run=own
        )
    found = run_status(tmp_path / "run")
    assert (found.state, found.left, found.judged > 0) == ("finished", 0, True)


# The page


class Page(HTMLParser):
    """What stands in a page: its elements, what they refer to, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.refers: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                self.refers.append(str(value))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_of(runs: list[Path], folder: Path) -> tuple[Page, list[Path]]:
    files = write_page(runs, folder / "page")
    return Page(files[0].read_text(encoding="utf-8")), files


def test_a_page_needs_nothing_but_itself(finished: Path, tmp_path: Path) -> None:
    page, files = page_of([finished], tmp_path)
    assert {"script", "iframe", "object", "img"}.isdisjoint(page.tags)
    assert set(re.sub(r"^#.*", "#", ref) for ref in page.refers) <= {"#", "data:,"}
    text = files[0].read_text(encoding="utf-8")
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))
    assert all(ref[1:] in page.ids for ref in page.refers if ref.startswith("#"))
    names = ["page.html"]
    for picture in ("convergence", "front", "layers"):
        names += [f"page-{picture}.png", f"page-{picture}.svg"]
    assert sorted(file.name for file in files) == sorted(names)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(names)
    assert page.tags["svg"] == 3


def test_a_page_tells_what_the_report_has(finished: Path, tmp_path: Path) -> None:
    page, files = page_of([finished], tmp_path)
    document = json.loads((finished / "report.json").read_text())
    words = " ".join(" ".join(page.words).split())
    for row in document["formulas"]:
        assert row["name"] in words
        for split in ("validation", "test"):
            assert shown(row[f"{split}_perplexity"]) in words
    text = files[0].read_text(encoding="utf-8")
    best = next(row for row in document["formulas"] if row["name"] == "evolved 1")
    formula = gpprune.parse(best["formula"], METRIC)
    assert render(formula.canonical(None), "mathml") in text
    assert best["formula"] in words
    for name, version in document["versions"].items():
        assert name in words and version in words
    layers = best["layers"]
    zeros, size = sum(layer["zeros"] for layer in layers), sum(layer["size"] for layer in layers)
    assert zeros == size // 2  # as the recipe has it


def test_the_family_goes_back_to_what_the_search_began_with(finished: Path, tmp_path: Path) -> None:
    page, _ = page_of([finished], tmp_path)
    with RunDirectory.open(finished) as own:
        known = {outcome.key: outcome for outcome in own.outcomes(METRIC)}
    (summary,) = gpprune.summarise([finished])
    assert summary.best is not None
    todo, origins = [summary.best.key], set()
    while todo:
        outcome = known[todo.pop()]
        origins.add(outcome.origin)
        todo += outcome.parents
    assert origins <= set(page.words)


def test_several_runs_stand_side_by_side(finished: Path, stopped: Path, tmp_path: Path) -> None:
    page, _ = page_of([finished, stopped], tmp_path)
    words = " ".join(" ".join(page.words).split())
    assert "What 2 searches found" in words
    assert "have not been judged on test text" in words  # those of the second
    assert "stopped before its last generation" in words
    found = gpprune.summarise([finished, stopped])
    values = [summary.validation for summary in found]
    assert None not in values
    deviation = abs(values[0] - values[1]) / 2**0.5
    assert f"{shown(sum(values) / 2)} ± {shown(deviation)}" in words


def test_runs_of_far_apart_figures_are_drawn(finished: Path, tmp_path: Path) -> None:
    worse = tmp_path / "worse"
    shutil.copytree(finished, worse)
    with sqlite3.connect(worse / "run.db") as database:
        database.execute("UPDATE candidates SET fitness = fitness + 10")  # 22,000 times the figure
    database.close()
    page, _ = page_of([finished, worse], tmp_path)
    assert page.tags["svg"] == 3


def test_names_are_text_and_not_markup(finished: Path, tmp_path: Path) -> None:
    odd = tmp_path / "<b>&amp; 'x'"
    odd.mkdir()
    for name, content in contents(finished).items():
        (odd / name).write_bytes(content)
    page, files = page_of([odd], tmp_path)
    assert page.tags["b"] == Page(files[0].read_text()).tags["b"]
    assert "<b>&amp; 'x'" in "".join(page.words)
    assert any(f"gpprune simplify {shlex.quote(str(odd))}" in word for word in page.words)


def test_a_search_with_nothing_yet_has_a_page(
    goal: gpprune.MetricGoal, finished: Path, tmp_path: Path
) -> None:
    def break_off(event: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpprune.discover(goal, out=tmp_path / "run", settings=FEW, observer=break_off)
    page, files = page_of([tmp_path / "run", finished], tmp_path)
    assert page.tags["svg"] == 3
    page, files = page_of([tmp_path / "run"], tmp_path / "alone")
    assert "no evolved formula yet" in " ".join(" ".join(page.words).split())
    assert [file.name for file in files] == ["page.html"]
    found = run_status(tmp_path / "run")
    assert (found.judged, found.hourly, found.best) == (0, None, None)
    assert "no formula has been judged in full yet" in found.sentences


@pytest.mark.parametrize("kind", ["metric", "allocation", "joint"])
def test_the_command_of_a_page_makes_the_search_again(
    kind: str, goal: gpprune.MetricGoal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = 3
    texts = replace(goal.texts, seed=seed)
    size = {"population": 6, "offspring": 5, "generations": 1, "seed": seed}
    made: Any = {
        "metric": gpprune.MetricGoal(
            texts, goal.model, 0.5, "2:4", "float32", update="refit", starts=("mul(G, W)",)
        ),
        "allocation": gpprune.AllocationGoal(
            texts, goal.model, 0.6, dtype="float32", metric="mul(abs(W), sqrt(X))", unit="block"
        ),
        "joint": gpprune.JointGoal(texts, goal.model, 0.5, dtype="float32"),
    }[kind]
    first = tmp_path / "the first"
    select = "pareto" if kind == "joint" else None
    how = {"select": select, "overlap": 1 if kind == "metric" else None}
    settings = gpprune.gp.settings_of(made.preset, **size, **how, time_limit="10m")
    gpprune.discover(made, out=first, settings=settings, rivals="best", winners=1)
    page, _ = page_of([first], tmp_path)
    (line,) = [word for word in page.words if word.startswith("gpprune evolve")]
    program, *arguments = shlex.split(line)
    assert program == "gpprune"
    arguments[arguments.index("DIR")] = str(tmp_path / "again")
    assert run([*arguments, "--rivals", "best", "--winners", "1"]) == 0
    capsys.readouterr()
    same = [tomllib.loads((at / "settings.toml").read_text()) for at in (first, tmp_path / "again")]
    assert same[0] == same[1]
    found = []
    for at in (first, tmp_path / "again"):
        with RunDirectory.open(at) as own:
            found.append([(o.text, o.losses, o.origin) for o in own.outcomes()])
    assert found[0] == found[1]


def test_a_report_says_how_far_rungs_rank_as_all_cases_do(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(finished), "--json"]) == 0
    rungs = json.loads(capsys.readouterr().out)[0]["rungs"]
    assert [rung["cases"] for rung in rungs] == [1, 2]
    for rung in rungs:
        assert rung["judged"] > 2 and -1 <= rung["kendall_tau"] <= 1
    assert run(["report", str(finished)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    taus = [f"{rung['kendall_tau']:.2f}" for rung in rungs]
    assert f"by the first 1, 2 cases the {rungs[0]['judged']} formulas" in said
    assert ", ".join(taus) in said
    page, _ = page_of([finished], tmp_path)
    assert "ranks as all cases" in page.words
    left = {outcome.cases for outcome in RunDirectory.open(finished).outcomes()}
    told = [tau for rung, tau in zip(rungs, taus, strict=True) if rung["cases"] in left]
    assert told and {*told} <= {*page.words}


def test_a_report_of_another_formula_says_nothing_of_the_best(
    finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    file = tmp_path / "run" / "report.json"
    document = json.loads(file.read_text())
    for row in document["formulas"]:
        if row["name"] == "evolved 1":
            row["formula"] = "mul(abs(W), pow(X, 0.123))"
            row["test_perplexity"] = 1.2345
    file.write_text(json.dumps(document))
    (tmp_path / "run" / "recipe.json").unlink()
    page, _ = page_of([tmp_path / "run"], tmp_path)
    words = " ".join(" ".join(page.words).split())
    assert "Its winners have not been judged on test text." in words
    assert "On test text its perplexity is" not in words
    assert "gpprune prune" not in words
    assert not run_status(tmp_path / "run").reported


def test_runs_are_averaged_that_differ_in_their_seed_alone(
    finished: Path, goal: gpprune.MetricGoal, tmp_path: Path
) -> None:
    other = replace(goal, texts=replace(goal.texts, windows=2))
    runs = [finished, finished]
    for seed, own in ((1, goal), (2, goal), (2, other)):
        texts = replace(own.texts, seed=seed)
        runs.append(tmp_path / f"{own.texts.windows}-{seed}")
        settings = FEW.replaced(seed=seed, generations=1)
        gpprune.discover(
            replace(own, texts=texts), out=runs[-1], settings=settings, rivals="best", winners=1
        )
    page, _ = page_of(runs, tmp_path / "all")
    words = " ".join(page.words)
    assert "The grey line" not in words
    page, _ = page_of(runs[:4], tmp_path / "like")
    assert "The grey line" in " ".join(page.words)


def test_runs_have_names_of_their_own(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    names = [one.name for one in gpprune.summarise([".", finished, finished])]
    assert names[0] == finished.name and len(set(names)) == 3


def test_what_cannot_be_told_is_an_error_in_a_sentence(
    finished: Path, goal: gpprune.MetricGoal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="no run to tell of"):
        write_page([], tmp_path / "page")
    with pytest.raises(UsageError, match="is not a directory"):
        write_page([tmp_path / "nothing"], tmp_path / "page")
    own = tmp_path / "own"
    own.mkdir()
    for name, content in contents(finished).items():
        (own / name).write_bytes(content)
    (own / "report.json").write_text('{"formulas": [{"name": 3}]}')
    with pytest.raises(GppruneError, match=r"report\.json cannot be read"):
        write_page([own], tmp_path / "page")
    assert not (tmp_path / "page.html").exists()
    (tmp_path / "file").write_text("")
    assert run(["report", str(finished), "--html", str(tmp_path / "file" / "page")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert run(["report", str(finished), "--html", str(tmp_path / "pages" / "mine.html")]) == 0
    assert (tmp_path / "pages" / "mine.html").is_file()
    assert "mine.html" in capsys.readouterr().out


def test_the_front_is_printed_by_length(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simplify", str(finished), "--by-length", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    with RunDirectory.open(finished) as own:
        wanted = front(own.outcomes(METRIC), METRIC)
    assert [row["perplexity"] for row in rows] == [
        NEXT_TOKEN.shown(outcome.fitness) for _, outcome in wanted
    ]
    assert [row["name"].split()[0] for row in rows] == [str(size) for size, _ in wanted]
    assert run(["simplify", "wanda", "--by-length"]) == 2
    assert "is of a run" in capsys.readouterr().err


# Formulas as MathML


@pytest.mark.parametrize("name", [*published, *ALLOCATIONS])
def test_published_formulas_are_typeset(name: str) -> None:
    formula = published[name] if name in published else ALLOCATIONS[name].formula
    element = ElementTree.fromstring(render(formula.canonical(None), "mathml"))
    assert element.tag == MATHML
    words = "".join(element.itertext())
    assert all(name.replace("_", "") in words for name in formula.canonical(None).names)
