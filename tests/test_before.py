"""What the code did on commit eb69f8a, held against what it does now.

The files of `data/before` say what became of formulas, searches, a broken-off run and recipes
before the code was rearranged; `data/before/make.py` shows how they were made. A difference here
is a change of behaviour, whatever the reason. Only the imports and the helpers that follow them
know where something lies in the package.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpprune.cli.main import run as command
from gpprune.compile import behaviour
from gpprune.evals import calibration_samples, read_text, tokenize
from gpprune.gp import RunDirectory, SearchSettings, Unfit, evolve, paired
from gpprune.gp.variation import half_and_half, reproducible
from gpprune.primitives import LANGUAGES, METRICS, STATISTICS, Formula, FormulaError, parse
from gpprune.prune import Recipe, linear_layers, load_model, prune_model

BEFORE = Path(__file__).parent / "data" / "before"

# Losses may differ in their last digits from machine to machine; what follows from them does not.
_LOSS = {"rel": 1e-4, "abs": 2e-6}


# What knows the package. All tests go through these.


@pytest.fixture(scope="module", autouse=True)
def drawn_then() -> Iterator[None]:
    """Draw what was drawn then, begin with the metrics that were published, and race as then.

    A search does not draw the statistics that have come since, nor does its race know the usual
    variance of a difference.
    """
    since = list(STATISTICS.values())[list(STATISTICS).index("D") + 1 :]
    metrics = list(METRICS.values())[list(METRICS).index("sparsegpt") + 1 :]
    kept = [dataclasses.replace(entry, searched=False) for entry in since]
    try:
        for metric in metrics:
            METRICS.remove(metric.name)
        for entry in since:
            STATISTICS.remove(entry.name)
        with STATISTICS.including(*kept), pytest.MonkeyPatch.context() as patch:
            patch.setattr(paired, "_WEIGHT", 0)
            yield
    finally:
        for entry in since:
            STATISTICS.add(entry)
        for metric in metrics:
            METRICS.add(metric)


@functools.cache
def _formula(text: str, language: str) -> Formula:
    return parse(text, LANGUAGES[language])


def _text(text: str, language: str) -> str:
    return _formula(text, language).text


def _key(text: str, language: str) -> str:
    return _formula(text, language).key


def _canonical(text: str, language: str, group: str | None) -> str:
    return _formula(text, language).canonical(group).text


def _behaviour(metric: str) -> str | None:
    return behaviour(_formula(metric, "metric"), "row")


def _drawn(language: str, number: int) -> str | None:
    """A formula as a search draws it; None for a tree that is no formula."""
    try:
        with reproducible(20, number):
            nodes = half_and_half(LANGUAGES[language], 1, 1 + number % 5)
        return Formula(nodes, LANGUAGES[language]).text
    except FormulaError:
        return None


class _Words:
    """Loss of a case: the multiset distance of the words to a target's, and some noise.

    A sum of integers and of multiples of 2^-26; exact, so that it is the same on every machine.
    """

    cases = 16

    def __init__(self, target: str, spread: float) -> None:
        self.target = _words(target)
        self.spread = spread

    def prepare(self, formula: Formula) -> Callable[[int, int], list[float]]:
        if not formula.names:
            raise Unfit("no terminal")
        mine = _words(formula.text)
        distance = (self.target - mine).total() + (mine - self.target).total()
        base = distance + _noise(formula.text, -1) / 1024
        return lambda start, stop: [
            case + base + self.spread * _noise(formula.text, case) for case in range(start, stop)
        ]


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[A-Za-z_]+", text))


def _noise(text: str, case: int) -> float:
    digest = hashlib.sha256(f"{text}/{case}".encode()).digest()
    return int.from_bytes(digest[:2], "big") / 65536


def _toy_search(about: dict[str, Any]) -> tuple[list[list[Any]], dict[str, int]]:
    """What a search finds that needs no model, in the columns of `toy-search.json`."""
    language = about["language"]
    found = evolve(
        LANGUAGES[language],
        _Words(about["target"], about["spread"]),
        settings=SearchSettings(**about["settings"]),
        seeds={name: _formula(text, language) for name, text in about["seeds"].items()},
        fingerprint=(lambda formula: behaviour(formula, "layer")) if about["behaviours"] else None,
    )
    rows = [[o.key, o.text, o.origin, o.generation, o.fitness] for o in found.outcomes]
    return rows, {"archive_hits": found.archive_hits, "generations": found.generations}


def _command(*arguments: str) -> None:
    assert command([*arguments]) == 0


def _run(path: Path) -> dict[str, Any]:
    """What a run directory holds."""
    with RunDirectory.open(path) as run:
        return {
            "settings": run.search.model_dump(),
            "problem": run.problem,
            "population": list(run.state().population),
            "archive_hits": run.state().archive_hits,
            "outcomes": [
                [o.key, o.text, o.origin, o.generation, o.behaviour, list(o.losses)]
                for o in run.outcomes()
            ],
        }


@functools.cache
def _model() -> tuple[Any, Any]:
    """The model and its calibration sequences."""
    loaded = load_model(str(BEFORE / "model"))
    tokens = tokenize(read_text(str(BEFORE / "text.txt"), "calibration"), loaded.tokenizer)
    of = _stored("masks.json")["calibration"]
    return loaded.model, calibration_samples(tokens, of["samples"], of["length"], of["seed"])


def _pruned(recipe: Path, order: str) -> dict[str, np.ndarray]:
    """Each layer's weight after pruning by a recipe's file, float32 `[out, in]`."""
    dense, calibration = _model()
    model = copy.deepcopy(dense)
    prune_model(model, Recipe.read(recipe), calibration, order=order)
    return {name: layer.weight.contiguous().numpy() for name, layer in linear_layers(model).items()}


# What is stored.


@functools.cache
def _stored(name: str) -> Any:
    return json.loads((BEFORE / name).read_text(encoding="utf-8"))


def _differing(was: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What was and what is, where the two differ."""
    names = dict.fromkeys([*was, *now])
    return {n: (was.get(n), now.get(n)) for n in names if was.get(n) != now.get(n)}


# Formulas.


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


_FACTS: dict[str, tuple[int, Callable[[str, str], str]]] = {
    "text": (0, _text),
    "key": (1, _key),
    "row form": (2, lambda text, language: _short(_canonical(text, language, "row"))),
    "value form": (3, lambda text, language: _short(_canonical(text, language, None))),
}


@pytest.mark.parametrize("fact", _FACTS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_formula_has_the_same(language: str, fact: str) -> None:
    column, tell = _FACTS[fact]
    rows = _stored(f"keys-{language}.json")["formulas"]
    assert len(rows) > 2000
    was = {row[0]: row[column] for row in rows}
    assert _differing(was, {text: tell(text, language) for text in was}) == {}


def test_a_metric_has_the_same_behaviour() -> None:
    rows = _stored("keys-metric.json")["formulas"]
    was = {row[0]: row[4] for row in rows if len(row) > 4}
    assert len(was) > 300
    assert _differing(was, {text: _behaviour(text) for text in was}) == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_same_formulas_are_drawn(language: str) -> None:
    known = {row[0] for row in _stored(f"keys-{language}.json")["formulas"]}
    drawn = [text for number in range(1, 400) if (text := _drawn(language, number)) is not None]
    assert [text for text in drawn if text not in known] == []


# Searches.


@pytest.mark.parametrize("name", _stored("toy-search.json")["searches"])
def test_a_search_without_a_model_finds_the_same(name: str) -> None:
    stored = _stored("toy-search.json")
    about = stored["searches"][name]
    rows, counts = _toy_search(about)
    assert [row[:4] for row in rows] == [row[:4] for row in stored[name]]
    was = [math.inf if row[4] is None else row[4] for row in stored[name]]
    assert [row[4] for row in rows] == pytest.approx(was, rel=0, abs=1e-9)
    assert counts == {key: about[key] for key in counts}


@pytest.fixture(scope="module", params=_stored("tiny-search.json")["searches"])
def searched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """A search's goal, and the run directory that the command makes of it now."""
    goal = request.param
    out = tmp_path_factory.mktemp("searches") / goal
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(BEFORE)  # the run names the model and the text as they lie there
        flags = _stored("tiny-search.json")["searches"][goal]["flags"]
        _command("evolve", goal, *flags, "--out", str(out), "--json")
    yield goal, out


def _same_outcomes(now: list[list[Any]], was: list[list[Any]]) -> None:
    assert [row[:5] for row in now] == [row[:5] for row in was]
    losses = {row[1]: row[5] for row in now}
    for row in was:
        assert losses[row[1]] == pytest.approx(row[5], **_LOSS), row[1]


SINCE = {"select": "fitness", "overlap": 0}  # settings that there were none of


def test_a_search_keeps_the_same_settings(searched: tuple[str, Path]) -> None:
    goal, out = searched
    was, now = _stored("tiny-search.json")["searches"][goal], _run(out)
    assert now["settings"] == was["settings"] | SINCE | {"first_rung": 1}  # a preset's
    # What has come since: paths are stored absolute, and a run knows its loss, its weight update,
    # the damping and shots of its recipe, what it starts from, and digests of what it judges on.
    assert _without_folder(now["problem"]) == was["problem"] | {
        "loss": "next-token",
        "update": "none",
        "damp_inputs": 0.01,
        "damp_outputs": 0.1,
        "shots": 1,
        "schedule": "linear",
        "starts": [],
        "digests": now["problem"]["digests"],
    }


def _without_folder(value: Any) -> Any:
    """A problem with the paths of the fixtures as they were given."""
    if isinstance(value, dict):
        return {name: _without_folder(inner) for name, inner in value.items()}
    return value.removeprefix(f"{BEFORE}/") if isinstance(value, str) else value


def test_a_search_judges_the_same(searched: tuple[str, Path]) -> None:
    goal, out = searched
    stored, now = _stored("tiny-search.json"), _run(out)
    was = stored["searches"][goal]
    _same_outcomes(now["outcomes"], stored[f"{goal} outcomes"])
    assert now["population"] == was["population"]
    assert now["archive_hits"] == was["archive_hits"]


def test_a_search_reports_the_same(searched: tuple[str, Path]) -> None:
    goal, out = searched
    stored = _stored("tiny-search.json")
    document = json.loads((out / "report.json").read_text(encoding="utf-8"))
    del document["run"]
    assert {"gpprune", "torch"} <= document.pop("versions").keys()
    now, was = document.pop("formulas"), copy.deepcopy(stored[f"{goal} report"])
    since = {"loss": "next-token", "update": "none", "order": None, "shots": 1, "estimate": None}
    since |= {"draft": None, "starts": []}
    assert document == stored["searches"][goal]["report"] | since
    kept = _distinct(was)
    for new, old in zip(now[: len(kept)], kept, strict=True):
        for measure in ("validation_perplexity", "test_perplexity"):
            value = old.pop(measure)
            assert new.pop(measure) == pytest.approx(value, **_LOSS), (old["name"], measure)
        layers = new.pop("layers", [])  # since then, of evolved ones
        assert bool(layers) == new["name"].startswith("evolved")
        assert new == old
    recipe = json.loads((out / "recipe.json").read_text(encoding="utf-8"))
    assert recipe == stored["searches"][goal]["recipe"]


def _distinct(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows up to the first evolved one that differs from another in its constants alone.

    Such a one is no winner of its own any more, and what follows it has moved up.
    """
    seen: set[str] = set()
    kept = []
    for row in rows:
        if row["name"].startswith("evolved"):
            species = re.sub(r"(?<![\w.])-?[0-9.]+(?:e[+-]?[0-9]+)?(?!\w)", "#", row["formula"])
            if species in seen:
                break
            seen.add(species)
        kept.append(row)
    return kept


def test_a_run_that_was_broken_off_then_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(BEFORE / "model", tmp_path / "model")
    shutil.copy(BEFORE / "text.txt", tmp_path)
    run = tmp_path / "run"
    shutil.copytree(BEFORE / "run-broken-off", run)
    monkeypatch.chdir(tmp_path)
    was = _stored("run-finished.json")
    begun = _run(run)
    count = was["broken off after"]
    assert len(begun["outcomes"]) == count < len(was["outcomes"])
    last = begun["outcomes"][-1][3]
    assert was["outcomes"][count][3] == last > 0  # in the middle of a generation
    _same_outcomes(begun["outcomes"], was["outcomes"][:count])

    _command("resume", "run", "--json")
    now = _run(run)
    _same_outcomes(now["outcomes"], was["outcomes"])
    assert now["settings"] == was["settings"] | SINCE
    for part in ("problem", "population", "archive_hits"):
        assert now[part] == was[part], part


# Recipes.


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


@pytest.mark.parametrize("order", ["dense", "sequential"])
@pytest.mark.parametrize("name", [entry["name"] for entry in _stored("recipes.json")["recipes"]])
def test_a_recipe_prunes_the_same(name: str, order: str, tmp_path: Path) -> None:
    recipes = {entry["name"]: entry["recipe"] for entry in _stored("recipes.json")["recipes"]}
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipes[name]), encoding="utf-8")
    (was,) = (
        entry["layers"]
        for entry in _stored("masks.json")["masks"]
        if (entry["recipe"], entry["order"]) == (name, order)
    )
    now = _pruned(path, order)
    zeros = {layer: int((weight == 0).sum()) for layer, weight in now.items()}
    assert zeros == {layer: facts[0] for layer, facts in was.items()}
    for layer, weight in now.items():
        assert _digest(np.packbits(weight == 0).tobytes()) == was[layer][1], f"mask of {layer}"
        assert _digest(weight.astype("<f4").tobytes()) == was[layer][2], f"weights of {layer}"
