"""DSA's operators and graphs, against a plain retelling of what its published code does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gpprune.primitives import (
    ALLOCATIONS,
    UNIT_PRIMITIVES,
    FormulaError,
    allocation,
    parse,
    parse_dsa,
    unit_of,
)
from gpprune.primitives.units.dsa_ops import importance
from gpprune.primitives.units.functions import OnFlat
from gpprune.prune import Allocator, linear_layers

Step = Callable[[Tensor], Tensor]


def _log(x: Tensor) -> Tensor:
    x = x.clone()
    x[x <= 0] = 1
    return torch.log(x + 1e-6)


def _abslog(x: Tensor) -> Tensor:
    x = x.clone()
    x[x == 0] = 1
    return torch.log(torch.abs(x))


def _normalize(x: Tensor) -> Tensor:
    x = (x - torch.mean(x)) / torch.std(x)
    x[torch.isnan(x)] = 0
    return x


def _entropy(x: Tensor) -> Tensor:
    x = x[~torch.isnan(x)]
    x = x[x >= 0]
    if x.numel() == 0:
        return torch.tensor(math.nan)
    try:
        return torch.distributions.Categorical(x / x.sum()).entropy()
    except ValueError:  # no distribution: its code stops, which counts as no number
        return torch.tensor(math.nan)


PRE: dict[str, Step] = {
    "NO_OP": lambda x: x,
    "ABS": torch.abs,
    "LOG": _log,
    "ABSLOG": _abslog,
    "POW": lambda x: torch.pow(x, 2),
    "EXP": torch.exp,
    "NORMALIZE": _normalize,
    "SIGMOID": torch.sigmoid,
    "TANH": torch.tanh,
    "MMS": lambda x: (x - torch.min(x)) / (torch.max(x) - torch.min(x) + 1e-9),
}
REDUCE: dict[str, Step] = {
    "NO_OP": lambda x: x,
    "FROBENIUS_NORM": lambda x: torch.norm(x, p="fro"),
    "L1_NORM": lambda x: torch.sum(torch.abs(x)) / x.numel(),
    "GEOMETRIC_MEAN": lambda x: torch.prod(x) ** (1 / x.numel()),
    "MEAN": torch.mean,
    "VAR": lambda x: torch.var(x, unbiased=True),
    "STD": lambda x: torch.std(x, unbiased=True),
    "ENTROPY": _entropy,
}
POST: dict[str, Step] = {
    "NO_OP": lambda x: x,
    "SIN": torch.sin,
    "COS": torch.cos,
    "TAN": torch.tan,
    "ASIN": torch.asin,
    "ACOS": torch.acos,
    "ATAN": torch.atan,
    "EXP": torch.exp,
    "LOG": torch.log,
    "ABS": torch.abs,
    "SIGMOID": torch.sigmoid,
    "TANH": torch.tanh,
    "SOFTPLUS": nn.functional.softplus,
}


def published(pre: Sequence[str], reduce: Sequence[str], post: Sequence[str], x: Tensor) -> float:
    """The importance of a block's scores."""
    for names, steps in ((pre, PRE), (reduce, REDUCE), (post, POST)):
        for name in names:
            x = steps[name](x)
    value = float(x if x.dim() == 0 else x.mean())
    return 0.0 if math.isnan(value) else -1.0 if math.isinf(value) else value


def graph(pre: Sequence[str], reduce: Sequence[str], post: Sequence[str]) -> str:
    return f"W:({','.join(pre)})-({','.join(reduce)})-({','.join(post)})-(7)"


def ours(text: str, x: Tensor) -> float:
    """The importance that the formula of a graph computes."""
    for node in reversed(parse_dsa(text).tree):
        lowering = UNIT_PRIMITIVES[node.name].lowering if node.arity else None
        if isinstance(lowering, OnFlat):
            x = lowering.apply(x)
    return importance(x)


VECTORS = {
    "plain": torch.tensor([0.3, 0.05, 1.7, 0.9, 2.5, 0.01, 0.6]),
    "small": torch.tensor([0.31, 0.05, 0.77, 0.29, 0.5, 0.01]),
    "tiny": torch.tensor([1e-6, 3e-5, 2e-4, 1e-7, 5e-3]),
    "zeros among": torch.tensor([0.0, 0.4, 0.0, 2.0, 0.1]),
    "negative among": torch.tensor([-0.4, 0.2, -2.0, 0.0, 1.5, 0.7]),
    "zeros": torch.zeros(5),
    "constant": torch.full((6,), 0.25),
    "one large": torch.tensor([0.1, 100.0, 0.5, 3.0]),  # e^100 is infinite in float32
    "huge": torch.tensor([1e30, 3e38, 2.0, 1e-30]),
}


def same(found: float, wanted: float) -> bool:
    return found == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize("reduce", REDUCE)
def test_each_operator_with_each(vector: str, reduce: str) -> None:
    x = VECTORS[vector]
    for pre, post in itertools.product(PRE, POST):
        steps = ((pre,), (reduce,), (post,))
        found, wanted = ours(graph(*steps), x.clone()), published(*steps, x)
        assert same(found, wanted), (steps, found, wanted)


chains = st.tuples(
    st.lists(st.sampled_from(list(PRE)), max_size=4),
    st.lists(st.sampled_from(list(REDUCE)), min_size=1, max_size=1),
    st.lists(st.sampled_from(list(POST)), max_size=4),
)


@settings(max_examples=500)
@given(chains, st.sampled_from(list(VECTORS)))
def test_longer_chains(steps: tuple[list[str], list[str], list[str]], vector: str) -> None:
    x = VECTORS[vector]
    assert same(ours(graph(*steps), x.clone()), published(*steps, x))


@given(chains, st.integers(0, 2**31), st.integers(2, 300))
def test_chains_of_random_scores(
    steps: tuple[list[str], list[str], list[str]], seed: int, count: int
) -> None:
    x = torch.rand(count, generator=torch.Generator().manual_seed(seed)) ** 3
    assert same(ours(graph(*steps), x.clone()), published(*steps, x))


def test_no_operator_writes_into_the_scores() -> None:
    for name, entry in UNIT_PRIMITIVES.items():
        if isinstance(entry.lowering, OnFlat):
            for x in VECTORS.values():
                before = x.clone()
                entry.lowering.apply(x)
                assert torch.equal(x, before), name


def test_importances_that_are_no_numbers() -> None:
    assert importance(torch.tensor(math.nan)) == 0
    assert importance(torch.tensor(math.inf)) == -1
    assert importance(torch.tensor([1.0, -math.inf])) == -1
    assert importance(torch.tensor([math.inf, -math.inf])) == 0
    assert importance(torch.tensor([1.0, 2.0])) == 1.5
    assert importance(torch.tensor([4.0])) == 4


class Blocks(nn.Module):
    """Blocks of two linear layers with given weights, all of a size."""

    def __init__(self, vectors: Sequence[Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(2, 4, bias=False)) for _ in vectors
        )
        for block, vector in zip(self.blocks, vectors, strict=True):
            block[0].weight.data = vector[:12].reshape(3, 4).clone()
            block[1].weight.data = vector[12:].reshape(4, 2).clone()


def vectors(variances: Sequence[float]) -> list[Tensor]:
    """Positive scores whose logarithms have these unbiased variances."""
    logs = torch.linspace(-1, 1, 20)
    return [torch.exp(logs * math.sqrt(v / float(logs.var()))) for v in variances]


def allocator(scores: Sequence[Tensor], target: float = 0.5) -> Allocator:
    return Allocator(linear_layers(Blocks(scores)), {}, target, "block")


WINNER = "W:(ABSLOG)-(VAR)-(ATAN,ASIN)-(7)"


def test_the_winner_gives_no_importance_above_the_tangent_of_1() -> None:
    below, above = vectors([math.tan(1) - 0.01, math.tan(1) + 0.01])
    assert ours(WINNER, below) == pytest.approx(math.asin(math.atan(math.tan(1) - 0.01)), rel=1e-3)
    assert ours(WINNER, above) == 0


def _mm(x: Tensor) -> Tensor:
    return (x - x.min()) / (x.max() - x.min())


@pytest.mark.parametrize("target", [0.3, 0.5, 0.6])
@pytest.mark.parametrize(
    "text", [WINNER, "W:(NO_OP)-(FROBENIUS_NORM)-(SIN,TANH)-(3)", "W:(MMS)-(ENTROPY)-()-(1)"]
)
def test_importances_become_sparsities_as_published(text: str, target: float) -> None:
    scores = vectors([0.2, 1.4, 0.7, 1.6, 1.1])
    steps = [part.strip("()").split(",") for part in text.removeprefix("W:").split("-")]
    chain = [[name for name in part if name] for part in steps[:3]]
    importances = torch.tensor([published(*chain, x) for x in scores], dtype=torch.float64)
    kept = _mm(1 - _mm(importances)) * 0.16
    wanted = 1 - (kept - kept.mean() + (1 - target))
    found = allocator(scores, target).sparsities(parse_dsa(text), parse("abs(W)"))
    assert found.shape == (10,)
    torch.testing.assert_close(found[0::2], wanted, rtol=0, atol=1e-5)
    assert torch.equal(found[0::2], found[1::2])  # both layers of a block


def test_the_range_of_the_sparsities_can_be_given() -> None:
    scores = vectors([0.2, 1.4, 0.7])
    found = allocator(scores).sparsities(parse_dsa(WINNER, 0.3), parse("abs(W)"))
    assert float(found.max() - found.min()) == pytest.approx(0.3)


def test_graphs_are_formula_text() -> None:
    assert parse_dsa(WINNER).text == (
        "spread(dsa_importance(dsa_asin(dsa_atan(dsa_var(dsa_abslog(dsa_scores(S)))))), 0.16)"
    )
    assert parse_dsa("W:( ABS, LOG )-(MEAN)-(LOG)").text == (
        "spread(dsa_importance(dsa_ln(dsa_mean(dsa_log(dsa_abs(dsa_scores(S)))))), 0.16)"
    )
    assert parse_dsa("W:()-()-()-(0)").text == "spread(dsa_importance(dsa_scores(S)), 0.16)"
    assert allocation(f" {WINNER}") == ALLOCATIONS["dsa"].formula == parse_dsa(WINNER)
    assert unit_of(f" {WINNER}") == "block"


@pytest.mark.parametrize("name", ["GRAM", "CORREF", "DIAGONAL", "DETERMINANT", "RANK", "SLOGDET"])
def test_operators_that_stop_its_own_code_are_refused(name: str) -> None:
    with pytest.raises(FormulaError, match=f"DSA's {name} needs a matrix"):
        parse_dsa(f"W:(ABS)-({name})-(SIN)-(1)")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not a DSA graph"),
        ("W:(ABS)-(VAR)", "is not a DSA graph"),
        ("X:(ABS)-(VAR)-(SIN)-(1)", "is not a DSA graph"),
        ("W:(ABS)-(VAR)-(SIN)-(x)", "is not a DSA graph"),
        ("W:(ABS)-(VAR)-(SIN)-(1)-(2)", "is not a DSA graph"),
        ("W:(abs)-(VAR)-(SIN)-(1)", "is not a DSA graph"),
        ("W:(SIN)-(VAR)-(SIN)-(1)", "'SIN' is not an operator of DSA in that place"),
        ("W:(ABS)-(ABS)-(SIN)-(1)", "'ABS' is not an operator of DSA in that place"),
        ("W:(ABS)-(VAR)-(MMS)-(1)", "'MMS' is not an operator of DSA in that place"),
        ("W:(ABS,)-(VAR)-(SIN)-(1)", "'' is not an operator of DSA in that place"),
        ("W:(" + "ABS," * 80 + "ABS)-(VAR)-(SIN)-(1)", "nested more than 64"),
        ("W:" + "(" * 10_000, "is not a DSA graph"),
    ],
    ids=range(12),
)
def test_what_is_not_a_graph_is_refused_in_one_sentence(text: str, says: str) -> None:
    with pytest.raises(FormulaError, match=says) as caught:
        parse_dsa(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("name", ["var", "std", "normalize"])
def test_a_deviation_of_one_value_is_taken_without_a_warning(name: str) -> None:
    lowering = UNIT_PRIMITIVES[f"dsa_{name}"].lowering
    assert isinstance(lowering, OnFlat)
    for x in (torch.tensor(3.0), torch.tensor([3.0])):
        found = lowering.apply(x)  # warnings are errors here
        assert found.dtype == torch.float32
        assert bool((found == 0).all() if name == "normalize" else found.isnan().all())
