"""The Kronecker product nearest to the token-level Fisher, by power iteration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpprune.errors import GppruneError, UsageError
from gpprune.files import whole_folder
from gpprune.progress import Progress, silent
from gpprune.prune.measure.accumulator import Extent
from gpprune.prune.measure.calibrate import check_tokens
from gpprune.prune.measure.gradients import Gradients
from gpprune.prune.measure.spill import Kept, Library
from gpprune.prune.measure.sweep import Labels, sweep
from gpprune.prune.model.streamed.shelf import Shelf
from gpprune.prune.model.structure import LinearLayer, check_weights, linear_layers

# The factors in the order in which they are found, from the identity in place of the first aaT.
_FACTORS = ("ggT", "aaT")


class WeightedGrams(Gradients):
    """Sums over tokens of one factor's products, weighted by the other factor: a half step.

    Args:
        layers: by name.
        factor: ``"ggT"``, then it is the sum of ``(a' A a) g g'``, or ``"aaT"``, of
            ``(g' G g) a a'``.
        others: the other factor by layer, float32; the identity of norm 1 where there is none.
    """

    def __init__(
        self, layers: Mapping[str, LinearLayer], factor: str, others: Mapping[str, Tensor]
    ) -> None:
        super().__init__(layers)
        self._of_gradients = factor == "ggT"
        self._others = others

    def of(self, name: str, inputs: Tensor, gradients: Tensor) -> Tensor:
        """The weighted products of one call, float32."""
        pair = inputs.float(), gradients.float()
        weighing, summed = pair if self._of_gradients else reversed(pair)
        other = self._others.get(name)
        if other is None:
            weights = weighing.square().sum(1) / weighing.shape[1] ** 0.5
        else:
            weights = ((weighing @ other) * weighing).sum(1)
        found: Tensor = (summed * weights[:, None]).t() @ summed
        return found

    def shape(self, layer: LinearLayer) -> tuple[int, ...]:
        """A square matrix of the factor's features."""
        features = layer.out_features if self._of_gradients else layer.in_features
        return (features, features)


def nearest_kronecker(
    model: nn.Module,
    tokens: Tensor,
    *,
    steps: int = 6,
    labels: str = "true",
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Mapping[str, Tensor]]:
    """The Gram matrices whose Kronecker product is nearest to each layer's Fisher.

    The product of `aaT` and `ggT` as `calibrate` has them takes a token's input and its gradient to
    be independent. These minimise the Frobenius norm of ``E[a a' (x) g g'] - aaT (x) ggT`` instead,
    by power iteration (LLM Surgeon, van der Ouderaa et al. 2024, arXiv 2312.17244, appendix).

    Args:
        model: a causal language model; it is left as it was.
        tokens: ``[samples, length]``, int64.
        steps: half steps, each a pass over the text and back; every second one is of `aaT`.
        labels: of the loss, as in `calibrate`.
        seed: of the draws of labels.
        progress: called as ``progress("calibrating", done, total)``, in every half step anew.

    Returns:
        `aaT` ``[in, in]`` and `ggT` ``[out, out]`` of each layer by name, float32 and of equal
        Frobenius norm, in place of those of `calibrate`: read from disk when they are asked for.
        Of a layer without influence on the loss both are 0.

    Raises:
        UsageError: fewer than 2 half steps, no tokens, or no such labels.
        GppruneError: the model has no linear layers in blocks, or a damaged weight; no token
            reached a layer, or its gradients are not finite.
    """
    if steps < 2:
        raise UsageError(
            f"{steps} half steps find one factor of a Kronecker product at most: give 2 or more"
        )
    check_tokens(tokens)
    chosen = Labels(labels, seed)
    layers = linear_layers(model)
    check_weights(layers)
    extent = Extent(*tokens.shape)
    library = Library()
    norms: dict[str, float] = {}
    with Shelf() as shelf:
        for step in range(steps):
            visit = partial(_half_step, model, shelf, step, extent, norms)
            sweep(model, layers, tokens, backward=visit, labels=chosen, progress=progress)
        numbers: dict[str, dict[str, int]] = {name: {} for name in layers}
        try:
            for name in layers:
                for factor in _FACTORS:
                    unit = shelf.take((name, factor))
                    numbers[name][factor] = library.put(unit.mul_(norms[name] ** 0.5))
        except BaseException:
            library.close()
            raise
    return {name: Kept({}, numbers[name], library) for name in layers}


@contextmanager
def _half_step(
    model: nn.Module,
    shelf: Shelf,
    step: int,
    extent: Extent,
    norms: dict[str, float],
    layers: Mapping[str, LinearLayer],
) -> Iterator[None]:
    """One factor of some layers anew, of norm 1, and the norm of the product."""
    factor, other = _FACTORS[step % 2], _FACTORS[(step + 1) % 2]
    others = {name: shelf.get((name, other)) for name in layers} if step else {}
    grams = WeightedGrams(layers, factor, others)
    with grams.watching(model):
        yield
    scale = (extent.length - 1) ** 2 / extent.tokens
    for name in layers:
        if not grams.reached(name):
            raise GppruneError(
                f"no token reached {name!r}, so its curvature cannot be measured: calibrate on "
                "more text"
            )
        found = grams.held(name) * scale
        norm = float(torch.linalg.matrix_norm(found))
        if not norm < float("inf"):
            raise GppruneError(
                f"the curvature of {name!r} holds NaN or infinity: the model is damaged, or its "
                "numbers overflow on this text; load it in float32, or calibrate on other text"
            )
        if step > 1:
            shelf.drop((name, factor))
        shelf.put((name, factor), (found / norm if norm else found).float())
        norms[name] = norm


def write_statistics(folder: Path, statistics: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write layers' statistics as safetensors, a file a layer, all of them or none.

    Args:
        folder: a directory that does not exist yet.
        statistics: of each layer by name; one layer's at a time are in memory.

    Raises:
        OSError: it cannot be written, or exists.
    """
    with whole_folder(folder) as partial_folder:
        for name, found in statistics.items():
            tensors = {key: value.cpu().contiguous() for key, value in found.items()}
            save_file(tensors, partial_folder / f"{name}.safetensors")


def read_statistics(folder: Path, model: nn.Module) -> dict[str, Mapping[str, Tensor]]:
    """Statistics that :func:`write_statistics` wrote, of each layer read when it is asked for.

    Args:
        folder: what was written.
        model: the model that they are of.

    Returns:
        Each layer's statistics by name, on the device of its weight.

    Raises:
        UsageError: there is no file of one of the model's layers.
    """
    layers = linear_layers(model)
    for name in layers:
        if not (folder / f"{name}.safetensors").is_file():
            raise UsageError(
                f"{str(folder)!r} has no statistics of the layer {name!r}: give the directory that "
                "was written of this model"
            )
    return {name: _Stored(folder, layer) for name, layer in layers.items()}


class _Stored(Mapping[str, Tensor]):
    """A layer's statistics in a file, read when they are asked for."""

    def __init__(self, folder: Path, layer: LinearLayer) -> None:
        self._path = folder / f"{layer.name}.safetensors"
        self._device = layer.weight.device

    def _read(self) -> dict[str, Tensor]:
        return dict(load_file(self._path))

    def __getitem__(self, name: str) -> Tensor:
        return self._read()[name].to(self._device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())
