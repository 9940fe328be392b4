"""The program that made the files beside it, as it ran on commit eb69f8a.

It is kept as the record of how they came about. It imports modules of that commit, and is not run
again: what it wrote is to stay as it is, whatever becomes of the code.

    PYTHONPATH=.:tests python tests/data/before/make.py
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import conftest
import numpy as np
import random_allocations
import random_formulas
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gpprune.cli.evolve import _ready
from gpprune.cli.goals import JointGoal, MetricGoal
from gpprune.cli.main import run as command
from gpprune.cli.problem import Texts
from gpprune.compile import behaviour
from gpprune.evals import calibration_samples, read_text, tokenize
from gpprune.gp import PRESETS, RunDirectory, SearchEvent, SearchResult, Unfit, evolve
from gpprune.gp.variation import half_and_half, seeded
from gpprune.primitives import (
    ALLOCATION,
    ALLOCATIONS,
    JOINT,
    METRIC,
    Formula,
    FormulaError,
    Language,
    allocation,
    parse,
    published,
)
from gpprune.primitives.types import Elements, Profile
from gpprune.prune import Recipe, linear_layers, load_model, prune_model

HERE = Path(__file__).parent
COMMIT = "eb69f8a"
DRAWN = 2000
OTHERS = 250
BEHAVIOURS = 400
WORDS = 6000
VOCABULARY = 512
STEPS = 300


# Files


def write(name: str, head: Mapping[str, Any], lists: Mapping[str, Iterable[Any]]) -> None:
    """One JSON object: what is in `head` as it is, each list with one record a line."""
    parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for key, records in lists.items():
        lines = ",\n".join(json.dumps(record, separators=(",", ":")) for record in records)
        parts.append(f"{json.dumps(key)}: [\n{lines}\n]")
    text = "{\n" + ",\n".join(parts) + "\n}\n"
    json.loads(text)
    (HERE / name).write_text(text, encoding="utf-8")


def short(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()[:8]


# 1. Keys


def drawn(language: Language) -> list[Formula]:
    """Distinct formulas as a search draws them, of heights 1 to 5."""
    found: dict[str, Formula] = {}
    number = 0
    while len(found) < DRAWN:
        number += 1
        try:
            with seeded(20, number):
                formula = Formula(half_and_half(language, 1, 1 + number % 5), language)
        except FormulaError:  # a joint formula whose metric reads S
            continue
        found.setdefault(formula.text, formula)
    return list(found.values())


def grown(language: Language) -> list[Formula]:
    """Distinct formulas as the tests draw them, with what a search does not draw."""
    rng = random.Random(20)
    words = list(METRIC.primitives)
    steep = words + 5 * ["exp", "pow", "sqr", "mul", "div"]
    terminals = frozenset(language.terminals)
    grow = random_allocations._Grower(rng, language, terminals, random_allocations._any)
    plain = random_allocations._Grower(rng, language, terminals - {"S"}, random_allocations._any)
    makers: dict[str, Callable[[int], list[Any]]] = {
        "metric": lambda depth: random_formulas._grow(
            rng, rng.choice([words, steep]), METRIC.root, depth
        ),
        "allocation": lambda depth: grow(Profile, depth),
        "joint": lambda depth: [
            JOINT.nodes["joint"],
            *plain(Elements, depth),
            *grow(Profile, depth),
        ],
    }
    found: dict[str, Formula] = {}
    while len(found) < OTHERS:
        nodes = makers[language.name](rng.choice([2, 3, 4, 5]))
        if len(nodes) <= 60:
            formula = Formula(nodes, language)
            found.setdefault(formula.text, formula)
    return list(found.values())


def known(language: Language) -> list[Formula]:
    """All that is published, and some of it with other parameters."""
    if language is METRIC:
        return list(published.values())
    if language is JOINT:
        return list(JointGoal(Texts()).seeds().values())
    calls = ["owl(7, 0.05)", "atp(0.3)", "atp(-0.05)", "alphapruning(0.2)"]
    graph = "W:(ABSLOG)-(VAR)-(ATAN,ASIN)-(7)"
    return [*(e.formula for e in ALLOCATIONS.values()), *map(allocation, [*calls, graph])]


def make_keys() -> None:
    for language in (METRIC, ALLOCATION, JOINT):
        first, second, third = known(language), drawn(language), grown(language)
        unique = {formula.text: formula for formula in [*first, *second, *third]}
        told = {f.text for f in [*first, *second[:BEHAVIOURS], *third[:100]]}
        records = []
        for formula in unique.values():
            row, value = formula.canonical("row").text, formula.canonical(None).text
            record = [formula.text, formula.key, short(row), short(value)]
            if language is METRIC and formula.text in told:
                record.append(behaviour(formula, "row"))
            records.append(record)
        columns = ["text", "key", "sha256 of the row form", "sha256 of the value form"]
        if language is METRIC:
            columns.append("behaviour in rows, of some")
        write(
            f"keys-{language.name}.json",
            {"commit": COMMIT, "columns": columns},
            {"formulas": records},
        )


# 2. Searches without a model


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[A-Za-z_]+", text))


def noise(text: str, case: int) -> float:
    """A multiple of 2^-16 in [0, 1)."""
    digest = hashlib.sha256(f"{text}/{case}".encode()).digest()
    return int.from_bytes(digest[:2], "big") / 65536


class Words:
    """Loss of a case: the multiset distance of the words to a target's, and some noise."""

    cases = 16

    def __init__(self, target: str, spread: float) -> None:
        self.target = words(target)
        self.spread = spread

    def prepare(self, formula: Formula) -> Callable[[int, int], list[float]]:
        if not formula.names:
            raise Unfit("no terminal")
        mine = words(formula.text)
        distance = (self.target - mine).total() + (mine - self.target).total()
        base = distance + noise(formula.text, -1) / 1024
        return lambda start, stop: [
            case + base + self.spread * noise(formula.text, case) for case in range(start, stop)
        ]


LANGUAGES = {"metric": METRIC, "allocation": ALLOCATION, "joint": JOINT}

# name -> language, target, spread of the noise, preset, what is changed in it, seeds, whether
# behaviours are taken
TOYS: dict[str, tuple[str, str, float, str, dict[str, Any], dict[str, str], bool]] = {
    "metric": (
        "metric",
        "mul(abs(W), sqrt(add(X, G)))",
        0.5,
        "quick",
        {"generations": 8, "seed": 3},
        {name: published[name].text for name in ("magnitude", "wanda", "ria")},
        False,
    ),
    "metric with near copies": (
        "metric",
        "mul(abs(W), sqrt(add(X, G)))",
        1 / 64,  # losses of formulas of equal distance differ by about as much as count as alike
        "quick",
        {"generations": 5, "kin": 2, "seed": 9},
        {name: published[name].text for name in ("magnitude", "wanda", "ria")},
        False,
    ),
    "metric with behaviours": (
        "metric",
        "mul(sqr(W), add(log(X), pow(rownorm(G), 0.5)))",
        0.5,
        "quick",
        {"generations": 3, "seed": 4, "joins": 0.0, "immigrants": 0.5},
        {name: published[name].text for name in ("wanda", "gblm")},
        True,
    ),
    "metric as Pruner-Zero": (
        "metric",
        "div(mul(sqr(W), zscore(G)), add(colsum(abs(W)), Y))",
        0.5,
        "pruner-zero",
        {"population": 20, "generations": 60, "seed": 5},
        {},
        False,
    ),
    "metric at random": (
        "metric",
        "mul(abs(W), X)",
        0.5,
        "quick",
        {"strategy": "random", "generations": 3, "max_depth": 5, "seed": 6},
        {"magnitude": published["magnitude"].text},
        False,
    ),
    "allocation": (
        "allocation",
        "spread(add(outliers(S, 5), mul(0.3, depth)), -0.16)",
        0.5,
        "allocation",
        {"population": 16, "generations": 6, "seed": 7},
        {name: entry.formula.text for name, entry in ALLOCATIONS.items()},
        False,
    ),
    "joint": (
        "joint",
        "joint(mul(abs(W), sqrt(X)), spread(add(outliers(S, 5), depth), -0.16))",
        0.5,
        "allocation",
        {"population": 12, "offspring": 8, "generations": 4, "seed": 8},
        {name: formula.text for name, formula in JointGoal(Texts()).seeds().items()},
        False,
    ),
}


def rounded(value: float, digits: int) -> float | None:
    return round(value, digits) if math.isfinite(value) else None


def make_toys() -> None:
    heads: dict[str, Any] = {}
    lists: dict[str, list[Any]] = {}
    for name, (language, target, spread, preset, changes, seeds, behaviours) in TOYS.items():
        settings = PRESETS[preset].replaced(**changes)
        found = evolve(
            LANGUAGES[language],
            Words(target, spread),
            settings=settings,
            seeds={name: parse(text, LANGUAGES[language]) for name, text in seeds.items()},
            fingerprint=(lambda formula: behaviour(formula, "layer")) if behaviours else None,
        )
        heads[name] = {
            "language": language,
            "target": target,
            "spread": spread,
            "settings": settings.model_dump(),
            "seeds": seeds,
            "behaviours": behaviours,
            "archive_hits": found.archive_hits,
            "generations": found.generations,
        }
        lists[name] = [
            [o.key, o.text, o.origin, o.generation, rounded(o.fitness, 9)] for o in found.outcomes
        ]
    columns = ["key", "text", "origin", "generation", "fitness"]
    write("toy-search.json", {"commit": COMMIT, "columns": columns, "searches": heads}, lists)


# 3. The model and searches on it


def make_model() -> None:
    """As the tests' own tiny Llama is made, narrower and with a block more."""
    text = conftest._text(WORDS)
    (HERE / "text.txt").write_text(text, encoding="utf-8")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[conftest._END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=conftest._END, bos_token=conftest._END
    )
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    conftest._STEPS = STEPS
    tokens = torch.tensor(fast(text, add_special_tokens=False)["input_ids"])
    conftest._trained(LlamaForCausalLM, config, tokens, fast, HERE / "model")


SMALL = [
    *("--model", "model", "--text", "text.txt", "--calibration-text", "text.txt"),
    *("--windows", "8", "--window-length", "48", "--calibration-samples", "6"),
    *("--dtype", "float32", "--population", "8", "--generations", "3"),
]
TINY = {
    "metric": [*SMALL, "--sparsity", "0.6", "--pattern", "row", "--seed", "11"],
    "allocation": [*SMALL, "--sparsity", "0.6", "--metric", "wanda", "--seed", "12"],
    "joint": [*SMALL, "--sparsity", "0.6", "--pattern", "layer", "--unit", "block", "--seed", "13"],
}


def judged(path: Path) -> dict[str, Any]:
    """What a run directory holds of a search that ended."""
    with RunDirectory.open(path) as run:
        return {
            "settings": run.search.model_dump(),
            "problem": run.problem,
            "population": list(run.state().population),
            "archive_hits": run.state().archive_hits,
            "outcomes": [
                [
                    *(o.key, o.text, o.origin, o.generation, o.behaviour),
                    [round(loss, 6) for loss in o.losses],
                ]
                for o in run.outcomes()
            ],
        }


def reported(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run's report without its path, and the rows of its table."""
    document = json.loads((path / "report.json").read_text(encoding="utf-8"))
    rows = document.pop("formulas")
    del document["run"]
    for row in rows:
        for name in ("validation_perplexity", "test_perplexity"):
            row[name] = row[name] and round(row[name], 6)
    return document, rows


def make_searches() -> None:
    heads: dict[str, Any] = {}
    lists: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        for goal, flags in TINY.items():
            out = Path(folder) / goal
            assert command(["evolve", goal, *flags, "--out", str(out), "--json"]) == 0
            found = judged(out)
            lists[f"{goal} outcomes"] = found.pop("outcomes")
            summary, lists[f"{goal} report"] = reported(out)
            recipe = json.loads((out / "recipe.json").read_text(encoding="utf-8"))
            heads[goal] = {"flags": flags, **found, "report": summary, "recipe": recipe}
    columns = ["key", "text", "origin", "generation", "behaviour", "losses"]
    write("tiny-search.json", {"commit": COMMIT, "columns": columns, "searches": heads}, lists)


# 4. A search that was broken off


class BrokenOffError(Exception):
    """Ends a search between two candidates."""


def make_broken_off() -> None:
    # Of this seed a run that goes on where other kernels round otherwise ends the same, too. Of 14
    # it does not: two formulas with one mask tie, until one of them was judged elsewhere.
    texts = Texts("text.txt", "text.txt", 8, 48, 6, 15)
    goal = MetricGoal(texts, "model", 0.5, "layer", "float32")
    settings = PRESETS["quick"].replaced(population=8, generations=4, seed=15)

    def search(path: Path, last: int | None) -> SearchResult:
        bench = _ready(goal, None)
        fitness = goal.fitness(bench)

        def observe(event: SearchEvent) -> None:
            if last is not None and event.evaluated >= last:
                assert event.generation == 2 and 0 < event.index < event.total
                raise BrokenOffError

        with RunDirectory.create(path, settings, goal.stored()) as run:
            return evolve(
                goal.language,
                fitness,
                seeds=goal.seeds(),
                canonical=goal.canonical,
                fingerprint=fitness.fingerprint,
                run=run,
                observer=observe,
            )

    broken = HERE / "run-broken-off"
    shutil.rmtree(broken, ignore_errors=True)
    count = 8 + 12 + 5
    try:
        search(broken, count)
    except BrokenOffError:
        pass
    else:
        raise RuntimeError("the search was not broken off")
    with sqlite3.connect(broken / "run.db") as database:
        (mode,) = database.execute("PRAGMA journal_mode").fetchone()
        assert mode == "wal"
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    assert sorted(p.name for p in broken.iterdir()) == ["lock.db", "run.db", "settings.toml"]
    with TemporaryDirectory() as folder:
        search(Path(folder) / "run", None)
        found = judged(Path(folder) / "run")
    outcomes = found.pop("outcomes")
    columns = ["key", "text", "origin", "generation", "behaviour", "losses"]
    head = {"commit": COMMIT, "columns": columns, "broken off after": count, **found}
    write("run-finished.json", head, {"outcomes": outcomes})


# 5. Recipes and masks

RECIPES: dict[str, dict[str, Any]] = {
    "magnitude, rows": {"metric": "magnitude", "sparsity": 0.5, "pattern": "row"},
    "wanda, bands": {"metric": "wanda", "sparsity": 0.29, "pattern": "rows:16"},
    "ri, layer": {"metric": "ri", "sparsity": 0.6, "pattern": "layer"},
    "ria by owl": {"metric": "ria", "sparsity": 0.7, "pattern": "layer", "allocation": "owl"},
    "ria by owl, layers": {
        "metric": "ria",
        "sparsity": 0.7,
        "pattern": "rows:2",
        "allocation": "owl(3, 0.05)",
        "unit": "layer",
    },
    "pruner-zero by atp": {
        "metric": "pruner-zero",
        "sparsity": 0.5,
        "pattern": "row",
        "allocation": "atp(0.3)",
        "unit": "block",
    },
    "gblm by er, N:8": {
        "metric": "gblm",
        "sparsity": 0.6,
        "pattern": "N:8",
        "allocation": "er",
        "unit": "layer",
    },
    "sparsegpt, layer": {"metric": "sparsegpt", "sparsity": 0.5, "pattern": "layer"},
    "magnitude by dsa": {
        "metric": "magnitude",
        "sparsity": 0.55,
        "pattern": "row",
        "allocation": "dsa",
        "unit": "block",
    },
    "sparsegpt by a graph": {
        "metric": "sparsegpt",
        "sparsity": 0.55,
        "pattern": "row",
        "allocation": "W:(ABSLOG)-(MEAN)-(ATAN)-(3)",
        "unit": "block",
    },
    "wanda, 2:4": {"metric": "wanda", "pattern": "2:4"},
    "wanda by alphapruning": {
        "metric": "wanda",
        "sparsity": 0.7,
        "pattern": "row",
        "allocation": "alphapruning",
        "unit": "layer",
    },
    "magnitude by snip": {
        "metric": "magnitude",
        "sparsity": 0.5,
        "pattern": "layer",
        "allocation": "snip",
    },
    "wanda by global": {
        "metric": "wanda",
        "sparsity": 0.65,
        "pattern": "layer",
        "allocation": "global",
    },
    "pruner-zero by er-plus, N:4": {
        "metric": "pruner-zero",
        "sparsity": 0.5,
        "pattern": "N:4",
        "allocation": "er-plus",
        "unit": "block",
    },
    "wanda by besa": {"metric": "wanda", "sparsity": 0.5, "pattern": "row", "allocation": "besa"},
    "evolved metric and allocation": {
        "metric": "mul(sqr(W), add(sqrt(X), mul(12, rownorm(G))))",
        "sparsity": 0.6,
        "pattern": "layer",
        "allocation": "spread(add(outliers(mul(abs(W), X), 3), mul(0.4, depth)), 0.2)",
        "unit": "block",
    },
}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def make_masks() -> None:
    recipes, masks = [], []
    for name, values in RECIPES.items():
        recipe = Recipe(**values)
        recipes.append({"name": name, "recipe": recipe.model_dump()})
        for order in ("dense", "sequential"):
            loaded = load_model("model")
            tokens = tokenize(read_text("text.txt", "calibration"), loaded.tokenizer)
            prune_model(loaded.model, recipe, calibration_samples(tokens, 6, 48, 15), order=order)
            layers: dict[str, Sequence[Any]] = {}
            for place, layer in linear_layers(loaded.model).items():
                weight = layer.weight.contiguous().numpy()
                zero = np.packbits(weight == 0)
                layers[place] = [
                    int((weight == 0).sum()),
                    sha(zero.tobytes()),
                    sha(weight.astype("<f4").tobytes()),
                ]
            masks.append({"recipe": name, "order": order, "layers": layers})
    write("recipes.json", {"commit": COMMIT}, {"recipes": recipes})
    columns = ["zeros", "sha256 of the packed zero bits", "sha256 of the weight, float32"]
    calibration = {"samples": 6, "length": 48, "seed": 15}
    head = {"commit": COMMIT, "columns": columns, "calibration": calibration}
    write("masks.json", head, {"masks": masks})


def main() -> None:
    torch.set_num_threads(1)
    os.chdir(HERE)
    if not (HERE / "model").exists():  # its training does not repeat from machine to machine
        make_model()
    make_keys()
    make_toys()
    make_searches()
    make_broken_off()
    make_masks()


if __name__ == "__main__":
    main()
