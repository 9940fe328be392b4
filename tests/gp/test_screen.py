"""The screen: what estimates foretell, whom they drop, and that they drop nobody for nothing."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gpprune.gp import (
    Outcome,
    RunDirectory,
    Screened,
    Screening,
    SearchResult,
    Unfit,
    evolve,
    kendall_tau,
)
from gpprune.gp.archive import Archive, fittest, ranked
from gpprune.gp.fidelity import race
from gpprune.gp.paired import Bar
from gpprune.gp.screen import LEAST, Screen
from gpprune.primitives import METRIC, parse, published

coordinates = st.floats(-8, 8).map(lambda value: round(value * 64) / 64)
points = st.lists(st.tuples(coordinates, coordinates), min_size=LEAST, max_size=40)
Estimate = Callable[[str, float], "float | None"]


def judged(fitness: float, estimate: float | None, *, cases: int = 4, **changes: Any) -> Outcome:
    """An outcome of a candidate that was judged on so many of four cases."""
    known: dict[str, Any] = {
        "key": f"{fitness} {estimate}",
        "text": f"add(abs(W), {fitness})",
        "origin": "random",
        "generation": 0,
        "fitness": fitness,
        "losses": (fitness,) * cases,
        "full": cases == 4,
        "reason": None,
        "seconds": 0.0,
        "estimate": estimate,
    }
    return Outcome(**{**known, **changes})


# The line


@given(points, coordinates)
def test_the_line_is_the_least_squares_one_of_the_better_half(
    pairs: list[tuple[float, float]], at: float
) -> None:
    outcomes = [judged(loss, math.exp(x)) for x, loss in pairs]
    better = sorted((o.fitness, math.log(o.estimate or 0)) for o in outcomes)
    kept = np.array(better[: max(LEAST, len(better) // 2)])
    x, y = kept[:, 1], kept[:, 0]
    assume(np.ptp(x) > 0.5)
    found = Screen(outcomes).foretold(math.exp(at))
    slope, start = np.polyfit(x, y, 1)
    assume(abs(slope) > 1e-6)
    assert (found is None) == (slope < 0)
    if found is not None:
        deviation = math.sqrt(np.sum((y - slope * x - start) ** 2) / (len(x) - 2))
        assert found[0] == pytest.approx(slope * at + start, abs=1e-6)
        assert found[1] == pytest.approx(deviation, abs=1e-6)


def test_only_what_was_judged_on_all_cases_makes_the_line() -> None:
    line = [judged(float(i), math.exp(i)) for i in range(LEAST)]
    others = [
        judged(0.0, math.exp(20), cases=2),
        judged(0.0, math.exp(20), cases=0),
        judged(0.0, None),
        judged(math.inf, math.exp(20), cases=0, reason="no terminal"),
    ]
    foretold = Screen([*others, *line]).foretold(math.exp(3.5))
    assert foretold == Screen(line).foretold(math.exp(3.5)) == pytest.approx((3.5, 0.0), abs=1e-12)
    assert Screen([*others, *line[1:]]).foretold(math.exp(3.5)) is None  # too few


@pytest.mark.parametrize("estimate", [0.0, -1.0, math.inf, math.nan])
def test_an_estimate_that_is_no_size_foretells_nothing(estimate: float) -> None:
    line = [judged(float(i), math.exp(i)) for i in range(LEAST)]
    assert Screen(line).foretold(estimate) is None


# The rank correlation


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=12))
def test_kendalls_tau_is_the_share_of_concordant_less_discordant_pairs(
    pairs: list[tuple[float, float]],
) -> None:
    x, y = np.array(pairs, dtype=float).T
    signs = np.sign(np.subtract.outer(x, x)) * np.sign(np.subtract.outer(y, y))
    wanted = signs.sum() / (len(pairs) * (len(pairs) - 1))
    assert kendall_tau(pairs) == pytest.approx(wanted)
    turned = kendall_tau([(x, -y) for x, y in pairs])
    assert turned is not None and turned == pytest.approx(-wanted)


def test_kendalls_tau_of_an_order_and_of_too_few() -> None:
    assert kendall_tau([(1, 10), (2, 11), (30, 12)]) == 1
    assert kendall_tau([(3, 1), (2, 2), (1, 3)]) == -1
    assert kendall_tau([(1, 1)]) is None
    assert kendall_tau([]) is None


def test_a_screening_counts_what_had_an_estimate() -> None:
    outcomes = [
        judged(1.0, 1.0),
        judged(2.0, 3.0),
        judged(3.0, 2.0),
        judged(3.0, 9.0, cases=0),
        judged(3.0, 8.0, cases=2),
        judged(4.0, None),
    ]
    found = Screening.of(outcomes)
    assert found == Screening(pytest.approx(1 / 3), judged=3, spared=1, estimated=5)
    assert Screening.of(outcomes[-1:]) is None
    assert Screening.of(outcomes[3:4]) == Screening(None, judged=0, spared=1, estimated=1)


# A search


def screened(toy: ModuleType, estimate: Estimate) -> Any:
    """The toy's fitness with an estimate of a text and its true loss."""

    class Estimated(toy.Words):  # type: ignore[misc, name-defined]
        cases_judged = 0

        def estimate(self, formula: Any) -> float | None:
            return estimate(formula.text, self.true_loss(formula.text))

        def prepare(self, formula: Any) -> Any:
            trial = super().prepare(formula)

            def counted(start: int, stop: int) -> Sequence[float]:
                self.cases_judged += stop - start
                return trial(start, stop)

            return counted

    return Estimated()


def monotone(toy: ModuleType) -> Estimate:
    """The exponential of the loss, half a nat to and fro."""
    return lambda text, loss: math.exp(loss + toy.noise(text, -2) - 0.5)


def search(toy: ModuleType, fitness: Any, seed: int = 3, **how: Any) -> SearchResult:
    settings = toy.SETTINGS.replaced(seed=seed, generations=8)
    return evolve(METRIC, fitness, seeds=toy.SEEDS, settings=settings, **how)


def test_a_good_estimate_spares_cases_and_finds_as_good_a_champion(toy: ModuleType) -> None:
    ends = []
    for seed in range(6):
        fitness, plain = (screened(toy, said) for said in (monotone(toy), lambda text, loss: None))
        found, without = search(toy, fitness, seed), search(toy, plain, seed)
        assert any(outcome.spared for outcome in found.outcomes)
        assert fitness.cases_judged < plain.cases_judged
        ends.append([end.best(1)[0].fitness for end in (found, without)])
    with_screen, without_screen = np.mean(ends, 0)
    assert with_screen <= without_screen + 0.25  # half the noise of a case
    assert isinstance(fitness, Screened)
    assert not isinstance(toy.Words(), Screened)


@pytest.mark.parametrize(
    "estimate",
    [
        lambda text, loss: 2.0,
        lambda text, loss: math.exp(-loss),
        lambda text, loss: None,
        lambda text, loss: math.inf,
        lambda text, loss: math.nan,
        lambda text, loss: 0,
        lambda text, loss: -loss,
    ],
    ids=["constant", "reversed", "none", "infinite", "nan", "zero", "negative"],
)
def test_an_estimate_that_says_nothing_spares_nobody(toy: ModuleType, estimate: Estimate) -> None:
    plain = search(toy, toy.Words())
    found = search(toy, screened(toy, estimate))
    assert toy.facts(found) == toy.facts(plain)
    kept = {outcome.estimate for outcome in found.outcomes}
    assert all(value is None or 0 < value < math.inf for value in kept)


def test_seeds_are_judged_whatever_is_foretold(toy: ModuleType) -> None:
    fitness = screened(toy, monotone(toy))
    order = sorted(published.items(), key=lambda named: fitness.true_loss(named[1].text))
    result = evolve(METRIC, fitness, seeds=dict(order), settings=toy.SETTINGS)
    seeds = [outcome for outcome in result.outcomes if outcome.seeded and outcome.reason is None]
    assert len(seeds) > LEAST  # the last ones are the worst, and the line is there by then
    assert all(outcome.full for outcome in seeds)
    assert any(outcome.spared for outcome in result.outcomes)


def test_no_race_no_screen(toy: ModuleType) -> None:
    result = evolve(
        METRIC,
        screened(toy, monotone(toy)),
        seeds=toy.SEEDS,
        settings=toy.SETTINGS.replaced(race_z=math.inf),
    )
    assert all(outcome.full or outcome.reason for outcome in result.outcomes)


def test_what_cannot_be_estimated_is_a_failure(toy: ModuleType) -> None:
    def refused(text: str, loss: float) -> float:
        if "Y" in text:
            raise Unfit("Y is not estimated")
        if "G" in text:
            raise ValueError("no G")
        return math.exp(loss)

    result = search(toy, screened(toy, refused))
    for outcome in result.outcomes:
        if "Y" in outcome.text:
            assert outcome.reason == "Y is not estimated"
        elif "G" in outcome.text:
            assert outcome.reason == "ValueError: no G"
        if outcome.text.count("Y") + outcome.text.count("G"):
            assert (outcome.losses, outcome.estimate, outcome.fitness) == ((), None, math.inf)
    assert any("Y" in outcome.text for outcome in result.outcomes)


def test_memory_that_ran_out_under_an_estimate_ends_the_search(toy: ModuleType) -> None:
    def full(text: str, loss: float) -> float:
        raise MemoryError

    with pytest.raises(MemoryError):
        search(toy, screened(toy, full))


def test_a_screened_race_judges_no_case_of_the_hopeless(toy: ModuleType) -> None:
    screen = Screen([judged(float(i), math.exp(i)) for i in range(LEAST)])
    bar = Bar(0, tuple(3.0 + case for case in range(16)))  # of the mean 10.5
    for loss, spared in ((10.0, False), (11.0, True)):
        fitness = screened(toy, lambda text, true, loss=loss: math.exp(loss))
        found = race(fitness, parse("abs(W)"), toy.SETTINGS, bar, screen)
        assert (found.losses == ()) == spared == (fitness.cases_judged == 0)
        assert found.estimate == pytest.approx(math.exp(loss))
        if spared:
            assert found.fitness == pytest.approx(11)
            assert found.dropped and found.reason is None


@pytest.mark.parametrize("moment", ["trial", "recorded"])
def test_a_screened_search_that_was_broken_off_comes_to_the_same_end(
    toy: ModuleType, tmp_path: Path, moment: str
) -> None:
    class Broken(KeyboardInterrupt):
        pass

    settings = toy.SETTINGS.replaced(generations=8)
    whole = search(toy, screened(toy, monotone(toy)))
    assert any(outcome.spared for outcome in whole.outcomes)
    RunDirectory.create(tmp_path / "run", settings, {}).close()
    for stop in (5, 17, 31, 44):
        fitness = screened(toy, monotone(toy))
        prepare = fitness.prepare

        def fall(event: Any = None, stop: int = stop) -> None:
            if event is None or (event.outcome is not None and event.evaluated >= stop):
                raise Broken

        def prepared(formula: Any, prepare: Any = prepare, fitness: Any = fitness) -> Any:
            return prepare(formula) if len(fitness.prepared) < 5 else fall()

        if moment == "trial":
            fitness.prepare = prepared
        with RunDirectory.open(tmp_path / "run") as run, pytest.raises(Broken):
            search(toy, fitness, run=run, observer=fall if moment == "recorded" else None)
    with RunDirectory.open(tmp_path / "run") as run:
        resumed = search(toy, screened(toy, monotone(toy)), run=run)
        assert toy.facts(resumed) == toy.facts(whole)
        kept = run.outcomes(METRIC)
    assert [o.estimate for o in kept] == [o.estimate for o in whole.outcomes]
    assert Screening.of(kept) == Screening.of(whole.outcomes)


def test_a_run_of_before_there_were_estimates_goes_on(toy: ModuleType, tmp_path: Path) -> None:
    settings = toy.SETTINGS.replaced(generations=1)
    with RunDirectory.create(tmp_path / "run", settings, {}) as run:
        began = evolve(METRIC, toy.Words(), seeds=toy.SEEDS, run=run)
    database = sqlite3.connect(tmp_path / "run" / "run.db")
    with database:
        database.execute("ALTER TABLE candidates DROP COLUMN estimate")
    database.close()
    with RunDirectory.open(tmp_path / "run") as run:  # reading it leaves it as it is
        assert run.outcomes(METRIC) == began.outcomes
    fitness = screened(toy, monotone(toy))
    longer = toy.SETTINGS.replaced(generations=4)
    with RunDirectory.open(tmp_path / "run") as run:
        found = evolve(METRIC, fitness, settings=longer, seeds=toy.SEEDS, run=run)
    with RunDirectory.open(tmp_path / "run") as run:
        kept = run.outcomes(METRIC)
    assert kept == found.outcomes
    assert kept[: len(began.outcomes)] == began.outcomes
    assert all(outcome.estimate for outcome in kept[len(began.outcomes) :] if not outcome.reason)


def test_the_spared_have_a_place_in_the_archive_but_none_among_the_best() -> None:
    full = [judged(float(i), math.exp(i)) for i in range(3)]
    spared = [judged(0.5 + i, math.exp(0.5 + i), cases=0) for i in range(3)]
    archive = Archive([*full, *spared])
    assert archive.champion == full[0]
    assert archive.dropped == 3
    assert archive.best(9) == full
    mixed = ranked(archive.outcomes)
    assert [outcome.fitness for outcome in mixed] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert fittest(archive.outcomes, 2, 1) == mixed[:1]  # of one species
    assert not any(outcome.full for outcome in spared)
