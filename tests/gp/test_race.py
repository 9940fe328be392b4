"""The race: what it drops, what it must not drop, and what it says of the dropped."""

from __future__ import annotations

import math
from collections import Counter
from statistics import fmean
from types import ModuleType
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from gpprune.gp import RungRanks, SearchSettings, evolve
from gpprune.gp.fidelity import race, rungs
from gpprune.gp.outcome import Candidate, Outcome, Verdict
from gpprune.gp.paired import Bar, behind, usual_variance
from gpprune.primitives import METRIC, METRICS, parse

numbers = st.floats(-100, 100).map(lambda value: round(value * 256) / 256)


class Fixed:
    """A fitness that gives given losses, and counts the cases it was asked for."""

    def __init__(self, losses: list[float]) -> None:
        self.losses = losses
        self.cases = len(losses)
        self.asked = 0

    def prepare(self, formula: Any) -> Any:
        def trial(start: int, stop: int) -> list[float]:
            assert start == self.asked
            self.asked = stop
            return self.losses[start:stop]

        return trial


def verdict(losses: list[float], reference: list[float] | None, **changes: Any) -> Any:
    bar = None if reference is None else Bar(0, tuple(reference))
    return race(Fixed(losses), parse("abs(W)"), SearchSettings(**changes), bar)


@given(st.integers(1, 300), st.integers(2, 20))
def test_rungs_double_up_to_all(cases: int, first: int) -> None:
    stops = rungs(cases, first)
    assert stops[-1] == cases
    assert all(stop == first * 2**i for i, stop in enumerate(stops[:-1]))
    assert stops == sorted(set(stops))


@given(st.lists(numbers, min_size=1, max_size=40), st.floats(0, 4))
def test_nothing_is_behind_itself(losses: list[float], z: float) -> None:
    assert verdict(losses, losses, race_z=z).full


@given(st.lists(numbers, min_size=1, max_size=40), numbers.filter(lambda x: x <= 0))
def test_a_better_one_is_never_dropped_without_noise(losses: list[float], shift: float) -> None:
    found = verdict([loss + shift for loss in losses], losses, race_z=0)
    assert found.full
    assert found.reason is None


@given(st.lists(numbers, min_size=3, max_size=40), numbers.filter(lambda x: x > 0))
def test_a_worse_one_is_dropped_at_once_without_noise(losses: list[float], shift: float) -> None:
    found = verdict([loss + shift for loss in losses], losses, race_z=3)
    assert not found.full
    assert len(found.losses) == 2
    # Without noise the estimate over all cases is the truth.
    assert math.isclose(found.fitness, math.fsum(losses) / len(losses) + shift, abs_tol=1e-9)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=40))
def test_no_reference_and_infinite_z_judge_on_all_cases(
    pairs: list[tuple[float, float]],
) -> None:
    losses, reference = [mine for mine, _ in pairs], [other for _, other in pairs]
    alone = verdict(losses, None)
    assert alone.full
    assert alone.fitness == verdict(losses, reference, race_z=math.inf).fitness
    assert alone.losses == tuple(losses)


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=40), st.floats(0, 4))
def test_the_test_is_the_paired_one(pairs: list[tuple[float, float]], z: float) -> None:
    differences = [mine - other for mine, other in pairs]
    n = len(differences)
    mean = sum(differences) / n
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1))
    margin = mean - z * spread / math.sqrt(n)
    if abs(margin) > 1e-6:
        losses, reference = [mine for mine, _ in pairs], [other for _, other in pairs]
        assert behind(losses, reference, z) == (margin > 0)


@given(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=40),
    st.floats(0, 4),
    st.floats(0, 100),
)
def test_the_usual_variance_counts_for_four_cases(
    pairs: list[tuple[float, float]], z: float, usual: float
) -> None:
    differences = [mine - other for mine, other in pairs]
    n = len(differences)
    squares = float(numpy.var(differences)) * n
    margin = numpy.mean(differences) - z * math.sqrt((squares + 4 * usual) / (n + 3) / n)
    if abs(margin) > 1e-6:
        losses, reference = [mine for mine, _ in pairs], [other for _, other in pairs]
        assert behind(losses, reference, z, usual) == (margin > 0)


def judged(text: str, losses: list[float], full: bool = True) -> Outcome:
    fitness = fmean(losses)
    formula = parse(text)
    verdict = Verdict(fitness=fitness, losses=tuple(losses), full=full, reason=None, seconds=0.0)
    return Outcome.of(Candidate(key=formula.digest, text=text, origin="", generation=0), verdict)


def test_what_is_usual_is_that_of_the_better_half() -> None:
    reference = [1.0, 2.0, 3.0, 4.0]
    rng = numpy.random.default_rng(0)
    noise = [rng.normal(0, 0.1, 4) for _ in range(4)] + [rng.normal(0, 9, 4) for _ in range(4)]
    outcomes = [
        judged(
            f"mul({at + 2}, abs(W))",
            [r + 1 + 2 * at + d for r, d in zip(reference, own, strict=True)],
        )
        for at, own in enumerate(noise)
    ]
    wanted = fmean(float(numpy.var(own, ddof=1)) for own in noise[:4])
    copy = judged("abs(W)", [loss * 1.0001 for loss in reference])
    half = judged("X", [0.0, 5.0], full=False)
    found = usual_variance([half, *outcomes[::-1], copy], reference)
    assert found is not None
    assert math.isclose(found, fmean(float(numpy.var(own, ddof=1)) for own in noise[:3]))
    assert math.isclose(usual_variance(outcomes, reference) or 0, wanted)
    assert usual_variance(outcomes[:2], reference) is None
    assert usual_variance([judged(o.text, [o.losses[0]]) for o in outcomes], reference[:1]) is None


def test_one_case_drops_what_is_far_behind_where_the_usual_is_known() -> None:
    reference = [3.0, 3.5, 4.0, 4.5]
    far, near = [loss + 1 for loss in reference], [loss + 0.1 for loss in reference]
    for losses, cases in ((far, 1), (near, 4)):
        bar = Bar(0, tuple(reference), usual=0.04)
        found = race(Fixed(losses), parse("abs(W)"), SearchSettings(), bar)
        assert len(found.losses) == cases
    assert len(verdict(far, reference).losses) == 2


class OfTexts(Fixed):
    """Losses on windows of several texts, in turns."""

    kinds = 3


def test_no_text_alone_drops_a_formula() -> None:
    reference = [3.0, 3.0, 3.0, 3.5, 3.5, 3.5]
    mixed = [3.9, 2.0, 2.9, 4.4, 2.5, 3.4]  # far behind on the first text, ahead in the mean
    bar = Bar(0, tuple(reference), usual=0.01)
    assert not race(Fixed(mixed), parse("abs(W)"), SearchSettings(), bar).full
    assert race(OfTexts(mixed), parse("abs(W)"), SearchSettings(), bar).full
    far = [loss + 1 for loss in reference]
    assert len(race(OfTexts(far), parse("abs(W)"), SearchSettings(), bar).losses) == 3


def test_a_loss_past_all_squares_ends_no_search(toy: ModuleType) -> None:
    class Huge(toy.Words):  # type: ignore[misc, name-defined]
        def prepare(self, formula: Any) -> Any:
            trial = super().prepare(formula)
            factor = 1e200 if formula.text == "abs(W)" else 1.0
            return lambda start, stop: [factor * loss for loss in trial(start, stop)]

    plain = evolve(METRIC, toy.Words(), seeds=toy.SEEDS, settings=toy.SETTINGS)
    seeds = {"magnitude": parse("abs(W)"), **toy.SEEDS}
    found = evolve(METRIC, Huge(), seeds=seeds, settings=toy.SETTINGS)
    assert found.generations == plain.generations
    assert found.best(1)[0].fitness < 100


def test_a_race_asks_for_no_case_twice() -> None:
    fitness = Fixed([float(i % 3) for i in range(37)])
    race(fitness, parse("abs(W)"), SearchSettings(), Bar(0, tuple(fitness.losses)))
    assert fitness.asked == 37


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), top_k=st.integers(1, 12))
def test_without_noise_the_best_of_all_seen_wins(toy: ModuleType, seed: int, top_k: int) -> None:
    fitness = toy.Words(spread=0.0)
    result = evolve(
        METRIC,
        fitness,
        seeds=toy.SEEDS,
        settings=toy.SETTINGS.replaced(seed=seed, top_k=top_k, generations=3),
    )
    truth = min(fitness.true_loss(o.text) for o in result.outcomes if o.reason is None)
    (winner,) = result.best(1)
    assert winner.full
    assert fitness.true_loss(winner.text) == truth


def test_only_fully_judged_candidates_win(toy: ModuleType) -> None:
    result = evolve(
        METRIC,
        toy.Words(spread=8.0),
        seeds=toy.SEEDS,
        settings=toy.SETTINGS.replaced(race_z=0.5, generations=6),
    )
    assert any(o.dropped for o in result.outcomes)
    winners = result.best(1000)
    assert all(o.full and o.cases == 16 for o in winners)
    assert [o.fitness for o in winners] == sorted(o.fitness for o in winners)
    full = [o for o in result.outcomes if o.full]
    assert winners[0].fitness == min(o.fitness for o in full)


def test_candidates_that_behave_alike_stand_once_among_the_best() -> None:
    seeds = {text: parse(text) for text in ("abs(W)", "mul(abs(W), X)", "mul(abs(W), sqrt(Y))")}

    class Alike(Fixed):
        def prepare(self, formula: Any) -> Any:
            return lambda start, stop: [1.0] * (stop - start)

    result = evolve(
        METRIC,
        Alike([1.0] * 4),
        seeds=seeds,
        settings=SearchSettings(population=3, generations=0),
    )
    assert result.evaluated == 3
    assert len(result.best(3)) == 1


@pytest.mark.parametrize("cases", [1, 2, 3])
def test_few_cases_need_no_rungs(cases: int) -> None:
    assert verdict([1.0] * cases, [0.0] * cases, first_rung=4).full


def test_rungs_are_held_against_all_cases(toy: ModuleType) -> None:
    result = evolve(METRIC, toy.Words(spread=3.0), seeds=toy.SEEDS, settings=toy.SETTINGS)
    full = [outcome for outcome in result.outcomes if outcome.full]
    found = RungRanks.of(result.outcomes, 2)
    assert [rung.cases for rung in found] == [2, 4, 8]
    for rung in found:
        assert rung.judged == len(full) > 5
        early = [fmean(outcome.losses[: rung.cases]) for outcome in full]
        wanted = kendalltau(early, [outcome.fitness for outcome in full]).statistic
        assert rung.kendall_tau == pytest.approx(wanted)
    assert found[0].kendall_tau < 1
    assert RungRanks.of(full[:1], 2)[0].kendall_tau is None
    assert RungRanks.of([], 2) == ()


class Misleading:
    """A toy whose first cases say the opposite of the others."""

    cases = 16

    def __init__(self, words: Any, misled: int) -> None:
        self.words, self.misled = words, misled

    def prepare(self, formula: Any) -> Any:
        base = self.words.true_loss(formula.text)

        def trial(start: int, stop: int) -> list[float]:
            return [10 - base / 9 if case < self.misled else base for case in range(start, stop)]

        return trial


@pytest.mark.parametrize(("misled", "first"), [(0, 1), (4, 8), (14, 16)])
def test_a_rung_that_misleads_drops_out(toy: ModuleType, misled: int, first: int) -> None:
    settings = toy.SETTINGS.replaced(population=20, offspring=20, generations=12)
    fitness = Misleading(toy.Words(), misled)
    seeds = {name: METRICS[name].formula for name in METRICS}  # judged in full, whatever rungs say
    starts = [parse(f"mul(X, {text})") for text in ("G", "Y", "W", "sqrt(Y)", "sqrt(G)", "abs(W)")]
    result = evolve(METRIC, fitness, seeds=seeds, starts=starts, settings=settings)
    full = Counter(outcome.generation for outcome in result.outcomes if outcome.full)
    known = {at: sum(full[earlier] for earlier in range(at)) for at in range(13)}
    late = [o.cases for o in result.outcomes if known[o.generation] >= 16 and not o.full]
    assert max(known.values()) >= 16
    assert min(late, default=16) == first
