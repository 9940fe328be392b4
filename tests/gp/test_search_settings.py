"""The settings of a search: presets, and one clear sentence for each bad value."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from gpprune.errors import UsageError
from gpprune.gp import PRESETS, SearchSettings


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"population": 0}, ["--population 0", "greater than or equal to 1"]),
        ({"offspring": -3}, ["--offspring -3"]),
        ({"generations": 2.5}, ["--generations 2.5"]),
        ({"crossover": 1.5}, ["--crossover 1.5"]),
        ({"race_z": float("nan")}, ["--race-z nan"]),
        ({"time_limit": 0}, ["--time-limit 0"]),
        ({"time_limit": float("inf")}, ["--time-limit inf"]),
        ({"strategy": "luck"}, ["--strategy 'luck'", "'evolution'"]),
        ({"seed": -1}, ["--seed -1"]),
        ({"min_depth": 4, "max_depth": 3}, ["--min-depth 4", "--max-depth 3"]),
        ({"max_depth": 9, "depth_limit": 8}, ["--max-depth 9", "--depth-limit 8"]),
        ({"crossover": 0, "mutation": 0}, ["--crossover 0 with --mutation 0"]),
        ({"pupulation": 3}, ["--pupulation", "population"]),
    ],
)
def test_a_bad_value_is_named_with_its_flag(values: dict[str, Any], words: list[str]) -> None:
    for make in (SearchSettings, SearchSettings().replaced):
        with pytest.raises(UsageError) as caught:
            make(**values)
        assert all(word in str(caught.value) for word in words)
        assert "\n" not in str(caught.value)


def test_settings_are_immutable() -> None:
    with pytest.raises(ValidationError):
        SearchSettings().population = 3  # type: ignore[misc]


def test_presets_state_what_the_papers_do() -> None:
    assert PRESETS["quick"] == SearchSettings()
    zero = PRESETS["pruner-zero"]
    assert (zero.population, zero.generations, zero.offspring) == (50, 300, 1)
    assert (zero.min_depth, zero.max_depth, zero.top_k, zero.mutation) == (3, 5, 10, 0.5)
    dsa = PRESETS["dsa"]
    assert (dsa.population, dsa.generations, dsa.sample, dsa.top_k) == (20, 1000, 0.9, 5)
