"""Unit primitives: against plain NumPy and brute force, and finite whatever finite is given."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpprune.primitives import PRIMITIVES, UNIT_PRIMITIVES, Constant, UnitPrimitive
from gpprune.primitives.units import functions as units_module
from gpprune.primitives.units import reductions as unit_reductions
from gpprune.primitives.units.functions import Layout, OnMatrix, OnModel, OnUnits, OnValues

LARGEST = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).tiny)
Array = NDArray[np.float64]

# Three blocks of two layers, one of them without the second.
BLOCKS = np.array([0, 0, 1, 1, 2])
ROLES = np.array([0, 1, 0, 1, 0])
SIZES = np.array([4.0, 7.0, 4.0, 9.0, 5.0])


def layout(target: float = 0.5, sizes: Array = SIZES) -> Layout:
    count = len(sizes)
    return Layout(
        sizes=torch.tensor(sizes, dtype=torch.float64),
        blocks=torch.tensor(np.resize(BLOCKS, count)),
        roles=torch.tensor(np.resize(ROLES, count)),
        target=target,
    )


def on_units(name: str, *arguments: Any, target: float = 0.5) -> Array:
    """A primitive of units, of arrays or numbers."""
    lowering = UNIT_PRIMITIVES[name].lowering
    assert isinstance(lowering, OnUnits)
    tensors = [torch.tensor(argument, dtype=torch.float64) for argument in arguments]
    found = lowering.apply(*tensors, *([layout(target)] if lowering.model else []))
    return np.asarray(found)


def on_values(name: str, values: NDArray[np.float32], *numbers: float) -> float:
    lowering = UNIT_PRIMITIVES[name].lowering
    assert isinstance(lowering, OnValues)
    return lowering.reduce(values, *numbers)


def on_matrix(name: str, matrix: NDArray[np.float32]) -> float:
    lowering = UNIT_PRIMITIVES[name].lowering
    assert isinstance(lowering, OnMatrix)
    return lowering.reduce(matrix)


# Numbers to numbers


def _ranks(x: Array) -> Array:
    each = [[(v < u) + 0.5 * (v == u) for v in x] for u in x]
    return (np.array(each).sum(1) - 0.5) / (len(x) - 1)


def _smoothed(x: Array) -> Array:
    out = []
    for block, role in zip(BLOCKS, ROLES, strict=True):
        near = (np.abs(BLOCKS - block) <= 1) & (role == ROLES)
        out.append(x[near].mean())
    return np.array(out)


def _averaged(x: Array, groups: NDArray[Any]) -> Array:
    return np.array([np.average(x[groups == g], weights=SIZES[groups == g]) for g in groups])


def _minmax(x: Array) -> Array:
    return (x - x.min()) / (x.max() - x.min())


UNARY: dict[str, Callable[[Array], Array]] = {
    "units.neg": np.negative,
    "units.abs": np.abs,
    "units.sqr": np.square,
    "units.sqrt": lambda x: np.sqrt(np.abs(x)),
    "units.log": lambda x: np.log(np.abs(x)),
    "units.exp": np.exp,
    "units.tanh": np.tanh,
    "units.sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "units.sin": np.sin,
    "units.cos": np.cos,
    "units.tan": np.tan,
    "units.asin": lambda x: np.arcsin(np.clip(x, -1, 1)),
    "units.acos": lambda x: np.arccos(np.clip(x, -1, 1)),
    "units.atan": np.arctan,
    "units.softplus": lambda x: np.log1p(np.exp(x)),
    "units.softmax": lambda x: np.exp(x) / np.exp(x).sum(),
    "units.minmax": _minmax,
    "units.zscore": lambda x: (x - x.mean()) / x.std(),
    "units.rank": _ranks,
    "units.cumsum": np.cumsum,
    "units.smooth": _smoothed,
    "units.over_block": lambda x: _averaged(x, BLOCKS),
    "units.over_role": lambda x: _averaged(x, ROLES),
    "profile.neg": np.negative,
    "profile.smooth": _smoothed,
    "profile.over_block": lambda x: _averaged(x, BLOCKS),
    "profile.over_role": lambda x: _averaged(x, ROLES),
}
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "max": np.maximum,
    "min": np.minimum,
}


def some(seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=len(SIZES)) * 1.5


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("seed", range(3))
def test_one_number_a_unit_to_one(name: str, seed: int) -> None:
    x = some(seed)
    np.testing.assert_allclose(on_units(name, x), UNARY[name](x), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", ["units", "profile"])
@pytest.mark.parametrize("name", BINARY)
def test_two_numbers_a_unit_to_one(kind: str, name: str) -> None:
    x, y = some(1), some(2)
    np.testing.assert_allclose(on_units(f"{kind}.{name}", x, y), BINARY[name](x, y), rtol=1e-12)


def test_products_and_quotients() -> None:
    x, y = some(1), some(2)
    np.testing.assert_allclose(on_units("units.mul", x, y), x * y, rtol=1e-12)
    np.testing.assert_allclose(on_units("profile.mul", 0.3, y), 0.3 * y, rtol=1e-12)
    np.testing.assert_allclose(on_units("units.div", x, y), x / y, rtol=1e-12)
    np.testing.assert_allclose(on_units("units.pow", x, 1.7), np.abs(x) ** 1.7, rtol=1e-12)
    np.testing.assert_allclose(on_units("units.pow", x, -1.7), np.abs(x) ** -1.7, rtol=1e-12)


def test_division_by_zero_is_zero() -> None:
    assert on_units("units.div", [1.0, -2.0], [0.0, 4.0]).tolist() == [0.0, -0.5]
    assert on_units("units.pow", [0.0, 2.0], -1.0).tolist() == [0.0, 0.5]


@pytest.mark.parametrize("name", ["minmax", "zscore"])
@pytest.mark.parametrize("value", [0.0, 0.1, -3e38, 1e-45])
def test_what_is_constant_has_no_scale(name: str, value: float) -> None:
    assert on_units(f"units.{name}", [value] * 5).tolist() == [0.0] * 5


@pytest.mark.parametrize("name", ["minmax", "zscore"])
def test_a_scale_is_that_of_the_numbers_however_small(name: str) -> None:
    x = some(4)
    np.testing.assert_allclose(
        on_units(f"units.{name}", x * 1e-40), on_units(f"units.{name}", x), rtol=1e-9, atol=1e-12
    )


def test_equal_units_share_their_rank() -> None:
    x = np.array([2.0, -1.0, 2.0, 0.0, 2.0])
    assert on_units("units.rank", x).tolist() == [0.75, 0.0, 0.75, 0.25, 0.75]


@pytest.mark.parametrize("amplitude", [0.2, -0.3, 0.0])
def test_spread_has_the_range_asked_for(amplitude: float) -> None:
    x = some(3)
    np.testing.assert_allclose(
        on_units("profile.spread", x, amplitude), amplitude * _minmax(x), atol=1e-12
    )


def test_smoothing_knows_blocks_by_number_and_not_by_place() -> None:
    order = [4, 1, 2, 0, 3]
    x = some(5)
    moved = Layout(
        torch.tensor(SIZES[order]), torch.tensor(BLOCKS[order]), torch.tensor(ROLES[order]), 0.5
    )
    found = units_module.smooth(torch.tensor(x[order]), moved)
    np.testing.assert_allclose(found, _smoothed(x)[order], rtol=1e-12)


def _proportional(x: Array, mean: float) -> Array:
    """min(1, c x) by bisection, what is negative as 0; what is lacking goes in equal shares."""
    x = np.maximum(x, 0)
    budget = mean * SIZES.sum()
    if SIZES[x > 0].sum() <= budget:
        full = (x > 0).astype(float)
        lacking = budget - (full * SIZES).sum()
        return full + (1 - full) * lacking / max(1e-300, ((1 - full) * SIZES).sum())
    low, high = 1e-60, 1e60
    for _ in range(500):
        middle = math.sqrt(low * high)
        under = (np.minimum(1, middle * x) * SIZES).sum() < budget
        low, high = (middle, high) if under else (low, middle)
    return np.minimum(1, low * x)


@pytest.mark.parametrize("target", [0.0, 0.2, 0.5, 0.8, 0.99])
@pytest.mark.parametrize(
    "x",
    [
        [1.0, 2.0, 3.0, 4.0, 5.0],
        [1.0, 100.0, 1.0, 50.0, 2.0],
        [-1.0, 2.0, -3.0, 0.0, 1.0],
        [0.0, 0.0, 0.0, 1.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [1e-40, 3e38, 1.0, 1e-3, 1e-45],
    ],
)
def test_proportional_sparsities_and_densities_meet_the_target(
    x: list[float], target: float
) -> None:
    sparse = on_units("profile.sparse_as", x, target=target)
    dense = 1 - on_units("profile.dense_as", x, target=target)
    np.testing.assert_allclose(sparse, _proportional(np.array(x), target), atol=1e-8)
    np.testing.assert_allclose(dense, _proportional(np.array(x), 1 - target), atol=1e-8)
    assert np.average(sparse, weights=SIZES) == pytest.approx(target, abs=1e-8)
    assert np.average(dense, weights=SIZES) == pytest.approx(1 - target, abs=1e-8)


NUMBERS = [n for n, e in UNIT_PRIMITIVES.items() if isinstance(e.lowering, OnUnits)]


# Weights to numbers


def _entropy(x: Array) -> float:
    shares = np.abs(x[x != 0]) / np.abs(x).sum()
    return float(-(shares * np.log(shares)).sum())


REDUCTIONS: dict[str, Callable[[Array], float]] = {
    "units.mean": np.mean,
    "units.var": np.var,
    "units.std": np.std,
    "units.l1": lambda x: np.abs(x).sum(),
    "units.l2": lambda x: np.sqrt((x**2).sum()),
    "units.largest": np.max,
    "units.entropy": _entropy,
    "units.geomean": lambda x: math.exp(np.log(np.maximum(np.abs(x), TINY)).sum() / len(x)),
    "units.kurtosis": lambda x: ((x - x.mean()) ** 4).mean() / x.var() ** 2,
}


def weights(seed: int, count: int = 60) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_t(3, size=count).astype(np.float32)
    values[seed % count] = 0
    return values


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e25])
@pytest.mark.parametrize("seed", range(2))
def test_the_values_of_a_unit_to_one_number(name: str, scale: float, seed: int) -> None:
    values = (weights(seed) * np.float32(scale)).astype(np.float32)
    wanted = min(float(REDUCTIONS[name](values.astype(np.float64))), LARGEST)
    assert on_values(name, values) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.77, 1.0, -3.0, 7.0])
def test_a_quantile_is_the_value_at_that_place(share: float) -> None:
    values = weights(3)
    place = math.floor(min(max(share, 0), 1) * 59)
    assert on_values("units.quantile", values, share) == sorted(values.tolist())[place]


def test_a_quantile_is_that_of_the_decimal_number() -> None:
    """0.29 * 100 is 28.999... in binary."""
    assert on_values("units.quantile", np.arange(101, dtype=np.float32), 0.29) == 29


@pytest.mark.parametrize("times", [0.0, 0.5, 1.0, 5.0, -1.0, 1e38])
def test_outliers_are_counted_above_so_many_times_the_mean(times: float) -> None:
    values = np.abs(weights(4))
    share = sum(value > times * values.mean(dtype=np.float64) for value in values) / len(values)
    assert on_values("units.outliers", values, times) == share


def test_equal_values_are_no_outliers_of_their_mean() -> None:
    assert on_values("units.outliers", np.full(777, 0.1, np.float32), 1.0) == 0


@pytest.mark.parametrize("name", ["units.var", "units.std", "units.kurtosis"])
@pytest.mark.parametrize("value", [0.0, 0.1, 3e38, 1e-45])
def test_what_is_constant_does_not_vary(name: str, value: float) -> None:
    assert on_values(name, np.full(777, value, np.float32)) == 0


def matrix(seed: int, shape: tuple[int, int] = (12, 20)) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    scale = rng.exponential(size=shape[1]) + 0.05
    return (rng.normal(size=shape) * scale).astype(np.float32)


def squares(of: NDArray[np.float32]) -> Array:
    values: Array = np.linalg.svd(of.astype(np.float64), compute_uv=False)[::-1] ** 2
    return values


def _exponent(tail: Array) -> float:
    return float(1 + len(tail) / (np.log(tail) - np.log(tail[0])).sum())


def _best_exponent(values: Array) -> float:
    """The exponent of the best fitting tail, from a histogram counted by hand."""
    logs = np.log10(values)
    width = (logs[-1] - logs[0]) / 100
    counts = [0] * 100
    for value in logs:
        counts[min(99, int((value - logs[0]) / width))] += 1
    peak = 10 ** (logs[0] + width * counts.index(max(counts)))
    fits = []
    for start in range(len(values) - 1):
        if math.log10(0.95 * peak) <= values[start] <= 1.5 * peak:
            tail = values[start:]
            exponent = _exponent(tail)
            model = 1 - (tail / tail[0]) ** (1 - exponent)
            fits.append((np.abs(model - np.arange(len(tail)) / len(tail)).max(), exponent))
    return min(fits)[1]


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (40, 40)])
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_the_spectrum_is_the_squared_singular_values(shape: tuple[int, int], scale: float) -> None:
    of = matrix(0, shape) * np.float32(scale)
    wanted = squares(of)
    found = unit_reductions.spectrum(of)
    np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-13 * wanted[-1])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(12, 20), (30, 16)])
def test_the_matrix_of_a_layer_to_one_number(shape: tuple[int, int], seed: int) -> None:
    of = matrix(seed, shape)
    values = squares(of)
    low = of.astype(np.float64)
    gram = low @ low.T if shape[0] < shape[1] else low.T @ low
    assert on_matrix("units.gram_rank", of) == np.linalg.matrix_rank(of)
    assert on_matrix("units.logdet", of) == pytest.approx(np.linalg.slogdet(gram)[1], rel=1e-9)
    assert on_matrix("units.hill", of) == pytest.approx(_exponent(values[len(values) // 2 :]))
    assert on_matrix("units.hill_peak", of) == pytest.approx(_best_exponent(values))


def test_hills_exponent_of_a_power_law_is_its_exponent() -> None:
    """Squared singular values drawn from p(x) ~ x^-3."""
    values = (1 - (np.arange(400) + 0.5) / 400) ** (-1 / 2)
    of = np.diag(np.sqrt(values)).astype(np.float32)
    assert on_matrix("units.hill", of) == pytest.approx(3, rel=0.05)


def test_the_rank_of_what_repeats() -> None:
    of = matrix(1)
    of[5:10], of[10:] = of[:5], of[:2]
    assert on_matrix("units.gram_rank", of) == 5
    assert on_matrix("units.gram_rank", np.zeros((4, 6), np.float32)) == 0
    assert on_matrix("units.logdet", of) < -150  # what has no rank counts as the smallest float32


def _under_one_threshold(values: list[NDArray[np.float32]], target: float) -> list[float]:
    pooled = sorted(float(v) for part in values for v in part)
    count = round(target * len(pooled))
    if not count:
        return [0.0] * len(values)
    cut = pooled[count - 1]
    below = [sum(float(v) < cut for v in part) for part in values]
    tied = [sum(float(v) == cut for v in part) for part in values]
    share = (count - sum(below)) / sum(tied)
    return [(b + t * share) / len(part) for b, t, part in zip(below, tied, values, strict=True)]


levels = st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, 1.0000001, 3e38, -3e38, 0.5])


@given(
    st.lists(
        st.lists(
            st.one_of(levels, st.floats(width=32, min_value=-2, max_value=2)),
            min_size=1,
            max_size=30,
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 99),
)
def test_a_threshold_for_all_is_one_sort_of_all(parts: list[list[float]], percent: int) -> None:
    values = [np.array(part, dtype=np.float32) for part in parts]
    target = percent / 100
    lowering = UNIT_PRIMITIVES["profile.threshold"].lowering
    assert isinstance(lowering, OnModel)
    sizes = np.array([float(len(part)) for part in values])
    found = lowering.reduce(values, layout(target, sizes))
    np.testing.assert_allclose(found, _under_one_threshold(values, target), atol=1e-12)


# Totality and meaning

extremes = st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, LARGEST, -LARGEST, TINY, -TINY, 1e-45, -1e-45, 88.8, -1e30, 1e-20]
)
finite = st.one_of(extremes, st.floats(width=32, allow_nan=False, allow_infinity=False))


def _lists(draw: st.DrawFn, count: int) -> list[float]:
    same = draw(st.booleans())
    return [draw(finite)] * count if same else [draw(finite) for _ in range(count)]


def _sound(entry: UnitPrimitive, found: Any) -> None:
    numbers = np.asarray(found, dtype=np.float64)
    assert np.isfinite(numbers).all()
    assert (np.abs(numbers) <= LARGEST * (1 + 1e-12)).all()
    if entry.nonnegative or entry.positive:
        assert (numbers >= 0).all()


@pytest.mark.parametrize("name", NUMBERS)
def test_every_primitive_of_numbers_is_total(name: str) -> None:
    entry = UNIT_PRIMITIVES[name]
    lowering = entry.lowering
    assert isinstance(lowering, OnUnits)

    @settings(max_examples=40)
    @given(st.data())
    def total(data: st.DataObject) -> None:
        count = data.draw(st.integers(1, 5))
        arguments = []
        for type_ in entry.arguments:
            alike = type_ is Constant or data.draw(st.integers(0, 4)) == 0
            values = data.draw(st.composite(_lists)(count))
            arguments.append(torch.tensor(values[:1] * count if alike else values).double())
        sizes = np.array(data.draw(st.lists(st.integers(1, 10**7), min_size=count, max_size=count)))
        target = data.draw(st.sampled_from([0.0, 0.3, 0.5, 0.999]))
        extra = [layout(target, sizes)] if lowering.model else []
        found = lowering.apply(*arguments, *extra)
        assert found.dtype == torch.float64
        assert found.shape == (count,)
        _sound(entry, found)

    total()


@pytest.mark.parametrize(
    "name", [n for n, e in UNIT_PRIMITIVES.items() if isinstance(e.lowering, OnValues)]
)
def test_every_reduction_of_values_is_total(name: str) -> None:
    entry = UNIT_PRIMITIVES[name]

    @settings(max_examples=50)
    @given(st.data())
    def total(data: st.DataObject) -> None:
        values = np.array(data.draw(st.composite(_lists)(data.draw(st.integers(1, 9)))), np.float32)
        numbers = [data.draw(finite) for _ in entry.arguments[1:]]
        before = values.copy()
        _sound(entry, on_values(name, values, *numbers))
        assert np.array_equal(values, before)  # scores may be shared

    total()


@pytest.mark.parametrize(
    "name", [n for n, e in UNIT_PRIMITIVES.items() if isinstance(e.lowering, OnMatrix)]
)
def test_every_reduction_of_a_matrix_is_total(name: str) -> None:
    entry = UNIT_PRIMITIVES[name]

    @settings(max_examples=50)
    @given(st.data())
    def total(data: st.DataObject) -> None:
        rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
        values = np.array(data.draw(st.composite(_lists)(rows * columns)), np.float32)
        _sound(entry, on_matrix(name, values.reshape(rows, columns)))

    total()


def test_the_tail_of_a_spectrum_that_only_rounding_tells_apart_is_total() -> None:
    values = np.array([[0, 5662137527566336, -1e30], [0, -1e30, 0]], np.float32)
    _sound(UNIT_PRIMITIVES["units.hill_peak"], on_matrix("units.hill_peak", values))


@given(st.data())
def test_the_threshold_is_total(data: st.DataObject) -> None:
    entry = UNIT_PRIMITIVES["profile.threshold"]
    assert isinstance(entry.lowering, OnModel)
    counts = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    values = [np.array(data.draw(st.composite(_lists)(count)), np.float32) for count in counts]
    target = data.draw(st.sampled_from([0.0, 0.3, 0.5, 0.999]))
    found = entry.lowering.reduce(values, layout(target, np.array(counts, dtype=float)))
    assert bool(((found >= 0) & (found <= 1)).all())


def test_every_primitive_but_dsas_is_tested_for_totality() -> None:
    kinds = (OnUnits, OnValues, OnMatrix)
    rest = {n for n, e in UNIT_PRIMITIVES.items() if not isinstance(e.lowering, kinds)}
    assert {n for n in rest if not n.startswith("dsa_")} == {"profile.threshold"}


# What depends on all units has a name in sympy, and no value.
VALUED = [
    name
    for name, entry in UNIT_PRIMITIVES.items()
    if name in {f"units.{other}" for other in PRIMITIVES} - {"units.minmax", "units.zscore"}
    or name.removeprefix("units.") in ("sin", "cos", "tan", "asin", "acos", "atan", "softplus")
    or name.removeprefix("profile.") in ("add", "sub", "neg", "mul", "max", "min")
]


@pytest.mark.parametrize("name", VALUED)
@pytest.mark.parametrize("seed", range(4))
def test_the_sympy_form_is_what_is_computed(name: str, seed: int) -> None:
    entry = UNIT_PRIMITIVES[name]
    rng = np.random.default_rng(seed)
    numbers = [*rng.normal(size=(3, entry.arity)) * 2, np.zeros(entry.arity)]
    for arguments in numbers:
        written = [f"{value:.2f}" for value in arguments]
        meant = entry.symbolic(*map(sympy.Rational, written)).evalf()
        found = on_units(name, *map(float, written))
        assert meant.is_Number, (name, written)
        assert float(found) == pytest.approx(float(meant), rel=1e-8, abs=1e-12)


def test_no_other_sympy_form_has_a_value() -> None:
    for name in set(NUMBERS) - set(VALUED):
        entry = UNIT_PRIMITIVES[name]
        form = entry.symbolic(*(sympy.Rational("0.5") for _ in entry.arguments)).evalf()
        assert not form.is_Number and form.atoms(sympy.Function), name
