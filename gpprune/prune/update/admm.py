"""Mask and weights together by the alternating direction method of multipliers.

Boza 2024, arXiv 2401.02938 ("Fast and effective weight update"): the weight that keeps the layer's
outputs and the weight with zeros are two, which are drawn together; 15 of the 20 iterations choose
the zeros anew, ever more of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gpprune.prune.update.choice import Choice
from gpprune.prune.update.damping import Damping, computed_in, scaled, unit_diagonal
from gpprune.prune.update.refit import solve

ITERATIONS = 20
CHOOSING = 15  # of them choose the mask
_DAMPING = 0.1  # of the inputs' unit diagonal
_RHO = 1.0  # how hard the two weights are drawn together


@torch.no_grad()
def admm(
    weight: Tensor, choice: Choice, statistics: Mapping[str, Tensor], damping: Damping
) -> tuple[Tensor, Tensor]:
    """Choose the mask and fit the weights in turns, then fit what stays by least squares.

    Args:
        weight: dense, ``[out, in]``.
        choice: how the mask is chosen, of the iterate in the place of the weight.
        statistics: ``aaT``, E[a a^T] of the layer's inputs, ``[in, in]``.
        damping: of the inputs, for the least squares at the end; the iterations have the
            published 0.1.

    Returns:
        The weight, ``[out, in]``, float64 if ``weight`` is and else float32, and the mask, bool
        ``[out, in]``.
    """
    dtype = computed_in(weight)
    gram = statistics["aaT"].to(weight.device, torch.float64)
    curvature, root = unit_diagonal(gram)
    curvature.diagonal().add_(_DAMPING)
    drawn = curvature.clone()
    drawn.diagonal().add_(_RHO)
    backward = torch.cholesky_inverse(torch.linalg.cholesky(drawn)).to(dtype)
    root = root.to(dtype)
    aim = weight.to(dtype) * root @ curvature.to(dtype)
    fitted = weight.to(dtype) * root
    apart = torch.zeros_like(fitted)  # the scaled multipliers
    mask = torch.zeros_like(weight, dtype=torch.bool)
    zeroed = fitted
    for iteration in range(1, ITERATIONS + 1):
        apart += fitted
        if iteration <= CHOOSING:
            # the cubic ramp of Zhu and Gupta 2017, arXiv 1710.01878
            mask = choice.mask(apart / root, 1 - (1 - iteration / CHOOSING) ** 3)
        zeroed = apart.masked_fill(mask, 0)
        apart -= zeroed
        fitted = (aim + _RHO * (zeroed - apart)) @ backward
    A = scaled(statistics["aaT"], damping.inputs, dtype)
    return solve(weight, mask, A, start=zeroed / root), mask
