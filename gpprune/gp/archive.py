"""Every candidate a search has evaluated, by canonical key, so that none is evaluated twice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from deap import base, tools

from gpprune.gp.outcome import Outcome
from gpprune.primitives import Language

_ALIKE = 2e-3


def ranked(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Order outcomes from best to worst, failed ones left out, one for each behaviour.

    Two formulas whose losses differ by less than 0.2 % on each of two or more cases behave alike,
    whatever algebra can prove; the better stands for both, the shorter if they are equal. Without
    that, near copies of the best formula (`max(x, tiny)`, `tanh(G)` for a small G) crowd out all
    that it could be combined with.
    """
    usable = sorted((outcome for outcome in outcomes if outcome.reason is None), key=_standing)
    kept: list[Outcome] = []
    for outcome in usable:
        if not any(alike(outcome.losses, other.losses) for other in kept):
            kept.append(outcome)
    return kept


def fittest(
    outcomes: Iterable[Outcome], count: int, kin: int | None, language: Language | None = None
) -> list[Outcome]:
    """The best of some outcomes.

    Args:
        outcomes: in any order; they are `ranked`.
        count: at most so many are returned, best first.
        kin: of formulas that differ in constants alone the best so many; None for all.
        language: of their formulas; given, the best are those of NSGA-II on loss and number of
            nodes: front by front, and of a front those first that stand alone.
    """
    pool = _of_kin(ranked(outcomes), kin)
    if language is None or not pool:
        return pool[:count]
    points = [_Point(outcome, language) for outcome in pool]
    chosen: list[_Point] = []
    for points_of_front in tools.sortNondominated(points, count):
        tools.emo.assignCrowdingDist(points_of_front)
        chosen += sorted(
            points_of_front,
            key=lambda point: (-point.fitness.crowding_dist, _standing(point.outcome)),
        )
    return [point.outcome for point in chosen[:count]]


class _LossAndSize(base.Fitness):  # type: ignore[misc]
    weights = (-1.0, -1.0)


class _Point:
    """An outcome as DEAP selects."""

    def __init__(self, outcome: Outcome, language: Language) -> None:
        self.outcome = outcome
        size = outcome.parsed(language).complexity
        self.fitness = _LossAndSize((outcome.fitness, float(size)))


def front(outcomes: Iterable[Outcome], language: Language) -> list[tuple[int, Outcome]]:
    """The Pareto front of loss against complexity.

    Args:
        outcomes: in any order; those that were not judged on all cases are left out.
        language: of their formulas.

    Returns:
        Pairs of the number of a formula's nodes and its outcome, shortest first: no other formula
        is as short or shorter and as good or better.
    """
    full = [outcome for outcome in outcomes if outcome.full]
    sized = [(outcome.parsed(language).complexity, outcome) for outcome in full]
    found: list[tuple[int, Outcome]] = []
    for size, outcome in sorted(sized, key=lambda pair: (pair[0], *_standing(pair[1]))):
        if not found or outcome.fitness < found[-1][1].fitness:
            found.append((size, outcome))
    return found


def _of_kin(outcomes: Iterable[Outcome], kin: int | None) -> list[Outcome]:
    """The first `kin` outcomes of each species."""
    seen: Counter[str] = Counter()
    kept = []
    for outcome in outcomes:
        seen[outcome.species] += 1
        if kin is None or seen[outcome.species] <= kin:
            kept.append(outcome)
    return kept


def alike(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two formulas' losses tell of one behaviour, as far as both were judged."""
    return min(len(a), len(b)) > 1 and all(
        math.isclose(x, y, rel_tol=_ALIKE) for x, y in zip(a, b, strict=False)
    )


class Archive:
    """Outcomes by key, in the order they were evaluated.

    Attributes:
        failed: how many could not be judged.
        dropped: how many lost the race.
        champion: the best that was judged on all cases, None before there is one.
    """

    def __init__(self, outcomes: Iterable[Outcome] = ()) -> None:
        self._outcomes: dict[str, Outcome] = {}
        self.failed = 0
        self.dropped = 0
        self.champion: Outcome | None = None
        for outcome in outcomes:
            self.add(outcome)

    def __len__(self) -> int:
        return len(self._outcomes)

    def __contains__(self, key: str) -> bool:
        return key in self._outcomes

    def __getitem__(self, key: str) -> Outcome:
        return self._outcomes[key]

    def get(self, key: str) -> Outcome | None:
        """Return the outcome of a key, None if it was never evaluated."""
        return self._outcomes.get(key)

    @property
    def outcomes(self) -> list[Outcome]:
        """All outcomes, in the order they were evaluated."""
        return list(self._outcomes.values())

    def add(self, outcome: Outcome) -> None:
        """Store a new outcome.

        Raises:
            RuntimeError: its key is there already: nothing may be evaluated twice.
        """
        if outcome.key in self._outcomes:
            raise RuntimeError(f"{outcome.text} was evaluated twice")
        self._outcomes[outcome.key] = outcome
        self.failed += outcome.reason is not None
        self.dropped += outcome.dropped
        if outcome.full and (
            self.champion is None or _standing(outcome) < _standing(self.champion)
        ):
            self.champion = outcome

    def best(self, count: int, *, distinct: bool = False) -> list[Outcome]:
        """Return outcomes that were judged on all cases, best first.

        Args:
            count: at most so many.
            distinct: of formulas that differ in constants alone only the best.
        """
        return _of_kin(self._full(), 1 if distinct else None)[:count]

    def evolved(self, count: int, *, distinct: bool = True) -> list[Outcome]:
        """As `best`, of what the search has added to its seeds.

        Args:
            count: at most so many.
            distinct: of formulas that differ in constants alone only the best. A seed does not
                stand for what evolved from it.
        """
        added = [outcome for outcome in self._full() if not outcome.seeded]
        return _of_kin(added, 1 if distinct else None)[:count]

    def _full(self) -> list[Outcome]:
        """Those judged on all cases, `ranked`."""
        return ranked(outcome for outcome in self._outcomes.values() if outcome.full)


def _standing(outcome: Outcome) -> tuple[float, int, str]:
    """What orders outcomes: the better first, then the shorter."""
    return outcome.fitness, len(outcome.text), outcome.key
