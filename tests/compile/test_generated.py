"""Generated C++: what no other backend's tests reach."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_formulas import formulas, layer

from gpprune.compile import choose, kernel, lower
from gpprune.compile.cpp import machine, native
from gpprune.compile.cpp.generated import Generated, is_generated
from gpprune.primitives import Formula, parse, published

TEXTS = [
    *(formula.text for formula in published.values()),
    "sub(pow(W, 0.3), colnorm(tanh(rownorm(G))))",
    "add(div(W, colsum(abs(W))), mul(zscore(W), minmax(exp(G))))",
    "pz_zsn(add(W, mul(rowmean(G), colmean(W))))",
    "max(rowmean(W), sub(0.5, mul(X, Y)))",
]
FAR = (7, 2500)

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="there is no C++ compiler")


def scores(text: str, backend: str, terminals: dict[str, torch.Tensor]) -> torch.Tensor:
    return kernel(parse(text), backend)(**terminals)


@pytest.mark.parametrize("text", TEXTS)
def test_it_gives_the_machines_bits(text: str) -> None:
    """Of float32; one library serves every shape."""
    for shape in ((3, 1023), FAR, (300, 700)):
        terminals = layer(1, *shape)
        assert torch.equal(scores(text, "generated", terminals), scores(text, "machine", terminals))


@settings(max_examples=20)
@given(formulas(), st.integers(0, 99))
def test_it_gives_the_machines_bits_for_any_formula(formula: Formula, seed: int) -> None:
    terminals = layer(seed, 5, 1100)
    found, wanted = (kernel(formula, backend)(**terminals) for backend in ("generated", "machine"))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float32), (torch.bfloat16,) * 2])
def test_narrow_weights_are_what_they_are_in_float32(dtypes: tuple[torch.dtype, ...]) -> None:
    terminals = layer(2, *FAR)
    narrow = {name: terminals[name].to(dtype) for name, dtype in zip("WG", dtypes, strict=True)}
    wide = {name: value.float() for name, value in narrow.items()}
    text = "mul(zscore(W), add(rowsum(G), abs(W)))"
    assert torch.equal(scores(text, "generated", narrow), scores(text, "machine", wide))


def test_scores_past_the_caches_are_whole() -> None:
    terminals = layer(1, 2048, 2051)
    found = scores("mul(abs(W), X)", "generated", terminals)
    assert torch.equal(found, terminals["W"].abs() * terminals["X"])


def test_a_part_of_a_matrix_is_read_where_it_lies() -> None:
    whole, x = torch.randn(8, 40), torch.rand(20)
    out = torch.zeros(8, 50)[:, 5:25]
    kernel(parse("mul(abs(W), X)"), "generated")(W=whole[:, 10:30], X=x, out=out)
    assert torch.equal(out, whole[:, 10:30].abs() * x)


def test_without_a_compiler_the_blocks_do_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("GPPRUNE_CACHE", str(tmp_path))
    weight, x, out = torch.randn(3, 4), torch.rand(4), torch.empty(3, 4)
    Generated(lower(parse("sub(abs(W), X)")))({"W": weight, "X": x}, (3, 4), out)
    assert torch.equal(out, weight.abs() - x)


def test_what_is_in_the_cache_folder_is_chosen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if machine.built() is None:
        pytest.skip("the machine cannot be built")
    formula = parse("mul(sqr(W), sqrt(add(X, sqr(X))))")  # of no other test: kernels are kept
    monkeypatch.setenv("GPPRUNE_CACHE", str(tmp_path))
    assert choose(formula, 1_000_000) == "machine"
    assert choose(formula, 10**12) == "generated"
    assert not is_generated(lower(formula))
    native.forget()
    kernel(formula, "generated")(**layer(0))
    assert is_generated(lower(formula))
    assert choose(formula, 1_000_000) == "generated"
