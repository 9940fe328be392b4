"""What makes up for whole rows and columns, in closed form.

Under a layer's damped factors G and A the least costly weight without the rows r and the columns c
is ``P_G W P_A``: the constraints are a product of two subspaces, and each factor projects on one.
``W P_A`` is 0 in the columns c and ``W_K + W_c A_cK (A_KK)^-1`` in those that stay, which is
``I - E_c^T (Ai[c, c])^-1 Ai[c, :]`` by the inverse Ai. LLM Surgeon (van der Ouderaa et al. 2024,
arXiv 2312.17244) adds the two changes instead, which is not the optimum.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gpprune.prune.update.damping import Damping, both_scaled, computed_in
from gpprune.prune.update.surgeon import surgeon

Whole = tuple[Tensor, Tensor]  # the indices of rows and of columns


def rows_and_columns(mask: Tensor) -> Whole | None:
    """The indices of the rows and columns that a mask ``[out, in]`` is made of; None: of others."""
    rows, columns = mask.all(1), mask.all(0)
    if not torch.equal(rows[:, None] | columns, mask):
        return None
    return rows.nonzero().flatten(), columns.nonzero().flatten()


@torch.no_grad()
def joint(weight: Tensor, whole: Whole, A: Tensor, G: Tensor | None = None) -> Tensor:
    """The least costly weight without some rows and columns, ``P_G W P_A``.

    Args:
        weight: dense, ``[out, in]``.
        whole: the rows and columns that go, see `rows_and_columns`.
        A: ``[in, in]``, positive definite: damped by the caller.
        G: ``[out, out]``, likewise; None is the identity, whose rows are problems of their own.

    Returns:
        ``[out, in]``, float64 if ``weight`` is and else float32, 0 in the rows and columns.
    """
    rows, columns = whole
    new = _without(weight.to(computed_in(weight)), columns, A)
    if G is None:
        return new.index_fill_(0, rows, 0)
    return _without(new.T, rows, G).T


@torch.no_grad()
def published(
    weight: Tensor, mask: Tensor, statistics: Mapping[str, Tensor], damping: Damping
) -> Tensor:
    """The weight as LLM Surgeon's code changes it, as for the mask it is given.

    Of whole rows and columns, what makes up for either is added up; of other weights see `surgeon`.

    Args:
        weight: dense, ``[out, in]``.
        mask: bool ``[out, in]``, True where a weight goes.
        statistics: ``aaT``, ``[in, in]``, and ``ggT``, ``[out, out]``.
        damping: of both factors.

    Returns:
        ``[out, in]``, float64 if ``weight`` is and else float32; not zero in the mask.
    """
    whole = rows_and_columns(mask)
    if whole is None:
        return surgeon(weight, mask, statistics, damping)
    dense = weight.to(computed_in(weight))
    A, G = both_scaled(statistics, damping, dense.dtype)
    rows, columns = whole
    return _without(dense, columns, A) + _without(dense.T, rows, G).T - dense


def _without(weight: Tensor, columns: Tensor, curvature: Tensor) -> Tensor:
    """The weight without some columns, the others least costly: ``W_K + W_c A_cK (A_KK)^-1``."""
    stays = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    stays[columns] = False
    kept = stays.nonzero().flatten()
    new = weight.clone().index_fill_(1, columns, 0)
    if not len(columns) or not len(kept):
        return new
    rows = curvature.to(weight.device, torch.float64)[kept]
    factor = torch.linalg.cholesky(rows[:, kept])
    moved = torch.cholesky_solve(rows[:, columns], factor).to(weight)  # [kept, columns]
    new[:, kept] += weight[:, columns] @ moved.T
    return new
