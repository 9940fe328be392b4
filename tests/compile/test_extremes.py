"""Each primitive by itself on any finite numbers: finite scores, the same on every backend."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpprune.compile import kernel
from gpprune.primitives import PRIMITIVES, parse

TINY = torch.finfo(torch.float32).tiny  # the smallest normal float32
ROUNDING = 2.0**-23  # a unit in the last place, relatively, at most
SPACING = 2.0**-149  # of subnormal float32
CANCELLED = 2.0**-48  # of the largest term of a sum: float64's own roundings of a few terms

# How far scores may lie from float64's: in units in the last place, and absolutely.
TOLERANCES: dict[str, tuple[int, float]] = {
    # float64's, rounded
    **dict.fromkeys(
        ["add", "sub", "mul", "div", "neg", "abs", "sqr", "max", "min", "pz_half"], (0, 0)
    ),
    # torch may take the root from a library that rounds it the other way
    "sqrt": (1, 0),
    # what vector functions promise; they may take subnormal results for zero
    **dict.fromkeys(["log", "exp", "tanh", "sigmoid", "pow", "pz_log", "pz_exp"], (4, TINY)),
    # float64 sums, rounded
    **dict.fromkeys(["rowsum", "colsum", "rowmean", "colmean", "rownorm", "colnorm"], (1, SPACING)),
    # a few roundings; `slack` has those of a mean and of a subnormal divisor
    **dict.fromkeys(["minmax", "zscore", "pz_zsn", "pz_div"], (3, SPACING)),
}

SUMMING = {"rowsum", "colsum", "rowmean", "colmean", "zscore", "pz_zsn", "pz_div"}

POWERS = ["-3.4e38", "-2", "-0.5", "0", "1e-45", "0.25", "1.5", "2", "100"]
PAIRS = ["W, G", "W, X", "Y, W", "X, D", "X, Y", "W, -0.125", "65536, G"]
SHAPES = {"W": (3, 4), "G": (3, 4), "X": (4,), "Y": (3,), "D": (4,)}
COUNTS = [torch.Size(shape).numel() for shape in SHAPES.values()]

# An integer of as many bits, and the bits of the largest finite number.
BITS = {
    torch.float32: (torch.int32, 0x7F7FFFFF),
    torch.bfloat16: (torch.int16, 0x7F7F),
    torch.float16: (torch.int16, 0x7BFF),
}

NAMES = pytest.mark.parametrize("name", sorted(PRIMITIVES))
DTYPES = pytest.mark.parametrize("dtype", list(BITS), ids=str)


def texts(name: str) -> list[str]:
    """Formulas of one primitive: of matrices, of vectors and of numbers."""
    if name == "pow":
        return [f"pow(W, {power})" for power in POWERS]
    arguments = PAIRS if PRIMITIVES[name].arity == 2 else ["W", "X", "Y"]
    return [f"{name}({given})" for given in arguments]


def numbers(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """The floats of bits without a sign; of a negative integer, minus that of its complement."""
    integer, _ = BITS[dtype]
    return torch.where(bits < 0, ~bits + torch.iinfo(integer).min, bits).to(integer).view(dtype)


@st.composite
def layers(draw: st.DrawFn, dtype: torch.dtype) -> dict[str, Tensor]:
    """Terminals of any finite numbers: zeros, subnormal and the largest ones, of both signs."""
    most = BITS[dtype][1]
    count = sum(COUNTS)
    bits = draw(st.lists(st.integers(-most - 1, most), min_size=count, max_size=count))
    parts = numbers(torch.tensor(bits), dtype).split(COUNTS)
    named = zip(SHAPES.items(), parts, strict=True)
    return {name: part.reshape(shape) for (name, shape), part in named}


def reduced(text: str, terminals: dict[str, Tensor]) -> Tensor:
    """A formula's last argument, which its reductions are of: float64 at its natural shape."""
    name = re.findall(r"[-.\w]+", text)[-1]
    if name not in terminals:
        return torch.tensor([[float(name)]], dtype=torch.float64)
    value = terminals[name].double()
    return value[:, None] if name == "Y" else value.reshape(-1, value.shape[-1])


def slack(name: str, text: str, terminals: dict[str, Tensor], wanted: Tensor) -> Tensor:
    """How far from the float64 scores those of float32 may lie."""
    units, absolute = TOLERANCES[name]
    allowed = units * ROUNDING * wanted.abs() + absolute
    if name == "pz_log":  # the sum inside is rounded
        return allowed + ROUNDING
    if name not in SUMMING:
        return allowed
    value = reduced(text, terminals)
    cancelled = CANCELLED * value.abs().max()
    if name.endswith(("sum", "mean")):
        return allowed + cancelled
    if name == "pz_div":
        divisor, lost = value.norm(), SPACING * wanted.abs()
    else:
        wide = value.expand(SHAPES["W"])
        divisor = value.std(correction=1) if name == "pz_zsn" else wide.std(correction=0)
        lost = ROUNDING * wide.mean().abs() + cancelled + SPACING * (1 + wanted.abs())
    return allowed + lost / divisor if divisor > 0 else allowed


def check(name: str, text: str, terminals: dict[str, Tensor]) -> None:
    formula = parse(text)
    wanted = kernel(formula, "reference")(**terminals)
    assert torch.isfinite(wanted).all(), text
    for backend in ("blocked", "machine"):
        found = kernel(formula, backend)(**terminals)
        assert torch.isfinite(found).all(), (text, backend)
        if TOLERANCES[name] == (0, 0):
            assert torch.equal(found, wanted.float()), (text, backend)
        else:
            apart = (found.double() - wanted).abs()
            assert (apart <= slack(name, text, terminals, wanted)).all(), (text, backend)


def test_each_primitive_has_its_tolerance() -> None:
    assert TOLERANCES.keys() == PRIMITIVES.keys()


@DTYPES
@NAMES
@settings(max_examples=20)
@given(data=st.data())
def test_finite_numbers_give_finite_scores(
    name: str, dtype: torch.dtype, data: st.DataObject
) -> None:
    terminals = data.draw(layers(dtype))
    for text in texts(name):
        check(name, text, terminals)


@DTYPES
@pytest.mark.parametrize(
    "name", sorted(n for n, p in PRIMITIVES.items() if not p.lowering.reductions)
)
def test_functions_of_every_narrow_number_and_of_many_wide_ones(
    name: str, dtype: torch.dtype
) -> None:
    most = BITS[dtype][1]
    if dtype == torch.float32:
        generator = torch.Generator().manual_seed(0)
        bits = torch.randint(-most - 1, most + 1, (256, 512), generator=generator)
    else:
        bits = torch.arange(-most - 1, most + 1).reshape(256, -1)
    weights = numbers(bits, dtype)
    turned = weights.flip(0, 1).roll(7, 1)
    for text in texts(name):
        if not {"X", "Y", "D"} & set(text.partition("(")[2]):
            check(name, text, {"W": weights, "G": turned})
