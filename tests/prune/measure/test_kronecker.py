"""The nearest Kronecker product against a singular value decomposition in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from curvature_reference import TOKENS, captured
from tiny_families import tiny
from torch import Tensor

from gpprune.errors import GppruneError, UsageError
from gpprune.prune import calibrate, linear_layers, nearest_kronecker
from gpprune.prune.measure.kronecker import read_statistics, write_statistics

NAME = "model.layers.1.mlp.down_proj"


def fisher(a: Tensor, g: Tensor) -> Tensor:
    """The token-level Fisher, rearranged: what a Kronecker product makes rank 1 of."""
    left = torch.einsum("ti,tj->tij", a, a).flatten(1)
    right = torch.einsum("ti,tj->tij", g, g).flatten(1)
    return left.t() @ right / len(a)


@pytest.mark.parametrize("steps", [2, 9, 30])
def test_it_comes_to_the_first_singular_vectors(steps: int) -> None:
    model = tiny("llama")
    found = nearest_kronecker(model, TOKENS, steps=steps)[NAME]
    arranged = fisher(*captured(model, TOKENS)[NAME])
    left, sizes, right = torch.linalg.svd(arranged, full_matrices=False)
    aa, gg = found["aaT"].double(), found["ggT"].double()
    product = torch.outer(aa.flatten(), gg.flatten())
    distance = (arranged - product).norm()
    least = sizes[1:].norm()
    factored = calibrate(model, TOKENS, ["aaT", "ggT"])[NAME]
    plain = torch.outer(factored["aaT"].double().flatten(), factored["ggT"].double().flatten())
    assert distance < (arranged - plain).norm()
    assert distance < least * (1.05 if steps == 2 else 1.001)
    if steps == 30:
        wanted = sizes[0] * torch.outer(left[:, 0], right[0])
        assert (product - wanted).norm() < 1e-3 * wanted.norm()
    torch.testing.assert_close(aa.norm(), gg.norm(), rtol=1e-4, atol=0)
    for factor in (aa, gg):
        assert torch.linalg.eigvalsh(factor).min() > -1e-5 * factor.norm()


def test_what_it_finds_is_written_and_read_back(tmp_path: Path) -> None:
    model = tiny("gpt2")
    found = nearest_kronecker(model, TOKENS, steps=2)
    assert list(found) == list(linear_layers(model))
    write_statistics(tmp_path / "curvature", found)
    again = read_statistics(tmp_path / "curvature", model)
    for name, statistics in found.items():
        assert set(again[name]) == set(statistics) == {"aaT", "ggT"}
        for factor, value in statistics.items():
            assert torch.equal(again[name][factor], value)
    with pytest.raises(UsageError, match=r"no statistics of the layer 'model\.layers"):
        read_statistics(tmp_path / "curvature", tiny("llama"))


def test_one_half_step_is_refused() -> None:
    with pytest.raises(UsageError, match="1 half steps"):
        nearest_kronecker(tiny("llama"), TOKENS, steps=1)


def test_gradients_that_are_no_numbers_are_refused() -> None:
    model = tiny("llama")
    model.get_submodule(NAME).register_forward_hook(lambda m, args, output: output * float("nan"))
    with pytest.raises(GppruneError, match="NaN or infinity"):
        nearest_kronecker(model, TOKENS, steps=2)
