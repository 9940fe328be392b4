"""Models that are pruned and come nearer to the dense one again."""

from __future__ import annotations

import copy

import torch
from tiny_families import tiny
from torch import Tensor, nn

from gpprune.prune import linear_layers


def sharp(family: str) -> nn.Module:
    """A model that is surer of what comes next than a new one."""
    model = tiny(family).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    return model


def pruned_copy(model: nn.Module, sparsity: float = 0.5) -> nn.Module:
    copied = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in linear_layers(copied).values():
            gone = torch.rand(layer.parameter.shape, generator=draw) < sparsity
            layer.parameter.masked_fill_(gone, 0.0)
    return copied


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@torch.no_grad()
def divergence(dense: nn.Module, pruned: nn.Module, tokens: Tensor) -> float:
    """KL(dense || pruned), the mean over tokens, in float64 from its definition."""
    total = 0.0
    for one in tokens:
        p = dense(one[None], use_cache=False).logits[0].double().softmax(-1)
        q = pruned(one[None], use_cache=False).logits[0].double().softmax(-1)
        total += float((p * (p / q).log()).sum(-1).mean())
    return total / len(tokens)


def swapped(model: nn.Module, dense: nn.Module) -> None:
    """Give a model the weights of another."""
    model.load_state_dict(dense.state_dict())
