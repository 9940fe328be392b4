"""Gram matrices of layers' inputs, SparseGPT's Hessian, and the diagonal its score divides by."""

from __future__ import annotations

import torch
from torch import Tensor

from gpprune.errors import GppruneError
from gpprune.prune.measure.activations import InputSums

DAMPING = 0.01  # SparseGPT's, a share of the mean of the Hessian's diagonal


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


def inverse_diagonal(hessian: Tensor, name: str) -> Tensor:
    """The diagonal of the upper Cholesky factor of a damped Hessian's inverse, as in SparseGPT.

    Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1.

    Args:
        hessian: ``[in, in]``, float64: 2 / sequences times the sum over tokens of the products of
            input features. An input that is always zero is given 1 on the diagonal, then 0.01 of
            the diagonal's mean is added to all of it, in place.
        name: the layer's name, for the error.

    Returns:
        ``[in]``, float32, positive.

    Raises:
        GppruneError: the damped Hessian is not positive definite.
    """
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += DAMPING * diagonal.mean()
    # With H = V V', V upper triangular, inverse(H) = U' U with the upper U = inverse(V). V is the
    # usual lower factor of H with its features in reverse order: nothing need be inverted.
    factor, failed = torch.linalg.cholesky_ex(hessian.flip(0, 1))
    found: Tensor = factor.diagonal().flip(0).reciprocal().float()
    if failed or not found.isfinite().all():
        raise GppruneError(
            f"the Hessian of the inputs of {name!r} cannot be inverted, even damped: they hold NaN "
            "or infinity, or are too large; load the model in float32, calibrate on other text, "
            "or use a metric without D"
        )
    return found
