"""The coupled axes of a model: where their units lie, and how they change places."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

AXES = {
    "hidden": "channels between two layers, as of an MLP",
    "values": "dimensions of the values of heads that share them",
    "heads": "heads, with the queries that share their keys and values",
    "residual": "channels of the residual stream",
    "experts": "experts of a mixture, with what its router knows of each",
}
"""The kinds of axis, and what their units are."""


@dataclass(frozen=True, eq=False)
class Place:
    """Where the units of an axis lie in one parameter.

    Attributes:
        parameter: its name in the model; a router may hold a buffer, which is one too.
        dim: along which of its dimensions.
        index: the positions of each unit, int64 ``[units, members]``.
    """

    parameter: str
    dim: int
    index: Tensor


@dataclass(frozen=True, eq=False)
class Coupling:
    """An axis whose units may change places.

    Attributes:
        kind: one of `AXES`.
        name: the layer that reads it; of experts their list, of the residual stream empty.
        places: all places where a unit lies; the inputs of that layer come first.
    """

    kind: str
    name: str
    places: tuple[Place, ...]

    @property
    def units(self) -> int:
        """How many units it has."""
        return len(self.places[0].index)


@dataclass(frozen=True)
class Refusal:
    """An axis that is not offered.

    Attributes:
        kind: as of a `Coupling`.
        name: likewise.
        why: in plain words.
    """

    kind: str
    name: str
    why: str


@dataclass(frozen=True)
class Couplings:
    """The coupled axes of a model.

    Attributes:
        offered: those that are proven.
        refused: those that are not, and why.
    """

    offered: tuple[Coupling, ...]
    refused: tuple[Refusal, ...]


def values_at(model: nn.Module, place: Place) -> Tensor:
    """The parameter or buffer that units lie in, detached."""
    owner, _, name = place.parameter.rpartition(".")
    found: Tensor = getattr(model.get_submodule(owner), name)
    return found.detach()


@torch.no_grad()
def permute(model: nn.Module, coupling: Coupling, order: Tensor) -> None:
    """Let the units of an axis change places in all weights, in place.

    Args:
        model: the model that the axis was found in.
        coupling: the axis.
        order: int64 ``[units]``: which unit comes to each place.
    """
    for place in coupling.places:
        values = values_at(model, place)
        index = place.index.to(values.device)
        moved = values.index_select(place.dim, index[order.to(values.device)].flatten())
        values.index_copy_(place.dim, index.flatten(), moved)


def free_units(model: nn.Module, coupling: Coupling) -> Tensor:
    """Which units of an axis nothing reads, bool ``[units]``: without them the model is the same.

    Of the residual stream none is called so: its norms read each. Nor is an expert: without it its
    tokens go to others.
    """
    place = coupling.places[0]
    if coupling.kind in ("residual", "experts"):
        return torch.zeros(coupling.units, dtype=torch.bool)
    values = values_at(model, place).movedim(place.dim, 0)
    read = values.flatten(1).ne(0).any(1).cpu()
    return ~read[place.index].any(1)
