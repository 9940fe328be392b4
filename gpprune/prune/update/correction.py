"""The weight that a layer is fitted to where it makes up for the pruning before it."""

from __future__ import annotations

import torch
from torch import Tensor

from gpprune.prune.update.damping import Remembered, computed_in, damped_unit

# On SmolLM2-135M at 60 % all of it is worse than nothing: what calibration text says of the drift
# is partly chance, and each layer hands it on.
SHARE = 0.25
_DAMPING = 0.1  # of the inputs' unit diagonal


@torch.no_grad()
def corrected(weight: Tensor, drift: Tensor, A: Tensor, share: float = SHARE) -> Tensor:
    """The weight that brings back a share of what has drifted, before anything of it is pruned.

    Args:
        weight: dense, ``[out, in]``.
        drift: E[d a^T], see `Drift.measure`, ``[out, in]``.
        A: E[a a^T] of the layer's inputs, ``[in, in]``.
        share: 0 is the dense weight, 1 the ridge regression of all that has drifted.

    Returns:
        ``[out, in]``, float64 if ``weight`` is and else float32.
    """
    factor, root = _factor(A, _DAMPING)
    found = torch.cholesky_solve((drift.double() / root).t(), factor).t() / root
    dtype = computed_in(weight)
    return weight.to(dtype) + (share * found).to(weight.device, dtype)


@Remembered
def _factor(gram: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """The lower Cholesky factor of a damped matrix of unit diagonal, and the diagonal's roots."""
    curvature, root = damped_unit(gram, damping)
    return torch.linalg.cholesky(curvature), root
