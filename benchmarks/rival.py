"""The rival: formulas evaluated as published code does, node by node on whole matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gpprune.primitives import Formula, axes_of

_REDUCE = {
    "rowsum": lambda x: x.sum(1, keepdim=True),
    "colsum": lambda x: x.sum(0, keepdim=True),
    "rowmean": lambda x: x.mean(1, keepdim=True),
    "colmean": lambda x: x.mean(0, keepdim=True),
    "rownorm": lambda x: x.norm(dim=1, keepdim=True),
    "colnorm": lambda x: x.norm(dim=0, keepdim=True),
}
_FUNCTIONS: dict[str, Any] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "neg": torch.neg,
    "abs": torch.abs,
    "sqr": lambda x: x * x,
    "sqrt": lambda x: torch.sqrt(torch.abs(x)),
    "log": lambda x: torch.log(torch.abs(x) + 0.001),
    "exp": lambda x: torch.exp(x.clamp(max=100)),
    "tanh": torch.tanh,
    "pow": lambda x, power: torch.pow(torch.abs(x), power),
    "max": torch.maximum,
    "min": torch.minimum,
    "sigmoid": torch.sigmoid,
    "minmax": lambda x: (x - x.min()) / (x.max() - x.min()),
    "zscore": lambda x: (x - x.mean()) / x.std(),
    "pz_half": lambda x: (x * 100).half().float(),
    **_REDUCE,
}


def eager(formula: Formula, terminals: Mapping[str, Tensor]) -> Tensor:
    """The scores, every node a fresh matrix, nothing shared, recursively."""
    nodes = iter(formula.tree)

    def evaluate() -> Any:
        node = next(nodes)
        if node.arity:
            return _FUNCTIONS[node.name](*(evaluate() for _ in range(node.arity)))
        if isinstance(node.value, float):
            return torch.tensor([[node.value]])
        value = terminals[node.value]
        of_rows = axes_of(node.ret) == {"out"}
        return value[:, None] if of_rows else value.view(-1, value.shape[-1])

    scores: Tensor = evaluate()
    return scores


def sorted_mask(scores: Tensor, sparsity: float) -> Tensor:
    """Wanda's mask: a stable sort of every row."""
    order = torch.sort(scores, dim=1, stable=True)[1]
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.scatter_(1, order[:, : int(scores.shape[1] * sparsity)], True)
