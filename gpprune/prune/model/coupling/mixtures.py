"""The experts of a mixture as units of an axis, and models without some of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from gpprune.errors import GppruneError
from gpprune.prune.model.coupling.axes import Coupling, Place, values_at
from gpprune.prune.model.experts.stacks import experts_in
from gpprune.prune.model.run import listening, quiet_model
from gpprune.prune.model.shapes import (
    FewerUnits,
    as_configured,
    fit_configuration,
    set_parameter,
    trying,
    whole_numbers,
)
from gpprune.prune.model.structure import linear_layers


def expert_axes(model: nn.Module) -> Iterator[Coupling]:
    """The axes of experts that are stored as one parameter, still to be proven.

    An expert is its part of every parameter of the stack, and what lies beside the stack for each
    expert: rows of the router's weight, its biases. What holds linear layers that are pruned is
    no router.
    """
    layers = linear_layers(model)
    for name in dict.fromkeys(layer.experts for layer in layers.values() if layer.stacked):
        outer = name.rpartition(".")[0]
        own, beside = model.get_submodule(name), model.get_submodule(outer)
        count = experts_in(own)
        held = {f"{name}.{inner}": value for inner, value in _held(own, recurse=False)}
        held |= {f"{outer}.{inner}": value for inner, value in _held(beside, recurse=False)}
        for inner, child in beside.named_children():
            prefix = f"{outer}.{inner}"
            if child is not own and not any(f"{each}.".startswith(f"{prefix}.") for each in layers):
                held |= {f"{prefix}.{last}": value for last, value in _held(child, recurse=True)}
        units = torch.arange(count)[:, None]
        places = [
            Place(path, list(value.shape).index(count), units)
            for path, value in held.items()
            if count in value.shape
        ]
        yield Coupling("experts", name, tuple(places))


def _held(module: nn.Module, *, recurse: bool) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=recurse)
    yield from module.named_buffers(recurse=recurse)


def choices(model: nn.Module, axes: Sequence[Coupling], tokens: Tensor) -> int:
    """To how many experts each token goes, at most.

    Args:
        model: a causal language model.
        axes: of experts.
        tokens: ``[1, length]``: what it is run on.
    """
    found: list[int] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[1].shape[-1])  # of an opened stack: which experts

    hooks = (model.get_submodule(axis.name).register_forward_pre_hook(note) for axis in axes)
    with torch.no_grad(), quiet_model(model), listening(hooks):
        model(input_ids=tokens)
    return max(found)


@torch.no_grad()
def take_out_experts(model: nn.Module, gone: Mapping[Coupling, Tensor], tokens: Tensor) -> None:
    """Take experts out of a model, in place: its routers choose among those that stay.

    Its configuration says then how many there are, so that plain transformers loads it.

    Args:
        model: a causal language model.
        gone: of all its axes of experts, equally many, bool ``[experts]``.
        tokens: ``[1, length]``: what the model is tried on afterwards.

    Raises:
        GppruneError: the configuration cannot say it, or the model's code does not run with so
            few. All values are then as they were.
    """
    before = next(iter(gone)).units
    after = before - int(next(iter(gone.values())).sum())
    with ExitStack() as undo, trying(model):
        for axis, own in gone.items():
            stays = (~own).nonzero().flatten()
            for place in axis.places:
                values = values_at(model, place)
                undo.callback(_put, model, place.parameter, values)
                chosen = values.index_select(place.dim, stays.to(values.device))
                _put(model, place.parameter, chosen)
        fits = fit_configuration(model, [FewerUnits(before, after, 1)])
        plain = as_configured(model) if fits else None
        if plain is None:
            raise GppruneError(
                f"the model's configuration cannot say that it has {after} experts a block in "
                f"place of {before}: experts cannot be taken out of it"
            )
        for name, module in plain.named_modules():  # what counts experts, also of the model itself
            counts = [field for field, value in whole_numbers(module) if value == after]
            for field in counts:
                owner = model.get_submodule(name)
                if getattr(owner, field, after) == before:
                    undo.callback(setattr, owner, field, before)
                    setattr(owner, field, after)
        _try(model, tokens, after)
        undo.pop_all()
    for axis in gone:
        stack = model.get_submodule(axis.name)
        for number in range(after, before):
            delattr(stack, str(number))


def _try(model: nn.Module, tokens: Tensor, experts: int) -> None:
    """See that a model runs with so many experts a block."""
    try:
        with quiet_model(model):
            logits = model(input_ids=tokens).logits
    except Exception as error:  # whatever a number that does not fit makes a model's code raise
        raise GppruneError(
            f"the model's code does not run with {experts} experts a block ({error}): leave "
            "another number of them"
        ) from error
    if not bool(torch.isfinite(logits).all()):
        raise GppruneError(f"with {experts} experts a block the model gives no finite logits")


def _put(model: nn.Module, name: str, values: Tensor) -> None:
    """Replace a parameter or a buffer."""
    outer, _, last = name.rpartition(".")
    owner = model.get_submodule(outer)
    if last in owner._parameters:
        set_parameter(model, name, values)
    else:
        setattr(owner, last, values)
