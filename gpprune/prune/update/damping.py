"""Curvature that can be inverted: damping, and what is made of a damped matrix once."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpprune.errors import DampingWarning, GppruneError

_MOST = 10.0  # damping of ten times the mean diagonal: no more than the identity is left by then
_LEAST = 1e-8  # where damping starts to be raised from if none was asked for


@dataclass(frozen=True)
class Damping:
    """What is added to the diagonals of a layer's curvature before it is inverted.

    Attributes:
        inputs: a share of the mean diagonal of E[a a^T], ``[in, in]``.
        outputs: a share of the mean diagonal of E[g g^T], ``[out, out]``.
    """

    inputs: float = 0.01
    outputs: float = 0.1


DAMPING = Damping()
"""LLM Surgeon's, for masks of single weights; that of the inputs is SparseGPT's too."""


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


def damped_cholesky(matrix: Tensor, damping: float) -> Tensor:
    """The lower Cholesky factor of a damped curvature.

    A feature that is always zero is given the mean of the others' diagonal, so that it stands
    alone. Where the factor cannot be had, the damping is raised tenfold, up to ten times the mean
    diagonal, with one `DampingWarning`.

    Args:
        matrix: ``[n, n]``, positive semidefinite.
        damping: the share of the mean diagonal that is added to the diagonal.

    Returns:
        ``[n, n]``, float64.

    Raises:
        GppruneError: the matrix holds NaN or infinity, or no damping makes it positive definite.
    """
    plain = matrix.double().clone()
    if not plain.isfinite().all():
        raise GppruneError(
            "the curvature of a layer holds NaN or infinity, so it cannot be inverted: load the "
            "model in float32, or calibrate on other text"
        )
    diagonal = plain.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1.0 if dead.all() else diagonal[~dead].mean()
    mean, tried = diagonal.mean(), damping
    while True:
        damped = plain.clone()
        damped.diagonal().add_(tried * mean)
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed and factor.isfinite().all():
            break
        if tried >= _MOST:
            raise GppruneError(
                f"the curvature of a layer cannot be inverted, even damped by {tried:g} of its "
                "mean diagonal: calibrate on more text"
            )
        tried = min(_MOST, max(10 * tried, _LEAST))
    if tried != damping:
        warnings.warn(
            f"the damping {damping:g} leaves the curvature of a layer singular: {tried:g} is used "
            "in its place; calibrate on more text, or ask for more damping",
            DampingWarning,
            stacklevel=2,
        )
    return factor


class Remembered:
    """A function of a matrix and its damping that remembers its last result.

    Layers that read one tensor (query, key, value) share one matrix, and are pruned one after
    another: they share what is made of it. It is forgotten with the matrix.
    """

    def __init__(self, make: Callable[[Tensor, float], Tensor]) -> None:
        self._make = make
        self._last: tuple[weakref.ref[Tensor], int, float, Tensor] | None = None

    def __call__(self, matrix: Tensor, damping: float) -> Tensor:
        """What is made of the matrix ``[n, n]``; not to be written to."""
        last = self._last
        if last is not None:
            of, version, how, made = last
            if of() is matrix and version == matrix._version and how == damping:
                return made
        made = self._make(matrix, damping)
        of = weakref.ref(matrix, self._forget)
        self._last = (of, matrix._version, damping, made)
        return made

    def _forget(self, of: weakref.ref[Tensor]) -> None:
        if self._last is not None and self._last[0] is of:
            self._last = None


@Remembered
def inverse(matrix: Tensor, damping: float) -> Tensor:
    """The inverse of a damped curvature, float64 ``[n, n]``; see `damped_cholesky`."""
    return torch.cholesky_inverse(damped_cholesky(matrix, damping))


@Remembered
def inverse_factor(matrix: Tensor, damping: float) -> Tensor:
    """The upper U with U^T U the inverse of a damped curvature, float64 ``[n, n]``, as SparseGPT's.

    See `damped_cholesky`.
    """
    # H = V V^T with V the usual lower factor of H with its features in reverse order, reversed
    # itself. V is upper, so U = V^-1 is, and the inverse of H need not be formed.
    lower = damped_cholesky(matrix.flip(0, 1), damping)
    one = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    inverted: Tensor = torch.linalg.solve_triangular(lower, one, upper=False)
    return inverted.flip(0, 1)
