"""Every candidate a search has evaluated, by canonical key, so that none is evaluated twice."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from gpprune.primitives import Formula

_ALIKE = 2e-3
_CONSTANT = re.compile(r"(?<![\w.])-?[0-9.]+(?:e[+-]?[0-9]+)?(?!\w)")


@dataclass(frozen=True)
class Outcome:
    """What became of one candidate.

    `fitness` is the mean loss over all cases; if the candidate was dropped after some of them
    (`full` is false) it is an estimate, and if it failed (`reason` says why) it is infinite.
    `losses` holds the loss of each case judged, in order. `origin` says how the formula came
    about ("seed wanda", "random", "crossover+shrink") and `parents` from which keys. `behaviour` is
    its fingerprint, if the search takes them.
    """

    key: str
    text: str
    fitness: float
    losses: tuple[float, ...]
    full: bool
    reason: str | None
    seconds: float
    origin: str
    parents: tuple[str, ...]
    generation: int
    behaviour: str | None = None

    @property
    def cases(self) -> int:
        """How many cases it was judged on."""
        return len(self.losses)

    @property
    def species(self) -> str:
        """The formula without its constants."""
        return _CONSTANT.sub("#", self.text)

    @property
    def seeded(self) -> bool:
        """Whether the search began with it."""
        return self.origin.startswith("seed ")

    @property
    def dropped(self) -> bool:
        """Whether it lost the race before all cases were judged."""
        return self.reason is None and not self.full


@dataclass(frozen=True)
class Proposal:
    """A formula, in canonical form, that awaits its evaluation."""

    key: str
    formula: Formula
    origin: str
    parents: tuple[str, ...] = ()
    raced: bool = True
    behaviour: str | None = None


def ranked(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Order outcomes from best to worst, failed ones left out, one for each behaviour.

    Two formulas whose losses differ by less than 0.2 % on each of two or more cases behave alike,
    whatever algebra can prove; the better stands for both, the shorter if they are equal. Without
    that, near copies of the best formula (`max(x, tiny)`, `tanh(G)` for a small G) crowd out all
    that it could be combined with.
    """
    usable = [outcome for outcome in outcomes if outcome.reason is None]
    usable.sort(key=lambda outcome: (outcome.fitness, len(outcome.text), outcome.key))
    kept: list[Outcome] = []
    for outcome in usable:
        if not any(_alike(outcome, other) for other in kept):
            kept.append(outcome)
    return kept


def fittest(outcomes: Iterable[Outcome], count: int, kin: int | None) -> list[Outcome]:
    """The best `count` as `ranked`; of formulas that differ in constants alone the best `kin`."""
    seen: Counter[str] = Counter()
    kept = []
    for outcome in ranked(outcomes):
        seen[outcome.species] += 1
        if kin is None or seen[outcome.species] <= kin:
            kept.append(outcome)
    return kept[:count]


def _alike(a: Outcome, b: Outcome) -> bool:
    """Whether two outcomes tell of one behaviour, as far as both were judged."""
    common = min(a.cases, b.cases)
    return common > 1 and all(
        math.isclose(x, y, rel_tol=_ALIKE)
        for x, y in zip(a.losses[:common], b.losses[:common], strict=True)
    )


class Archive:
    """Outcomes by key, in the order they were evaluated."""

    def __init__(self, outcomes: Iterable[Outcome] = ()) -> None:
        self._outcomes = {outcome.key: outcome for outcome in outcomes}
        self.failed = sum(outcome.reason is not None for outcome in self._outcomes.values())
        self.dropped = sum(outcome.dropped for outcome in self._outcomes.values())
        self.champion = min(
            (outcome for outcome in self._outcomes.values() if outcome.full),
            key=_standing,
            default=None,
        )

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

        Raises `RuntimeError` if its key is there already: nothing may be evaluated twice.
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

    def best(self, count: int) -> list[Outcome]:
        """Return the best `count` outcomes that were judged on all cases, best first."""
        return ranked(outcome for outcome in self._outcomes.values() if outcome.full)[:count]

    def evolved(self, count: int) -> list[Outcome]:
        """As `best`, of what the search has added to its seeds."""
        return [outcome for outcome in self.best(len(self)) if not outcome.seeded][:count]


def _standing(outcome: Outcome) -> tuple[float, int, str]:
    return outcome.fitness, len(outcome.text), outcome.key


def mean(values: Iterable[float]) -> float:
    """Return the mean, summed exactly, so that it is the same on every machine."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)
