"""How many calibration tokens come to each expert, and what stands for those that get too few."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gpprune.progress import Progress, silent
from gpprune.prune.model.run import body, listening
from gpprune.prune.model.sequential import BlockRunner
from gpprune.prune.model.streamed.pages import pages_of
from gpprune.prune.model.structure import LinearLayer, linear_layers

FEW = 32  # tokens: of fewer what an expert reads is mostly chance

IDLE = {
    "share": "they are pruned by what those beside them read on average that got more",
    "dense": "they are left dense",
    "first": "they are the first to be taken out",
}
"""What may become of an expert that fewer than `FEW` tokens reached, in words."""


class Traffic:
    """How many tokens came to each expert among some layers.

    An expert that fewer than `FEW` tokens reached is scored and mended as the others in its list
    are on average, those that more tokens reached. Where there are none, one that no token reached
    goes by all that any did.

    Args:
        layers: by name.

    Attributes:
        tokens: of each layer that is an expert's by name.
    """

    def __init__(self, layers: Mapping[str, LinearLayer]) -> None:
        self._layers = layers
        self.tokens = {name: 0 for name, layer in layers.items() if layer.experts}
        self._lists: dict[tuple[str, str], list[str]] = {}
        for name in self.tokens:
            self._lists.setdefault(self._list(name), []).append(name)

    def _list(self, name: str) -> tuple[str, str]:
        layer = self._layers[name]
        return layer.experts, layer.role

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count the tokens that come to each expert inside this context."""
        with listening(
            self._layers[name].module.register_forward_hook(partial(self._count, name))
            for name in self.tokens
        ):
            yield

    def forget(self) -> None:
        """Count from nothing again."""
        self.tokens = dict.fromkeys(self.tokens, 0)

    def _count(
        self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        self.tokens[name] += inputs[0].shape[:-1].numel()

    def lenders(self, name: str) -> list[str]:
        """The layers whose mean statistics are those of another; empty: it has its own.

        Args:
            name: of the other.
        """
        own = self.tokens.get(name, FEW)
        if own >= FEW:
            return []
        others = self._lists[self._list(name)]
        least = FEW if any(self.tokens[other] >= FEW for other in others) else 1
        return [other for other in others if self.tokens[other] >= least] if own < least else []


@dataclass(frozen=True)
class Reached:
    """How many tokens of a text came to each expert of a model.

    Attributes:
        tokens: by the expert's name, as ``model.layers.0.mlp.experts.3``.
        lent: the experts that go by the statistics of others, see `Traffic`.
        length: how many tokens the text has.
        rule: what becomes of an expert that fewer than `FEW` reached, one of `IDLE`.
    """

    tokens: Mapping[str, int]
    lent: frozenset[str]
    length: int
    rule: str

    @property
    def few(self) -> dict[str, int]:
        """The experts that fewer than `FEW` tokens reached, and how many did."""
        return {name: count for name, count in self.tokens.items() if count < FEW}

    def aside(self, layers: Mapping[str, LinearLayer]) -> set[str]:
        """The names of the layers that stay dense by the rule.

        Args:
            layers: of the model by name.
        """
        few = self.few if self.rule == "dense" else {}
        return {n for n, layer in layers.items() if layer.experts and expert_of(layer) in few}

    @property
    def sentence(self) -> str:
        """What became of those, for a reader; empty: there are none."""
        if not (few := self.few):
            return ""
        name, count = min(few.items(), key=lambda item: item[1])
        done = IDLE[self.rule]
        if self.rule == "share" and (own := len(few.keys() - self.lent)):
            done = "they are pruned by those" if own == len(few) else f"{done}, {own:,} by those"
        return (
            f"{len(few):,} of {len(self.tokens):,} experts got fewer than {FEW} of "
            f"{self.length:,} calibration tokens ({name!r}: {count}): {done}; more calibration "
            "text reaches more of them"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"experts": len(self.tokens), "few": self.few, "rule": self.rule}


@torch.no_grad()
def expert_tokens(
    model: nn.Module, tokens: Tensor, rule: str, progress: Progress = silent
) -> Reached | None:
    """Count the tokens of a text that come to each expert of a model; None: it has no experts.

    Args:
        model: a causal language model, in evaluation mode.
        tokens: ``[samples, length]``, int64.
        rule: see `Reached`.
        progress: called as ``progress("counting experts' tokens", done, total)``.
    """
    layers = linear_layers(model)
    traffic = Traffic(layers)
    if not traffic.tokens:
        return None
    told = partial(progress, "counting experts' tokens")
    with traffic.watching():
        if pages_of(model) is None:
            for done, sequence in enumerate(tokens.to(next(model.parameters()).device), start=1):
                body(model)(sequence[None])
                told(done, len(tokens))
        else:
            runner = BlockRunner(model, tokens, progress)
            traffic.forget()  # what that has sent through
            for index in range(len(runner)):
                runner.forward(index, keep=True)
                told(index + 1, len(runner))
    found: dict[str, int] = {}
    for name, count in traffic.tokens.items():
        expert = expert_of(layers[name])
        found[expert] = min(found.get(expert, count), count)
    lent = frozenset(expert_of(layers[name]) for name in traffic.tokens if traffic.lenders(name))
    return Reached(found, lent, tokens.numel(), rule)


def expert_of(layer: LinearLayer) -> str:
    """The name of the expert that a layer of experts belongs to."""
    place = layer.name.removeprefix(f"{layer.experts}.").partition(".")[0]
    return f"{layer.experts}.{place}"
