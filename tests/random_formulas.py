"""Formulas, random typed ones too, and the data they are scored on, for property tests."""

from __future__ import annotations

import random

import torch
from hypothesis import strategies as st
from torch import Tensor

from gpprune.primitives import METRIC, PRIMITIVES, STATISTICS, Formula, Sign, axes_of, published

# Formulas that between them use every primitive; compiling takes a second or more each.
COMPILED = [
    *(f.text for f in published.values()),
    "zscore(log(mul(W, exp(tanh(G)))))",
    "max(sqr(W), min(sqrt(X), sigmoid(Y)))",
    "sub(rowmean(W), colmean(pow(W, 1.5)))",
    "add(neg(rownorm(G)), div(rowsum(X), colnorm(minmax(mul(W, Y)))))",
    "pz_div(pz_log(W), pz_exp(pz_zsn(X)))",
]

# About how large statistics are that are not about 1.
SIZES = {"G": 1e-2, "D": 0.3, "Gk": 1e-4, "Gi": 1e4, "Gx": 1e-5, "F": 1e-4}


@st.composite
def formulas(
    draw: st.DrawFn, depth: int = 4, *, pruner_zero: bool = True, steep: bool = False
) -> Formula:
    """A typed METRIC formula of at most `depth`, with Pruner-Zero's own operators among it.

    A `steep` one is rich in what leaves float32's range.
    """
    rng = random.Random(draw(st.integers(0, 2**32)))
    names = [n for n, p in PRIMITIVES.items() if pruner_zero or p.searched]
    names += 5 * ["exp", "pow", "sqr", "mul", "div"] if steep else []
    return Formula(_grow(rng, names, METRIC.root, depth), METRIC)


def _grow(rng: random.Random, names: list[str], wanted: type, depth: int) -> list[object]:
    fitting = [n for n in names if issubclass(PRIMITIVES[n].result, wanted)]
    if depth > 0 and fitting and rng.random() < 0.8:
        node = METRIC.nodes[rng.choice(fitting)]
        below = [_grow(rng, names, type_, depth - 1) for type_ in node.args]
        return [node, *(inner for branch in below for inner in branch)]
    terminals = [METRIC.nodes[n] for n, t in METRIC.terminals.items() if issubclass(t.type, wanted)]
    if not terminals or rng.random() < 0.2:
        return [METRIC.constant(round(rng.choice([-1, 1]) * 10 ** rng.uniform(-2, 1), 2))]
    return [rng.choice(terminals)]


def statistics(
    generator: torch.Generator, out_features: int, in_features: int
) -> dict[str, Tensor]:
    """Every statistic that a formula can read, of one layer, by its entry's type and sign."""
    lengths = {"out": out_features, "in": in_features}
    found = {}
    for name, entry in STATISTICS.items():
        if entry.type is not None:
            shape = [length for axis, length in lengths.items() if axis in axes_of(entry.type)]
            value = torch.randn(shape, generator=generator)
            found[name] = value if entry.sign is Sign.ANY else value.exp()
    return found


def layer(
    seed: int, out_features: int = 6, in_features: int = 9, *, activations: float = 3
) -> dict[str, Tensor]:
    """Terminals of one layer with nothing degenerate about them, float32."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_features, in_features, generator=generator) * 0.1
    sizes = SIZES | dict.fromkeys(("X", "Y", "A", "Ay"), activations) | {"Ai": 1 / activations}
    drawn = statistics(generator, out_features, in_features)
    return {"W": weight, **{name: value * sizes.get(name, 1) for name, value in drawn.items()}}
