"""DSA's operators as its published code computes them, on float32 vectors.

Li et al. 2024, "Discovering Sparsity Allocation for Layer-wise Pruning of Large Language Models";
the behaviour is that of `lib/autolayer.py` in its repository. NaN and infinity travel on to the
end, where the importance is made of them. The operators there that need a matrix (GRAM, CORREF,
DIAGONAL, DETERMINANT, RANK, SLOGDET) raise on the vector that its pruning hands them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log(x: Tensor) -> Tensor:
    """Logarithm of x + 1e-6, where what is not above 0 counts as 1."""
    return torch.log(torch.where(x <= 0, 1.0, x) + 1e-6)


def abslog(x: Tensor) -> Tensor:
    """log|x|, zeros counting as 1."""
    return torch.where(x == 0, 1.0, x).abs().log()


def var(x: Tensor) -> Tensor:
    """The unbiased variance, NaN of one value."""
    return x.var() if x.numel() > 1 else x.new_tensor(math.nan)


def std(x: Tensor) -> Tensor:
    """The unbiased deviation, NaN of one value."""
    return x.std() if x.numel() > 1 else x.new_tensor(math.nan)


def normalize(x: Tensor) -> Tensor:
    """Less the mean, over the unbiased deviation, NaN as 0."""
    found = (x - x.mean()) / std(x)
    return torch.where(torch.isnan(found), 0.0, found)


def mms(x: Tensor) -> Tensor:
    """Min-max with 1e-9 in the divisor."""
    return (x - x.min()) / (x.max() - x.min() + 1e-9)


def l1(x: Tensor) -> Tensor:
    """The mean of |x|."""
    return x.abs().sum() / x.numel()


def geomean(x: Tensor) -> Tensor:
    """The product's root, which under- or overflows for all but a few values."""
    return x.prod().pow(1.0 / x.numel())


def entropy(x: Tensor) -> Tensor:
    """The entropy of x as probabilities, those that are NaN or negative left out."""
    valid = x[~torch.isnan(x) & (x >= 0)]
    if valid.numel() == 0:
        return torch.tensor(math.nan)
    shares = valid / valid.sum(dim=-1, keepdim=True)
    if not bool((shares >= 0).all()):
        return torch.tensor(math.nan)
    shares = shares / shares.sum(-1, keepdim=True)
    least = torch.finfo(shares.dtype).eps
    return -(shares * shares.clamp(least, 1 - least).log()).sum(-1)


def importance(x: Tensor) -> float:
    """The number made of what an importance graph leaves: NaN counts as 0, infinity as -1."""
    value = float(x if x.numel() == 1 else x.mean())
    if math.isnan(value):
        return 0.0
    return -1.0 if math.isinf(value) else value
