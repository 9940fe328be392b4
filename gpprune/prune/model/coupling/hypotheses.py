"""Which axes of a model may be coupled, from how its layers are wired."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from gpprune.prune.model.coupling.axes import Coupling, Place, Refusal
from gpprune.prune.model.coupling.wiring import Run, Wiring
from gpprune.prune.model.structure import LinearLayer, blocks, linear_layers

_IDLE = "no token came to it, so that nothing of it can be proven"
_SAMPLES = 8  # inputs of a layer that are looked at for what reaches them


def hypotheses(
    model: nn.Module, layers: Mapping[str, LinearLayer], embedding: nn.Embedding, tokens: Tensor
) -> Iterator[Coupling | Refusal]:
    """The axes that a model may have, still to be proven, and those that it cannot.

    Args:
        model: a causal language model.
        layers: its linear layers by name.
        embedding: of its tokens.
        tokens: ``[1, length]``, int64, two at least: it is run on them once.
    """
    wiring = Wiring(model, layers, embedding, tokens)
    feeding: set[str] = set()  # layers whose outputs another reads before the residual stream
    readers: list[LinearLayer] = []  # of the residual stream
    idle = [layer.name for layer in layers.values() if not wiring.called(layer)]
    for name in idle:
        yield Refusal("hidden", name, _IDLE)
    for layer in layers.values():
        if layer.name in idle:
            continue
        channels = sorted({at * (layer.in_features - 1) // _SAMPLES for at in range(_SAMPLES + 1)})
        reached = {channel: wiring.runs(layer, channel) for channel in channels}
        if any(runs is None for runs in reached.values()):
            readers.append(layer)
            continue
        runs = {channel: runs for channel, runs in reached.items() if runs}
        feeding |= {run.layer for found in runs.values() for run in found}
        yield from _inner(layer, runs, wiring, layers)
    if idle:
        yield Refusal("residual", "", f"of {idle[0]!r}, {_IDLE}")
        return
    others = [layer for layer in layers.values() if layer.name not in feeding]
    yield _residual(model, readers, others)


def _inner(
    layer: LinearLayer,
    reached: Mapping[int, Sequence[Run]],
    wiring: Wiring,
    layers: Mapping[str, LinearLayer],
) -> Iterator[Coupling | Refusal]:
    """The axes that one layer reads which does not read the residual stream."""
    if not reached:
        yield Refusal("hidden", layer.name, "no layer's outputs were seen to reach it")
        return
    lengths = {run.length for runs in reached.values() for run in runs}
    if lengths == {1}:
        yield _hidden(layer, reached, layers)
        return
    width = min(lengths - {1})  # of a head; queries and keys that lie side by side look like one
    if width == layer.in_features or layer.in_features % width:
        yield Refusal("values", layer.name, f"{width} outputs of a layer reach one of its inputs")
        return
    yield from _attention(layer, width, wiring, layers)


def _hidden(
    layer: LinearLayer,
    reached: Mapping[int, Sequence[Run]],
    layers: Mapping[str, LinearLayer],
) -> Coupling | Refusal:
    """Unit by unit: each input is made of one output of each feeding layer, or of each part."""
    offsets = {tuple((run.layer, run.start - at) for run in runs) for at, runs in reached.items()}
    if len(offsets) > 1:
        return Refusal("hidden", layer.name, "its inputs are made of outputs in another order")
    units = torch.arange(layer.in_features)[:, None]
    places = [_columns(layer, units)]
    for name, offset in next(iter(offsets)):
        places += _rows(layers[name], units + offset)
    return Coupling("hidden", layer.name, tuple(places))


def _attention(
    layer: LinearLayer,
    width: int,
    wiring: Wiring,
    layers: Mapping[str, LinearLayer],
) -> Iterator[Coupling | Refusal]:
    """The dimensions of the values of each head, or of heads that share them; and the heads.

    A head's values reach its part of the layer's inputs dimension by dimension, and its queries
    and keys all of it.
    """
    middle = width // 2
    groups: dict[tuple[Run, ...], list[tuple[int, list[Run]]]] = {}
    for start in range(0, layer.in_features, width):
        runs = wiring.runs(layer, start + middle) or []
        values = tuple(Run(r.layer, r.start - middle, width) for r in runs if r.length == 1)
        scores = [
            Run(run.layer, run.start + at, width)
            for run in runs
            if run.length > 1
            for at in range(0, run.length, width)
        ]
        if not values or any(run.length > 1 and run.length % width for run in runs):
            yield Refusal("values", layer.name, "no values of single heads were seen to reach it")
            return
        groups.setdefault(values, []).append((start, scores))
    dims = torch.arange(width)
    for values, heads in groups.items():
        starts = torch.tensor([start for start, _ in heads])
        places = [_columns(layer, dims[:, None] + starts)]
        for run in values:
            places += _rows(layers[run.layer], dims[:, None] + run.start)
        yield Coupling("values", layer.name, tuple(places))
    if len(groups) == 1:
        return
    units: list[dict[str, list[int]]] = []  # of each group its rows in each layer
    for values, heads in groups.items():
        own: dict[str, list[int]] = {}
        for run in dict.fromkeys([*values, *(run for _, scores in heads for run in scores)]):
            own.setdefault(run.layer, []).extend(range(run.start, run.start + width))
        units.append(own)
    if len({tuple((name, len(rows)) for name, rows in sorted(own.items())) for own in units}) > 1:
        yield Refusal("heads", layer.name, "its heads do not share their values equally")
        return
    columns = [
        [at for start, _ in heads for at in range(start, start + width)]
        for heads in groups.values()
    ]
    places = [_columns(layer, torch.tensor(columns))]
    for name in units[0]:
        places += _rows(layers[name], torch.tensor([own[name] for own in units]))
    yield Coupling("heads", layer.name, tuple(places))


def _residual(
    model: nn.Module,
    readers: Sequence[LinearLayer],
    others: Sequence[LinearLayer],
) -> Coupling | Refusal:
    """The stream that all blocks read and write, with the norms, embeddings and head beside it.

    Args:
        model: the model.
        readers: layers that the embedding reaches.
        others: layers that no other reads before the stream does: who writes to it is among them.
    """
    widths = {layer.in_features for layer in readers}
    if len(widths) != 1:
        return Refusal("residual", "", f"its readers have inputs of widths {sorted(widths)}")
    (width,) = widths
    units = torch.arange(width)[:, None]
    places = [_columns(layer, units) for layer in readers]
    for layer in others:
        if layer.out_features == width:
            places += _rows(layer, units)
    inside = {id(module) for module in blocks(model).modules()}
    linear = {id(layer.module) for layer in linear_layers(model).values()}
    for name, module in model.named_modules():
        if id(module) in linear:
            continue
        for last, parameter in module.named_parameters(recurse=False):
            dims = [dim for dim, size in enumerate(parameter.shape) if size == width]
            if id(module) in inside or isinstance(module, nn.Embedding):
                dims = dims[-1:]  # a vector's own, an embedding's last
            path = f"{name}.{last}" if name else last
            places += [Place(path, dim, units) for dim in dims]
    return Coupling("residual", "", tuple(_distinct(model, places)))


def _distinct(model: nn.Module, places: Iterable[Place]) -> Iterator[Place]:
    """Without those of a parameter that is tied to another."""
    seen: set[tuple[int, int]] = set()
    for place in places:
        key = id(model.get_parameter(place.parameter)), place.dim
        if key not in seen:
            seen.add(key)
            yield place


def _columns(layer: LinearLayer, index: Tensor) -> Place:
    """Inputs of a layer."""
    return Place(f"{layer.name}.weight", 0 if layer.transposed else 1, index)


def _rows(layer: LinearLayer, index: Tensor) -> list[Place]:
    """Outputs of a layer, its bias included."""
    places = [Place(f"{layer.name}.weight", 1 if layer.transposed else 0, index)]
    if isinstance(getattr(layer.module, "bias", None), nn.Parameter):
        places.append(Place(f"{layer.name}.bias", 0, index))
    return places
