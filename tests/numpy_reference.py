"""An independent float64 evaluation of formulas in NumPy, and how far float32 may stray from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpprune.primitives import METRIC, Formula, Inputs, Outputs, fold

LARGEST = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).tiny)
Array = np.ndarray[Any, np.dtype[np.float64]]


def _divide(x: Array, y: Array) -> Array:
    x, y = np.broadcast_arrays(x, y)
    return np.divide(x, y, out=np.zeros(x.shape), where=y != 0)


def _power(x: Array, c: Array) -> Array:
    size = np.abs(x)
    if c.item() < 0:
        return _divide(np.ones_like(size), size ** -c.item())
    return size ** c.item()


def _std1(x: Array) -> float:
    return float(x.std(ddof=1)) if x.size > 1 else 0.0


def _mean_in_deviations(x: Array) -> Array:
    return _divide(x.mean(keepdims=True), x.std(keepdims=True))


def _along(axis: int, reduce: Callable[..., Array]) -> Callable[..., Array]:
    """A reduction of x as if broadcast; what does not vary along the other axis stays narrow."""

    def reduced(x: Array, shape: tuple[int, int]) -> Array:
        wide = np.broadcast_to(x, shape)
        kept = 1 - axis
        return reduce(wide, axis).take(range(np.shape(x)[kept]), axis=kept)

    return reduced


def _centred(x: Array) -> Array:
    """Deviations from the mean, which of a constant are 0 even where its mean is rounded."""
    return np.zeros_like(x) if x.min() == x.max() else x - x.mean()


def _norm(x: Array, axis: int) -> Array:
    return np.sqrt((x**2).sum(axis, keepdims=True))


# name -> f(arguments, shape of the weight matrix)
FUNCTIONS: dict[str, Callable[..., Array]] = {
    "add": lambda x, y, shape: x + y,
    "sub": lambda x, y, shape: x - y,
    "mul": lambda x, y, shape: x * y,
    "div": lambda x, y, shape: _divide(x, y),
    "neg": lambda x, shape: -x,
    "abs": lambda x, shape: np.abs(x),
    "sqr": lambda x, shape: x**2,
    "sqrt": lambda x, shape: np.sqrt(np.abs(x)),
    "log": lambda x, shape: np.log(np.maximum(np.abs(x), TINY)),
    "exp": lambda x, shape: np.exp(x),
    "tanh": lambda x, shape: np.tanh(x),
    "sigmoid": lambda x, shape: 1 / (1 + np.exp(-x)),
    "pow": lambda x, c, shape: _power(x, c),
    "max": lambda x, y, shape: np.maximum(x, y),
    "min": lambda x, y, shape: np.minimum(x, y),
    "minmax": lambda x, shape: _divide(x - x.min(), np.array(x.max() - x.min())),
    "zscore": lambda x, shape: _divide(_centred(x), np.array(x.std())),
    "rowsum": _along(1, lambda x, a: x.sum(a, keepdims=True)),
    "colsum": _along(0, lambda x, a: x.sum(a, keepdims=True)),
    "rowmean": _along(1, lambda x, a: x.mean(a, keepdims=True)),
    "colmean": _along(0, lambda x, a: x.mean(a, keepdims=True)),
    "rownorm": _along(1, _norm),
    "colnorm": _along(0, _norm),
    "pz_div": lambda x, y, shape: _divide(
        x, np.array(np.sqrt((np.broadcast_arrays(x, y)[1] ** 2).sum()))
    ),
    "pz_log": lambda x, shape: np.log(np.abs(x) + 0.001),
    "pz_exp": lambda x, shape: np.exp(np.minimum(x, 100)),
    "pz_zsn": lambda x, shape: _divide(_centred(x), np.array(_std1(x))),
    "pz_half": lambda x, shape: (
        (x.astype(np.float32) * np.float32(100))
        .clip(-65504, 65504)
        .astype(np.float16)
        .astype(np.float64)
    ),
}


def evaluate(
    formula: Formula,
    terminals: dict[str, Any],
    noise: float = 0.0,
    rng: np.random.Generator | None = None,
) -> Array:
    """Scores `[out, in]` in float64; with noise, every operation is off by as much, relatively."""
    shape = tuple(terminals["W"].shape)

    def visit(node: Any, arguments: list[Array]) -> Array:
        if node.arity:
            with np.errstate(over="ignore", under="ignore"):
                value = FUNCTIONS[node.name](*arguments, shape)
            value = np.clip(value, -LARGEST, LARGEST)
        elif isinstance(node.value, float):
            return np.array([[node.value]])
        else:
            value = np.asarray(terminals[node.value], dtype=np.float64)
            type_ = METRIC.terminals[node.value].type
            value = value[None, :] if type_ is Inputs else value
            return value[:, None] if type_ is Outputs else value
        if rng is None:
            return value
        if node.arity and node.name in ("zscore", "pz_zsn"):
            # the mean is rounded too, before it is taken away: of two values that lie close, all
            # that a disturbance of the result itself would leave is exactly 1 and -1
            value = value + noise * rng.uniform(-1, 1) * _mean_in_deviations(arguments[0])
        return np.clip(value * (1 + noise * rng.uniform(-1, 1, value.shape)), -LARGEST, LARGEST)

    return np.broadcast_to(fold(formula.tree, visit), shape)


def float32_tolerance(formula: Formula, terminals: dict[str, Any]) -> Array:
    """How far a float32 evaluation may lie from the float64 one, by weight.

    Monte Carlo arithmetic (Parker 1997): every operation is disturbed at random by a few float32
    roundings, and what that does to the result is how well it is determined.
    """
    exact = evaluate(formula, terminals)
    rng = np.random.default_rng(0)
    spread = np.zeros(exact.shape)
    for _ in range(12):
        spread = np.maximum(spread, np.abs(evaluate(formula, terminals, 2.0**-21, rng) - exact))
    return 8 * spread.max() + 1e-6 * np.abs(exact) + 1e-30
