"""The search as a whole, on a toy problem: what it finds, records, repeats and survives."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gpprune.errors import UsageError
from gpprune.gp import FunctionFitness, RunDirectory, SearchEvent, SearchSettings, Unfit, evolve
from gpprune.primitives import ALLOCATION, METRIC, Formula, parse


def search(toy: ModuleType, fitness: Any = None, **changes: Any) -> Any:
    return evolve(
        METRIC,
        toy.Words() if fitness is None else fitness,
        seeds=toy.SEEDS,
        settings=toy.SETTINGS.replaced(**changes),
    )


def test_it_improves_on_its_seeds(toy: ModuleType) -> None:
    result = search(toy, generations=15)
    seeds = [o for o in result.outcomes if o.origin.startswith("seed")]
    assert [o.origin for o in seeds] == ["seed magnitude", "seed wanda", "seed ria"]
    assert all(o.full for o in seeds)
    assert result.best(1)[0].fitness < min(o.fitness for o in seeds)
    assert result.generations == 15
    assert result.stopped is None


def test_one_seed_gives_one_search_whatever_the_hash_seed(toy: ModuleType, tmp_path: Path) -> None:
    here = toy.facts(search(toy))
    program = str(Path(toy.__file__))
    for hash_seed in ("0", "4711"):
        run = subprocess.run(
            [sys.executable, program, str(tmp_path / hash_seed)],
            env={
                **os.environ,
                "PYTHONHASHSEED": hash_seed,
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        assert toy.json.loads(run.stdout.splitlines()[-1]) == here


def test_what_evolved_is_what_the_search_added(toy: ModuleType) -> None:
    result = search(toy, generations=8)
    evolved = result.archive.evolved(3, distinct=False)
    assert [o.seeded for o in evolved] == [False] * 3
    assert evolved == [o for o in result.best(len(result.outcomes)) if not o.seeded][:3]
    assert any(o.seeded for o in result.outcomes)
    only_seeds = search(toy, population=1, generations=0)
    assert only_seeds.best(1) and not only_seeds.archive.evolved(1)


def test_another_seed_gives_another_search(toy: ModuleType) -> None:
    first = {o.key for o in search(toy).outcomes}
    assert first != {o.key for o in search(toy, seed=4).outcomes}


def test_the_global_random_state_is_left_alone(toy: ModuleType) -> None:
    random.seed(11)
    before = random.getstate()
    search(toy)
    assert random.getstate() == before
    random.seed(99)
    assert toy.facts(search(toy)) == toy.facts(search(toy))


def test_no_key_is_evaluated_twice(toy: ModuleType) -> None:
    fitness = toy.Words()
    result = search(toy, fitness, generations=12)
    assert len(fitness.prepared) == len(set(fitness.prepared)) == result.evaluated
    assert len({o.key for o in result.outcomes}) == result.evaluated
    assert all(parse(o.text).canonical().digest == o.key for o in result.outcomes)
    assert result.archive_hits > 0


def test_parents_come_from_earlier_generations(toy: ModuleType) -> None:
    outcomes = {o.key: o for o in search(toy).outcomes}
    children = [o for o in outcomes.values() if o.parents]
    assert children
    for child in children:
        assert all(outcomes[key].generation < child.generation for key in child.parents)


def test_seeds_that_mean_the_same_are_one_candidate(toy: ModuleType) -> None:
    seeds = {"wanda": parse("mul(abs(W), X)"), "again": parse("mul(X, abs(neg(W)))")}
    result = evolve(
        METRIC, toy.Words(), seeds=seeds, settings=SearchSettings(population=1, generations=0)
    )
    assert [o.origin for o in result.outcomes] == ["seed wanda"]
    assert result.archive_hits == 1


def test_a_plain_function_is_a_fitness() -> None:
    result = evolve(
        METRIC,
        FunctionFitness(lambda formula: abs(formula.complexity - 7) + formula.depth / 64),
        settings=SearchSettings(population=10, generations=10),
    )
    assert result.best(1)[0].fitness < 1
    assert all(o.cases == 1 for o in result.outcomes)


def test_a_candidate_past_its_time_is_recorded(toy: ModuleType) -> None:
    result = search(toy, toy.Words(pause=0.002), candidate_time_limit=0.001, generations=0)
    assert {o.reason for o in result.outcomes} <= {"ran past 0.001 s", "no terminal"}


def test_the_time_limit_ends_a_search_cleanly(toy: ModuleType) -> None:
    result = search(toy, time_limit=1e-9)
    assert result.stopped == "time limit"
    assert result.evaluated == 1
    assert result.generations == 0
    assert [o.origin for o in result.best(3)] == ["seed magnitude"]


@pytest.mark.parametrize("kin", [1, 2, None])
def test_formulas_that_differ_in_constants_alone_are_kin(
    toy: ModuleType, tmp_path: Path, kin: int | None
) -> None:
    settings = toy.SETTINGS.replaced(kin=kin, tune=0.7, generations=8, population=20)
    RunDirectory.create(tmp_path / "run", settings, {}).close()
    with RunDirectory.open(tmp_path / "run") as run:
        result = evolve(METRIC, toy.Words(), seeds=toy.SEEDS, run=run)
        states = run.states()
    texts = {o.key: o.text for o in result.outcomes}
    most = 0
    for state in states:
        skeletons = Counter(
            re.sub(r"-?\b\d+(\.\d+)?(e-?\d+)?\b", "c", texts[key]) for key in state.population
        )
        most = max(most, *skeletons.values())
    assert most == kin if kin else most > 2


def test_seeds_are_joined_and_merged_as_often_as_asked(toy: ModuleType) -> None:
    def origins(**changes: Any) -> list[str]:
        return [o.origin for o in search(toy, population=20, **changes).outcomes]

    first = origins(generations=0, joins=1.0, merge=0.5)
    assert {name.split()[0] for name in first} == {"seed", "join"}
    assert "join" not in {name.split()[0] for name in origins(generations=0, joins=0.0)}
    later = set(origins(generations=8, merge=1.0, immigrants=0.0))
    assert {"merge with parent", "merge with seed", "merge with random"} <= later
    assert not {
        name for name in later if name.split()[0] not in ("seed", "join", "random", "merge")
    }
    # without seeds there is nothing to merge with but parents and random formulas
    settings = toy.SETTINGS.replaced(merge=1.0, generations=6)
    alone = {o.origin for o in evolve(METRIC, toy.Words(), settings=settings).outcomes}
    assert alone == {"random", "merge with parent", "merge with random"}


def test_random_search_breeds_nothing(toy: ModuleType) -> None:
    result = search(toy, strategy="random")
    assert {o.origin.split()[0] for o in result.outcomes} == {"seed", "random"}


def test_events_count_what_the_result_holds(toy: ModuleType) -> None:
    events: list[SearchEvent] = []
    result = evolve(
        METRIC, toy.Words(), seeds=toy.SEEDS, settings=toy.SETTINGS, observer=events.append
    )
    assert sum(event.outcome is not None for event in events) == result.evaluated
    assert [event.outcome for event in events if event.outcome] == result.outcomes
    last = events[-1]
    assert last.evaluated == result.evaluated
    assert last.index == last.total
    assert last.generation == last.generations == result.generations
    assert last.archive_hits == result.archive_hits
    assert last.failed == sum(o.reason is not None for o in result.outcomes)
    assert last.dropped == sum(o.dropped for o in result.outcomes)
    assert last.best is not None and last.best.fitness == result.best(1)[0].fitness


def test_a_language_used_up_ends_in_smaller_generations() -> None:
    few = SearchSettings(
        population=5, generations=3, max_depth=1, depth_limit=1, size_limit=2, offspring=40
    )
    result = evolve(METRIC, FunctionFitness(lambda formula: float(len(formula.text))), settings=few)
    assert result.generations == 3
    assert len({o.key for o in result.outcomes}) == result.evaluated < 125


def test_a_seed_of_another_language_is_refused(toy: ModuleType) -> None:
    other = type(METRIC)("other", METRIC.root, METRIC.terminals, METRIC.primitives)
    with pytest.raises(UsageError, match="'wanda' is a metric formula"):
        evolve(other, toy.Words(), seeds={"wanda": parse("mul(abs(W), X)")})


def test_the_canonical_form_decides_what_is_one_candidate(toy: ModuleType) -> None:
    seeds = {"one": parse("abs(W)"), "other": parse("exp(abs(W))")}
    settings = SearchSettings(population=1, generations=0)
    same = evolve(METRIC, toy.Words(), seeds=seeds, settings=settings)
    apart = evolve(
        METRIC, toy.Words(), seeds=seeds, settings=settings, canonical=lambda f: f.canonical(None)
    )
    assert [len(result.outcomes) for result in (same, apart)] == [1, 2]


def behaviour(formula: Formula) -> str:
    """Formulas of the same letters are one: what they do is beside the point here."""
    return "".join(sorted(set(formula.text) & set("WXYG")))


def test_formulas_of_one_fingerprint_are_judged_once(toy: ModuleType) -> None:
    seeds = {**toy.SEEDS, "shifted": parse("sub(1, mul(abs(W), X))")}
    result = evolve(METRIC, toy.Words(), seeds=seeds, settings=toy.SETTINGS, fingerprint=behaviour)
    found = [behaviour(parse(o.text)) for o in result.outcomes]
    assert len(found) == len(set(found)) > 4
    assert [o.behaviour for o in result.outcomes] == found
    # ria reads W and X too, as wanda does, and so does the last seed
    assert [o.origin for o in result.outcomes[:2]] == ["seed magnitude", "seed wanda"]
    assert result.archive_hits > 1


@pytest.mark.parametrize("error", [Unfit("prunes nothing"), UsageError("no G"), KeyError("G")])
def test_a_formula_without_a_fingerprint_is_like_no_other(
    toy: ModuleType, error: Exception
) -> None:
    def unfit(formula: Formula) -> str:
        raise error

    with_none = evolve(
        METRIC, toy.Words(), seeds=toy.SEEDS, settings=toy.SETTINGS, fingerprint=unfit
    )
    assert toy.facts(with_none) == toy.facts(search(toy))


def test_a_formula_past_the_limits_does_not_stand_for_its_fingerprint(toy: ModuleType) -> None:
    asked: list[str] = []

    def fingerprint(formula: Formula) -> str:
        asked.append(formula.text)
        return behaviour(formula)

    settings = toy.SETTINGS.replaced(size_limit=6)
    evolve(METRIC, toy.Words(), seeds=toy.SEEDS, settings=settings, fingerprint=fingerprint)
    seeds = {seed.canonical() for seed in toy.SEEDS.values()}
    assert all(form.complexity <= 6 for form in map(parse, asked) if form not in seeds)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_a_broken_off_search_keeps_its_fingerprints(
    toy: ModuleType, tmp_path: Path, count: int
) -> None:
    def observe(event: SearchEvent) -> None:
        if event.evaluated >= count:
            raise KeyboardInterrupt

    def run(path: Path, observer: Any = None) -> Any:
        with RunDirectory.open(path) as directory:
            return evolve(
                METRIC,
                toy.Words(),
                seeds=toy.SEEDS,
                run=directory,
                fingerprint=behaviour,
                observer=observer,
            )

    for name in ("whole", "broken"):
        RunDirectory.create(tmp_path / name, toy.SETTINGS, {}).close()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", observe)
    assert toy.facts(run(tmp_path / "broken")) == toy.facts(run(tmp_path / "whole"))


def test_candidates_are_judged_and_varied_as_their_text_reads() -> None:
    """A tree may hold another primitive of the same name than its text is read as.

    A resumed run knows the texts alone, and must come to the same end.
    """
    judged: list[Formula] = []

    def loss(formula: Formula) -> float:
        judged.append(formula)
        return float(formula.complexity)

    settings = SearchSettings(
        population=400, generations=0, strategy="random", min_depth=4, max_depth=5
    )
    result = evolve(
        ALLOCATION, FunctionFitness(loss), settings=settings, canonical=lambda formula: formula
    )
    assert len(judged) == result.evaluated == 400
    for outcome, formula in zip(result.outcomes, judged, strict=True):
        read = [(node.name, node.ret) for node in parse(outcome.text, ALLOCATION).tree]
        assert [(node.name, node.ret) for node in formula.tree] == read
        assert [(n.name, n.ret) for n in outcome.parsed(ALLOCATION).tree] == read


def test_an_outcome_read_from_a_disk_is_parsed_once(toy: ModuleType, tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run", toy.SETTINGS, {}) as run:
        made = evolve(METRIC, toy.Words(), seeds=toy.SEEDS, run=run).outcomes
        read = run.outcomes()
    assert made == read
    assert all(o.formula is not None for o in made) and all(o.formula is None for o in read)
    assert [o.parsed(METRIC) for o in read] == [o.parsed(METRIC) for o in made]
    assert all(o.parsed(METRIC) is o.parsed(METRIC) for o in read)
