"""What an archive offers as the best: fully judged, of distinct behaviour, of distinct species."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpprune.gp import Archive, Outcome, SearchResult, front
from gpprune.primitives import METRIC


def outcome(text: str, loss: float, origin: str = "random") -> Outcome:
    """A fully judged formula; unlike losses in two cases keep it apart from all others."""
    return Outcome(
        key=text,
        text=text,
        fitness=loss,
        losses=(loss, loss),
        full=True,
        reason=None,
        seconds=0.1,
        origin=origin,
        parents=(),
        generation=1,
    )


KIN = [
    outcome("mul(abs(W), pow(X, 0.5))", 3.0),
    outcome("mul(abs(W), pow(X, 0.52))", 3.1),
    outcome("mul(abs(W), pow(X, 2e-05))", 3.2),
    outcome("mul(abs(W), pow(X, -1))", 3.3),
    outcome("mul(abs(W), X)", 3.4, "seed wanda"),
    outcome("mul(abs(W), pow(Y, 2))", 3.5),
    outcome("mul(abs(W), pow(Y, 3))", 3.6),
    outcome("abs(W)", 3.7),
]


def losses(found: list[Outcome]) -> list[float]:
    return [one.fitness for one in found]


def test_winners_that_differ_in_a_constant_alone_are_offered_once() -> None:
    archive = Archive(reversed(KIN))
    assert losses(archive.evolved(3)) == [3.0, 3.5, 3.7]
    assert losses(archive.evolved(9)) == [3.0, 3.5, 3.7]
    assert losses(archive.evolved(3, distinct=False)) == [3.0, 3.1, 3.2]


def test_the_best_are_distinct_where_asked() -> None:
    archive = Archive(KIN)
    assert losses(archive.best(4)) == [3.0, 3.1, 3.2, 3.3]
    assert losses(archive.best(4, distinct=True)) == [3.0, 3.4, 3.5, 3.7]
    result = SearchResult(archive, generations=1, archive_hits=0, stopped=None)
    assert result.best(2, distinct=True) == archive.best(2, distinct=True)


@pytest.mark.parametrize("count", range(1, 9))
def test_the_winner_is_the_very_best(count: int) -> None:
    archive = Archive(KIN)
    assert archive.evolved(count)[0] == archive.best(count, distinct=True)[0] == archive.champion


def test_a_seed_does_not_stand_for_what_evolved_from_it() -> None:
    archive = Archive(
        [outcome("pow(X, 2)", 3.0, "seed square"), outcome("pow(X, 3)", 3.1), outcome("X", 3.2)]
    )
    assert losses(archive.evolved(2)) == [3.1, 3.2]
    assert losses(archive.best(2, distinct=True)) == [3.0, 3.2]


def test_what_was_not_judged_on_all_cases_is_not_offered() -> None:
    dropped = Outcome(**{**vars(outcome("Y", 1.0)), "full": False})
    failed = Outcome(
        **{**vars(outcome("G", math.inf)), "full": False, "losses": (), "reason": "no"}
    )
    archive = Archive([dropped, failed, *KIN])
    assert (archive.dropped, archive.failed) == (1, 1)
    assert losses(archive.evolved(1)) == [3.0]


# The front of loss against length


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5), st.booleans()), max_size=12))
def test_the_front_is_what_no_other_formula_beats(drawn: list[tuple[int, int, bool]]) -> None:
    outcomes = []
    for length, loss, full in drawn:
        made = outcome("sqr(" * length + "W" + ")" * length, float(loss))
        outcomes.append(replace(made, key=str(len(outcomes)), full=full))
    found = front(outcomes, METRIC)
    sizes = [(len(o.parsed(METRIC).tree), o.fitness) for o in outcomes if o.full]
    wanted = {
        (size, loss)
        for size, loss in sizes
        if not any(
            (other <= size and better <= loss) and (other, better) != (size, loss)
            for other, better in sizes
        )
    }
    assert [(size, o.fitness) for size, o in found] == sorted(wanted)
