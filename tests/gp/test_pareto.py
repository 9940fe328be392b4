"""Searches in which shorter formulas survive though they are worse: NSGA-II on loss and length."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpprune.errors import UsageError
from gpprune.gp import Outcome, RunDirectory, SearchSettings, evolve, front
from gpprune.gp.archive import fittest
from gpprune.primitives import METRIC, Formula

TEXTS = {  # by the number of nodes
    1: ["W", "X", "Y", "G"],
    2: ["abs(W)", "sqr(G)", "sqrt(X)", "sqrt(Y)"],
    3: ["mul(W, X)", "mul(W, G)", "add(X, Y)", "mul(X, Y)"],
    4: ["mul(abs(W), X)", "mul(abs(W), G)", "mul(sqr(W), X)", "mul(sqr(W), Y)"],
}


def outcome(text: str, loss: float) -> Outcome:
    return Outcome(
        key=text,
        text=text,
        fitness=loss,
        losses=(loss, loss),
        full=True,
        reason=None,
        seconds=0.1,
        origin="random",
        generation=1,
    )


def size(one: Outcome) -> int:
    return one.parsed(METRIC).complexity


def dominates(a: Outcome, b: Outcome) -> bool:
    no_worse = a.fitness <= b.fitness and size(a) <= size(b)
    return no_worse and (a.fitness < b.fitness or size(a) < size(b))


def rank(one: Outcome, among: list[Outcome]) -> int:
    """How many fronts lie before it, by the definition."""
    left, found = [*among], 0
    while True:
        first = [a for a in left if not any(dominates(b, a) for b in left)]
        if one in first:
            return found
        left = [a for a in left if a not in first]
        found += 1


@given(st.data(), st.integers(1, 12))
def test_fronts_survive_in_their_order(data: st.DataObject, count: int) -> None:
    texts = [text for of_size in TEXTS.values() for text in of_size]
    chosen = data.draw(st.lists(st.sampled_from(texts), min_size=1, unique=True))
    # far enough apart that no two behave alike
    places = data.draw(st.permutations(range(len(chosen))))
    pool = [outcome(text, 2 + at / 10) for text, at in zip(chosen, places, strict=True)]
    survivors = fittest(pool, count, None, METRIC)
    assert len(survivors) == min(count, len(pool))
    ranks = [rank(one, pool) for one in survivors]
    assert ranks == sorted(ranks)
    left = [rank(one, pool) for one in pool if one not in survivors]
    assert all(ranks[-1] <= other for other in left)
    ends = {min(pool, key=lambda one: one.fitness).text}
    if count > 1:  # of the first front its two ends stand first
        assert ends <= {one.text for one in survivors[:2]}
    assert fittest(reversed(pool), count, None, METRIC) == survivors


def test_formulas_of_one_kind_count_once() -> None:
    kin = [outcome("pow(X, 2)", 3.0), outcome("pow(X, 3)", 3.2), outcome("X", 4.0)]
    found = fittest(kin, 3, 1, METRIC)
    assert {one.text for one in found} == {"pow(X, 2)", "X"}


class Lengthy:
    """The longer a formula, the lower its loss: each length has its own best."""

    cases = 8

    def __init__(self) -> None:
        self.judged: dict[str, int] = {}

    def prepare(self, formula: Formula) -> Any:
        base = 10.0 / formula.complexity + len(set(formula.text)) / 100

        def trial(start: int, stop: int) -> list[float]:
            self.judged[formula.text] = stop
            return [base + case for case in range(start, stop)]

        return trial


def searched(toy: ModuleType, select: str, **how: Any) -> Any:
    settings = SearchSettings(
        population=12, offspring=8, generations=6, seed=3, top_k=3, select=select
    )
    return evolve(METRIC, Lengthy(), seeds=toy.SEEDS, settings=settings, **how)


def test_short_formulas_survive_and_are_judged_in_full(toy: ModuleType) -> None:
    kept = {}
    for select in ("fitness", "pareto"):
        found = searched(toy, select)
        late = [o for o in found.outcomes if o.generation > 2]
        kept[select] = [size(o) for o in late if o.full]
        assert len(front(found.outcomes, METRIC)) > 3
    assert min(kept["pareto"]) < min(kept["fitness"])
    assert max(kept["pareto"]) > 15  # nor do the long ones die out


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_goes_on_to_the_same_end(toy: ModuleType, tmp_path: Path, workers: int) -> None:
    whole = toy.facts(searched(toy, "pareto"))
    settings = SearchSettings(
        population=12, offspring=8, generations=6, seed=3, top_k=3, select="pareto"
    )
    run = RunDirectory.create(tmp_path / "run", settings, {})

    def break_off(event: Any) -> None:
        if event.evaluated == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(METRIC, Lengthy(), seeds=toy.SEEDS, run=run, observer=break_off)
    with RunDirectory.open(tmp_path / "run") as again:
        found = evolve(METRIC, Lengthy(), seeds=toy.SEEDS, run=again, workers=workers)
    assert toy.facts(found) == whole


def test_no_such_choice() -> None:
    with pytest.raises(UsageError, match="--select 'luck'"):
        SearchSettings(select="luck")
