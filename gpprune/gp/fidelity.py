"""The race: judge a candidate on a few cases first, on all of them only if it keeps up.

A successive-halving ladder of rungs (1, 2, 4 ... cases) with a one-sided test of paired differences
at each, after Maron and Moore's races (1994).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

from gpprune.errors import Unfit, UsageError
from gpprune.gp.fitness import Fitness, Mixed, Screened
from gpprune.gp.outcome import Outcome, Verdict
from gpprune.gp.paired import Bar, mean
from gpprune.gp.screen import Screen, kendall_tau
from gpprune.gp.settings import SearchSettings
from gpprune.memory import out_of_memory
from gpprune.primitives import Formula

_REASON_LIMIT = 300
_ENOUGH = 16  # formulas before a rung may be said to mislead: their tau errs by 0.2
_LEAST_TAU = 1 / 3  # two of three pairs in the right order


def race(
    fitness: Fitness,
    formula: Formula,
    settings: SearchSettings,
    bar: Bar | None = None,
    screen: Screen | None = None,
    first_rung: int | None = None,
) -> Verdict:
    """Evaluate a formula at rising fidelities.

    Args:
        fitness: gives the losses. An ordinary exception of it becomes the verdict's reason.
        formula: what is judged.
        settings: `first_rung`, `race_z` and `candidate_time_limit` of it.
        bar: what to keep up with; None judges on all cases.
        screen: what the estimates of a fitness that has some foretell; a formula whose estimate
            puts it behind the bar by more than `race_z` deviations is judged on no case.
        first_rung: in place of the settings', if it is given.

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
        foretold = _foretold_behind(estimate, screen, bar, settings.race_z)
        if foretold is None:
            first = first_rung or settings.first_rung
            if isinstance(fitness, Mixed):
                first = max(first, fitness.kinds)
            _climb(fitness, formula, settings, first, bar, losses, started)
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
        value = foretold if foretold is not None else mean(losses)
        if bar is not None and foretold is None and not full:
            value = bar.expected(losses)
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
    estimate: float | None, screen: Screen | None, bar: Bar | None, z: float
) -> float | None:
    """The loss to expect of a formula that needs no judging; None if it is to be judged."""
    if estimate is None or screen is None or bar is None or math.isinf(z):
        return None
    found = screen.foretold(estimate)
    if found is None:
        return None
    expected, deviation = found
    return expected if expected - z * deviation > mean(bar.losses) else None


class _ProtocolError(UsageError):
    """The fitness broke its protocol, which no other candidate would mend."""


def _climb(
    fitness: Fitness,
    formula: Formula,
    settings: SearchSettings,
    first: int,
    bar: Bar | None,
    losses: list[float],
    started: float,
) -> None:
    """Extend `losses` rung by rung until all cases are in or the candidate is out."""
    trial = fitness.prepare(formula)
    _check_clock(settings, started)
    for stop in rungs(fitness.cases, first):
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
        if stop == fitness.cases or (bar is not None and bar.is_ahead(losses, settings.race_z)):
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


def _check_clock(settings: SearchSettings, started: float) -> None:
    limit = settings.candidate_time_limit
    if limit is not None and time.perf_counter() - started > limit:
        raise Unfit(f"ran past {limit:g} s")


def clipped(reason: str) -> str:
    """A reason as it is kept: on one line, of no more than 300 characters."""
    line = " ".join(reason.split()) or "no reason given"
    return line if len(line) <= _REASON_LIMIT else line[: _REASON_LIMIT - 3] + "..."
