"""LLM Surgeon's updates of single weights: entries that are corrected together, or each alone.

van der Ouderaa et al. 2024, arXiv 2312.17244, as the released code has them. With Gi and Ai the
inverses of a layer's damped factors and Q the pruned entries, the change that costs the least and
sets them to zero is ``-Gi X Ai``, X holding on Q the solution of ``(Gi (x) Ai)_QQ x = w_Q``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from gpprune.prune.update.damping import Damping, computed_in, inverse

ENTRIES = 2000  # of a system of equations, as the published runs have it


@torch.no_grad()
def surgeon(
    weight: Tensor,
    mask: Tensor,
    statistics: Mapping[str, Tensor],
    damping: Damping,
    *,
    entries: int = ENTRIES,
    sequential: bool = True,
) -> Tensor:
    """The weight as LLM Surgeon changes it: system after system of entries of whole rows.

    Entries of an earlier system are not held at zero by a later one: what it moves them is lost
    when they are zeroed in the end.

    Args:
        weight: dense, ``[out, in]``.
        mask: bool ``[out, in]``, True where a weight goes.
        statistics: ``aaT``, ``[in, in]``, and ``ggT``, ``[out, out]``.
        damping: of both factors.
        entries: the most in one system, unless a single row has more. With all in one, the
            change is the least costly one.
        sequential: whether a system sets to zero what the systems before it have made of its
            entries (``--addupdate``, as the published runs have it), or their dense values.

    Returns:
        ``[out, in]``, float64 if ``weight`` is and else float32; not zero in the mask.
    """
    dense = weight.to(computed_in(weight))
    Ai, Gi = _inverses(statistics, damping, dense)
    new = dense.clone()
    for first, last in _chunks(mask.sum(1).tolist(), entries):
        rows, columns = mask[first:last].nonzero(as_tuple=True)
        if len(rows) == 0:
            continue
        shared = Gi[first:last, first:last]
        system = shared[rows[:, None], rows] * Ai[columns].index_select(1, columns)
        right = (new if sequential else dense)[first:last][rows, columns]
        found = dense.new_zeros(last - first, dense.shape[1])
        found[rows, columns] = _solved(system, right)
        new.addmm_(Gi[:, first:last], found @ Ai, alpha=-1)
    return new


def _inverses(
    statistics: Mapping[str, Tensor], damping: Damping, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Of the damped factors of the inputs and of the gradients, as a tensor is."""
    Ai = inverse(statistics["aaT"], damping.inputs).to(like)
    return Ai, inverse(statistics["ggT"], damping.outputs).to(like)


def _chunks(counts: Sequence[int], entries: int) -> Iterator[tuple[int, int]]:
    """Consecutive rows that together have no more entries, and at least one row each."""
    first = held = 0
    for row, count in enumerate(counts):
        if row > first and held + count > entries:
            yield first, row
            first, held = row, 0
        held += count
    yield first, len(counts)


def _solved(system: Tensor, right: Tensor) -> Tensor:
    """The solution of a positive definite system, in float64 where float32 does not do."""
    factor, failed = torch.linalg.cholesky_ex(system)
    if failed:
        solution: Tensor = torch.linalg.solve(system.double(), right.double())
        return solution.to(right)
    return torch.cholesky_solve(right[:, None], factor)[:, 0]


@torch.no_grad()
def independent(
    weight: Tensor, mask: Tensor, statistics: Mapping[str, Tensor], damping: Damping
) -> Tensor:
    """The sum of the changes that make up for each pruned entry as if it went alone.

    That of entry ij is the optimal brain surgeon's, ``-Gi e_i w_ij / (Gi_ii Ai_jj) e_j^T Ai``
    (Hassibi and Stork 1993), which LLM Surgeon's costs presume.

    Args:
        weight: dense, ``[out, in]``.
        mask: bool ``[out, in]``, True where a weight goes.
        statistics: ``aaT``, ``[in, in]``, and ``ggT``, ``[out, out]``.
        damping: of both factors.

    Returns:
        ``[out, in]``, float64 if ``weight`` is and else float32; not zero in the mask.
    """
    dense = weight.to(computed_in(weight))
    Ai, Gi = _inverses(statistics, damping, dense)
    alone = torch.outer(Gi.diagonal(), Ai.diagonal())
    return dense - Gi @ (dense / alone).masked_fill_(~mask, 0) @ Ai
