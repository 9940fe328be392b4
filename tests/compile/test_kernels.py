"""Kernels: every backend computes what the primitives say, in float64 NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy_reference import evaluate, float32_tolerance
from random_formulas import COMPILED, formulas, layer

from gpprune.compile import choose, kernel, lower
from gpprune.errors import UsageError
from gpprune.primitives import (
    PRIMITIVES,
    Elements,
    Formula,
    Inputs,
    Outputs,
    parse,
    published,
    terminal_types,
)

SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 9))


def agrees(formula: Formula, terminals: dict[str, torch.Tensor], backend: str) -> bool:
    wanted = evaluate(formula, terminals)
    slack = float32_tolerance(formula, terminals)
    found = kernel(formula, backend)(**terminals).double().numpy()
    return bool(np.all((np.abs(found - wanted) <= slack) | (np.abs(wanted) > 1e30)))


@given(formulas(), SHAPES, st.integers(0, 99))
@example(parse("log(zscore(min(pz_exp(W), 0.05)))"), (1, 3), 0)  # the z-score of a constant
def test_reference_agrees_with_numpy(formula: Formula, shape: tuple[int, int], seed: int) -> None:
    terminals = layer(seed, *shape)
    assert agrees(formula, terminals, "reference")


@pytest.mark.parametrize("backend", ["blocked", "machine"])
@given(formulas(), SHAPES, st.integers(0, 99))
def test_backends_agree_with_numpy(
    backend: str, formula: Formula, shape: tuple[int, int], seed: int
) -> None:
    terminals = layer(seed, *shape)
    assert agrees(formula, terminals, backend)


@pytest.mark.parametrize("text", COMPILED)
def test_inductor_agrees_and_serves_every_shape(text: str) -> None:
    for seed, shape in enumerate([(6, 9), (13, 4), (32, 96)]):
        assert agrees(parse(text), layer(seed, *shape), "inductor")


POWERS = [-2.0, -1.0, -0.5, 0.0, 0.25, 0.3, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("backend", ["reference", "blocked", "machine"])
@pytest.mark.parametrize("power", POWERS)
def test_powers_are_powers_over_their_whole_range(power: float, backend: str) -> None:
    sizes = [10.0**at for at in range(-37, 39)]
    weight = torch.tensor([0.0, 1e-45, *sizes, *(-size for size in sizes)])[None]
    wanted = evaluate(parse(f"pow(W, {power})"), {"W": weight})
    found = kernel(parse(f"pow(W, {power})"), backend)(W=weight).double().numpy()
    largest = float(torch.finfo(torch.float32).max)
    np.testing.assert_allclose(found, np.clip(wanted, 0, largest), rtol=4e-6, atol=1.5e-38)


def test_constants_are_folded_and_powers_made_cheap() -> None:
    program = lower(parse("mul(pow(W, 0.5), add(exp(1), log(2)))"))
    names = sorted(getattr(i, "name", "") for i in program.instructions)
    assert names == ["", "W", "mul", "sqrt"]


@pytest.mark.slow
@settings(max_examples=25)
@given(formulas(), st.integers(0, 99))
def test_inductor_agrees_on_random_formulas(formula: Formula, seed: int) -> None:
    assert agrees(formula, layer(seed), "inductor")


@pytest.mark.parametrize("backend", ["reference", "blocked", "machine"])
def test_a_norms_shape_is_not_its_quotients(backend: str) -> None:
    """X over the norm of W varies by input feature alone: its unbiased deviation is of so many."""
    assert agrees(parse("pz_zsn(pz_div(X, W))"), layer(0, 3, 5), backend)


def test_those_formulas_use_every_primitive() -> None:
    used = {n.name for t in COMPILED for n in parse(t).tree if n.arity}
    assert used == set(PRIMITIVES)


@pytest.mark.parametrize("text", COMPILED)
def test_blocks_of_rows_do_not_show(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminals = layer(3, 50, 9)
    whole = kernel(parse(text), "blocked")(**terminals)
    monkeypatch.setattr("gpprune.compile.backends.BLOCK", 64)
    torch.testing.assert_close(kernel(parse(text), "blocked")(**terminals), whole)


EXTREMES = st.sampled_from(
    [0.0, 1.0, -1.0, 3.4e38, -3.4e38, 1e-45, -1e-45, 1.2e-38, 1e19, -1e20, 88.8, 65504.0, 1e5]
)


@given(formulas(depth=3), st.lists(EXTREMES, min_size=12, max_size=12))
def test_finite_inputs_give_finite_scores(formula: Formula, values: list[float]) -> None:
    grid = torch.tensor(values).reshape(3, 4)
    by_type = {Inputs: grid[0].abs(), Outputs: grid[:, 0].abs(), Elements: grid.abs()}
    terminals = {name: by_type[type_] for name, type_ in terminal_types().items()}
    terminals |= {"W": grid, "D": grid[1].abs()}
    for backend in ("blocked", "machine", "reference"):
        assert torch.isfinite(kernel(formula, backend)(**terminals)).all()


@pytest.mark.parametrize("name", sorted(PRIMITIVES))
def test_the_sympy_form_is_the_same_function(name: str) -> None:
    """Elementwise primitives, over their whole range, zeros and both signs included."""
    entry = PRIMITIVES[name]
    if entry.lowering.reductions or entry.lowering.apply is None or name == "pz_half":
        pytest.skip("its sympy form names a reduction or float16, which sympy does not compute")
    points = [-90.0, -2.0, -0.3, 0.0, 1e-3, 0.7, 5.0, 90.0]
    pairs = [(x, y) for x in points for y in (points if name != "pow" else [-1.5, 0.5, 2.0])]
    for pair in pairs:
        arguments = pair[: entry.arity]
        exact = float(entry.symbolic(*map(_number, arguments)))
        tensors = [torch.tensor(v, dtype=torch.float64) for v in arguments]
        found = float(entry.lowering.apply(*tensors))
        largest = torch.finfo(torch.float32).max
        assert math.isclose(found, max(-largest, min(largest, exact)), rel_tol=1e-9, abs_tol=1e-12)


def _number(value: float) -> object:
    import sympy

    return sympy.Rational(repr(value))


def test_equal_subexpressions_are_computed_once() -> None:
    program = lower(published["ria"])
    assert sum(getattr(i, "name", "") == "abs" for i in program.instructions) == 1


def test_a_prepared_buffer_is_filled_and_returned() -> None:
    terminals = layer(0)
    out = torch.empty(6, 9)
    assert kernel(published["wanda"])(**terminals, out=out) is out
    torch.testing.assert_close(out, terminals["W"].abs() * terminals["X"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    terminals = {name: value.to(dtype) for name, value in layer(1).items()}
    wide = {name: value.float() for name, value in terminals.items()}
    assert torch.equal(kernel(published["ria"])(**terminals), kernel(published["ria"])(**wide))


def test_pruner_zeros_winner_is_its_codes_arithmetic_bit_for_bit() -> None:
    terminals = layer(5, 40, 60)
    size = terminals["W"].abs()
    gradient = (terminals["G"] * 100).half().float()
    scaled = (gradient - gradient.min()) / (gradient.max() - gradient.min())
    formula = published["pruner-zero"]
    for form in (formula, formula.canonical("row")):
        assert torch.equal(kernel(form)(**terminals), (size * size).abs() * scaled)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"X": None}, "needs X"),
        ({"X": torch.ones(5)}, "X has shape (5,)"),
        ({"W": torch.ones(3), "G": None}, "pass W or G of shape"),
        ({"out": torch.ones(6, 9, dtype=torch.float64)}, "out has dtype torch.float64"),
        ({"out": torch.ones(3, 9)}, "out has shape (3, 9)"),
        ({"out": torch.ones(1, 9).expand(6, 9)}, "each in a place of its own"),
    ],
)
def test_wrong_tensors_are_named(change: dict[str, torch.Tensor | None], says: str) -> None:
    given = {k: v for k, v in {**layer(0), **change}.items() if v is not None}
    with pytest.raises(UsageError) as caught:
        kernel(published["wanda"])(**given)
    assert says in str(caught.value)


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(UsageError, match="unknown backend 'cuda'; there are auto, reference"):
        kernel(published["wanda"], "cuda")


def test_compiling_is_chosen_where_it_pays() -> None:
    wanda = published["wanda"]
    assert choose(wanda, 0) in ("machine", "blocked")
    assert choose(wanda, 10**14) in ("generated", "inductor", "blocked")
    assert choose(wanda, 1_000_000, "cuda") == "blocked"
    assert choose(wanda, 10**14, "cuda") in ("inductor", "blocked")  # without a C++ compiler


CANCELLING = torch.tensor([3.4e38] * 8 + [-3.4e38] * 8).repeat(30, 16)
STACKED = torch.full((600, 512), 3.4e38)
STACKED[300:] *= -1


@pytest.mark.parametrize("matrix", [CANCELLING, STACKED, torch.full((50, 30), 0.1)])
@pytest.mark.parametrize("name", ["rowsum", "colsum", "rowmean", "colmean", "zscore", "pz_zsn"])
def test_sums_past_float32_and_of_constants_are_as_in_float64(
    name: str, matrix: torch.Tensor
) -> None:
    wanted = kernel(parse(f"{name}(W)"), "reference")(W=matrix).float()
    torch.testing.assert_close(kernel(parse(f"{name}(W)"), "blocked")(W=matrix), wanted)


@pytest.mark.parametrize("backend", ["blocked", "machine"])
def test_a_sum_keeps_what_cancellation_leaves(backend: str) -> None:
    matrix = torch.tensor([[1e8, 1.0, -1e8]])
    assert kernel(parse("rowsum(W)"), backend)(W=matrix).unique().tolist() == [1.0]
    assert kernel(parse("colsum(W)"), backend)(W=matrix.T).unique().tolist() == [1.0]


@pytest.mark.parametrize("text", ["zscore(sqr(sqr(G)))", "colnorm(sqr(sqr(G)))", "rownorm(exp(G))"])
def test_squares_out_of_float32s_range_are_not_lost(text: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (1e-6, 60.0):
        matrix = torch.randn(64, 96, generator=generator).abs() * size
        wanted = kernel(parse(text), "reference")(G=matrix)
        found = kernel(parse(text), "blocked")(G=matrix).double()
        if size == 60.0 or text != "rownorm(exp(G))":
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)


def test_a_constant_layer_has_zscore_zero() -> None:
    for text in ("zscore(W)", "zscore(add(mul(W, 0), 0.1))"):
        for backend in ("reference", "blocked"):
            assert not kernel(parse(text), backend)(W=torch.full((50, 30), 0.1)).any()
