"""Gram matrices of layers' inputs, damped factors of such matrices, and diagonals of inverses."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from gpprune.errors import DampingWarning, GppruneError
from gpprune.prune.measure.activations import InputSums

# Shares of the mean of a matrix's diagonal that are added to it.
DAMPING = 0.01  # SparseGPT's, and LLM Surgeon's of inputs (arXiv 2312.17244)
GRADIENT_DAMPING = 0.1  # LLM Surgeon's of gradients, where single weights are pruned
MOST_DAMPING = 10.0


class InputGrams(InputSums):
    """Sums over all tokens of the products of input features, ``[in, in]``.

    They are kept in float32, one for all layers that read the same tensors.
    """

    def of(self, inputs: Tensor) -> Tensor:
        """The Gram matrix of one tensor ``[..., in]``, float32."""
        flat = inputs.reshape(-1, inputs.shape[-1]).float()
        return torch.mm(flat.t(), flat)

    def shape(self, features: int) -> tuple[int, ...]:
        """A matrix."""
        return (features, features)


def damped_cholesky(
    matrix: Tensor,
    damping: float,
    name: str = "",
    *,
    dead: float | None = None,
    reverse: bool = False,
) -> Tensor:
    """The lower Cholesky factor of a damped symmetric matrix, float64.

    A share of the mean of the diagonal is added to the diagonal. Where the matrix is not positive
    definite even so, the share is raised tenfold until it is, up to 10 times the mean.

    Args:
        matrix: ``[n, n]``; it is left as it is.
        damping: the share, such as 0.01.
        name: of the layer, for the warning and the error.
        dead: what a diagonal entry of 0 is given before the mean is taken; by default the mean of
            the others, or 1 if there are none.
        reverse: factor the matrix with its features in reverse order.

    Returns:
        ``[n, n]``, lower triangular.

    Warns:
        DampingWarning: the share had to be raised.

    Raises:
        GppruneError: the matrix holds NaN or infinity, or has no factor even so.
    """
    damped = matrix.to(torch.float64, copy=True)
    diagonal = damped.diagonal()
    unused = diagonal == 0
    if dead is None:
        dead = float(diagonal[~unused].mean()) if not unused.all() else 1.0
    diagonal[unused] = dead
    plain, mean = diagonal.clone(), diagonal.mean()
    share = damping
    finite = all(bool(extreme.isfinite()) for extreme in torch.aminmax(damped))
    factor: Tensor
    while finite:
        torch.add(plain, share * mean, out=diagonal)
        factor, failed = torch.linalg.cholesky_ex(damped.flip(0, 1) if reverse else damped)
        if not failed and factor.diagonal().isfinite().all():
            if share != damping:
                warnings.warn(
                    f"the curvature{_of(name)} is not positive definite with a damping of "
                    f"{damping:g}, so it is damped by {share:g}: calibrate on more text, or ask "
                    "for more damping",
                    DampingWarning,
                    stacklevel=2,
                )
            return factor
        if share >= MOST_DAMPING:
            break
        share = min(10 * share, MOST_DAMPING) if share > 0 else DAMPING
    raise GppruneError(
        f"the curvature{_of(name)} cannot be inverted, even damped: "
        + ("it is not positive definite" if finite else "it holds NaN or infinity")
        + "; load the model in float32, or calibrate on other text"
    )


def _of(name: str) -> str:
    return f" of {name!r}" if name else ""


def inverse_diagonal(hessian: Tensor, name: str) -> Tensor:
    """The diagonal of the upper Cholesky factor of a damped Hessian's inverse, as in SparseGPT.

    Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1.

    Args:
        hessian: ``[in, in]``, float64: 2 / sequences times the sum over tokens of the products of
            input features. An input that is always zero is given 1 on the diagonal, then 0.01 of
            the diagonal's mean is added to all of it.
        name: the layer's name, for the error.

    Returns:
        ``[in]``, float32, positive.

    Raises:
        GppruneError: the damped Hessian is not positive definite.
    """
    # With H = V V', V upper triangular, inverse(H) = U' U with the upper U = inverse(V). V is the
    # usual lower factor of H with its features in reverse order: nothing need be inverted.
    try:
        factor = damped_cholesky(hessian, DAMPING, name, dead=1.0, reverse=True)
        found: Tensor = factor.diagonal().flip(0).reciprocal().float()
        if found.isfinite().all():
            return found
    except GppruneError as error:
        raise _no_inverse(name) from error
    raise _no_inverse(name)


def _no_inverse(name: str) -> GppruneError:
    return GppruneError(
        f"the Hessian of the inputs of {name!r} cannot be inverted, even damped: they hold NaN "
        "or infinity, or are too large; load the model in float32, calibrate on other text, "
        "or use a metric without D"
    )


def diagonal_of_inverse(matrix: Tensor, damping: float, name: str) -> Tensor:
    """The diagonal of the inverse of a damped symmetric matrix ``[n, n]``.

    Removing one weight after an optimal update of the others costs its square over two such
    entries (LLM Surgeon, van der Ouderaa et al. 2024, arXiv 2312.17244).

    Args:
        matrix: positive semidefinite; an entry of 0 on the diagonal is given the mean of the
            others, see :func:`damped_cholesky`.
        damping: a share of the mean of the diagonal.
        name: of the layer, for the warning and the error.

    Returns:
        ``[n]``, float64, positive.

    Raises:
        GppruneError: it holds NaN or infinity, or cannot be inverted.
    """
    found: Tensor = torch.cholesky_inverse(damped_cholesky(matrix, damping, name)).diagonal()
    return found.clone()
