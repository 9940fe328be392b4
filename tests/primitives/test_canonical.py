"""The canonical form: what it merges, what it must not, and that it is a form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from numpy_reference import evaluate, float32_tolerance
from random_formulas import formulas, layer
from torch import Tensor

from gpprune.primitives import Formula, parse

Scores = NDArray[np.float64]

SAME_VALUE = [
    ("mul(X, W)", "mul(W, X)"),
    ("sub(W, neg(X))", "add(X, W)"),
    ("sqrt(sqr(W))", "abs(W)"),
    ("sqr(sqrt(W))", "abs(W)"),
    ("neg(neg(W))", "W"),
    ("log(exp(W))", "W"),
    ("log(neg(exp(exp(W))))", "log(exp(exp(W)))"),
    ("exp(log(exp(W)))", "exp(W)"),
    ("mul(W, W)", "sqr(W)"),
    ("pow(W, 2)", "sqr(W)"),
    ("add(W, W)", "mul(2, W)"),
    ("sub(mul(W, X), mul(W, X))", "0"),
    ("div(mul(W, exp(G)), exp(G))", "W"),
    ("log(exp(add(W, tanh(X))))", "add(W, tanh(X))"),
    ("mul(exp(X), mul(exp(X), W))", "mul(mul(W, exp(X)), exp(X))"),
    ("mul(add(W, G), X)", "add(mul(X, G), mul(W, X))"),
    ("max(W, max(X, W))", "max(X, W)"),
    ("minmax(zscore(mul(3, add(W, 1))))", "minmax(W)"),
    ("rownorm(mul(Y, W))", "mul(Y, rownorm(W))"),
    ("rowmean(Y)", "Y"),
    ("add(1, 2)", "3"),
    ("div(W, 0)", "0"),
]
DIFFERENT_VALUE = [
    ("div(W, W)", "1"),  # 0 where W is
    ("div(X, X)", "div(W, W)"),
    ("sqrt(sqr(W))", "W"),
    ("pow(W, 3)", "mul(W, sqr(W))"),  # the first is never negative
    ("minmax(W)", "minmax(neg(W))"),
    ("zscore(W)", "zscore(abs(W))"),
    ("rowmean(X)", "X"),
    ("pz_log(W)", "log(W)"),
    ("exp(log(W))", "abs(W)"),  # log ends at 2^-126
    # a value that saturates takes no part in algebra
    ("div(mul(W, exp(X)), exp(X))", "W"),
    ("sqrt(sqr(exp(X)))", "exp(X)"),
    ("log(exp(X))", "X"),
    ("log(exp(div(W, exp(X))))", "div(W, exp(X))"),
    ("minmax(zscore(sqr(exp(X))))", "minmax(sqr(exp(X)))"),
    ("sub(exp(1000), exp(X))", "sub(3.4e38, exp(X))"),
    ("colsum(mul(exp(X), tanh(W)))", "mul(colsum(tanh(W)), exp(X))"),
    ("div(mul(1e30, mul(1e30, W)), 1e30)", "mul(1e30, W)"),
    # Pruner-Zero's norm and z-score are over the shape that their arguments happen to have
    ("pz_div(X, add(X, mul(0, Y)))", "pz_div(X, X)"),
    ("pz_zsn(add(X, sub(W, W)))", "pz_zsn(X)"),
]
SAME_ORDER = [
    ("exp(mul(abs(W), X))", "mul(abs(W), X)"),
    ("sqr(mul(W, X))", "mul(abs(W), X)"),
    ("tanh(minmax(W))", "W"),
    ("log(mul(W, X))", "mul(abs(W), X)"),
    ("pz_log(W)", "abs(W)"),
    ("pz_div(mul(W, X), G)", "mul(W, X)"),
    ("add(3, mul(0.5, W))", "W"),
    ("mul(minmax(X), 7)", "X"),
    # saturating makes ties, and no other order
    ("sqr(sqr(exp(W)))", "W"),
    ("neg(pow(sqrt(exp(W)), 6.1))", "neg(W)"),
    ("log(colsum(exp(abs(X))))", "X"),
    ("sub(exp(zscore(G)), 0.3)", "G"),
    ("mul(neg(exp(G)), sqr(exp(0.3)))", "neg(G)"),
]
SAME_ORDER_IN_A_ROW = [
    ("mul(mul(abs(W), X), rownorm(G))", "mul(abs(W), X)"),
    ("add(mul(abs(W), X), rowsum(W))", "mul(abs(W), X)"),
    ("div(abs(W), rowsum(abs(W)))", "abs(W)"),
]
SAME_ORDER_OVER_A_MODEL = [
    ("exp(mul(abs(W), X))", "mul(abs(W), X)"),
    ("sqr(mul(W, X))", "mul(abs(W), X)"),
    ("log(mul(mul(3, W), X))", "mul(abs(W), X)"),
    ("add(3, mul(0.5, tanh(W)))", "W"),
    ("mul(minmax(W), 7)", "minmax(W)"),
    ("exp(mul(2, pz_div(W, G)))", "pz_div(W, G)"),
    ("pz_zsn(exp(rowmean(colmean(W))))", "pz_zsn(rowmean(colmean(exp(rowmean(colmean(W))))))"),
]
# what a layer's own numbers are factors, terms and divisors of
DIFFERENT_ORDER_OVER_A_MODEL = [
    ("tanh(minmax(W))", "W"),
    ("zscore(W)", "W"),
    ("pz_zsn(W)", "W"),
    ("pz_div(mul(W, X), G)", "mul(W, X)"),
    ("mul(abs(W), rowsum(colsum(abs(G))))", "abs(W)"),
    ("add(abs(W), rowmean(colmean(abs(G))))", "abs(W)"),
    ("mul(abs(W), rowsum(1))", "abs(W)"),
    ("add(abs(W), colnorm(1))", "abs(W)"),
    ("rowsum(Y)", "Y"),
    ("rownorm(exp(Y))", "Y"),
    ("colsum(exp(X))", "X"),
]
DIFFERENT_ORDER = [
    ("W", "abs(W)"),
    ("neg(abs(W))", "abs(W)"),
    ("mul(rowsum(W), X)", "X"),  # a factor that may be negative turns the order round
    ("div(1, X)", "X"),
    ("div(1, exp(log(W)))", "div(1, abs(W))"),  # apart where a weight is 0
    ("add(pz_div(X, add(X, mul(0, Y))), abs(W))", "add(pz_div(X, X), abs(W))"),
    ("zscore(abs(W))", "abs(zscore(abs(W)))"),
]
# where an exponential or a power may saturate
DIFFERENT_ORDER_WHEN_SATURATED = [
    (
        "mul(add(rowmean(0.032), div(3, Y)), pow(exp(Y), 5.9))",
        "mul(pow(add(1, mul(93.75, div(1, Y))), 0.169491525424), exp(Y))",
    ),
    (
        "colsum(mul(exp(X), zscore(add(pow(G, 0.026), min(Y, Y)))))",
        "mul(colsum(zscore(add(Y, pow(G, 0.026)))), exp(X))",
    ),
    (
        "mul(sqrt(add(minmax(W), minmax(Y))), pow(sqr(rownorm(Y)), 9.4))",
        "mul(Y, pow(add(minmax(W), minmax(Y)), 0.0265957446809))",
    ),
    ("mul(G, sqrt(sqr(exp(sqr(Y)))))", "mul(G, exp(sqr(Y)))"),
    ("mul(sub(abs(W), log(Y)), exp(max(X, Y)))", "sub(mul(abs(W), exp(Y)), mul(exp(Y), log(Y)))"),
    ("rowmean(div(rowmean(exp(X)), zscore(G)))", "rowmean(div(1, zscore(G)))"),
    ("log(sub(mul(0.18, W), exp(X)))", "sub(mul(0.18, W), exp(X))"),
    ("pow(minmax(exp(X)), -0.04)", "div(1, minmax(exp(X)))"),
    # what comes to nothing, is cut off, or is not centred when it saturates
    ("mul(W, div(exp(neg(X)), exp(neg(X))))", "W"),
    (
        "add(X, div(mul(W, exp(neg(sqr(9.5)))), exp(neg(sqr(9.5)))))",
        "add(W, mul(0.250207622736, X))",
    ),
    (
        "add(mul(1e-20, pow(X, 7)), mul(1e20, pow(tanh(G), 3)))",
        "add(pow(X, 7), mul(3.4e+38, pow(tanh(G), 3)))",
    ),
    ("mul(G, rowmean(zscore(mul(exp(X), zscore(X)))))", "0"),
    ("add(log(exp(mul(-1.386, G))), mul(1.386, G))", "0"),
    ("colnorm(mul(1e10, mul(pow(W, 13), pow(W, 1))))", "colnorm(pow(W, 14))"),
    ("pz_div(neg(X), pow(W, 4))", "X"),
    ("colsum(exp(X))", "0"),
    ("colnorm(exp(mul(G, W)))", "0"),
]


def value(text: str) -> str:
    return parse(text).canonical(None).text


@pytest.mark.parametrize(("a", "b"), SAME_VALUE)
def test_equal_values_have_one_form(a: str, b: str) -> None:
    assert value(a) == value(b)


@pytest.mark.parametrize(("a", "b"), DIFFERENT_VALUE)
def test_unequal_values_keep_their_forms(a: str, b: str) -> None:
    assert value(a) != value(b)


@pytest.mark.parametrize(("a", "b"), SAME_ORDER)
def test_equal_orders_have_one_key(a: str, b: str) -> None:
    assert parse(a).key == parse(b).key
    assert parse(a).canonical("row") == parse(b).canonical("row")


@pytest.mark.parametrize(("a", "b"), SAME_ORDER_IN_A_ROW)
def test_equal_orders_inside_a_row_merge_there_only(a: str, b: str) -> None:
    assert parse(a).canonical("row") == parse(b).canonical("row")
    assert parse(a).key != parse(b).key


@pytest.mark.parametrize(("a", "b"), SAME_ORDER_OVER_A_MODEL)
def test_equal_orders_over_a_model_have_one_form(a: str, b: str) -> None:
    assert parse(a).canonical("model") == parse(b).canonical("model")


@pytest.mark.parametrize(("a", "b"), DIFFERENT_ORDER_OVER_A_MODEL)
def test_what_is_constant_in_a_layer_alone_stays_over_a_model(a: str, b: str) -> None:
    assert parse(a).canonical("model") != parse(b).canonical("model")
    assert parse(a).canonical("layer") == parse(b).canonical("layer")


@pytest.mark.parametrize(("a", "b"), DIFFERENT_ORDER)
@pytest.mark.parametrize("group", ["row", "layer", "model"])
def test_unequal_orders_stay_apart(a: str, b: str, group: str) -> None:
    assert parse(a).canonical(group) != parse(b).canonical(group)


STEEP = formulas(pruner_zero=False) | formulas(pruner_zero=False, steep=True)


@given(formulas(), st.sampled_from([None, "row", "layer", "model"]))
def test_the_form_of_a_form_is_itself(formula: Formula, group: str | None) -> None:
    once = formula.canonical(group)
    assert once.canonical(group) == once


@given(STEEP, st.integers(0, 99), st.sampled_from([3, 30]))
def test_the_value_form_keeps_the_value(formula: Formula, seed: int, activations: float) -> None:
    terminals = layer(seed, activations=activations)
    wanted = evaluate(formula, terminals)
    slack = float32_tolerance(formula, terminals)
    found = evaluate(formula.canonical(None), terminals)
    assert np.all(np.abs(found - wanted) <= slack)


@given(STEEP, st.sampled_from(["row", "layer"]), st.integers(0, 99), st.sampled_from([3, 30]))
def test_the_rank_form_keeps_every_decided_order(
    formula: Formula, group: str, seed: int, activations: float
) -> None:
    """Wherever float64 tells two scores of a group apart, their order stays."""
    terminals = layer(seed, activations=activations)
    before = evaluate(formula, terminals)
    ranked = formula.canonical(group)
    after = evaluate(ranked, terminals)
    slack = float32_tolerance(formula, terminals) + 1e-9 * np.abs(before)
    slack_after = float32_tolerance(ranked, terminals)
    groups = [...] if group == "layer" else list(range(len(before)))
    for g in groups:
        check_order(before[g], after[g], slack[g], slack_after[g])


def check_order(before: Scores, after: Scores, slack: Scores, slack_after: Scores) -> None:
    """See that scores which `before` tells apart are in that order after."""
    a, b, s, t = (values.ravel() for values in (before, after, slack, slack_after))
    decided = a[:, None] - a[None, :] > s[:, None] + s[None, :]
    kept = b[:, None] - b[None, :] >= -(t[:, None] + t[None, :])
    assert np.all(kept | ~decided)


@given(STEEP, st.integers(0, 99), st.sampled_from([3, 30]))
def test_the_form_over_a_model_keeps_the_order_of_layers_among_each_other(
    formula: Formula, seed: int, activations: float
) -> None:
    """Layers of other shapes and scales: of weights, activations and gradients."""
    layers = [layer(seed, 6, 9), layer(seed + 1, 4, 5, activations=activations), layer(seed + 2)]
    layers[1]["W"] = layers[1]["W"] * 7
    layers[2]["G"], layers[2]["Y"] = layers[2]["G"] * 0.01, layers[2]["Y"] * 3
    ranked = formula.canonical("model")

    def over(compute: Callable[[dict[str, Tensor]], Scores]) -> Scores:
        return np.concatenate([np.ravel(compute(terminals)) for terminals in layers])

    before = over(lambda terminals: evaluate(formula, terminals))
    slack = over(lambda terminals: float32_tolerance(formula, terminals)) + 1e-9 * np.abs(before)
    after = over(lambda terminals: evaluate(ranked, terminals))
    check_order(before, after, slack, over(lambda t: float32_tolerance(ranked, t)))


@pytest.mark.parametrize(("a", "b"), DIFFERENT_ORDER_WHEN_SATURATED)
def test_orders_that_saturation_makes_unequal_stay_apart(a: str, b: str) -> None:
    assert parse(a).key != parse(b).key


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown comparison group 'block'"):
        parse("W").canonical("block")


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("mul(sqr(W), G)", "mul(G, sqr(W))"),
        ("mul(abs(W), sqrt(X))", "mul(sqr(W), X)"),
        ("mul(sqr(W), sqr(X))", "mul(abs(W), X)"),
        ("mul(abs(W), pow(X, 0.35))", "mul(abs(W), pow(X, 0.35))"),
        ("mul(pow(W, 10), pow(X, 3.5))", "mul(abs(W), pow(X, 0.35))"),
    ],
)
def test_powers_stay_small_enough_for_float32(text: str, form: str) -> None:
    assert parse(text).canonical("row").text == form


def nested(seed: str, step: str, times: int) -> str:
    for _ in range(times):
        seed = step.format(seed)
    return seed


def balanced(name: str, parts: list[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    return f"{name}({balanced(name, parts[:half])}, {balanced(name, parts[half:])})"


LARGE = {
    "many terms": balanced("add", [f"tanh(mul({n}, W))" for n in range(1, 101)]),
    "many factors": balanced("mul", [f"tanh(mul({n}, W))" for n in range(1, 101)]),
    "many maxima": balanced("max", [f"tanh(mul({n}, W))" for n in range(1, 101)]),
    "sums in sums": nested("W", "tanh(add(mul(add(W, X), {}), Y))", 14),
    "wide sums": nested("W", "tanh(mul(add(add(W, X), add(G, mul(W, X))), {}))", 20),
    "products of sums": nested("W", "mul(add({}, X), add(G, Y))", 20),
    "far apart": "mul(add(mul(1e-30, G), mul(1e30, W)), X)",
    "scaled far": "minmax(add(mul(1e-30, G), mul(1e30, W)))",
    "large powers": "pow(pow(W, 1e30), 1e30)",
    "small powers": "pow(W, 1e-10)",
    "expanded": "minmax(add(1, add(mul(W, X), mul(W, Y))))",
    "signs": "add(pz_div(neg(abs(W)), G), pz_div(abs(W), G))",
    "sign of a constant": "abs(pz_div(-1, G))",
}

# Where a product of sums is too large to multiply out, what is left of it may still be: such a
# form has a form of its own, and merges are lost, nothing else.
CUT_SHORT = {"products of sums"}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("group", [None, "row", "layer", "model"])
@pytest.mark.timeout(20)
def test_large_formulas_have_a_form_soon(name: str, group: str | None) -> None:
    form = parse(LARGE[name]).canonical(group)
    assert len(form.text) < 40_000
    if name not in CUT_SHORT:
        assert form.canonical(group) == form
