"""The weights that stay, fitted to what the dense layer did: least squares on fixed zeros.

A layer's curvature is G (x) A with A = E[a a^T] of its inputs and G = E[g g^T] of the gradients at
its outputs (K-FAC, Martens and Grosse 2015, arXiv 1503.05671): a change D of the weight costs
1/2 <D, G D A>. The change that is least costly among those that keep the zeros is found by
conjugate gradients on the kept entries. Every pruned entry is compensated with all others at once,
at two products ``G X A`` a step, where LLM Surgeon (van der Ouderaa et al. 2024, arXiv 2312.17244)
solves systems of a few thousand entries one after another.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gpprune.prune.update.damping import Damping, both_scaled, computed_in, scaled, unit_diagonal
from gpprune.prune.update.joint import joint, rows_and_columns

STEPS = 20
# Steps by the inputs' factor alone, before those under both: the first few bring more in less time.
_FIRST_STEPS = 2


@torch.no_grad()
def solve(
    weight: Tensor,
    mask: Tensor,
    A: Tensor,
    G: Tensor | None = None,
    *,
    steps: int = STEPS,
    tolerance: float = 0.0,
    start: Tensor | None = None,
    first_steps: int = 0,
) -> Tensor:
    """The weight with zeros in the mask whose change D minimises ``<D, G D A>``.

    Conjugate gradients, preconditioned by the product of the diagonals. They stop early where
    rounding lets them go no further.

    Args:
        weight: dense, ``[out, in]``.
        mask: bool ``[out, in]``, True where a weight goes.
        A: ``[in, in]``, positive semidefinite, damped by the caller if it is to be.
        G: ``[out, out]``, likewise; None is the identity, whose rows are problems of their own
            and have steps of their own.
        steps: how many conjugate gradient steps at most.
        tolerance: the share of the first residual's norm at which they stop.
        start: ``[out, in]``, where they start on the kept entries; by default the dense weight.
        first_steps: how many steps by ``A`` alone come before them.

    Returns:
        ``[out, in]``, float64 if ``weight`` is and else float32, 0 in the mask. Its cost is no
        greater than the start's, or than what it is after the first steps if there are any.
    """
    dtype = computed_in(weight)
    # With unit diagonals the preconditioner is the identity. A dead feature moves nothing.
    A, root = unit_diagonal(A.to(weight.device, dtype))
    if G is not None:
        G, left = unit_diagonal(G.to(weight.device, dtype))
        root = left[:, None] * root
    weight = weight.to(dtype).contiguous()
    kept = (~mask).to(weight.device, dtype).contiguous()
    dense = weight * root
    found = kept * (dense if start is None else start.to(weight) * root)
    bent = torch.mm(found - dense, A)
    alone = steps if G is None else first_steps
    found, bent = _descend(found, bent, _Curvature(A, None, kept), alone, tolerance)
    if G is not None:
        bent = torch.mm(G, bent)
        found, _ = _descend(found, bent, _Curvature(A, G, kept), steps, tolerance)
    # By way of the change, so that what has not moved is the dense weight to the last bit.
    return found.sub_(dense).div_(root).add_(weight).mul_(kept)


class _Curvature:
    """``X -> G X A`` and inner products that suit it.

    Args:
        A: ``[in, in]``.
        G: ``[out, out]``; None is the identity.
        kept: ``[out, in]``, 1 where a weight stays, else 0.
    """

    def __init__(self, A: Tensor, G: Tensor | None, kept: Tensor) -> None:
        self._A, self._G, self.kept = A, G, kept
        self._half = torch.empty_like(kept)

    def __call__(self, change: Tensor, out: Tensor) -> Tensor:
        """``G X A``, ``[out, in]``."""
        if self._G is not None:
            change = torch.mm(self._G, change, out=self._half)
        return torch.mm(change, self._A, out=out)

    def dot(self, one: Tensor, other: Tensor) -> Tensor:
        """The inner product, ``[1, 1]``; of each row ``[out, 1]`` if rows are on their own."""
        if self._G is not None:
            return torch.dot(one.view(-1), other.view(-1)).view(1, 1)
        return torch.mul(one, other, out=self._half).sum(1, keepdim=True)


def _descend(
    found: Tensor, bent: Tensor, curved: _Curvature, steps: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Conjugate gradients on the kept entries; both tensors are used up.

    Args:
        found: where they start, ``[out, in]``, 0 in the mask.
        bent: the curvature of its whole change from the dense weight, pruned entries included,
            ``[out, in]``: on the kept ones it is the gradient.
        curved: the curvature.
        steps: how many at most.
        tolerance: the share of the first residual's norm at which they stop.

    Returns:
        Both as they have become.
    """
    if not steps:
        return found, bent
    first, before = found.clone(), bent.clone()
    gradient = bent * curved.kept
    left = curved.dot(gradient, gradient)
    least = max(tolerance, torch.finfo(bent.dtype).eps) ** 2 * left
    direction = gradient.neg()
    across = gradient  # one memory: each is written anew when the other has been read
    for step in range(steps):
        if step:
            torch.mul(bent, curved.kept, out=gradient)
            was, left = left, curved.dot(gradient, gradient)
            direction.mul_(torch.where(left > least, left / was, 0)).sub_(gradient)
        going = left > least
        if not going.any():
            break
        curved(direction, out=across)
        slope = curved.dot(direction, across)
        length = torch.where(going & (slope > 0), left / slope, 0)
        found.addcmul_(direction, length)
        bent.addcmul_(across, length)
    # The cost has changed by 1/2 <x - first, b + before>: each step lowers it, but for rounding.
    torch.add(bent, before, out=direction)
    lower = curved.dot(torch.sub(found, first, out=across), direction) <= 0
    if lower.all():
        return found, bent
    return torch.where(lower, found, first), torch.where(lower, bent, before)


def refit(
    weight: Tensor,
    mask: Tensor,
    statistics: Mapping[str, Tensor],
    damping: Damping,
    *,
    steps: int = STEPS,
) -> Tensor:
    """The kept weights that cost the least under both factors of the layer's curvature.

    Two steps of `least_squares` come first. Whole rows and columns are made up for in closed form,
    see `gpprune.prune.update.joint`, here and there.

    Args:
        weight: dense, ``[out, in]``.
        mask: bool ``[out, in]``, True where a weight goes.
        statistics: ``aaT``, ``[in, in]``, and ``ggT``, ``[out, out]``.
        damping: of both factors.
        steps: see `solve`, under both factors.

    Returns:
        ``[out, in]``, see `solve`.
    """
    A, G = both_scaled(statistics, damping, computed_in(weight))
    if (whole := rows_and_columns(mask)) is not None:
        return joint(weight, whole, A, G)
    return solve(weight, mask, A, G, steps=steps, first_steps=_FIRST_STEPS)


def least_squares(
    weight: Tensor,
    mask: Tensor,
    statistics: Mapping[str, Tensor],
    damping: Damping,
    *,
    steps: int = STEPS,
) -> Tensor:
    """The kept weights with which the layer's outputs change the least: no gradients are needed.

    Args:
        weight: dense, ``[out, in]``.
        mask: bool ``[out, in]``, True where a weight goes.
        statistics: ``aaT``, ``[in, in]``.
        damping: of the inputs.
        steps: see `solve`.

    Returns:
        ``[out, in]``, see `solve`.
    """
    A = scaled(statistics["aaT"], damping.inputs, computed_in(weight))
    if (whole := rows_and_columns(mask)) is not None:
        return joint(weight, whole, A)
    return solve(weight, mask, A, steps=steps)


@torch.no_grad()
def predicted_increase(weight: Tensor, new: Tensor, A: Tensor, G: Tensor) -> float:
    """What a change of a layer's weight adds to the loss by its curvature, in nats a token.

    ``1/2 <D, G D A>`` with D = ``new - weight`` and factors that are not damped.

    Args:
        weight: dense, ``[out, in]``.
        new: ``[out, in]``.
        A: E[a a^T] of the layer's inputs, ``[in, in]``.
        G: E[g g^T] of the gradients of the summed loss at its outputs, ``[out, out]``; or its
            diagonal, ``[out]``.
    """
    dtype = computed_in(weight)
    change = new.to(weight.device, dtype) - weight.to(dtype)
    A, G = A.to(change), G.to(change)
    bent = change @ A
    bent = G @ bent if G.ndim == 2 else bent.mul_(G[:, None])
    return 0.5 * float(bent.mul_(change).sum(dtype=torch.float64))
