"""The machine: what no other backend's tests reach."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy_reference import evaluate
from random_formulas import layer

from gpprune.compile import kernel, lower
from gpprune.compile.cpp import machine, native
from gpprune.primitives import parse

TEXTS = [
    "W",
    "mul(abs(W), X)",
    "mul(mul(abs(W), X), Y)",
    "add(div(abs(W), colsum(abs(W))), div(abs(W), rowsum(abs(W))))",
    "mul(zscore(W), minmax(pz_half(G)))",
    "sub(pow(W, 0.3), colnorm(tanh(rownorm(G))))",
    "pz_zsn(add(W, mul(rowmean(G), colmean(W))))",
    "sub(0.5, mul(X, Y))",
]

pytestmark = pytest.mark.skipif(
    machine.built() is None, reason="there is no C++ compiler to build the machine"
)


def forget() -> None:
    native.forget()


def scores(text: str, backend: str, terminals: dict[str, torch.Tensor]) -> torch.Tensor:
    return kernel(parse(text), backend)(**terminals)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("shape", [(3, 1023), (5, 1024), (2, 2500), (300, 700)])
def test_chunks_and_threads_do_not_show(text: str, shape: tuple[int, int]) -> None:
    terminals = layer(1, *shape)
    found, wanted = (scores(text, backend, terminals) for backend in ("machine", "reference"))
    torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=1e-6)


def test_scores_past_the_caches_are_whole() -> None:
    """They are written another way, from whatever address a row begins at."""
    terminals = layer(1, 2048, 2051)
    found, wanted = (
        scores("mul(abs(W), X)", backend, terminals) for backend in ("machine", "reference")
    )
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_weights_are_what_they_are_in_float32(text: str, dtype: torch.dtype) -> None:
    narrow = {name: value.to(dtype) for name, value in layer(2, 9, 1100).items()}
    wide = {name: value.float() for name, value in narrow.items()}
    assert torch.equal(scores(text, "machine", narrow), scores(text, "machine", wide))


@given(st.integers(0, 2**16 - 1))
def test_every_float16_is_read_exactly(bits: int) -> None:
    value = np.array([[bits]], dtype=np.uint16).view(np.float16)
    found = scores("neg(W)", "machine", {"W": torch.from_numpy(value)}).numpy()
    np.testing.assert_array_equal(found, -value.astype(np.float32))


@given(st.floats(-700, 700, width=32))
def test_rounding_to_float16_is_to_even(value: float) -> None:
    weight = torch.tensor([[value]])
    found = scores("pz_half(W)", "machine", {"W": weight})
    assert float(found) == float(evaluate(parse("pz_half(W)"), {"W": weight})[0, 0])


@pytest.mark.parametrize("exponent", range(-30, 17))
def test_ties_in_rounding_to_float16(exponent: int) -> None:
    for mantissa in (1.0, 1 + 2**-11, 1 + 3 * 2**-11, 1.5 + 2**-12, 2 - 2**-11):
        value = math.ldexp(mantissa, exponent)
        weight = torch.tensor([[value]], dtype=torch.float32) / 100
        scaled = np.float32(100) * weight.numpy()
        wanted = scaled.clip(-65504, 65504).astype(np.float16).astype(np.float32)
        assert np.array_equal(scores("pz_half(W)", "machine", {"W": weight}).numpy(), wanted)


def test_what_is_not_a_number_stays_so() -> None:
    weight = torch.tensor([[1.0, math.nan, -math.inf, math.inf, 2.0]])
    for text in ("mul(W, 2)", "add(W, 1)", "sqr(W)", "div(W, 2)", "pow(W, 0.3)"):
        found = scores(text, "machine", {"W": weight})
        assert torch.isnan(found).tolist() == [[False, True, False, False, False]]


def test_rows_apart_and_columns_apart() -> None:
    """A part of a larger matrix is read where it lies; a transposed one is not misread."""
    whole = torch.randn(8, 40)
    x = torch.rand(20)
    part = scores("mul(abs(W), X)", "machine", {"W": whole[:, 10:30], "X": x})
    assert torch.equal(part, whole[:, 10:30].abs() * x)
    turned = scores("mul(abs(W), X)", "machine", {"W": whole.T, "X": x[:8]})
    assert torch.equal(turned, whole.T.abs() * x[:8])


def test_a_strided_vector_is_not_misread() -> None:
    weight, wide = torch.randn(4, 6), torch.rand(12)
    found = scores("mul(abs(W), X)", "machine", {"W": weight, "X": wide[::2]})
    assert torch.equal(found, weight.abs() * wide[::2])


def test_without_a_compiler_the_blocks_do_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    forget()
    try:
        assert machine.built() is None
        run = machine.Machine(lower(parse("mul(abs(W), X)")))
        weight, x, out = torch.randn(3, 4), torch.rand(4), torch.empty(3, 4)
        run({"W": weight, "X": x}, (3, 4), out)
    finally:
        forget()
    assert torch.equal(out, weight.abs() * x)
