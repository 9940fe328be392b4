"""Curvature that can be inverted: damping, and what is made of a damped matrix once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from gpprune.memory import give_back
from gpprune.prune.measure import hessians
from gpprune.prune.measure.hessians import damped_cholesky


@dataclass(frozen=True)
class Damping:
    """What is added to the diagonals of a layer's curvature before it is inverted.

    Attributes:
        inputs: a share of the mean diagonal of E[a a^T], ``[in, in]``.
        outputs: a share of the mean diagonal of E[g g^T], ``[out, out]``.
    """

    inputs: float = hessians.DAMPING
    outputs: float = hessians.GRADIENT_DAMPING


DAMPING = Damping()
"""LLM Surgeon's, for masks of single weights; that of the inputs is SparseGPT's too."""


def computed_in(weight: Tensor) -> torch.dtype:
    """What updates of a weight compute in: float64 if it is, else float32."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def unit_diagonal(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix of unit diagonal, ``D M D``, and the roots of the diagonal, ``[n]``: 1 for 0."""
    root = matrix.diagonal().clamp(min=0).sqrt()
    root = torch.where(root > 0, root, torch.ones_like(root))
    return (matrix / root[:, None]).div_(root), root


def damped_unit(matrix: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """A float64 matrix of unit diagonal, damped, and the roots of the diagonal, ``[n]``."""
    found, root = unit_diagonal(matrix.double())
    found.diagonal().add_(damping)
    return found, root


def scaled(matrix: Tensor, damping: float, dtype: torch.dtype) -> Tensor:
    """A curvature of mean diagonal 1, damped; the identity in place of one of zeros.

    Args:
        matrix: ``[n, n]``, positive semidefinite.
        damping: what is added to the diagonal.
        dtype: of the result.

    Returns:
        ``[n, n]``, memory of its own.
    """
    mean = matrix.diagonal().double().mean()
    if mean == 0:
        return torch.eye(len(matrix), dtype=dtype, device=matrix.device)
    found = (matrix / mean.to(matrix.dtype)).to(dtype)
    found.diagonal().add_(damping)
    return found


def both_scaled(
    statistics: Mapping[str, Tensor], damping: Damping, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """A layer's factors ``aaT`` and ``ggT``, each as `scaled` makes it."""
    A = scaled(statistics["aaT"], damping.inputs, dtype)
    return A, scaled(statistics["ggT"], damping.outputs, dtype)


Made = TypeVar("Made", bound=Tensor | tuple[Tensor, ...])


class Remembered(Generic[Made]):
    """A function of a matrix and its damping that remembers its last two results.

    Layers that read one tensor (query, key, value) share one matrix, and are pruned one after
    another: they share what is made of it. Two, since each layer has a matrix of its outputs
    between. A result is forgotten with its matrix.
    """

    def __init__(self, make: Callable[[Tensor, float], Made]) -> None:
        self._make = make
        self._last: list[tuple[weakref.ref[Tensor], int, float, Made]] = []  # the latest first

    def __call__(self, matrix: Tensor, damping: float) -> Made:
        """What is made of the matrix ``[n, n]``; not to be written to."""
        for at, (of, version, how, made) in enumerate(self._last):
            if of() is matrix and version == matrix._version and how == damping:
                self._last.insert(0, self._last.pop(at))
                return made
        made = self._make(matrix, damping)
        give_back()  # a factorisation leaves more behind than a layer's weights take
        entry = (weakref.ref(matrix, self._forget), matrix._version, damping, made)
        self._last = [entry, *self._last[:1]]
        return made

    def _forget(self, of: weakref.ref[Tensor]) -> None:
        self._last = [entry for entry in self._last if entry[0] is not of]


@Remembered
def inverse(matrix: Tensor, damping: float) -> Tensor:
    """The inverse of a damped curvature, float64 ``[n, n]``; see `inverse_factor`."""
    return torch.cholesky_inverse(damped_cholesky(matrix, damping))


@Remembered
def inverse_factor(matrix: Tensor, damping: float) -> Tensor:
    """The upper U with U^T U the inverse of a damped curvature, float64 ``[n, n]``, as SparseGPT's.

    Raises:
        GppruneError: as `gpprune.prune.measure.hessians.damped_cholesky`.
    """
    # H = V V^T with V the usual lower factor of H with its features in reverse order, reversed
    # itself. V is upper, so U = V^-1 is, and the inverse of H need not be formed.
    lower = damped_cholesky(matrix.flip(0, 1), damping)
    one = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    inverted: Tensor = torch.linalg.solve_triangular(lower, one, upper=False)
    return inverted.flip(0, 1)
