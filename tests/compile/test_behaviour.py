"""The fingerprint: formulas of one order share it, and others do not."""

from __future__ import annotations

import pytest

from gpprune.compile import behaviour
from gpprune.primitives import parse, published


def told(text: str, group: str = "row") -> str | None:
    return behaviour(parse(text), group)


@pytest.mark.parametrize("group", ["row", "layer", "model"])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("abs(W)", "max(abs(W), 1e-9)"),
        ("abs(W)", "sub(pow(mul(3, abs(W)), 0.3), min(2, 5))"),
        ("mul(abs(W), X)", "log(max(mul(X, abs(W)), 1e-30))"),
        ("G", "add(sqrt(sqr(G)), min(0, X))"),
    ],
)
def test_formulas_of_one_order_share_it(one: str, other: str, group: str) -> None:
    assert told(one, group) == told(other, group) is not None


def test_what_is_constant_in_a_group_does_not_count_in_it() -> None:
    assert told("mul(abs(W), add(Y, 1))") == told("abs(W)")
    assert told("mul(abs(W), add(Y, 1))", "layer") != told("abs(W)", "layer")
    assert told("add(W, 3)") == told("minmax(W)")
    for text in ("minmax(W)", "mul(W, rowmean(colmean(X)))", "mul(W, rowsum(1))"):
        assert told(text, "layer") == told("W", "layer")
        assert told(text, "model") not in (None, told("W", "model"))


@pytest.mark.parametrize("group", ["layer", "model"])
def test_the_published_formulas_differ_over_a_layer(group: str) -> None:
    found = {name: behaviour(formula, group) for name, formula in published.items()}
    assert None not in found.values()
    # Wanda squared, under another pattern of its own
    assert found.pop("l-obd") == found["wanda"]
    assert len(set(found.values())) == len(found)


# Pairs that differ on a layer of SmolLM2-135M: in zeros, in 1, in outliers, in signs of sums.
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("neg(log(abs(W)))", "log(div(Y, W))"),
        ("div(1, tanh(abs(log(W))))", "sqr(minmax(neg(abs(log(W)))))"),
        ("mul(G, X)", "mul(minmax(X), minmax(G))"),
        ("div(abs(G), X)", "div(abs(G), colmean(minmax(X)))"),
        ("colmean(G)", "max(tanh(minmax(W)), tanh(colsum(G)))"),
        ("neg(log(tanh(X)))", "pow(max(colnorm(sqr(sub(Y, X))), mul(X, X)), 0.65)"),
        ("mul(G, colsum(rowsum(W)))", "G"),
        ("min(sqrt(G), 9.8)", "exp(G)"),
    ],
)
def test_formulas_that_differ_on_real_layers_differ_on_the_probe(one: str, other: str) -> None:
    found = {told(one), told(other)}
    assert None not in found
    assert len(found) == 2


def test_an_order_that_rounding_decides_has_none() -> None:
    assert told("mul(abs(W), rowmean(zscore(X)))") is None
    assert told("mul(abs(W), sub(add(W, 1e15), 1e15))") is None
    assert told("minmax(pow(div(X, mul(X, 3)), 1.3))") is None  # of a constant but for rounding
    assert told("sub(W, W)") is not None  # exactly 0


def test_every_pair_of_terminals_differs() -> None:
    texts = ["W", "abs(W)", "G", "X", "D", "colsum(W)", "sub(W, colmean(W))", "mul(W, rowsum(W))"]
    found = {told(text) for text in texts}
    assert None not in found
    assert len(found) == len(texts)
