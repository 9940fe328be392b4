"""SparseGPT's update: column by column, later columns make up for what goes.

Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1. With U the upper Cholesky factor of the
inverse of the damped E[a a^T], the weights of column j that go leave the error ``e = w_j / U_jj``,
and the columns k after it change by ``-e U_jk``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gpprune.prune.update.choice import BLOCK, Choice
from gpprune.prune.update.damping import Damping, computed_in, inverse_factor

_LEAF = 16  # columns: the rest of a block is changed once a leaf, later blocks once a block


@torch.no_grad()
def sparsegpt(
    weight: Tensor, mask: Tensor, statistics: Mapping[str, Tensor], damping: Damping
) -> Tensor:
    """The weight as SparseGPT changes it on a given mask.

    Args:
        weight: dense, ``[out, in]``.
        mask: bool ``[out, in]``, True where a weight goes.
        statistics: ``aaT``, E[a a^T] of the layer's inputs, ``[in, in]``.
        damping: of the inputs.

    Returns:
        ``[out, in]``, float64 if ``weight`` is and else float32.
    """
    sweep = _Sweep(weight, statistics["aaT"], damping)
    sweep.put(0, mask)
    sweep.run((BLOCK, _LEAF, 1))
    return sweep.weight.t()


@torch.no_grad()
def sparsegpt_blocks(
    weight: Tensor, choice: Choice, statistics: Mapping[str, Tensor], damping: Damping
) -> tuple[Tensor, Tensor]:
    """As `sparsegpt`, with the mask chosen on the way, of weights as they have become by then.

    Each block of 128 columns is chosen at its beginning and has exactly its share of the zeros;
    for N:M each group of M. With the metric ``div(sqr(W), sqr(D))`` and the pattern ``layer`` or
    N:M this is the published method, but for ties and for inputs that are always zero.

    Args:
        weight: dense, ``[out, in]``.
        choice: how columns are chosen.
        statistics: ``aaT``, ``[in, in]``.
        damping: of the inputs.

    Returns:
        The weight as for `sparsegpt`, and the mask, bool ``[out, in]``.
    """
    step = choice.step(weight.shape, BLOCK)
    sweep = _Sweep(weight, statistics["aaT"], damping, choice, step)
    # what is chosen together lies within what is changed at once
    leaf = _LEAF if step >= BLOCK else step * max(1, _LEAF // step)
    sweep.run((leaf * max(1, BLOCK // leaf), leaf, 1))
    return sweep.weight.t(), sweep.goes.t() != 0


class _Sweep:
    """One pass over the columns of a weight.

    Args:
        weight: dense, ``[out, in]``.
        gram: E[a a^T], ``[in, in]``.
        damping: of the inputs.
        choice: how columns are chosen; None if the mask is put in beforehand.
        step: how many columns are chosen at once.

    Attributes:
        weight: ``[in, out]``, so that a column lies in one piece.
        goes: ``[in, out]``, 1 where a weight goes, else 0.
    """

    def __init__(
        self,
        weight: Tensor,
        gram: Tensor,
        damping: Damping,
        choice: Choice | None = None,
        step: int = 1,
    ) -> None:
        dtype = computed_in(weight)
        self.weight = weight.t().to(dtype, copy=True, memory_format=torch.contiguous_format)
        self.goes = torch.zeros_like(self.weight)
        self._kept = torch.ones_like(self.weight)
        self._errors = torch.zeros_like(self.weight)
        self._factor = inverse_factor(gram, damping.inputs).to(self.weight)
        self._scale = self._factor.diagonal().reciprocal().tolist()
        self._choice, self._step = choice, step

    def put(self, start: int, mask: Tensor) -> None:
        """Say which weights go of the columns from one on; the mask is bool ``[out, columns]``."""
        columns = slice(start, start + mask.shape[1])
        self.goes[columns] = mask.t()
        torch.sub(1, self.goes[columns], out=self._kept[columns])

    def run(self, widths: Sequence[int]) -> None:
        """Go through all columns, in blocks of these widths, each within the one before."""
        self._run(0, len(self.weight), widths)

    def _run(self, start: int, stop: int, widths: Sequence[int]) -> None:
        width, *finer = widths
        for at in range(start, stop, width):
            end = min(at + width, stop)
            if finer:
                self._run(at, end, finer)
            else:
                self._column(at)
            if end < stop:
                share = self._factor[at:end, end:stop].t()
                self.weight[end:stop].addmm_(share, self._errors[at:end], alpha=-1)

    def _column(self, at: int) -> None:
        """What goes of one column becomes its error."""
        if self._choice is not None and at % self._step == 0:
            stop = min(at + self._step, len(self.weight))
            self.put(at, self._choice.columns(self.weight.t(), at, stop))
        weight = self.weight[at]
        torch.mul(weight, self.goes[at], out=self._errors[at]).mul_(self._scale[at])
        weight.mul_(self._kept[at])
