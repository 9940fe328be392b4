"""A model without some units of its coupled axes, which can be put back."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor, nn

from gpprune.prune.model.coupling.axes import Coupling
from gpprune.prune.model.coupling.proof import TOLERANCE, logits_of
from gpprune.prune.model.shapes import FewerUnits, counting, fit_configuration, set_parameter

Units = list[tuple[Coupling, Tensor]]  # of each axis those that go, bool ``[units]``
Numbers = dict[tuple[nn.Module, str], int]  # attributes of modules


class Cut:
    """A model without some units of its axes.

    Args:
        model: whole.
        tokens: ``[1, length]``: what the logits are compared on.

    Attributes:
        taken: what has been taken out.
    """

    def __init__(self, model: nn.Module, tokens: Tensor) -> None:
        self.taken: Units = []
        self._model, self._tokens = model, tokens
        self._numbers: Numbers = {}
        self._weights: dict[str, Tensor] = {}  # as they were
        self._counts: Numbers = {}
        self._dense = logits_of(model, tokens)

    def take(self, units: Units) -> bool:
        """Take out units of axes of one kind, and say whether that was possible.

        Numbers that the model's code goes by, such as of heads, are changed where it needs that.
        The model is as before if nothing helps.
        """
        for numbers in _ways(self._model, units):
            self._become([*self.taken, *units], {**self._numbers, **numbers})
            if self._same():
                self.taken, self._numbers = [*self.taken, *units], {**self._numbers, **numbers}
                return True
        self._become(self.taken, self._numbers)
        return False

    def fits(self) -> bool:
        """Whether the model's configuration can say what it is now, and does from now on."""
        fewer = {
            FewerUnits(
                axis.units,
                axis.units - int(gone.sum()),
                _members(axis),
                getattr(_reading(self._model, axis), "head_dim", None),
            )
            for axis, gone in self.taken
        }
        return fit_configuration(self._model, sorted(fewer, key=repr))

    def put_back(self, units: Units) -> None:
        """Put back what was taken out last."""
        self.taken = [each for each in self.taken if each not in units]
        self._numbers = {}  # none was changed before: heads are the last kind
        self._become(self.taken, self._numbers)

    def _become(self, units: Units, numbers: Numbers) -> None:
        """Be the whole model without some units, and with some numbers changed."""
        for name, values in self._weights.items():
            set_parameter(self._model, name, values)
        for (module, name), value in self._counts.items():
            setattr(module, name, value)
        goes: dict[tuple[str, int], list[Tensor]] = {}
        for axis, gone in units:
            for place in axis.places:
                own = goes.setdefault((place.parameter, place.dim), [])
                own.append(place.index[gone].flatten())
        for (name, dim), positions in goes.items():
            values = self._model.get_parameter(name).detach()
            self._weights.setdefault(name, values)
            stays = torch.ones(values.shape[dim], dtype=torch.bool)
            stays[torch.cat(positions)] = False
            chosen = stays.nonzero().flatten().to(values.device)
            set_parameter(self._model, name, values.index_select(dim, chosen))
        for (module, name), value in numbers.items():
            self._counts.setdefault((module, name), getattr(module, name))
            setattr(module, name, value)

    def _same(self) -> bool:
        """Whether the logits are what they were, but for rounding."""
        try:
            found = logits_of(self._model, self._tokens)
        except Exception:  # whatever sizes that do not fit make a model's code raise
            return False
        if found.shape != self._dense.shape:
            return False
        return float((found - self._dense).norm()) < TOLERANCE * float(self._dense.norm())


def _reading(model: nn.Module, axis: Coupling) -> nn.Module:
    """The module whose layer reads an axis."""
    return model.get_submodule(axis.name.rpartition(".")[0])


def _ways(model: nn.Module, units: Units) -> Iterator[Numbers]:
    """Numbers to change in the modules whose layers read the axes: none, then ever more of them.

    Each may count the units, or parts of them.
    """
    scaled: dict[str, Numbers] = {}
    for axis, gone in units:
        module = _reading(model, axis)
        left = axis.units - int(gone.sum())
        for name, value in counting(module, axis.units, _members(axis)):
            scaled.setdefault(name, {})[module, name] = value // axis.units * left
    for count in range(len(scaled) + 1):
        for names in combinations(scaled, count):
            changed: Numbers = {}
            for name in names:
                changed |= scaled[name]
            yield changed


def _members(axis: Coupling) -> int:
    return axis.places[0].index.shape[1]
