"""One candidate of a search: how it came about, and what became of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from gpprune.primitives import Formula, Language, parse

_CONSTANT = re.compile(r"(?<![\w.])-?[0-9.]+(?:e[+-]?[0-9]+)?(?!\w)")
_SEED = "seed "
START = "start"
"""The origin of a formula that an earlier search has found, say."""


def seed_origin(name: str) -> str:
    """The origin of a formula that the search began with."""
    return f"{_SEED}{name}"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A formula in canonical form that awaits its judgement.

    Attributes:
        key: its digest, by which the archive knows it.
        text: formula text.
        origin: how it came about ("seed wanda", "random", "crossover+shrink").
        parents: the keys of what it came from.
        generation: the generation that asked for it.
        behaviour: its fingerprint, if the search takes them.
        formula: the formula itself, where it is at hand; `parsed` gives it in any case.
    """

    key: str
    text: str
    origin: str
    parents: tuple[str, ...] = ()
    generation: int
    behaviour: str | None = None
    formula: Formula | None = field(default=None, compare=False, repr=False)

    @property
    def species(self) -> str:
        """The formula without its constants."""
        return _CONSTANT.sub("#", self.text)

    @property
    def seeded(self) -> bool:
        """Whether it is a seed: one that the search compares what it finds with."""
        return self.origin.startswith(_SEED)

    @property
    def given(self) -> bool:
        """Whether it was given to the search: a seed, or what it started from."""
        return self.seeded or self.origin == START

    def parsed(self, language: Language) -> Formula:
        """The formula itself; one that was read from a disk is parsed once, when first asked for.

        Raises:
            FormulaError: its text is no formula of the language.
        """
        formula = self.formula or parse(self.text, language)
        object.__setattr__(self, "formula", formula)  # a cache; equality does not see it
        return formula


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What judging a candidate found.

    Attributes:
        fitness: the mean loss over all cases; what is expected of it where the candidate was
            dropped after some of them or before any, and infinite where it failed.
        losses: the loss of each case that was judged, in order.
        full: whether it was judged on all cases.
        reason: why it failed, None if it did not.
        seconds: how long that took.
        estimate: what the fitness estimated before any case, see `Screened`; positive and finite.
    """

    fitness: float
    losses: tuple[float, ...]
    full: bool
    reason: str | None
    seconds: float
    estimate: float | None = None

    @property
    def cases(self) -> int:
        """How many cases it was judged on."""
        return len(self.losses)

    @property
    def dropped(self) -> bool:
        """Whether it lost the race before all cases were judged."""
        return self.reason is None and not self.full

    @property
    def spared(self) -> bool:
        """Whether its estimate alone dropped it, so that it was judged on no case."""
        return self.dropped and not self.losses


@dataclass(frozen=True, kw_only=True)
class Outcome(Verdict, Candidate):
    """A candidate and the verdict on it. A run directory keeps it, a column for each field."""

    @classmethod
    def of(cls, candidate: Candidate, verdict: Verdict) -> Outcome:
        """Put the two together."""
        return cls(**vars(candidate), **vars(verdict))
