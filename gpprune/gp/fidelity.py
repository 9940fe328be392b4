"""The race: judge a candidate on a few cases first, on all of them only if it keeps up.

The cases are paired: they are the same for every formula, so the difference to a reference, case
by case, has a far smaller variance than the losses themselves. A successive-halving ladder
of rungs (1, 2, 4 ... cases) with a one-sided test at each, after Maron and Moore's races (1994).
What little the cases of a low rung say of that variance is weighed with what is usual among
formulas that were judged on all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from gpprune.errors import Unfit, UsageError
from gpprune.gp.archive import alike, ranked
from gpprune.gp.fitness import Fitness, Screened
from gpprune.gp.outcome import Outcome, Verdict
from gpprune.gp.screen import Screen, kendall_tau
from gpprune.gp.settings import SearchSettings
from gpprune.memory import out_of_memory
from gpprune.primitives import Formula

_REASON_LIMIT = 300
_ENOUGH = 16  # formulas before a rung may be said to mislead: their tau errs by 0.2
_LEAST_TAU = 1 / 3  # two of three pairs in the right order
_LEAST_USUAL = 3  # formulas that say what is usual
_WEIGHT = 4  # cases that the usual variance counts for beside a formula's own


def race(
    fitness: Fitness,
    formula: Formula,
    settings: SearchSettings,
    reference: Sequence[float] | None = None,
    screen: Screen | None = None,
    first_rung: int | None = None,
    usual: float | None = None,
) -> Verdict:
    """Evaluate a formula at rising fidelities.

    Args:
        fitness: gives the losses. An ordinary exception of it becomes the verdict's reason.
        formula: what is judged.
        settings: `first_rung`, `race_z` and `candidate_time_limit` of it.
        reference: the loss of each case of the formula to keep up with; None judges on all cases.
        screen: what the estimates of a fitness that has some foretell; a formula whose estimate
            puts it behind the reference by more than `race_z` deviations is judged on no case.
        first_rung: in place of the settings', if it is given.
        usual: see `behind`.

    Raises:
        UsageError: a trial returns another number of losses than it was asked for.
        MemoryError: memory ran out, which is no fault of the formula; torch's own errors that say
            so pass through as they are, and so do KeyboardInterrupt and SystemExit.
    """
    started = time.perf_counter()
    losses: list[float] = []
    reason = estimate = foretold = None
    try:
        if isinstance(fitness, Screened):
            estimate = _usable(fitness.estimate(formula))
        foretold = _foretold_behind(estimate, screen, reference, settings.race_z)
        if foretold is None:
            stops = rungs(fitness.cases, first_rung or settings.first_rung)
            test = partial(behind, reference=reference, z=settings.race_z, usual=usual)
            _climb(fitness, formula, settings, stops, test, losses, started)
    except _ProtocolError:
        raise
    except Unfit as error:
        reason = clipped(str(error))
    except Exception as error:  # the fitness is foreign code; the reason is kept and shown
        if out_of_memory(error):
            raise
        reason = clipped(f"{type(error).__name__}: {error}")
    seconds = time.perf_counter() - started
    full = reason is None and len(losses) == fitness.cases
    value = math.inf
    if reason is None:
        value = _estimate(losses, None if full else reference) if foretold is None else foretold
    return Verdict(
        fitness=value,
        losses=tuple(losses),
        full=full,
        reason=reason,
        seconds=seconds,
        estimate=estimate,
    )


def _usable(estimate: float | None) -> float | None:
    """An estimate as a number of its own; None for one that says nothing."""
    if estimate is None or not 0 < float(estimate) < math.inf:
        return None
    return float(estimate)


def _foretold_behind(
    estimate: float | None, screen: Screen | None, reference: Sequence[float] | None, z: float
) -> float | None:
    """The loss to expect of a formula that needs no judging; None if it is to be judged."""
    if estimate is None or screen is None or reference is None or math.isinf(z):
        return None
    found = screen.foretold(estimate)
    if found is None:
        return None
    expected, deviation = found
    return expected if expected - z * deviation > mean(reference) else None


def _estimate(losses: Sequence[float], reference: Sequence[float] | None) -> float:
    """The mean over all cases, of a part of which only the reference is known."""
    if reference is None:
        return mean(losses)
    return mean(reference) + mean(_differences(losses, reference))


class _ProtocolError(UsageError):
    """The fitness broke its protocol, which no other candidate would mend."""


def _climb(
    fitness: Fitness,
    formula: Formula,
    settings: SearchSettings,
    stops: Sequence[int],
    is_behind: Callable[[Sequence[float]], bool],
    losses: list[float],
    started: float,
) -> None:
    """Extend `losses` rung by rung until all cases are in or the candidate is out."""
    trial = fitness.prepare(formula)
    _check_clock(settings, started)
    for stop in stops:
        start = len(losses)
        values = [float(value) for value in trial(start, stop)]
        if len(values) != stop - start:
            raise _ProtocolError(
                f"the fitness gave {len(values)} losses for the {stop - start} cases from {start}"
                f" to {stop}: its trial must return one for each"
            )
        for case, value in enumerate(values, start):
            if not math.isfinite(value):
                raise Unfit(f"the loss of case {case} is {value}")
            losses.append(value)
        _check_clock(settings, started)
        if stop == fitness.cases or is_behind(losses):
            return


def rungs(cases: int, first: int) -> list[int]:
    """Return the numbers of cases to pause at: `first`, doubling, and `cases` last."""
    stops = []
    stop = first
    while stop < cases:
        stops.append(stop)
        stop *= 2
    return [*stops, cases]


@dataclass(frozen=True)
class RungRanks:
    """How far a rung ranks as all cases do.

    Attributes:
        cases: the rung: the mean over the first so many.
        kendall_tau: its rank correlation with the mean over all; None of fewer than two candidates.
        judged: over how many candidates: those that were judged on all cases, and so were good
            enough at the rungs before.
    """

    cases: int
    kendall_tau: float | None
    judged: int

    @classmethod
    def of(cls, outcomes: Iterable[Outcome], first: int) -> tuple[RungRanks, ...]:
        """Of all candidates of a search with a first rung of so many cases, a row a rung."""
        full = [outcome for outcome in outcomes if outcome.full]
        stops = rungs(full[0].cases, first)[:-1] if full and first < full[0].cases else []
        return tuple(
            cls(stop, kendall_tau([(mean(o.losses[:stop]), o.fitness) for o in full]), len(full))
            for stop in stops
        )


def first_that_ranks(outcomes: Iterable[Outcome], first: int) -> int:
    """The first rung that ranks as all cases do: the rungs before it mislead, and all drop out.

    A rung misleads that orders fewer than two of three pairs of formulas as all cases do. Of fewer
    than 16 formulas that is not asked.

    Returns:
        Its cases: `first` while nothing speaks against it, and all if no rung ranks so.
    """
    full = [outcome for outcome in outcomes if outcome.full]
    ranks = RungRanks.of(full, first)
    if not ranks or len(full) < _ENOUGH:
        return first
    good = [rung.cases for rung in ranks if (rung.kendall_tau or 0) >= _LEAST_TAU]
    return good[0] if good else full[0].cases


def behind(
    losses: Sequence[float],
    reference: Sequence[float] | None,
    z: float,
    usual: float | None = None,
) -> bool:
    """Say whether losses are worse than the reference's by more than `z` standard errors.

    Args:
        losses: of the first cases, which are the ones compared.
        reference: of all cases; without one nothing is behind.
        z: `inf` says that nothing is behind.
        usual: the variance that such differences usually have, see `usual_variance`. It counts
            for as much as 4 cases do: two cases that differ alike by chance would else say that
            there is no noise. None: the variance is the sample's own, and one case says nothing.
    """
    if reference is None or math.isinf(z):
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

    The mean over the better half of those judged on all cases, near copies of the reference left
    out: what is hopeless differs more. None where fewer than three are left, or one case is all.

    Args:
        outcomes: in any order.
        reference: the loss of each case.
    """
    if len(reference) < 2:
        return None
    full = ranked(outcome for outcome in outcomes if outcome.full)
    better = full[: max(_LEAST_USUAL + 1, len(full) // 2)]
    found = [
        _squares(_differences(outcome.losses, reference)) / (len(reference) - 1)
        for outcome in better
        if not alike(outcome.losses, reference)
    ]
    return mean(found) if len(found) >= _LEAST_USUAL else None


def _squares(values: Sequence[float]) -> float:
    """The sum of the squares of what values differ by from their mean."""
    centre = mean(values)
    return math.fsum((value - centre) ** 2 for value in values)


def mean(values: Iterable[float]) -> float:
    """Return the mean, summed exactly, so that it is the same on every machine."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


def _differences(losses: Sequence[float], reference: Sequence[float]) -> list[float]:
    return [mine - other for mine, other in zip(losses, reference, strict=False)]


def _check_clock(settings: SearchSettings, started: float) -> None:
    limit = settings.candidate_time_limit
    if limit is not None and time.perf_counter() - started > limit:
        raise Unfit(f"ran past {limit:g} s")


def clipped(reason: str) -> str:
    """A reason as it is kept: on one line, of no more than 300 characters."""
    line = " ".join(reason.split()) or "no reason given"
    return line if len(line) <= _REASON_LIMIT else line[: _REASON_LIMIT - 3] + "..."
