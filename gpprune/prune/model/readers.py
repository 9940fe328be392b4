"""Which linear layers of a block read the same tensor, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

from torch import Tensor, nn

from gpprune.prune.model.run import listening
from gpprune.prune.model.sequential import BlockRunner
from gpprune.prune.model.structure import LinearLayer

Group = dict[str, LinearLayer]
_Reads = dict[str, tuple[Tensor, int]]  # of each layer its first input, and that one's version


def input_groups(
    runner: BlockRunner, index: int, layers: Mapping[str, LinearLayer]
) -> Iterator[Group]:
    """A block's layers in groups that read one tensor: query, key and value; output; and so on.

    A group is asked for when the groups before it may have been pruned. Experts read parts of one
    tensor, and those of one list are in a group. Layers that no sequence reaches come last, on
    their own.

    Args:
        runner: sends the calibration sequences through the block.
        index: the block's place in the model.
        layers: of the block, by name.

    Yields:
        Layers by name, those that read a tensor first before those that read one later.
    """
    reads: _Reads = {}
    groups: dict[tuple[object, object], Group] = {}
    for sequence in range(runner.sequences):
        if len(reads) == len(layers):
            break
        # what was read stays alive while it is compared, or another tensor took its place
        found: _Reads = {}
        with _watching(layers, found):
            runner.output(index, sequence)
        for name, (tensor, version) in found.items():
            if name not in reads:
                key = _list(layers[name]) or (id(tensor), version)
                groups.setdefault(key, {})[name] = layers[name]
        reads |= {name: read for name, read in found.items() if name not in reads}
    for name, layer in layers.items():
        if name not in reads and (peers := groups.get(_list(layer) or ("", ""))):
            peers[name] = layer
    yield from groups.values()
    grouped = {name for group in groups.values() for name in group}
    unread = {name: layer for name, layer in layers.items() if name not in grouped}
    if unread:
        yield unread


def _list(layer: LinearLayer) -> tuple[object, object] | None:
    """What experts of one list have in common; None of another layer."""
    return (layer.experts, layer.role) if layer.experts else None


def _watching(layers: Mapping[str, LinearLayer], reads: _Reads) -> AbstractContextManager[None]:
    """Note each layer's first input inside this context."""

    def noting(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            reads.setdefault(name, (inputs[0], inputs[0]._version))

        return note

    return listening(
        layer.module.register_forward_pre_hook(noting(name)) for name, layer in layers.items()
    )
