"""Formula text: what is read, what is printed, what is refused and how."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from random_formulas import formulas

from gpprune.primitives import (
    METRIC,
    PRIMITIVES,
    Formula,
    FormulaError,
    parse,
    parse_pruner_zero,
    published,
)


@given(formulas())
def test_printing_and_parsing_round_trip(formula: Formula) -> None:
    again = parse(formula.text)
    assert again == formula
    assert again.text == formula.text
    assert [n.arity for n in again.tree] == [n.arity for n in formula.tree]


@pytest.mark.parametrize("text", ["mul(abs(W), X)", " mul( abs(W) ,X ) ", "mul(\nabs(W),\tX)"])
def test_spaces_do_not_matter(text: str) -> None:
    assert parse(text).text == "mul(abs(W), X)"


@pytest.mark.parametrize(
    ("text", "printed"), [("2.0", "2"), ("1e-3", "0.001"), ("-.5", "-0.5"), ("+3.", "3")]
)
def test_constants_print_shortest(text: str, printed: str) -> None:
    assert parse(f"mul(W, {text})").text == f"mul(W, {printed})"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("foo(W)", "unknown name 'foo'"),
        ("rowsun(W)", "did you mean 'rowsum'"),
        ("mul(W)", "mul takes 2 arguments"),
        ("abs(W, X)", "abs takes 1 argument"),
        ("abs", "an argument of abs is missing"),
        ("pow(W, X)", "where Constant is needed"),
        ("mul(W, X", "closing parenthesis of mul is missing"),
        ("mul(W, X))", "comes after the formula's end"),
        ("W X", "comes after the formula's end"),
        ("mul(, X)", "stands where a formula is needed"),
        ("", "the formula is empty"),
        ("mul(W; X)", "';' at character 6"),
        ("__import__('os')", "at character 12 is not formula text"),
        ("1e400", "out of float32's range"),
        ("mul(W, 3.4028234663852886e38)", "out of float32's range"),
        ("1" * 9000, "out of float32's range"),
        ("abs(" * 10_000, "nested more than 64 deep"),
        ("W" * 1_000_000, "1,000,000 characters is too long"),
        ("add(" + ", ".join(["W"] * 9000), "add takes 2 arguments"),
    ],
    ids=range(19),
)
def test_what_is_not_a_formula_is_refused_in_one_sentence(text: str, says: str) -> None:
    with pytest.raises(FormulaError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_formula_of_too_many_nodes_is_refused() -> None:
    text = "W"
    for _ in range(10):
        text = f"add({text}, {text})"
    with pytest.raises(FormulaError, match="1,000 nodes"):
        parse(text)


def test_a_tree_given_by_hand_is_held_to_the_same_limits() -> None:
    with pytest.raises(FormulaError, match="65 deep"):
        Formula([METRIC.nodes["abs"]] * 65 + [METRIC.nodes["W"]])


def test_published_formulas_are_what_their_papers_say() -> None:
    assert published["wanda"].text == "mul(abs(W), X)"
    measured = {"magnitude", "wanda", "ri", "ria", "pruner-zero", "gblm"}
    curvature = {"l-obd", "kron-obd", "fisher", "sequence-fisher", "surgeon", "obs"}
    assert set(published) == measured | {"sparsegpt"} | curvature


def test_a_formula_does_not_change_when_its_tree_does() -> None:
    formula = parse("mul(abs(W), X)")
    formula.tree[0] = METRIC.nodes["add"]
    assert formula.text == "mul(abs(W), X)"


def test_the_trees_of_a_seeded_search_hash_alike_in_every_process() -> None:
    # the hash decides the order in which DEAP's crossover sees the types of a tree
    assert [hash(p.result) for p in (PRIMITIVES["add"], PRIMITIVES["rowsum"])] == [
        3174851851,
        3284702912,
    ]


PUBLISHED_TREE = {
    "data": "mul",
    "left": {
        "data": "abs",
        "left": {"data": "mul", "left": {"data": "W"}, "right": {"data": "W"}},
    },
    "right": {"data": "mms", "left": {"data": "G"}},
}


def test_pruner_zeros_own_tree_is_read_as_the_published_formula() -> None:
    assert parse_pruner_zero(json.dumps(PUBLISHED_TREE)) == published["pruner-zero"]


def test_every_operator_of_pruner_zero_is_read() -> None:
    unary = ["sqr", "neg", "abs", "log", "exp", "sqrt", "tanh", "pow", "skp", "mms", "zsn"]
    for name in unary:
        formula = parse_pruner_zero(json.dumps({"data": name, "left": {"data": "X"}}))
        assert formula.names == {"X"}
    for name in ["add", "sub", "mul", "div"]:
        tree = {"data": name, "left": {"data": "W"}, "right": {"data": "G"}}
        assert parse_pruner_zero(json.dumps(tree)).names == {"W", "G"}


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ("{", "does not read"),
        ("[1]", 'no "data" name'),
        ("1" * 5000, "does not read"),
        ('{"data": "cos", "left": {"data": "W"}}', "'cos' is not an operator"),
        ('{"data": "mul", "left": {"data": "W"}}', "takes 2 branches, found 1"),
        ('{"data": "abs", "left": ' * 5000 + "0" + "}" * 5000, "does not read"),
        ('{"data": "abs", "left": ' * 200 + '{"data": "W"}' + "}" * 200, "nested more than 64"),
    ],
    ids=range(7),
)
def test_what_is_not_a_pruner_zero_tree_is_refused(tree: str, says: str) -> None:
    with pytest.raises(FormulaError, match=says):
        parse_pruner_zero(tree)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("step", "times"),
    [("zscore(add(X, {}))", 12), ("div(W, add(X, {}))", 20), ("sqr({})", 40), ("exp({})", 30)],
)
def test_the_sympy_form_of_a_deep_formula_is_built_soon(step: str, times: int) -> None:
    text = "W"
    for _ in range(times):
        text = step.format(text)
    assert parse(text).expr.free_symbols
    assert parse(text.replace("W", "3")).expr is not None
