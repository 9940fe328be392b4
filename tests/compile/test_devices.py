"""Where scores are computed, on torch's meta device: it has shapes and devices, and no numbers."""

from __future__ import annotations

import pytest
import torch
from random_formulas import COMPILED, layer
from torch import Tensor

from gpprune.compile import kernel
from gpprune.primitives import parse, published


def moved(terminals: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {n: t.to("meta") if n in names else t for n, t in terminals.items()}


@pytest.mark.parametrize("backend", ["reference", "blocked", "machine"])
@pytest.mark.parametrize("text", COMPILED)
def test_every_value_lies_where_the_weights_do(text: str, backend: str) -> None:
    """torch refuses to compute with two devices, so a stray literal would be an error."""
    scores = kernel(parse(text), backend)(**moved(layer(0), *layer(0)))
    assert scores.device.type == "meta"
    assert scores.shape == (6, 9)


@pytest.mark.parametrize("backend", ["reference", "blocked", "machine"])
def test_statistics_are_taken_to_the_weights(backend: str) -> None:
    formula = parse("mul(mul(mul(abs(W), X), Y), G)")
    assert kernel(formula, backend)(**moved(layer(0), "W")).device.type == "meta"


def test_the_buffer_says_where() -> None:
    out = torch.empty(6, 9, device="meta")
    assert kernel(published["ria"])(**layer(0), out=out) is out


@pytest.mark.parametrize("elements", [0, 1_000_000, 10**14])
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda"), "meta"])
def test_the_machine_is_for_a_cpu_alone(device: torch.device | str, elements: int) -> None:
    for formula in published.values():
        chosen = kernel(formula, elements=elements, device=device).backend
        assert chosen in ("blocked", "inductor")
