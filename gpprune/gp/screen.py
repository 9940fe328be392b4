"""The screen: what a cheap estimate of a candidate foretells of its loss.

An estimate need not be on the scale of the loss. A straight line through the candidates that were
judged on all cases, in the logarithm of the estimate, says what loss to expect and how far off such
an expectation is. Who is expected to be behind by more than that is not judged at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpprune.gp.outcome import Outcome

LEAST = 8  # candidates before a line is drawn


class Screen:
    """A line from the logarithm of an estimate to the loss.

    Args:
        outcomes: what was judged so far; those with an estimate that were judged on all cases
            make the line, the better half of them: the line need not hold for what is hopeless.
    """

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        known = sorted((y, math.log(x)) for x, y in pairs(outcomes))
        self._points = [(x, y) for y, x in known[: max(LEAST, len(known) // 2)]]

    def foretold(self, estimate: float) -> tuple[float, float] | None:
        """The loss to expect of an estimate, and the standard deviation around the line.

        None while there are too few points, or they say nothing.
        """
        count = len(self._points)
        if count < LEAST or not 0 < estimate < math.inf:
            return None
        mean_x, mean_y = (math.fsum(p[i] for p in self._points) / count for i in (0, 1))
        spread = math.fsum((x - mean_x) ** 2 for x, _ in self._points)
        if spread == 0:
            return None
        slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in self._points) / spread
        if slope <= 0:
            return None
        off = [y - mean_y - slope * (x - mean_x) for x, y in self._points]
        deviation = math.sqrt(math.fsum(d * d for d in off) / (count - 2))
        return mean_y + slope * (math.log(estimate) - mean_x), deviation


def pairs(outcomes: Iterable[Outcome]) -> list[tuple[float, float]]:
    """Estimate and fitness of every candidate that has both, judged on all cases."""
    return [
        (outcome.estimate, outcome.fitness)
        for outcome in outcomes
        if outcome.full and outcome.estimate is not None
    ]


def kendall_tau(points: Sequence[tuple[float, float]]) -> float | None:
    """Kendall's rank correlation of pairs (tau-a): 1 for one order, -1 for the opposite.

    None of fewer than two pairs.
    """
    count = len(points)
    if count < 2:
        return None
    agreed = 0
    for at, (x, y) in enumerate(points):
        for other_x, other_y in points[:at]:
            agreed += _sign(x - other_x) * _sign(y - other_y)
    return agreed / (count * (count - 1) / 2)


@dataclass(frozen=True)
class Screening:
    """What the estimates of a search were worth.

    Attributes:
        kendall_tau: the rank correlation of estimate and loss; None of fewer than two candidates.
        judged: over how many candidates that is: those that were judged on all cases.
        spared: how many were dropped by their estimate alone.
        estimated: how many candidates had an estimate.
    """

    kendall_tau: float | None
    judged: int
    spared: int
    estimated: int

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Screening | None:
        """Of all candidates of a search; None where none had an estimate."""
        estimated = [outcome for outcome in outcomes if outcome.estimate is not None]
        known = pairs(estimated)
        spared = sum(outcome.spared for outcome in estimated)
        return cls(kendall_tau(known), len(known), spared, len(estimated)) if estimated else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
