"""Which axes of which weights are one: found in how a model is wired, proven on its logits.

A unit of a coupled axis (a hidden channel of an MLP, a dimension of a head's values, a head with
its keys and queries, a channel of the residual stream) lies in several weights. Where the units
change places in all of them, the model computes what it did. No names are read: what reaches what
is seen in gradients, and every axis is permuted and its logits compared before it is offered.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain

import torch
from torch import Tensor, nn

from gpprune.prune.model.coupling.axes import (
    Coupling,
    Couplings,
    Refusal,
    permute,
    values_at,
)
from gpprune.prune.model.coupling.hypotheses import hypotheses
from gpprune.prune.model.coupling.mixtures import expert_axes
from gpprune.prune.model.run import quiet_model
from gpprune.prune.model.structure import linear_layers

TOLERANCE = 1e-5
"""How much a permutation may change the logits, relative to their norm: rounding has 1e-6."""

_TOKENS = 8


def couplings(model: nn.Module) -> Couplings:
    """The coupled axes of a model, each proven by a permutation that leaves its logits as they are.

    Args:
        model: a causal language model; it is as it was afterwards. If it is not in float32, the
            proof is of a copy that is.

    Raises:
        GppruneError: the model has no decoder blocks with linear layers.
    """
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        model = copy.deepcopy(model).float()
    # what reaches experts depends on the token, and their units lie in a stack
    layers = {name: layer for name, layer in linear_layers(model).items() if not layer.stacked}
    embedding, tokens = _embedding(model), probe_tokens(model)
    if embedding is None or tokens is None:
        return Couplings((), (Refusal("residual", "", "the model names no embedding of tokens"),))
    wired = chain(hypotheses(model, layers, embedding, tokens), expert_axes(model))
    found = [_sound(model, axis) for axis in wired]
    offered, refused = [], [axis for axis in found if isinstance(axis, Refusal)]
    proof = _Proof(model, tokens)
    for kind in dict.fromkeys(axis.kind for axis in found):
        axes = [axis for axis in found if isinstance(axis, Coupling) and axis.kind == kind]
        # one forward pass proves them all, and only where it does not, each has its own
        together = proof.change(axes) < TOLERANCE
        for axis in axes:
            if together or proof.change([axis]) < TOLERANCE:
                offered.append(axis)
            else:
                why = f"permuting it changes the logits by more than {TOLERANCE:g} of their norm"
                refused.append(Refusal(kind, axis.name, why))
    return Couplings(tuple(offered), tuple(refused))


def _sound(model: nn.Module, axis: Coupling | Refusal) -> Coupling | Refusal:
    """Refuse an axis whose units overlap or lie outside: no permutation of it could be undone."""
    for place in axis.places if isinstance(axis, Coupling) else ():
        index = place.index.flatten()
        size = values_at(model, place).shape[place.dim]
        if len(torch.unique(index)) < len(index) or index.min() < 0 or index.max() >= size:
            return Refusal(axis.kind, axis.name, "its units do not lie side by side in all weights")
    return axis


def _embedding(model: nn.Module) -> nn.Embedding | None:
    with suppress(AttributeError, NotImplementedError):
        found = model.get_input_embeddings()  # type: ignore[operator]
        return found if isinstance(found, nn.Embedding) else None
    return None


def probe_tokens(model: nn.Module) -> Tensor | None:
    """Random tokens ``[1, length]`` that a model is compared on; None: it has no embedding."""
    embedding = _embedding(model)
    if embedding is None:
        return None
    generator = torch.Generator().manual_seed(0)
    found = torch.randint(embedding.num_embeddings, (1, _TOKENS), generator=generator)
    return found.to(embedding.weight.device)


@torch.no_grad()
def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """The logits of tokens ``[1, length]``, float64 ``[1, length, vocabulary]``."""
    with quiet_model(model):
        logits: Tensor = model(input_ids=tokens).logits.double()
    return logits


class _Proof:
    """How much the logits change where axes are permuted.

    Args:
        model: the model.
        tokens: ``[1, length]``: what the logits are of.
    """

    def __init__(self, model: nn.Module, tokens: Tensor) -> None:
        self._model, self._tokens = model, tokens
        self._dense = logits_of(model, tokens)

    def change(self, axes: Sequence[Coupling]) -> float:
        """Relative to the logits' norm, of random permutations of all axes at once."""
        if not axes:
            return 0.0
        with _permuted(self._model, axes):
            moved = logits_of(self._model, self._tokens) - self._dense
        return float(moved.norm() / self._dense.norm())


@contextmanager
def _permuted(model: nn.Module, axes: Sequence[Coupling]) -> Iterator[None]:
    """Random permutations inside this context; afterwards every bit is where it was."""
    generator = torch.Generator().manual_seed(0)
    orders: list[Tensor] = []
    try:
        for axis in axes:
            order = torch.randperm(axis.units, generator=generator)
            if axis.kind == "experts":  # of few, chance may keep together what a router groups
                order = torch.arange(axis.units).roll(1)
            if torch.equal(order, torch.arange(axis.units)):  # as it may be of few units
                order = order.roll(1)
            permute(model, axis, order)
            orders.append(order)
        yield
    finally:
        for axis, order in zip(axes, orders, strict=False):
            permute(model, axis, order.argsort())
