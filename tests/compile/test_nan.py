"""What is not a number stays so: every primitive, on every backend, as the float64 reference."""

from __future__ import annotations

import pytest
import torch
from random_formulas import layer
from torch import Tensor

from gpprune.compile import kernel
from gpprune.compile.cpp import native
from gpprune.errors import GppruneError
from gpprune.primitives import PRIMITIVES, parse
from gpprune.prune import prune_mask

# NaNs as processors make them, and as unwritten memory and other libraries hold them.
PAYLOADS = [0x7FC00000, -0x400000, 0x7FFFFFFF, -1, 0x7F800001]
# Rows of more than a chunk of the machine's; a NaN at its ends and beyond it, and at the first.
SHAPE = (3, 1100)
PLACES = [(0, 0), (1, 1023), (1, 1024), (2, 517)]
COMPILED = [] if native.compiler() is None else ["generated"]


def texts(name: str) -> list[str]:
    """Formulas of one primitive: a matrix, a vector and a number at each of its places."""
    if name == "pow":
        return [f"pow(W, {power})" for power in ("-1.5", "-1", "0.3", "0.5", "1", "3")]
    if PRIMITIVES[name].arity == 1:
        return [f"{name}(W)", f"{name}(mul(W, X))", f"{name}(X)"]
    return [f"{name}({given})" for given in ("W, G", "G, W", "W, X", "X, W", "W, Y", "0.1, W")]


def spoiled(terminal: str, place: tuple[int, int], payload: int) -> dict[str, Tensor]:
    """Terminals of a layer with one NaN."""
    terminals = layer(4, *SHAPE)
    value = terminals[terminal]
    bits = value.view(torch.int32)
    bits[place if value.dim() == 2 else place[terminal == "X"]] = payload
    return terminals


def check(text: str, backend: str, terminals: dict[str, Tensor]) -> None:
    formula = parse(text)
    wanted = kernel(formula, "reference")(**terminals)
    found = kernel(formula, backend)(**terminals)
    assert torch.equal(torch.isnan(found), torch.isnan(wanted)), (text, backend)


@pytest.mark.parametrize("backend", ["blocked", "machine"])
@pytest.mark.parametrize("name", sorted(PRIMITIVES))
def test_each_primitive_hands_it_through(name: str, backend: str) -> None:
    for payload in PAYLOADS:
        for place in PLACES:
            for terminal in ("W", "X"):
                terminals = spoiled(terminal, place, payload)
                for text in texts(name):
                    check(text, backend, terminals)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("name", sorted(PRIMITIVES))
def test_generated_code_hands_it_through(name: str, backend: str) -> None:
    """One formula of each, since each is compiled."""
    unary = PRIMITIVES[name].arity == 1
    text = f"{name}(mul(W, X))" if unary else f"{name}(G, {'0.3' if name == 'pow' else 'W'})"
    for payload in PAYLOADS:
        for place in PLACES:
            check(text, backend, spoiled("W", place, payload))
            check(text, backend, spoiled("X" if unary else "G", place, payload))


@pytest.mark.parametrize("backend", ["blocked", "machine", *COMPILED])
def test_scores_with_one_are_not_selected_from(backend: str) -> None:
    """A formula hides no NaN of a statistic from the selection."""
    terminals = spoiled("X", (1, 1024), -1)
    for text in ("max(0.1, mul(abs(W), X))", "minmax(mul(W, X))", "pz_half(mul(W, X))"):
        scores = kernel(parse(text), backend)(**terminals)
        for pattern in ("row", "layer", "2:4"):
            with pytest.raises(GppruneError, match="NaN"):
                prune_mask(scores, 0.5, pattern)


def test_the_best_known_formulas_still_give_it() -> None:
    """Extrema of extrema, in the order in which each loses another argument's."""
    for text in ("min(max(W, 0.1), 0.2)", "max(0.1, min(0.2, W))", "max(min(W, X), max(X, G))"):
        for terminal in ("W", "X"):
            for backend in ("blocked", "machine"):
                check(text, backend, spoiled(terminal, (1, 1024), PAYLOADS[0]))
