"""What became of a pruned model, as plain values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from gpprune.prune.coupled.experts import RemovedExperts
from gpprune.prune.coupled.permutation import Permutation
from gpprune.prune.model.coverage import Coverage, coverage
from gpprune.prune.model.experts.traffic import Reached
from gpprune.prune.model.structure import LinearLayer, linear_layers


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: the layer's name in the model; in a table's row perhaps of several.
        zeros: how many of its weights are zero.
        size: how many weights it has.
        experts: the name of the list of experts that it belongs to; empty: it is of none.
    """

    name: str
    zeros: int
    size: int
    experts: str

    @property
    def row(self) -> str:
        """What its row in a table is called, which all experts of a list share."""
        inside = self.name.removeprefix(f"{self.experts}.").partition(".")[2]
        return f"{self.experts}.*.{inside}" if self.experts else self.name

    @property
    def sparsity(self) -> float:
        """The share of zeros."""
        return self.zeros / self.size


@dataclass(frozen=True)
class Shot:
    """What one shot of several did.

    Attributes:
        sparsity: the share of zeros in the pruned layers after it.
        zeros: how many weights are zero after it.
        before: the mean next-token loss on its calibration text before it, in nats a token.
        after: the same after it.
        predicted: what the curvature said that the loss would grow by; None where the weight
            update reads no curvature of the outputs.
        seconds: how long it took.
        recovered: the loss on that text after training on it; None where nothing is trained.
    """

    sparsity: float
    zeros: int
    before: float
    after: float
    predicted: float | None
    seconds: float
    recovered: float | None = None

    @property
    def end(self) -> float:
        """The loss that it ends with."""
        return self.after if self.recovered is None else self.recovered


class BlockCounts:
    """What every report on a model's decoder blocks counts.

    Attributes:
        layers: one report a linear layer, in the model's order.
        coverage: all matrices of the decoder blocks: what is left alone, and why.
        block_zeros: how many weights of all these matrices are zero.
    """

    layers: Sequence[LayerReport]
    coverage: Coverage
    block_zeros: int

    @property
    def zeros(self) -> int:
        """How many weights of the linear layers are zero."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def size(self) -> int:
        """How many weights the linear layers have."""
        return sum(layer.size for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """The share of zeros in the linear layers."""
        return self.zeros / self.size

    @property
    def block_sparsity(self) -> float:
        """The share of zeros in all matrices of the decoder blocks, left alone or not."""
        return self.block_zeros / self.coverage.size

    def counts(self) -> dict[str, Any]:
        """Plain values for JSON; "blocks" is about all matrices of the blocks."""
        return {
            "zeros": self.zeros,
            "size": self.size,
            "sparsity": self.sparsity,
            "blocks": {
                "zeros": self.block_zeros,
                "sparsity": self.block_sparsity,
                **self.coverage.as_dict(),
            },
            "layers": [{**asdict(layer), "sparsity": layer.sparsity} for layer in self.layers],
        }


@dataclass(frozen=True)
class PruneReport(BlockCounts):
    """What became of a model's linear layers.

    Attributes:
        layers: one report a layer that was pruned, in the model's order.
        seconds: how long pruning took, calibration included.
        coverage: all matrices of the decoder blocks: what is left alone, and why.
        block_zeros: how many weights of all these matrices are zero.
        shots: what each did, where there were several or it was trained.
        permutation: how channels were permuted first; None: they were not.
        experts: how many calibration tokens came to each; None: the model has none.
        streamed: how long each block took of those that this process has streamed; None: the model
            was in memory.
        removed: the experts that were taken out; None: the pattern takes none.
    """

    layers: tuple[LayerReport, ...]
    seconds: float
    coverage: Coverage
    block_zeros: int
    shots: tuple[Shot, ...] = ()
    permutation: Permutation | None = None
    experts: Reached | None = None
    streamed: tuple[float, ...] | None = None
    removed: RemovedExperts | None = None

    @property
    def sentences(self) -> list[str]:
        """What was left undone, and what was done by a rule, for a reader."""
        said = [] if self.removed is None else [self.removed.sentence]
        if self.coverage.left and self.removed is None:
            said.append(self.coverage.sentence)
        if self.permutation is not None and self.permutation.in_place:
            said.append(self.permutation.sentence)
        if self.streamed:
            mean = sum(self.streamed) / len(self.streamed)
            said.append(f"streamed, a block in memory at a time: {mean:.1f} s a block")
        return said + ([self.experts.sentence] if self.experts and self.experts.few else [])

    @property
    def rows(self) -> list[LayerReport]:
        """A table: layers, those of one list of experts together, all, and all of the blocks."""
        found: dict[str, list[LayerReport]] = {}
        for layer in self.layers:
            found.setdefault(layer.row, []).append(layer)
        found["all"] = list(self.layers)
        rows = [
            LayerReport(name, sum(one.zeros for one in own), sum(one.size for one in own), "")
            for name, own in found.items()
        ]
        if self.coverage.left:
            what = "all matrices of the blocks"
            rows.append(LayerReport(what, self.block_zeros, self.coverage.size, ""))
        return rows

    def tables(self, title: str) -> Iterator[tuple[str, list[str], list[list[str]]]]:
        """Tables for a reader: a title, columns, and rows of text.

        Args:
            title: of the last, which says what went.
        """
        if self.permutation is not None:
            yield "permuted: shares of the scores kept", *self.permutation.table
        if self.shots:
            yield "shots, nats a token of calibration text", *self._shots()
        if self.removed is not None:
            yield title, *self.removed.table
            return
        rows = [
            [row.name, f"{row.zeros:,}", f"{row.size:,}", f"{row.sparsity:.4f}"]
            for row in self.rows
        ]
        yield title, ["layer", "zeros", "weights", "sparsity"], rows

    def _shots(self) -> tuple[list[str], list[list[str]]]:
        rows = [
            [
                str(number),
                f"{shot.sparsity:.4f}",
                f"{shot.before:.4f}",
                f"{shot.after:.4f}",
                f"{shot.after - shot.before:+.4f}",
                "" if shot.predicted is None else f"{shot.predicted:+.4f}",
                *([] if shot.recovered is None else [f"{shot.recovered:.4f}"]),
                f"{shot.seconds:.0f}",
            ]
            for number, shot in enumerate(self.shots, start=1)
        ]
        trained = [] if self.shots[0].recovered is None else ["recovered"]
        told = ["shot", "sparsity", "loss before", "after", "change", "predicted"]
        return [*told, *trained, "seconds"], rows

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        shots = {"shots": [asdict(shot) for shot in self.shots]} if self.shots else {}
        permuted = {} if self.permutation is None else {"permutation": self.permutation.summary()}
        reached = {} if self.experts is None else {"experts": self.experts.as_dict()}
        streamed = {} if self.streamed is None else {"streamed": list(self.streamed)}
        removed = {} if self.removed is None else {"removed": self.removed.as_dict()}
        return {
            **self.counts(),
            "seconds": self.seconds,
            **shots,
            **permuted,
            **reached,
            **streamed,
            **removed,
        }


def prune_report(
    model: nn.Module,
    seconds: float,
    shots: tuple[Shot, ...] = (),
    permutation: Permutation | None = None,
    experts: Reached | None = None,
    streamed: tuple[float, ...] | None = None,
    removed: RemovedExperts | None = None,
) -> PruneReport:
    """Count the zeros of a pruned model.

    Args:
        model: a causal language model.
        seconds: how long pruning it took.
        shots: what each did, where there were several or it was trained.
        permutation: how its channels were permuted first, if they were.
        experts: how many calibration tokens came to each, if it has any.
        streamed: how long each block took, of a streamed model.
        removed: the experts that were taken out of it, if any were.
    """
    layers = tuple(_counted(layer) for layer in linear_layers(model).values())
    found = coverage(model)
    zeros = found.zeros(model)
    return PruneReport(
        layers, seconds, found, zeros, shots, permutation, experts, streamed, removed
    )


def recounted(report: PruneReport, model: nn.Module) -> PruneReport:
    """A report with the zeros that its model has now, as where a smaller dtype has rounded some."""
    layers = tuple(_counted(layer) for layer in linear_layers(model).values())
    return replace(report, layers=layers, block_zeros=report.coverage.zeros(model))


def _counted(layer: LinearLayer) -> LayerReport:
    zeros = layer.size - int(torch.count_nonzero(layer.weight))
    return LayerReport(layer.name, zeros, layer.size, layer.experts)
