"""How far pruning has carried a model from the dense one, as each layer could make up for it.

A layer that is fitted to its own dense weight keeps what it did, on inputs that pruning before it
has changed already. Asymmetric calibration fits it to what the dense model does there (GPTAQ, Li
et al. 2025, arXiv 2504.02692, for quantisation). Here a layer that adds to the hidden states makes
up for what is amiss in them, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from gpprune.prune.measure.spill import Shelf
from gpprune.prune.model.readers import Group
from gpprune.prune.model.recorder import in_place_of
from gpprune.prune.model.run import listening
from gpprune.prune.model.sequential import BlockRunner
from gpprune.prune.model.structure import LinearLayer

_IN_MEMORY = 256 * 2**20  # bytes of a block's dense signals
_SAME = 0.02  # as a share: rounding, also in bfloat16


class Drift:
    """What each layer of a block would have to add for the dense model's signal to come back.

    A layer's signal is what it writes; of one that adds to the hidden states (output, down), the
    hidden states after it. Layers that see but a part of the tokens, such as experts, have none.

    Args:
        runner: the states that the blocks before, pruned by then, hand on; new.

    Attributes:
        adding: the layers of the block that was entered last which add to the hidden states.
    """

    def __init__(self, runner: BlockRunner) -> None:
        self._runner = runner
        self._states = [runner.state(place) for place in range(runner.sequences)]  # the dense ones
        self._signals = Shelf(_IN_MEMORY)
        self._index = 0
        self._groups: Sequence[Group] = ()
        self.adding: frozenset[str] = frozenset()

    def __enter__(self) -> Drift:
        return self

    def __exit__(self, *_: object) -> None:
        self._signals.close()

    def enter(self, index: int, groups: Sequence[Group]) -> None:
        """Note the signals of a block that is dense still, and what the dense block hands on.

        Args:
            index: the block's place in the model.
            groups: all its layers, in the order in which they run and are to be pruned.
        """
        self._index, self._groups = index, groups
        self.adding = frozenset(
            name for group in groups for name in group if self._adds(group, name)
        )
        self._signals.close()
        last = len(groups) - 1
        for at, group in enumerate(groups):
            for place, state in enumerate(self._states):
                seen, after = self._seen(group, place, state)
                for name in group:
                    signal = self._signal(name, seen, after)
                    if signal is not None:
                        self._signals.put((name, place), signal)
                if at == last:  # nothing is left out behind it
                    self._states[place] = after

    def measure(self, group: Group) -> dict[str, Tensor]:
        """Send the pruned states up to a group, and see how far they have drifted.

        Args:
            group: one of those that the block was entered with; those before it are pruned.

        Returns:
            Of each layer that has a signal E[d a^T], float32 ``[out, in]``: d is the dense signal
            less that of the layer with the weight as it is, a what the layer reads.
        """
        sums: dict[str, Tensor] = {}
        tokens = 0
        for place in range(self._runner.sequences):
            state = self._runner.state(place)
            tokens += state.shape[:-1].numel()
            seen, after = self._seen(group, place, state)
            for name in group:
                now = self._signal(name, seen, after)
                if now is None or (name, place) not in self._signals:
                    continue
                drift = (self._signals.take((name, place)).float() - now.float()).flatten(0, -2)
                moved = drift.t() @ seen[name][0].float().flatten(0, -2)
                sums[name] = sums[name].add_(moved) if name in sums else moved
        return {name: moved.div_(tokens) for name, moved in sums.items()}

    def _adds(self, group: Group, name: str) -> bool:
        """Whether what a layer writes is added to the hidden states as it is.

        It is if twice the states come out when it is given them to add.
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
        self, group: Group, place: int, state: Tensor
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
        """What layers read and write, and the hidden states after them.

        The layers of later groups write zeros meanwhile.
        """
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                seen[name] = (inputs[0], output)

            return hook

        at = list(self._groups).index(group)
        later = [layer for part in self._groups[at + 1 :] for layer in part.values()]
        with (
            _silent(later),
            listening(
                layer.module.register_forward_hook(note(name)) for name, layer in group.items()
            ),
        ):
            after = self._runner.output(self._index, place, state=state)
        tokens = state.shape[:-1].numel()
        return {n: p for n, p in seen.items() if p[0].shape[:-1].numel() == tokens}, after

    def _signal(
        self, name: str, seen: Mapping[str, tuple[Tensor, Tensor]], after: Tensor
    ) -> Tensor | None:
        if name not in seen:
            return None
        return after if name in self.adding else seen[name][1]


@contextmanager
def _silent(layers: Sequence[LinearLayer]) -> Iterator[None]:
    """Let layers write zeros, at no cost."""
    modules = [layer.module for layer in layers]
    with in_place_of(modules, [partial(_zeros, layer.out_features) for layer in layers]):
        yield


def _zeros(features: int, inputs: Tensor) -> Tensor:
    return inputs.new_zeros(*inputs.shape[:-1], features)
