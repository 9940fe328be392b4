"""Allocations and joint formulas: their text, their types, their keys."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from random_allocations import allocations, joints

from gpprune.primitives import (
    ALLOCATION,
    ALLOCATIONS,
    JOINT,
    METRIC,
    PRIMITIVES,
    UNIT_PRIMITIVES,
    Formula,
    FormulaError,
    allocation,
    parse,
    published,
    unit_of,
)
from gpprune.primitives.types import Elements, Profile, Units


@given(allocations())
def test_allocations_round_trip(formula: Formula) -> None:
    again = parse(formula.text, ALLOCATION)
    assert again == formula
    assert again.text == formula.text
    assert [n.arity for n in again.tree] == [n.arity for n in formula.tree]


@given(allocations())
def test_every_allocation_has_a_sympy_meaning(formula: Formula) -> None:
    assert formula.expr == parse(formula.text, ALLOCATION).expr


def test_the_greater_of_functions_of_numbers_has_a_sympy_meaning() -> None:
    assert parse("max(over_block(0.2), min(smooth(0.1), 0.3))", ALLOCATION).expr is not None
    assert parse("max(rowsum(2), 3)", METRIC).expr is not None


@given(joints())
def test_joint_formulas_round_trip(formula: Formula) -> None:
    again = parse(formula.text, JOINT)
    assert again == formula
    assert again.parts == formula.parts


@example(parse("threshold(sqrt(sqrt(add(1.2, Gi))))", ALLOCATION))
@example(parse("threshold(sqr(sqrt(add(1.2, mul(3, X)))))", ALLOCATION))
@given(allocations())
def test_the_canonical_form_is_a_form(formula: Formula) -> None:
    form = formula.canonical()
    assert form.language is ALLOCATION
    assert form.canonical() == form
    assert form.key == formula.key


@pytest.mark.parametrize("value", ["depth", "exp(size)", "mean(S)", "l2(pz_div(X, W))"])
def test_an_exponential_of_units_has_a_form(value: str) -> None:
    form = parse(f"spread(log(exp({value})), 0.1)", ALLOCATION).canonical()
    assert form.canonical() == form


@given(joints())
def test_the_canonical_form_of_a_joint_formula_is_a_form(formula: Formula) -> None:
    form = formula.canonical()
    assert form.language is JOINT
    assert form.canonical() == form


def types(text: str) -> list[object]:
    return [node.ret for node in parse(text, ALLOCATION).tree if node.arity]


def names(text: str) -> list[str]:
    return [node.name for node in parse(text, ALLOCATION).tree if node.arity]


def test_a_word_means_what_its_place_takes() -> None:
    assert names("add(spread(add(depth, mean(add(W, X))), 0.1), threshold(S))") == [
        "profile.add",
        "profile.spread",
        "units.add",
        "units.mean",
        "add",
        "profile.threshold",
    ]
    assert names("mul(2, spread(mul(depth, l2(mul(W, X))), 0.1))") == [
        "profile.mul",
        "profile.spread",
        "units.mul",
        "units.l2",
        "mul",
    ]
    assert names("smooth(spread(smooth(depth), 0.1))")[::2] == ["profile.smooth", "units.smooth"]
    assert types("max(spread(minmax(mean(minmax(W))), 0.1), 0)") == [
        Profile,
        Profile,
        Units,
        Units,
        Elements,
    ]


def test_every_word_prints_without_a_prefix() -> None:
    for name in ALLOCATION.nodes:
        word = name.rpartition(".")[2]
        assert name in [node.name for node in ALLOCATION.words[word]]
    assert not any("." in word for word in ALLOCATION.words)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("spred(depth, 0.1)", "did you mean 'spread'"),
        ("foo(S)", "unknown name 'foo' in an allocation formula"),
        ("spread(W, 0.1)", "'W' at character 8 is of type Elements, where Units is needed"),
        ("spread(depth, depth)", "'depth' at character 15 is of type Units, where Constant"),
        ("threshold(depth)", "'depth' at character 11 is of type Units, where Elements"),
        ("spread(mean(depth), 0.1)", "where Elements is needed"),
        ("spread(mean(mean(W)), 0.1)", "where Elements is needed"),
        ("spread(add(depth, W), 0.1)", "'W' at character 19 is of type Elements"),
        ("mul(spread(depth, 0.1), spread(depth, 0.1))", "one number a unit"),
        ("spread(dsa_scores(S), 0.1)", "is of type Flat, where Units is needed"),
        ("spread(dsa_importance(S), 0.1)", "is of type Elements, where Flat is needed"),
        ("spread(outliers(S), 0.1)", "outliers takes 2 arguments"),
        ("spread(depth, 0.1, 2)", "spread takes 2 arguments"),
        ("joint(W, 0)", "unknown name 'joint'"),
        ("", "the formula is empty"),
        ("spread(" * 10_000, "nested more than 64 deep"),
    ],
    ids=range(16),
)
def test_what_is_not_an_allocation_is_refused_in_one_sentence(text: str, says: str) -> None:
    with pytest.raises(FormulaError, match=says) as caught:
        parse(text, ALLOCATION)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["depth", "l2(W)", "mul(depth, size)", "add(depth, 0.1)"])
def test_numbers_a_unit_are_no_allocation_and_the_refusal_says_what_makes_one(text: str) -> None:
    with pytest.raises(FormulaError) as caught:
        parse(text, ALLOCATION)
    assert "spread(" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["W", "abs(S)", "mul(W, X)"])
def test_scores_are_no_allocation(text: str) -> None:
    with pytest.raises(FormulaError, match="of type Elements"):
        parse(text, ALLOCATION)


@pytest.mark.parametrize("text", ["0", "0.3", "-2", "1e-05"])
def test_a_number_is_the_uniform_allocation(text: str) -> None:
    formula = parse(text, ALLOCATION)
    assert formula.text == text
    assert formula.key == ALLOCATIONS["uniform"].formula.key


@pytest.mark.parametrize("text", ["S", "mul(abs(W), X)", "depth"])
def test_a_metric_knows_no_words_of_allocations(text: str) -> None:
    if text in METRIC.terminals or "W" in text:
        assert parse(text, METRIC).language is METRIC
    else:
        with pytest.raises(FormulaError, match=f"unknown name '{text}' in a metric formula"):
            parse(text, METRIC)


# Joint formulas

OWL = "spread(outliers(S, 5), -0.16)"


@pytest.mark.parametrize(
    ("metric", "shares"),
    [
        ("mul(abs(W), X)", OWL),
        ("W", "0"),
        ("add(mul(W, X), rowmean(abs(G)))", "add(spread(depth, 0.1), threshold(mul(S, W)))"),
        ("add(1, 2)", "0.3"),
    ],
)
def test_a_joint_formula_has_a_metric_and_an_allocation(metric: str, shares: str) -> None:
    formula = parse(f"joint({metric}, {shares})", JOINT)
    assert formula.parts == (parse(metric, METRIC), parse(shares, ALLOCATION))
    assert [part.language for part in formula.parts] == [METRIC, ALLOCATION]


@given(joints())
def test_the_parts_are_the_text_of_a_joint_formula(formula: Formula) -> None:
    metric, shares = formula.parts
    assert formula.text == f"joint({metric.text}, {shares.text})"
    assert parse(metric.text, METRIC) == metric
    assert parse(shares.text, ALLOCATION) == shares


def test_other_formulas_have_no_parts() -> None:
    with pytest.raises(FormulaError, match="a metric formula has no metric and allocation"):
        _ = parse("W").parts


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"joint(S, {OWL})", "the metric cannot contain it"),
        (f"joint(mul(abs(W), add(X, S)), {OWL})", "the metric cannot contain it"),
        (f"joint(depth, {OWL})", "is of type Units, where Elements is needed"),
        (f"joint({OWL}, W)", "where Elements is needed"),
        ("joint(W, W)", "'W' at character 10 is of type Elements, where Profile is needed"),
        ("joint(W)", "joint takes 2 arguments"),
        ("joint(W, joint(W, 0))", "is of type Joint, where Profile is needed"),
        ("W", "is of type Elements, where Joint is needed"),
        ("0.5", "is of type Constant, where Joint is needed"),
    ],
    ids=range(9),
)
def test_what_is_not_a_joint_formula_is_refused(text: str, says: str) -> None:
    with pytest.raises(FormulaError, match=says) as caught:
        parse(text, JOINT)
    assert "\n" not in str(caught.value)


def test_scores_in_the_allocation_of_a_joint_formula_are_fine() -> None:
    assert parse(f"joint(mul(abs(W), X), {OWL})", JOINT).names == {"W", "X", "S"}


# Keys

SAME = [
    ("spread(add(depth, l2(W)), 0.1)", "spread(add(l2(W), depth), 0.1)"),
    ("spread(mul(depth, size), 0.1)", "spread(mul(size, depth), 0.1)"),
    ("spread(l2(mul(W, X)), 0.1)", "spread(l2(mul(X, W)), 0.1)"),
    ("spread(add(depth, 3), 0.1)", "spread(depth, 0.1)"),
    ("spread(mul(3, depth), 0.1)", "spread(depth, 0.1)"),
    ("spread(sub(mul(depth, 0.5), 7), 0.1)", "spread(depth, 0.1)"),
    ("spread(mul(2, add(depth, l2(W))), 0.1)", "spread(add(depth, l2(W)), 0.1)"),
    ("spread(neg(mul(3, depth)), 0.1)", "spread(neg(depth), 0.1)"),
    ("add(spread(depth, 0.1), 0.3)", "spread(depth, 0.1)"),
    ("sub(spread(depth, 0.1), 0.3)", "spread(depth, 0.1)"),
    ("add(threshold(S), spread(depth, 0.1))", "add(spread(depth, 0.1), threshold(S))"),
    ("add(spread(depth, 0.1), spread(depth, 0.1))", "mul(2, spread(depth, 0.1))"),
    ("sub(spread(depth, 0.3), mul(0.5, spread(depth, -0.2)))", "spread(depth, 0.4)"),
    ("mul(-0.5, spread(depth, 0.2))", "spread(depth, -0.1)"),
    ("sub(threshold(S), spread(depth, -0.2))", "add(spread(depth, 0.2), threshold(S))"),
    ("spread(sqr(spread(depth, -0.3)), 0.1)", "spread(sqr(spread(depth, 0.2)), 0.1)"),
    ("neg(neg(threshold(S)))", "threshold(S)"),
    ("max(spread(depth, 0.1), threshold(S))", "max(threshold(S), spread(depth, 0.1))"),
    ("sub(threshold(S), threshold(S))", "0"),
    ("spread(3, 0.1)", "0"),
    ("spread(depth, 0)", "0"),
    ("mul(0, threshold(S))", "0.7"),
    ("spread(sqrt(sqr(depth)), 0.1)", "spread(depth, 0.1)"),
    ("threshold(mul(2, mul(G, abs(W))))", "threshold(mul(abs(W), G))"),
    ("threshold(add(S, 3))", "threshold(S)"),
    ("threshold(mul(sqr(G), sqr(W)))", "threshold(mul(abs(W), G))"),
    ("threshold(pow(X, 0.3))", "threshold(X)"),
    ("spread(spread(depth, 0.3), 0.1)", "spread(depth, 0.1)"),
    ("spread(mul(-2, spread(depth, 0.3)), 0.1)", "spread(neg(depth), 0.1)"),
    ("spread(add(spread(depth, -0.3), 2), 0.1)", "spread(neg(depth), 0.1)"),
    ("spread(outliers(mul(3, S), 5), 0.1)", "spread(outliers(S, 5), 0.1)"),
    ("sparse_as(mul(2, depth))", "sparse_as(depth)"),
    # what is made of numbers alone adds as much to every unit
    ("sub(spread(depth, 0.2), spread(dense_as(-1), 0.4))", "spread(depth, 0.2)"),
    ("over_block(smooth(sparse_as(0.3)))", "0"),
    ("spread(add(depth, softmax(0.3)), 0.1)", "spread(depth, 0.1)"),
]
DIFFERENT = [
    ("spread(depth, 0.1)", "spread(depth, 0.2)"),
    ("spread(depth, 0.1)", "spread(depth, -0.1)"),
    ("spread(depth, 0.1)", "spread(neg(depth), 0.1)"),
    ("spread(depth, 0.1)", "spread(sqr(depth), 0.1)"),
    ("spread(exp(depth), 0.1)", "spread(depth, 0.1)"),
    ("sparse_as(depth)", "sparse_as(add(depth, 1))"),
    ("sparse_as(depth)", "dense_as(depth)"),
    ("threshold(S)", "threshold(mul(S, Y))"),
    ("threshold(S)", "mul(2, threshold(S))"),
    ("spread(l2(W), 0.1)", "spread(l2(mul(W, X)), 0.1)"),
    ("spread(outliers(S, 5), 0.1)", "spread(outliers(S, 7), 0.1)"),
    ("spread(var(S), 0.1)", "spread(var(abs(S)), 0.1)"),
    ("spread(minmax(mean(W)), 0.1)", "spread(mean(minmax(W)), 0.1)"),
    ("max(spread(depth, 0.1), 0.3)", "spread(depth, 0.1)"),
    ("spread(max(depth, 0.3), 0.1)", "spread(depth, 0.1)"),
    ("spread(outliers(add(S, 3), 5), 0.1)", "spread(outliers(S, 5), 0.1)"),
    ("spread(cumsum(0.3), 0.1)", "0"),
    ("spread(l2(0.3), 0.1)", "0"),
    ("threshold(sqr(W))", "threshold(W)"),
    ("threshold(pow(X, -1))", "threshold(X)"),
    ("spread(add(spread(depth, 0.3), size), 0.1)", "spread(add(depth, size), 0.1)"),
    ("spread(mean(rowsum(colsum(W))), 0.1)", "0"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_formulas_that_are_the_same_allocation_have_one_key(a: str, b: str) -> None:
    assert parse(a, ALLOCATION).key == parse(b, ALLOCATION).key


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_other_allocations_have_other_keys(a: str, b: str) -> None:
    assert parse(a, ALLOCATION).key != parse(b, ALLOCATION).key


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("joint(exp(W), 0)", "joint(W, 0.5)", True),
        ("joint(mul(3, W), spread(depth, 0.1))", "joint(W, spread(mul(2, depth), 0.1))", True),
        ("joint(mul(X, W), threshold(S))", "joint(mul(W, X), threshold(S))", True),
        ("joint(exp(W), threshold(S))", "joint(W, threshold(S))", False),
        ("joint(exp(W), threshold(sub(S, S)))", "joint(W, threshold(0))", True),
        ("joint(exp(W), spread(l2(S), 0))", "joint(W, 0)", True),
        ("joint(W, 0)", "joint(abs(W), 0)", False),
        ("joint(W, spread(depth, 0.1))", "joint(W, spread(depth, 0.2))", False),
    ],
)
def test_keys_of_joint_formulas(a: str, b: str, same: bool) -> None:
    """Where the allocation reads the scores, their values matter; elsewhere only their order."""
    assert (parse(a, JOINT).key == parse(b, JOINT).key) is same


def test_languages_have_keys_of_their_own() -> None:
    digests = {parse("0.5", METRIC).digest, parse("0.5", ALLOCATION).digest}
    assert len(digests) == 2
    assert parse("0.5", METRIC) != parse("0.5", ALLOCATION)


# The published ones, and what a search draws

CALLS = [
    ("owl", OWL, "block"),
    ("owl(7, 0.05)", "spread(outliers(S, 7), -0.1)", "block"),
    ("owl()", OWL, "block"),
    (" atp( 0.3 ) ", "spread(depth, 0.3)", "block"),
    ("alphapruning(0.2)", "sparse_as(add(0.8, mul(0.4, minmax(hill_peak(W)))))", "block"),
    ("global", "threshold(S)", "layer"),
    ("uniform", "0", "layer"),
    ("er", "dense_as(div(add(fan_in, fan_out), mul(fan_in, fan_out)))", "layer"),
    ("spread(depth, 0.1)", "spread(depth, 0.1)", None),
]


@pytest.mark.parametrize(("name", "text", "unit"), CALLS)
def test_published_allocations_are_read_by_name(name: str, text: str, unit: str | None) -> None:
    assert allocation(name).text == text
    assert allocation(name).language is ALLOCATION
    assert unit_of(name) == unit


@pytest.mark.parametrize("text", ["owl(1, 2, 3)", "atp(a)", "atp(0.1, 0.2)", "owls", "owl(--1)"])
def test_what_is_no_published_allocation_is_named(text: str) -> None:
    with pytest.raises(FormulaError) as caught:
        allocation(text)
    assert text.partition("(")[0] in str(caught.value)


def test_every_published_allocation_is_in_a_form() -> None:
    keys = {entry.formula.key for entry in ALLOCATIONS.values()}
    assert len(keys) == len(ALLOCATIONS)
    assert {entry.unit for entry in ALLOCATIONS.values()} == {"layer", "block"}
    for entry in ALLOCATIONS.values():
        assert parse(entry.formula.text, ALLOCATION) == entry.formula
        assert entry.formula.expr is not None


def test_the_metric_language_draws_weights_statistics_and_arithmetic() -> None:
    pset = METRIC.pset
    terminals = {node.name for nodes in pset.terminals.values() for node in nodes}
    drawn = {node.name for nodes in pset.primitives.values() for node in nodes}
    assert terminals == {"W", "X", "Y", "G", "Ai", "Gk", "Gi", "Gx", "F", "constant"}
    assert drawn == {name for name, entry in PRIMITIVES.items() if entry.searched}
    assert drawn == set(
        "add sub mul div neg abs sqr sqrt log exp tanh sigmoid pow max min minmax zscore rowsum "  # noqa: SIM905
        "colsum rowmean colmean rownorm colnorm".split()
    )
    assert (pset.terms_count, pset.prims_count) == (10, 23)
    assert pset.ret is Elements
    assert not any(word in METRIC.words for word in ("S", "depth", "spread", "joint"))


@pytest.mark.parametrize("language", [ALLOCATION, JOINT])
def test_a_search_draws_no_bare_number_and_nothing_slow(language: object) -> None:
    pset = language.pset  # type: ignore[attr-defined]
    assert not [node for node in pset.terminals.get(Profile, []) if node.name == "constant"]
    drawn = {node.name for nodes in pset.primitives.values() for node in nodes}
    assert {n for n, e in UNIT_PRIMITIVES.items() if e.searched} <= drawn
    assert not any(n.startswith(("dsa_", "pz_")) or "hill" in n for n in drawn)


def test_old_metrics_mean_the_same_in_an_allocation() -> None:
    text = published["ria"].text
    inside = parse(f"threshold({text})", ALLOCATION)
    assert [n.name for n in inside.tree[1:]] == [n.name for n in parse(text).tree]
