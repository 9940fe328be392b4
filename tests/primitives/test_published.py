"""The published metrics, and which of them a search starts from."""

from __future__ import annotations

from collections.abc import Callable

import pytest

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


def test_old_formulas_keep_their_keys() -> None:
    """Archives of earlier searches know formulas by these."""
    assert {name: formula.key for name, formula in published.items() if name in KEYS} == KEYS


def test_a_search_draws_the_terminals_that_no_others_are_the_roots_of() -> None:
    terminals = {node.name for nodes in METRIC.pset.terminals.values() for node in nodes}
    assert terminals == {"W", "X", "Y", "G", "Ai", "Gk", "Gi", "Gx", "F", "constant"}
    assert METRIC.pset.terms_count == 10


def test_a_search_starts_from_what_it_measures() -> None:
    assert list(seeds) == list(KEYS)
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
