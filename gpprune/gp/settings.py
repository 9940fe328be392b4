"""The settings of a search, validated once, and the presets of published searches."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gpprune.errors import UsageError


class SearchSettings(BaseModel):
    """What a search does, apart from its language and its fitness. Immutable.

    Raises `UsageError`, naming the flag and the value, when a value is out of range.

    Size of the search:
        population: how many formulas survive a generation (mu).
        offspring: how many new formulas a generation evaluates (lambda).
        generations: how many generations follow the initial one, which is number 0.
        overlap: how many generations after generation 0 may begin before an earlier one has ended.
            Each is bred from the population of so many generations before its last, so that workers
            need not wait for a slow candidate, and their number still does not matter. With one
            offspring a generation it is a steady state.
        time_limit: seconds one call may take, checked between candidates; None for no limit.
        candidate_time_limit: seconds one candidate may take, checked between its rungs; a
            candidate past it is recorded as failed. It makes a search depend on the clock.

    Formulas:
        min_depth, max_depth: range of the heights of random formulas.
        depth_limit, size_limit: greatest height and node count of any searched formula.

    Variation:
        sample: share of the population that parents are drawn from (drawn anew each time).
        kin: how many formulas that differ in their constants alone survive a generation; None for
            any number.
        top_k: parents are among the best this many of that share. The race is against the
            top_k-th of the population.
        tournament: a parent is the best of this many random ones among those.
        crossover, mutation: chance of each; at least one of the two always happens.
        immigrants: chance that an offspring is a fresh random formula instead.
        joins: share of generation 0, its seeds aside, that combines two of the seeds.
        merge: chance that an offspring is instead a parent combined whole with another one, with
            a seed or with a fresh random formula, as often each; in generation 0, half of the
            joins are then of whole seeds.
        tune: chance that an offspring is instead a parent with all its constants moved a little.
        strategy: "evolution", or "random", where every offspring is a fresh random formula.
        select: who survives: the best by "fitness", or by "pareto", where a formula that is shorter
            than all that are as good is as good as the best: NSGA-II (Deb et al. 2002) on loss and
            number of nodes. The race is then among formulas that are no longer.

    Fidelity:
        first_rung: cases that every candidate is judged on; they then double up to all.
        race_z: a candidate is dropped when its paired loss difference to the top_k-th is above
            zero by more than this many standard errors; `inf` drops none. The error is the
            candidate's own, weighed with what is usual among formulas that were judged on all.

    seed: the one number that, with the other settings, fixes every draw.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    population: int = Field(16, ge=1)
    offspring: int = Field(12, ge=1)
    generations: int = Field(6, ge=0)
    overlap: int = Field(0, ge=0)
    time_limit: float | None = Field(None, gt=0, allow_inf_nan=False)
    candidate_time_limit: float | None = Field(None, gt=0, allow_inf_nan=False)
    min_depth: int = Field(1, ge=0)
    max_depth: int = Field(3, ge=0)
    depth_limit: int = Field(8, ge=1, le=60)
    size_limit: int = Field(30, ge=1, le=1000)
    sample: float = Field(1.0, gt=0, le=1)
    kin: int | None = Field(None, ge=1)
    top_k: int = Field(6, ge=1)
    tournament: int = Field(3, ge=1)
    crossover: float = Field(0.5, ge=0, le=1)
    mutation: float = Field(0.5, ge=0, le=1)
    immigrants: float = Field(0.1, ge=0, le=1)
    joins: float = Field(0.5, ge=0, le=1)
    merge: float = Field(0.0, ge=0, le=1)
    tune: float = Field(0.0, ge=0, le=1)
    strategy: Literal["evolution", "random"] = "evolution"
    select: Literal["fitness", "pareto"] = "fitness"
    first_rung: int = Field(1, ge=1)
    race_z: float = Field(2.0, ge=0)
    seed: int = Field(0, ge=0)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UsageError(_sentence(error)) from None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_depth > self.max_depth:
            raise ValueError(
                f"--min-depth {self.min_depth} is above --max-depth {self.max_depth}: raise the one"
                " or lower the other"
            )
        if self.max_depth > self.depth_limit:
            raise ValueError(
                f"--max-depth {self.max_depth} is above --depth-limit {self.depth_limit}: raise the"
                " one or lower the other"
            )
        if self.crossover + self.mutation == 0:
            raise ValueError("--crossover 0 with --mutation 0 varies nothing: raise one of them")
        return self

    def replaced(self, **changes: Any) -> SearchSettings:
        """Return the settings with some values changed, validated like new ones."""
        return SearchSettings(**{**self.model_dump(), **changes})


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return str(first["ctx"]["error"]) if "ctx" in first else str(first["msg"])
    flag = "--" + str(first["loc"][0]).replace("_", "-")
    if first["type"] == "extra_forbidden":
        return f"{flag} is not a setting of a search: the settings are {_names()}"
    message = str(first["msg"])
    return f"{flag} {first['input']!r} cannot be used: {message[0].lower()}{message[1:]}"


def _names() -> str:
    return ", ".join(SearchSettings.model_fields)


PRESETS: dict[str, SearchSettings] = {
    "quick": SearchSettings(),
    # The parts of an allocation add up: sums of published ones are better than random formulas.
    "allocation": SearchSettings(
        population=24, generations=9, kin=1, joins=0.8, merge=0.35, tune=0.25, size_limit=40
    ),
    # Dong et al. 2024, arXiv 2406.02924, section 4.1: two parents drawn from the best 10.
    "pruner-zero": SearchSettings(
        population=50,
        offspring=1,
        generations=300,
        min_depth=3,
        max_depth=5,
        size_limit=64,
        top_k=10,
        tournament=1,
        crossover=1.0,
        mutation=0.5,
        immigrants=0.0,
    ),
    # Li et al. 2024 (DSA): of a random 90 % of the population the best 5 are parents.
    "dsa": SearchSettings(
        population=20,
        offspring=1,
        generations=1000,
        sample=0.9,
        top_k=5,
        tournament=1,
        immigrants=0.0,
    ),
}
"""Settings by name: a quick default, and what the papers of two published searches state."""

_LIMIT = re.compile(r"(\d+(?:\.\d+)?)([smh]?)")
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration(text: str) -> float:
    """A time limit such as 90s or 20m in seconds.

    Raises:
        UsageError: it is none.
    """
    match = _LIMIT.fullmatch(text.strip())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"--time-limit {text!r} is not a duration: write for example 90s or 20m")
    return float(match[1]) * _SECONDS[match[2]]


def settings_of(preset: str, **changes: Any) -> SearchSettings:
    """A preset with other values; a time limit may be text such as 20m.

    Args:
        preset: a name of `PRESETS`.
        changes: by name; None stands for the preset's own.

    Raises:
        UsageError: there is no such preset, or a value is wrong.
    """
    if preset not in PRESETS:
        raise UsageError(f"unknown --preset {preset!r}; there are {', '.join(PRESETS)}")
    given = {name: value for name, value in changes.items() if value is not None}
    if isinstance(limit := given.get("time_limit"), str):
        given["time_limit"] = duration(limit)
    return PRESETS[preset].replaced(**given)
