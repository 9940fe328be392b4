"""Take units of coupled axes out of a model's weights, where it computes the same without them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from gpprune.prune.model.coupling.axes import Coupling, Refusal, free_units
from gpprune.prune.model.coupling.cut import Cut
from gpprune.prune.model.coupling.proof import couplings, logits_of, probe_tokens
from gpprune.prune.model.run import listening, quiet_model
from gpprune.prune.model.shapes import fit_configuration
from gpprune.prune.model.structure import LinearLayer, linear_layers

KINDS = ("hidden", "heads")
"""The kinds of axis whose units can be taken out one by one."""


@dataclass(frozen=True)
class ShrunkAxis:
    """What became of a coupled axis.

    Attributes:
        kind: one of `KINDS`.
        name: the layer that reads it.
        units: how many it had.
        dead: how many of them the model computed the same without.
        removed: how many were taken out.
    """

    kind: str
    name: str
    units: int
    dead: int
    removed: int


@dataclass(frozen=True)
class Shrinking:
    """What was taken out of a model.

    Attributes:
        axes: its axes of `KINDS`.
        refused: what could not be taken out, and why.
        before: how many parameters the model had.
        after: how many it has.
        plain: whether its configuration says its shapes, so that transformers alone loads it.
    """

    axes: tuple[ShrunkAxis, ...]
    refused: tuple[Refusal, ...]
    before: int
    after: int
    plain: bool

    def counts(self) -> dict[str, tuple[int, int, int]]:
        """By kind, of all axes together: units, how many were dead, and how many were taken out."""
        found: dict[str, tuple[int, int, int]] = {}
        for axis in self.axes:
            units, dead, removed = found.get(axis.kind, (0, 0, 0))
            found[axis.kind] = (units + axis.units, dead + axis.dead, removed + axis.removed)
        return found

    @property
    def sentences(self) -> list[str]:
        """What was left undone, and how the model is loaded, for a reader."""
        said = [
            f"{kind} of {count} layers stay: {why}"
            for (kind, why), count in Counter((a.kind, a.why) for a in self.refused).items()
        ]
        refused = {(axis.kind, axis.name) for axis in self.refused}
        free = [axis for axis in self.axes if (axis.kind, axis.name) not in refused]
        if left := sum(axis.dead - axis.removed for axis in free):
            said.append(f"{left:,} dead units stay, so that all blocks are alike")
        if not self.plain:
            said.append(
                "blocks differ in their sizes, which no configuration says: gpprune.load_model "
                "reads the checkpoint, and plain transformers does not; uniform leaves them alike"
            )
        return said


@torch.no_grad()
def shrink(model: nn.Module, *, uniform: bool = False) -> Shrinking:
    """Take out, in place, the hidden channels and heads that a model computes the same without.

    A unit is dead if nothing reads it, or if it is always zero: weights that feed it are. The
    logits with and without all of them are compared before the model is changed for good. Of an
    axis whose units are all dead the first stays.

    Args:
        model: a causal language model, pruned by anything.
        uniform: whether to leave all blocks equally many, as plain transformers needs it: those
            of the block that has the most.

    Raises:
        GppruneError: the model has no decoder blocks with linear layers.
    """
    before = _parameters(model)
    with _in_float32(model), quiet_model(model):
        offered = [axis for axis in couplings(model).offered if axis.kind in KINDS]
        tokens = probe_tokens(model)
        if tokens is None or not offered:
            return Shrinking((), (), before, before, fit_configuration(model, ()))
        silent = _silent_inputs(model, tokens)
        dead = [_but_one(_dead(model, axis, silent)) for axis in offered]
        goes = _evenly(offered, dead) if uniform else dead
        cut, refused = Cut(model, tokens), []
        for kind in KINDS:
            own = [(axis, gone) for axis, gone in zip(offered, goes, strict=True) if gone.any()]
            own = [(axis, gone) for axis, gone in own if axis.kind == kind]
            why = None
            if own and not cut.take(own):
                why = "the model's code computes something else where there are fewer of them"
            elif own and uniform and not cut.fits():
                cut.put_back(own)
                why = "the model's configuration cannot say that there are fewer of them"
            refused += [Refusal(axis.kind, axis.name, why) for axis, _ in own if why]
    taken = {id(axis): int(gone.sum()) for axis, gone in cut.taken}
    axes = tuple(
        ShrunkAxis(axis.kind, axis.name, axis.units, int(own.sum()), taken.get(id(axis), 0))
        for axis, own in zip(offered, dead, strict=True)
    )
    return Shrinking(axes, tuple(refused), before, _parameters(model), cut.fits())


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def _in_float32(model: nn.Module) -> Iterator[None]:
    """In float32 inside this context: what is compared in less says little."""
    dtypes = {
        name: values.dtype
        for name, values in chain(model.named_parameters(), model.named_buffers())
        if values.is_floating_point() and values.dtype != torch.float32
    }

    def become(dtype: torch.dtype | None) -> None:
        for name, values in chain(model.named_parameters(), model.named_buffers()):
            if name in dtypes:
                values.data = values.data.to(dtype or dtypes[name])

    become(torch.float32)
    try:
        yield
    finally:
        become(None)


def _silent_inputs(model: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    """Of each linear layer by name, the inputs that are zero at all tokens, bool ``[in]``."""
    found: dict[str, Tensor] = {}

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        zero = inputs[0].reshape(-1, inputs[0].shape[-1]).eq(0).all(0).cpu()
        found[name] = found.get(name, torch.ones_like(zero)) & zero

    layers = linear_layers(model).items()
    with listening(
        layer.module.register_forward_pre_hook(partial(note, name)) for name, layer in layers
    ):
        logits_of(model, tokens)
    return found


def _dead(model: nn.Module, axis: Coupling, silent: Mapping[str, Tensor]) -> Tensor:
    """The units that nothing reads, and those that are always zero, bool ``[units]``.

    A unit that is zero at some tokens is so at all if a layer that feeds it gives it no say: what
    is constant there makes it so.
    """
    dead = free_units(model, axis)
    zero = silent.get(axis.name)
    if zero is None:
        return dead
    quiet = zero[axis.places[0].index].all(1)
    layers = linear_layers(model)
    for place in axis.places[1:]:
        layer = layers.get(place.parameter.removesuffix(".weight"))
        if layer is None or place.dim != _output_dim(layer):
            continue
        no_say = layer.weight.eq(0).all(1).cpu()
        dead |= quiet & no_say[place.index].all(1)
    return dead


def _but_one(dead: Tensor) -> Tensor:
    """Without the first, where all are: a layer of no size is none."""
    return dead if not dead.all() else dead & (torch.arange(len(dead)) > 0)


def _output_dim(layer: LinearLayer) -> int:
    return 1 if layer.transposed else 0


def _evenly(axes: Sequence[Coupling], dead: Sequence[Tensor]) -> list[Tensor]:
    """Of the dead units of each axis the first, as many of all axes of a kind."""
    least: dict[str, int] = {}
    for axis, own in zip(axes, dead, strict=True):
        least[axis.kind] = min(least.get(axis.kind, axis.units), int(own.sum()))
    return [own & (own.cumsum(0) <= least[axis.kind]) for axis, own in zip(axes, dead, strict=True)]
