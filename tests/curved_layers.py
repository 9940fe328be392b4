"""Small layers with curvature, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from gpprune.prune import Damping


@dataclass
class Layer:
    """A weight, a mask, and the factors of its curvature, which may have dead features."""

    weight: Tensor
    mask: Tensor
    A: Tensor
    G: Tensor

    @property
    def statistics(self) -> dict[str, Tensor]:
        return {"aaT": self.A, "ggT": self.G}

    def damped(self, damping: Damping) -> tuple[Tensor, Tensor]:
        return damped(self.A, damping.inputs), damped(self.G, damping.outputs)


def damped(matrix: Tensor, damping: float) -> Tensor:
    mean = float(matrix.diagonal().mean())
    eye = torch.eye(len(matrix), dtype=torch.float64)
    return matrix + damping * mean * eye if mean else eye


def gram(tokens: int, size: int, generator: torch.Generator, dead: int = 0) -> Tensor:
    """The Gram matrix of random features, which differ in size; the first few never speak."""
    x = torch.randn(tokens, size, generator=generator).double()
    x = x @ torch.randn(size, size, generator=generator).double()
    x *= torch.rand(size, generator=generator).double() * 3
    x[:, torch.randperm(size, generator=generator)[:dead]] = 0
    return x.t() @ x / tokens


def layer(seed: int, rows: int = 12, columns: int = 20, share: float = 0.5) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator).double()
    mask = torch.rand(rows, columns, generator=generator) < share
    A, G = (gram(3 * n, n, generator) for n in (columns, rows))
    return Layer(weight, mask, A, G)


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """Tiny ones, with whole rows and columns that go, and features that are always zero."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    mask = torch.rand(rows, columns, generator=generator) < draw(st.sampled_from([0, 0.3, 0.6, 1]))
    whole = draw(st.sampled_from(["none", "row", "column"]))
    if whole == "row":
        mask[0] = True
    if whole == "column":
        mask[:, -1] = True
    weight = torch.randn(rows, columns, generator=generator).double()
    A, G = (
        gram(draw(st.integers(1, 20)), n, generator, draw(st.integers(0, 1)))
        for n in (columns, rows)
    )
    return Layer(weight, mask, A, G)


dampings = st.builds(Damping, st.sampled_from([0.01, 0.1, 1.0]), st.sampled_from([0.01, 0.1, 1.0]))


def optimum(of: Layer, A: Tensor, G: Tensor) -> Tensor:
    """The least of <D, G D A> by the normal equations of all kept entries at once."""
    curvature = torch.kron(G, A)
    kept = ~of.mask.flatten()
    change = torch.where(kept, 0, -of.weight.flatten())
    right = -(curvature @ change)[kept]
    change[kept] = torch.linalg.solve(curvature[kept][:, kept], right)
    return (of.weight + change.view(of.weight.shape)).masked_fill(of.mask, 0)
