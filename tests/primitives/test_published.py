"""The published metrics, and which of them a search starts from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from numpy_reference import evaluate
from random_formulas import layer

from gpprune.primitives import (
    METRIC,
    METRICS,
    Formula,
    FormulaError,
    allocation,
    metric,
    parse,
    published,
)
from gpprune.primitives.published.metrics import seeds

KEYS = {
    "magnitude": "4dcdbf41b6d623db",
    "wanda": "bf811fea3ec7811e",
    "ri": "a060d5838dd80ab1",
    "ria": "77ea1d44fc11b971",
    "pruner-zero": "b5ce358d4b3c5166",
    "gblm": "613b2a68c75467f7",
}


CURVATURE = ["l-obd", "kron-obd", "fisher", "sequence-fisher", "surgeon", "obs"]


@pytest.mark.parametrize("name", CURVATURE)
def test_the_costs_of_one_weight_compete_over_the_model(name: str) -> None:
    assert METRICS[name].pattern == "model"
    layers = [layer(1), layer(2, 4, 5)]
    terms = [{n: value.double() for n, value in one.items()} for one in layers]
    wanted = {
        "l-obd": lambda W, X, **_: W**2 * X**2,
        "kron-obd": lambda W, X, Gk, **_: W**2 * Gk[:, None] * X**2,
        "fisher": lambda W, F, **_: W**2 * F,
        "sequence-fisher": lambda W, G, **_: W**2 * G**2,
        "surgeon": lambda W, Gi, Ai, **_: W**2 / (Gi[:, None] * Ai),
        "obs": lambda W, Ai, **_: W**2 / Ai,
    }[name]
    ours = torch.cat(
        [
            torch.tensor(evaluate(published[name].canonical("model"), own)).reshape(-1)
            for own in layers
        ]
    )
    theirs = torch.cat([wanted(**own).reshape(-1) for own in terms])
    assert torch.equal(ours.argsort(), theirs.argsort())


def test_old_formulas_keep_their_keys() -> None:
    """Archives of earlier searches know formulas by these."""
    assert {name: formula.key for name, formula in published.items() if name in KEYS} == KEYS


def test_a_search_draws_the_terminals_that_no_others_are_the_roots_of() -> None:
    terminals = {node.name for nodes in METRIC.pset.terminals.values() for node in nodes}
    assert terminals == {"W", "X", "Y", "G", "Ai", "Gk", "Gi", "Gx", "F", "constant"}
    assert METRIC.pset.terms_count == 10


def test_a_search_starts_from_what_it_measures() -> None:
    assert list(seeds) == [*KEYS, *CURVATURE]
    assert all(seeds[name] == published[name] for name in seeds)
    assert published.keys() - seeds.keys() == {"sparsegpt"}


@pytest.mark.parametrize("group", ["row", "layer"])
def test_sparsegpts_score_orders_as_its_root(group: str) -> None:
    formula = published["sparsegpt"]
    assert formula.names == {"W", "D"}
    assert METRICS["sparsegpt"].pattern == "layer"
    assert formula.canonical(group) == parse("div(abs(W), D)")
    assert formula.canonical(group) != parse("mul(abs(W), D)").canonical(group)


@pytest.mark.parametrize(
    ("written", "form"),
    [
        ("abs(D)", "D"),
        ("sqrt(sqr(D))", "D"),
        ("colmean(D)", "D"),
        ("mul(D, rowmean(D))", "mul(D, rowmean(D))"),
    ],
)
def test_the_canonical_form_knows_the_terminal(written: str, form: str) -> None:
    assert parse(written).canonical(None) == parse(form)


def test_its_sympy_meaning_is_a_positive_number() -> None:
    (symbol,) = parse("D").expr.free_symbols
    assert symbol.is_positive


@pytest.mark.parametrize(
    ("read", "text", "says"),
    [
        (metric, "wand", r"no metric 'wand': choose from magnitude, wanda, .* mul\(abs\(W\), X\)"),
        (
            allocation,
            "owls",
            r"no allocation 'owls': choose from uniform, .* spread\(depth, 0\.2\)",
        ),
    ],
)
def test_a_name_that_is_none_is_told_the_published_ones(
    read: Callable[[str], Formula], text: str, says: str
) -> None:
    with pytest.raises(FormulaError, match=says):
        read(text)
