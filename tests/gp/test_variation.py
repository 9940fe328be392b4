"""Random trees, crossovers and mutations: always typed, always within the limits."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpprune.errors import GppruneError
from gpprune.gp import FunctionFitness, SearchSettings, evolve
from gpprune.gp.variation import (
    MUTATIONS,
    Tree,
    cross,
    half_and_half,
    merge,
    mutate,
    reproducible,
    tune,
)
from gpprune.primitives import (
    ALLOCATION,
    ALLOCATIONS,
    JOINT,
    METRIC,
    Formula,
    FormulaError,
    Language,
    ValueType,
    parse,
    published,
)

seeds = st.integers(0, 2**64)


def checked(tree: Tree) -> Formula:
    """A tree is right if its text, which is checked for types and arity, reads back as it."""
    formula = Formula(tree, METRIC)
    assert parse(formula.text) == formula
    return formula


@given(seeds, st.integers(0, 4), st.integers(0, 2))
def test_random_trees_are_typed_and_of_the_height_asked(seed: int, least: int, more: int) -> None:
    with reproducible(seed):
        tree = Tree(half_and_half(METRIC, least, least + more))
    formula = checked(tree)
    assert formula.depth <= least + more
    assert formula.depth >= min(least, 1)


def test_both_halves_occur() -> None:
    with reproducible(1):
        depths = [checked(Tree(half_and_half(METRIC, 0, 4))).depth for _ in range(200)]
    assert set(depths) == {0, 1, 2, 3, 4}


@given(seeds)
def test_children_are_typed_and_parents_untouched(seed: int) -> None:
    with reproducible(seed):
        first, second = (Tree(half_and_half(METRIC, 1, 4)) for _ in range(2))
        texts = checked(first).text, checked(second).text
        checked(cross(first, second, METRIC))
        mutant, name = mutate(first, METRIC)
    checked(mutant)
    assert name in MUTATIONS
    assert (checked(first).text, checked(second).text) == texts


@pytest.mark.parametrize("name", sorted(published))
@given(seed=seeds)
@settings(max_examples=20)
def test_published_formulas_can_be_varied(name: str, seed: int) -> None:
    with reproducible(seed):
        tree = published[name].tree
        for _ in range(4):
            tree, _ = mutate(tree, METRIC)
            checked(tree)
            checked(cross(tree, published["ria"].tree, METRIC))


def test_a_narrow_slot_is_not_a_trap() -> None:
    """From Wanda a mutation reaches a formula whose X became something of a wider type."""
    tree = parse("mul(abs(W), X)").tree
    with reproducible(5):
        found = {checked(mutate(tree, METRIC)[0]).text for _ in range(2000)}
    assert "mul(abs(W), G)" in found


@given(seeds, st.floats(-1e9, 1e9))
def test_constants_change_by_little_and_stay_short(seed: int, value: float) -> None:
    tree = parse("mul(abs(W), 2)").tree
    tree[-1] = METRIC.constant(value)
    with reproducible(seed):
        mutant = MUTATIONS["constant"](tree, METRIC)
    constant = mutant[-1].value
    assert 1e-6 <= abs(constant) <= 1e6
    assert constant == float(f"{constant:.2g}")
    assert checked(mutant).text.startswith("mul(abs(W), ")


def test_seeding_restores_the_global_state_after_an_error() -> None:
    random.seed(3)
    before = random.getstate()
    with pytest.raises(KeyError), reproducible(1, 2, 3):
        random.random()
        raise KeyError
    assert random.getstate() == before
    with reproducible(1, 2, 3):
        first = random.random()
    with reproducible(1, 2, 3):
        assert random.random() == first
    with reproducible(1, 2, 4):
        assert random.random() != first


def test_a_language_without_an_end_is_refused() -> None:
    class Nothing(metaclass=ValueType):
        pass

    endless = Language("endless", Nothing, {}, {})
    with pytest.raises(GppruneError, match="nothing of type Nothing"), reproducible(0):
        half_and_half(endless, 1, 2)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    depth_limit=st.integers(2, 6),
    size_limit=st.integers(3, 20),
    crossover=st.floats(0, 1),
    immigrants=st.floats(0, 1),
)
def test_every_searched_formula_keeps_the_limits(
    seed: int, depth_limit: int, size_limit: int, crossover: float, immigrants: float
) -> None:
    result = evolve(
        METRIC,
        FunctionFitness(lambda formula: -float(formula.complexity)),
        settings=SearchSettings(
            seed=seed,
            population=6,
            offspring=6,
            generations=3,
            max_depth=2,
            depth_limit=depth_limit,
            size_limit=size_limit,
            crossover=crossover,
            immigrants=immigrants,
        ),
    )
    for outcome in result.outcomes:
        formula = parse(outcome.text)
        assert formula.depth <= depth_limit
        assert formula.complexity <= size_limit


LANGUAGES = {
    METRIC: list(published.values()),
    ALLOCATION: [entry.formula for entry in ALLOCATIONS.values()],
    JOINT: [
        parse(f"joint({metric.text}, {entry.formula.text})", JOINT)
        for metric in published.values()
        for entry in ALLOCATIONS.values()
        if "S" not in metric.names
    ],
}


@pytest.mark.parametrize("name", [language.name for language in LANGUAGES])
@given(seed=st.integers(0, 2**32))
def test_every_operator_keeps_to_the_types_of_every_language(name: str, seed: int) -> None:
    """Whatever is drawn prints and reads again as the same formula."""
    language = next(language for language in LANGUAGES if language.name == name)
    with reproducible(seed):
        first, second = (random.choice(LANGUAGES[language]) for _ in range(2))
        children = [
            cross(first.tree, second.tree, language),
            merge(first.tree, second.tree, language),
            tune(first.tree, language),
            mutate(first.tree, language)[0],
            Tree(half_and_half(language, 0, 3)),
        ]
    for tree in children:
        try:
            child = Formula(tree, language)
        except FormulaError as error:
            assert "S stands for" in str(error) or "large" in str(error)
            continue
        assert parse(child.text, language) == child


def test_merging_keeps_both_parents_whole() -> None:
    uniform, owl = (ALLOCATIONS[name].formula for name in ("atp", "owl"))
    merged = []
    for seed in range(40):
        with reproducible(seed):
            merged.append(Formula(merge(uniform.tree, owl.tree, ALLOCATION), ALLOCATION).text)
    assert all(owl.text in text and uniform.text in text for text in merged)
    assert len(set(merged)) > 10


def test_merging_blends_half_of_the_time() -> None:
    atp, owl = (ALLOCATIONS[name].formula for name in ("atp", "owl"))
    first, second = re.escape(atp.text), re.escape(owl.text)
    blend = re.compile(rf"add\(mul\((.+), {first}\), mul\((.+), {second}\)\)")
    weights = []
    for seed in range(60):
        with reproducible(seed):
            merged = Formula(merge(atp.tree, owl.tree, ALLOCATION), ALLOCATION).text
        if (found := blend.fullmatch(merged)) and float(found[1]) + float(found[2]) == 1:
            weights.append(float(found[1]))
    assert 15 < len(weights) < 45
    assert len(set(weights)) > 10 and 0.1 <= min(weights) < max(weights) <= 0.9


def test_merging_joint_formulas_changes_one_part() -> None:
    one, other = LANGUAGES[JOINT][0], LANGUAGES[JOINT][-1]
    changed = set()
    for seed in range(30):
        with reproducible(seed):
            parts = Formula(merge(one.tree, other.tree, JOINT), JOINT).parts
        same = [part == before for part, before in zip(parts, one.parts, strict=True)]
        assert sum(same) == 1
        changed.add(same.index(False))
    assert changed == {0, 1}


def test_tuning_moves_every_constant_a_little() -> None:
    formula = parse("add(spread(depth, 0.2), mul(-0.5, threshold(mul(abs(W), G))))", ALLOCATION)
    with reproducible(5):
        tuned = Formula(tune(formula.tree, ALLOCATION), ALLOCATION)
    before, after = (
        [node.value for node in f.tree if not node.arity and isinstance(node.value, float)]
        for f in (formula, tuned)
    )
    assert all(0.3 < y / x < 3 for x, y in zip(before, after, strict=True))
    assert all(x != y for x, y in zip(before, after, strict=True))
