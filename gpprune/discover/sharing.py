"""How allocations share a sparsity out over a model's layers, without judging any of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gpprune.discover.contenders import allocation_contenders
from gpprune.discover.texts import Texts
from gpprune.discover.workbench import Workbench
from gpprune.progress import Progress, silent
from gpprune.prune import Loaded, recipe_zeros


@dataclass(frozen=True)
class Share:
    """An allocation's zeros of every layer."""

    name: str
    text: str
    unit: str
    zeros: tuple[int, ...]


@dataclass(frozen=True)
class Sharing:
    """Allocations of one sparsity over one model.

    Attributes:
        model: its name.
        metric: whose scores the allocations read.
        sparsity: the target.
        layers: the names of the linear layers, in the model's order.
        roles: each layer's name inside its block.
        blocks: the decoder block that each lies in.
        sizes: how many weights each has.
        shares: one an allocation.
    """

    model: str
    metric: str
    sparsity: float
    layers: tuple[str, ...]
    roles: tuple[str, ...]
    blocks: tuple[int, ...]
    sizes: tuple[int, ...]
    shares: tuple[Share, ...]

    def layer_sparsities(self, share: Share) -> list[float]:
        """The share of zeros of each layer."""
        return [zeros / size for zeros, size in zip(share.zeros, self.sizes, strict=True)]

    def block_sparsities(self, share: Share) -> dict[int, float]:
        """The share of zeros of each decoder block."""
        return {
            block: self._mean(share, [at for at, own in enumerate(self.blocks) if own == block])
            for block in sorted(set(self.blocks))
        }

    def whole(self, share: Share) -> float:
        """The share of zeros of all layers."""
        return self._mean(share, range(len(self.sizes)))

    def _mean(self, share: Share, places: Iterable[int]) -> float:
        at = list(places)
        return sum(share.zeros[place] for place in at) / sum(self.sizes[place] for place in at)

    def as_dicts(self) -> list[dict[str, Any]]:
        """Plain values for JSON, one an allocation."""
        return [
            {
                "name": share.name,
                "formula": share.text,
                "unit": share.unit,
                "sparsity": self.sparsity,
                "zeros": sum(share.zeros),
                "layers": dict(zip(self.layers, self.layer_sparsities(share), strict=True)),
            }
            for share in self.shares
        ]


def share_out(
    allocations: Iterable[str] | None = None,
    *,
    model: str | Loaded = "smollm2",
    metric: str = "wanda",
    sparsity: float | None = None,
    pattern: str | None = None,
    unit: str | None = None,
    texts: Texts | None = None,
    progress: Progress = silent,
) -> Sharing:
    """The sparsity of every layer under allocations, side by side.

    Args:
        allocations: as for `gpprune.compare`; by default all that are published.
        model: what `gpprune.load_model` takes, or a loaded model in float32.
        metric: whose scores allocations read, a published name or formula text.
        sparsity: the share of weights to prune; by default 0.7, or what the pattern implies.
        pattern: which weights compete; by default the metric's own.
        unit: what gets a sparsity of its own; by default each allocation's own.
        texts: what is calibrated on.
        progress: called as `progress(label, done, total)`.

    Raises:
        UsageError: a name, a share or a pattern that is none.
        GppruneError: the model or text cannot be had.
    """
    contenders = allocation_contenders(allocations, metric, sparsity, pattern, unit)
    texts = texts or Texts()
    bench = Workbench(
        model,
        texts,
        dtype="float32",
        reads=[(texts.calibration_text, "calibration")],
        names=frozenset[str]().union(*(contender.recipe.reads for contender in contenders)),
        progress=progress,
    )
    bench.check_pattern(contenders[0].recipe.pattern)
    shares = []
    for done, contender in enumerate(contenders):
        progress("allocating", done, len(contenders))
        recipe = contender.recipe
        zeros = recipe_zeros(
            bench.loaded.model, recipe, bench.calibration(), bench.statistics(progress), progress
        )
        text = recipe.allocation
        shares.append(Share(contender.name, text, recipe.unit, tuple(zeros.values())))
    progress("allocating", len(contenders), len(contenders))
    layers = bench.layers.values()
    return Sharing(
        bench.loaded.name,
        metric,
        contenders[0].recipe.sparsity,
        tuple(layer.name for layer in layers),
        tuple(layer.role for layer in layers),
        tuple(layer.block for layer in layers),
        tuple(layer.size for layer in layers),
        tuple(shares),
    )
