"""How far pruning has carried a model from the dense one, as each layer could make up for it.

A layer that is fitted to its own dense weight keeps what it did, on inputs that pruning before it
has changed already. Asymmetric calibration fits it to what the dense model does there (GPTAQ, Li
et al. 2025, arXiv 2504.02692, for quantisation). Here a layer that adds to the hidden states makes
up for what is amiss in them, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gpprune.prune.model.readers import Group
from gpprune.prune.model.recorder import in_place_of
from gpprune.prune.model.run import listening
from gpprune.prune.model.sequential import BlockRunner
from gpprune.prune.model.streamed.shelf import Shelf
from gpprune.prune.model.structure import LinearLayer, blocks, linear_layers

_SAME = 0.02  # as a share: rounding, also in bfloat16


class _Call(NamedTuple):
    """What a layer reads, ``[..., in]``, and what it writes, ``[..., out]``."""

    reads: Tensor
    writes: Tensor


# The weights of a block, by its place, as they were at first: by their names in the block.
Originals = Callable[[int], dict[str, Tensor]]


@contextmanager
def originals_of(model: nn.Module) -> Iterator[Originals]:
    """Keep all weights that may be pruned, as they are now, in a temporary directory.

    The directory goes at the end of this context.

    Args:
        model: dense.

    Raises:
        GppruneError: the temporary directory cannot be written.
    """
    ours = {id(layer.parameter) for layer in linear_layers(model).values()}
    names: defaultdict[int, list[str]] = defaultdict(list)
    with Shelf() as shelf:
        for index, block in enumerate(blocks(model)):
            for name, parameter in block.named_parameters():
                if id(parameter) in ours:
                    shelf.put((index, name), parameter.detach())
                    names[index].append(name)
        yield lambda index: {name: shelf.get((index, name)) for name in names[index]}


class Drift:
    """What each layer of a block would have to add for the dense model's signal to come back.

    A layer's signal is what it writes; of one that adds to the hidden states (output, down), the
    hidden states after it. Layers that see but a part of the tokens, such as experts, have none.

    Args:
        runner: the states that the blocks before, pruned by then, hand on; new.
        originals: what the weights were at first, of a model that was pruned before; None: what
            they are when a block is entered.

    Attributes:
        adding: the layers of the block that was entered last which add to the hidden states.
    """

    def __init__(self, runner: BlockRunner, originals: Originals | None = None) -> None:
        self._runner = runner
        self._originals = originals
        self._states = [runner.state(place) for place in range(runner.sequences)]  # the dense ones
        self._index = 0
        self._weights: dict[str, Tensor] = {}
        self._groups: Sequence[Group] = ()
        self.adding: frozenset[str] = frozenset()

    def enter(self, index: int, groups: Sequence[Group]) -> None:
        """Keep what a block is before it is pruned.

        Args:
            index: the block's place in the model.
            groups: all its layers, in the order in which they run and are to be pruned. Each is
                then measured once, the last one last.
        """
        self._index, self._groups = index, groups
        before = {} if self._originals is None else self._originals(index)
        self._weights = before | self._runner.weights(index, without=before)
        self.adding = frozenset(
            name for group in groups for name in group if self._adds(group, name)
        )

    def measure(
        self, group: Group, watching: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> dict[str, Tensor]:
        """Send dense and pruned states up to a group, and see how far the pruned have drifted.

        Args:
            group: one of those that the block was entered with; those before it are pruned.
            watching: a context for each pass of pruned states; no dense ones flow inside it.

        Returns:
            Of each layer that has a signal E[d a^T], float32 ``[out, in]``: d is the dense signal
            less that of the layer with the weight as it is, a what the layer reads.
        """
        sums: dict[str, Tensor] = {}
        tokens = 0
        for place, dense in enumerate(self._states):
            state = self._runner.state(place)
            tokens += state.shape[:-1].numel()
            wanted, then = self._seen(group, place, dense, self._weights)
            with watching():
                seen, after = self._seen(group, place, state)
            for name in seen.keys() & wanted.keys():
                adds = name in self.adding
                drift = (then if adds else wanted[name].writes).float()
                drift = drift - (after if adds else seen[name].writes).float()
                reads = seen[name].reads.float().flatten(0, -2)
                moved = drift.flatten(0, -2).t() @ reads
                sums[name] = sums[name].add_(moved) if name in sums else moved
            if group is self._groups[-1]:  # nothing is left out behind it
                self._states[place] = then
        return {name: moved.div_(tokens) for name, moved in sums.items()}

    def _adds(self, group: Group, name: str) -> bool:
        """Whether what a layer writes is added to the hidden states as it is.

        It is if twice the states come out when it is given them to add. The layers of later groups
        are silent meanwhile; where something else behind it speaks, as fused experts do, it is not.
        """
        state = self._states[0]
        if group[name].out_features != state.shape[-1]:
            return False
        seen, after = self._seen(group, 0, state)
        if name not in seen:
            return False

        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + after.view(output.shape)

        with listening([group[name].module.register_forward_hook(add)]):
            _, twice = self._seen(group, 0, state)
        change = (twice.float() - after.float()).sub_(after.float()).norm()
        return bool(change <= _SAME * after.float().norm())

    @torch.no_grad()
    def _seen(
        self,
        group: Group,
        place: int,
        state: Tensor,
        weights: Mapping[str, Tensor] | None = None,
    ) -> tuple[dict[str, _Call], Tensor]:
        """What the layers of a group read and write, and the hidden states after them.

        Of layers that are called once for each token. Those of later groups write zeros meanwhile.
        """
        seen: dict[str, _Call] = {}
        tokens = state.shape[:-1].numel()

        def note(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
            def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
                if not isinstance(output, Tensor) or output.shape[:-1] != inputs[0].shape[:-1]:
                    return  # a router that says more than a linear layer
                if inputs[0].shape[:-1].numel() == tokens:
                    # copies, for what follows may write into them
                    seen[name] = _Call(inputs[0].clone(), output.clone())

            return hook

        at = next(at for at, one in enumerate(self._groups) if one is group)
        later = [layer for one in self._groups[at + 1 :] for layer in one.values()]
        hooks = (layer.module.register_forward_hook(note(name)) for name, layer in group.items())
        with _silent(later), listening(hooks):
            after = self._runner.output(self._index, place, weights, state=state)
        return seen, after


@contextmanager
def _silent(layers: Sequence[LinearLayer]) -> Iterator[None]:
    """Let layers write zeros, at no cost; those that do more than multiply go on."""
    plain = [layer for layer in layers if layer.plain]
    forwards: list[Callable[..., Any]] = [partial(_zeros, layer.out_features) for layer in plain]
    with in_place_of([layer.module for layer in plain], forwards):
        yield


def _zeros(features: int, inputs: Tensor) -> Tensor:
    return inputs.new_zeros(*inputs.shape[:-1], features)
