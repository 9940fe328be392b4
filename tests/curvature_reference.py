"""Curvature by autograd in float64, token by token: what gpprune's statistics are held against."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from gpprune.prune import linear_layers

TOKENS = torch.randint(64, (3, 20), generator=torch.Generator().manual_seed(1))


def captured(model: nn.Module, tokens: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Every layer's inputs and gradients of the summed losses at its outputs, ``[tokens, n]``."""
    model = copy.deepcopy(model).double()
    model.config._experts_implementation = "eager"  # the others have no float64
    layers = linear_layers(model)
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
    gathered: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
    for name, layer in layers.items():
        layer.module.register_forward_hook(
            lambda module, args, output, name=name: calls[name].append((args[0], output))
        )
    for sequence in tokens:
        logits = model(sequence[None]).logits[0, :-1]
        loss = nn.functional.cross_entropy(logits, sequence[1:], reduction="sum")
        for name, called in calls.items():
            # HRM's first rounds record no gradients
            parts = [(a, output) for a, output in called if output.requires_grad]
            outputs = [output for _, output in parts]
            gradients = torch.autograd.grad(loss, outputs, retain_graph=True)
            gathered[name] += [
                (a.detach().flatten(0, -2), g.flatten(0, -2))
                for (a, _), g in zip(parts, gradients, strict=True)
            ]
            called.clear()
    return {
        name: (torch.cat([a for a, _ in parts]), torch.cat([g for _, g in parts]))
        for name, parts in gathered.items()
    }


def inverse(matrix: Tensor, damping: float) -> Tensor:
    diagonal = matrix.diagonal()
    mean = diagonal[diagonal != 0].mean()
    filled = matrix + torch.diag((diagonal == 0) * mean)
    return torch.linalg.inv(filled + damping * filled.diagonal().mean() * torch.eye(len(matrix)))


def reference(weight: Tensor, a: Tensor, g: Tensor) -> dict[str, Tensor]:
    count, weight = TOKENS.numel(), weight.double()
    aa = torch.einsum("ti,tj->ij", a, a) / count
    gg = torch.einsum("ti,tj->ij", g, g) / count
    return {
        "A": (a**2).sum(0) / count,
        "Am": a.sum(0) / count,
        "Ai": inverse(aa, 0.01).diagonal(),
        "Ay": torch.einsum("ij,jk,ik->i", weight, aa, weight),
        "Gk": (g**2).sum(0) / count,
        "Gi": inverse(gg, 0.1).diagonal(),
        "Gx": torch.einsum("ij,ik,kj->j", weight, gg, weight),
        "F": torch.einsum("ti,tj->ij", g**2, a**2) / count,
        # of sequences' mean losses
        "Gm": torch.einsum("ti,tj->ij", g, a) / (len(TOKENS) * (TOKENS.shape[1] - 1)),
        "aaT": aa,
        "ggT": gg,
    }
