"""Paired differences: whether a formula is behind another on the same cases.

The cases are the same for every formula, so the difference to a reference, case by case, has a far
smaller variance than the losses themselves. What few cases say of that variance is weighed with
what is usual among formulas that were judged on all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpprune.gp.archive import alike, ranked
from gpprune.gp.outcome import Outcome

_WEIGHT = 4  # cases that the usual variance counts for beside a formula's own
_LEAST, _MOST = 3, 32  # formulas that say what is usual


@dataclass(frozen=True)
class Bar:
    """What formulas must keep up with.

    Attributes:
        size: for formulas of at least so many nodes.
        losses: the loss of each case.
        usual: the variance that differences to them usually have, see `usual_variance`.
    """

    size: int
    losses: tuple[float, ...]
    usual: float | None = None

    def is_ahead(self, losses: Sequence[float], z: float) -> bool:
        """Whether losses of the first cases are behind it, see `behind`."""
        return behind(losses, self.losses, z, self.usual)

    def expected(self, losses: Sequence[float]) -> float:
        """The mean to expect over all cases of a formula with these losses of the first."""
        return mean(self.losses) + mean(_differences(losses, self.losses))


def behind(
    losses: Sequence[float], reference: Sequence[float], z: float, usual: float | None = None
) -> bool:
    """Say whether losses are worse than the reference's by more than `z` standard errors.

    Args:
        losses: of the first cases, which are the ones compared.
        reference: of all cases.
        z: `inf` says that nothing is behind.
        usual: the variance that such differences usually have, see `usual_variance`. It counts
            for as much as 4 cases do: two cases that differ alike by chance would else say that
            there is no noise. None: the variance is the sample's own, and one case says nothing.
    """
    if math.isinf(z):
        return False
    differences = _differences(losses, reference)
    count = len(differences)
    squares, freedom = _squares(differences), float(count - 1)
    if usual is not None:
        squares, freedom = squares + _WEIGHT * usual, freedom + _WEIGHT
    if freedom == 0:
        return False
    return mean(differences) - z * math.sqrt(squares / freedom / count) > 0


def usual_variance(outcomes: Iterable[Outcome], reference: Sequence[float]) -> float | None:
    """The variance, case by case, of a formula's difference to a reference.

    The mean over the better half of those judged on all cases, 32 at most, near copies of the
    reference and of each other left out: what is hopeless differs more.

    Args:
        outcomes: in any order.
        reference: the loss of each case.

    Returns:
        None where fewer than three are left, or there is one case alone.
    """
    if len(reference) < 2:
        return None
    full = sorted((o for o in outcomes if o.full), key=lambda o: (o.fitness, o.key))
    better = ranked(full[: min(_MOST, max(_LEAST + 1, len(full) // 2))])
    each = [
        _squares(_differences(outcome.losses, reference)) / (len(reference) - 1)
        for outcome in better
        if not alike(outcome.losses, reference)
    ]
    found = [variance for variance in each if math.isfinite(variance)]
    return mean(found) if len(found) >= _LEAST else None


def mean(values: Iterable[float]) -> float:
    """Return the mean, summed exactly, so that it is the same on every machine."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


def _differences(losses: Sequence[float], reference: Sequence[float]) -> list[float]:
    return [mine - other for mine, other in zip(losses, reference, strict=False)]


def _squares(values: Sequence[float]) -> float:
    """The sum of the squares of what values differ by from their mean; infinite past a float."""
    try:
        centre = mean(values)
        return math.fsum((value - centre) * (value - centre) for value in values)
    except OverflowError:
        return math.inf
