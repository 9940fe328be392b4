"""`evolve`: search a language for the formulas that a fitness likes best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from gpprune.errors import GppruneError, UsageError
from gpprune.gp.archive import Archive
from gpprune.gp.engine import Engine
from gpprune.gp.fidelity import first_that_ranks
from gpprune.gp.fitness import Fitness, Screened
from gpprune.gp.judging import InTurn, Judge, Task, Tasks, Terms
from gpprune.gp.outcome import Candidate, Outcome, Verdict
from gpprune.gp.rundir import RunDirectory
from gpprune.gp.screen import Screen
from gpprune.gp.settings import SearchSettings
from gpprune.gp.state import State
from gpprune.gp.workers import Crew, Forks
from gpprune.primitives import Formula, Language

# What a later call may set anew without changing what the earlier one did.
_EXTENDABLE = frozenset({"generations", "time_limit", "candidate_time_limit"})


@dataclass(frozen=True)
class SearchEvent:
    """How far a search is: one at the start of each generation and one after each candidate.

    `index` of `total` candidates of this generation are done; `evaluated`, `archive_hits`,
    `failed` and `dropped` count over the whole search, resumed parts included; `seconds` counts
    from this call. `outcome` is the candidate just judged, None at a generation's start.
    """

    generation: int
    generations: int
    index: int
    total: int
    evaluated: int
    archive_hits: int
    failed: int
    dropped: int
    seconds: float
    best: Outcome | None
    outcome: Outcome | None


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    `generations` counts the completed ones after the initial one; `stopped` is None if all were
    done, else what ended the search early ("time limit").
    """

    archive: Archive
    generations: int
    archive_hits: int
    stopped: str | None

    @property
    def outcomes(self) -> list[Outcome]:
        """Every candidate ever evaluated, in order."""
        return self.archive.outcomes

    @property
    def evaluated(self) -> int:
        """How many candidates were evaluated, those of resumed calls included."""
        return len(self.archive)

    def best(self, count: int = 1, *, distinct: bool = False) -> list[Outcome]:
        """Return candidates that were judged on all cases, best first, one for each behaviour.

        Args:
            count: at most so many.
            distinct: of formulas that differ in constants alone only the best.
        """
        return self.archive.best(count, distinct=distinct)


def evolve(
    language: Language,
    fitness: Fitness,
    *,
    settings: SearchSettings | None = None,
    seeds: Mapping[str, Formula] | None = None,
    starts: Sequence[Formula] = (),
    canonical: Callable[[Formula], Formula] = Formula.canonical,
    fingerprint: Callable[[Formula], str | None] | None = None,
    run: RunDirectory | None = None,
    observer: Callable[[SearchEvent], None] | None = None,
    workers: int | Crew = 1,
) -> SearchResult:
    """Search for the formulas of least fitness.

    Args:
        language: what formulas are made of.
        fitness: judges them; any object with the `Fitness` protocol.
        settings: what the search does; by default the run's settings, or `SearchSettings()`.
        seeds: formulas to start from, by name; judged on all cases. A call that resumes a run
            must give the same.
        starts: formulas to start from that count as evolved, as those of an earlier search. A call
            that resumes a run must give the same.
        canonical: brings formulas that are the same candidate to one form.
        fingerprint: says of a canonical form what it does, where that is cheaper to tell than how
            good it is: of formulas with one fingerprint the first is judged, the others are the
            archive's hits. None, or anything raised, for a formula that is like no other.
        run: where every outcome is kept as soon as it is known. A run that was broken off, even
            by SIGKILL, goes on from there to the same end as an unbroken one.
        observer: called with a `SearchEvent` after each candidate.
        workers: how many processes judge, or which workers, see `gpprune.gp.workers`; one seed
            gives the same run for any number of them, but for the seconds that candidates took.
            1: this process does.

    Raises:
        UsageError: settings that differ from the run's in more than generations and limits, a
            fitness without cases, a seed of another language, or workers where processes cannot
            fork.
        GppruneError: the run directory is in use, damaged, finds no space, may not be written, or
            was made with other cases.
        MemoryError: memory ran out under the fitness or the fingerprint; torch's own errors that
            say so pass through as they are. Nothing is recorded of that candidate.

    The global `random` is left as it was. All else that the fitness raises is recorded.
    """
    if fitness.cases < 1:
        raise UsageError(f"the fitness has {fitness.cases} cases: it needs at least one")
    with ExitStack() as stack:
        chosen = _settings(settings, run)
        archive, states = Archive(), list[State]()
        if run is not None:
            stack.enter_context(run.exclusive())
            archive, states = Archive(run.outcomes(language)), run.states()
            _check_cases(archive, fitness, run)
        told = (canonical, fingerprint, states, archive, starts)
        engine = Engine(language, chosen, seeds or {}, *told)
        judge: Judge = InTurn(fitness, language, chosen)
        if workers != 1:
            crew = Forks(workers) if isinstance(workers, int) else workers
            judge = crew.hire(fitness, language, chosen)
        stack.callback(judge.close)
        screened = isinstance(fitness, Screened)
        return _Search(engine, judge, screened, run, observer).run()


class _Search:
    """One call of `evolve`."""

    def __init__(
        self,
        engine: Engine,
        judge: Judge,
        screened: bool,
        run: RunDirectory | None,
        observer: Callable[[SearchEvent], None] | None,
    ) -> None:
        self.engine = engine
        self.judge = judge
        self.screened = screened
        self.directory = run
        self.observer = observer
        self.started = time.monotonic()
        self.judged = 0

    def run(self) -> SearchResult:
        """Go on to the last generation or the time limit."""
        stopped = None
        verdicts = self.judge.judge(self._tasks(), self._has_time)
        while (generation := self.engine.state.generation) <= self.engine.settings.generations:
            outcomes = self._generation(self.engine.ask(generation) or [], verdicts)
            if outcomes is None:
                stopped = "time limit"
                break
            state = self.engine.tell(outcomes)
            if self.directory is not None:
                self.directory.commit(state)
        done, hits = self.engine.state.generation, self.engine.archive_hits
        return SearchResult(self.engine.archive, max(0, done - 1), hits, stopped)

    def _generation(
        self, asked: list[Candidate], verdicts: Iterator[Verdict]
    ) -> list[Outcome] | None:
        """Return the outcomes of one generation, None if the time ran out before the last."""
        outcomes: list[Outcome] = []
        self._notify(asked, outcomes, None)
        for candidate in asked:
            outcome = self.engine.archive.get(candidate.key)
            if outcome is None:
                if (verdict := next(verdicts, None)) is None:
                    return None
                outcome = self._kept(Outcome.of(candidate, verdict))
            outcomes.append(outcome)
            self._notify(asked, outcomes, outcome)
        return outcomes

    def _tasks(self) -> Tasks:
        """What is to be judged, generation by generation, as soon as verdicts allow."""
        archive = self.engine.archive
        for generation in range(self.engine.state.generation, self.engine.settings.generations + 1):
            while (asked := self.engine.ask(generation)) is None:
                yield None
            given = [candidate for candidate in asked if candidate.given]  # they come first
            yield from self._new(given, generation, [])
            while not all(candidate.key in archive for candidate in given):
                yield None
            seeds = [archive[candidate.key] for candidate in given]
            yield from self._new(asked[len(given) :], generation, seeds)

    def _new(
        self, asked: Sequence[Candidate], generation: int, seeds: Sequence[Outcome]
    ) -> Iterator[Task]:
        """Those that were not judged before the search was broken off."""
        new = [candidate for candidate in asked if candidate.key not in self.engine.archive]
        if new:
            terms = self._terms(generation, seeds)
            yield from (Task(candidate, terms) for candidate in new)

    def _terms(self, generation: int, seeds: Sequence[Outcome]) -> Terms:
        """What formulas of a generation are judged by, by what it is bred from and the seeds."""
        # What a broken-off generation has left is in the archive, and does not count.
        told = self.engine.bred_from(generation)
        known = [o for o in self.engine.archive.outcomes if o.generation < told]
        judged = [*known, *seeds]
        return Terms(
            self.engine.bars(generation, judged),
            Screen(judged) if self.screened else None,
            first_that_ranks(known, self.engine.settings.first_rung),
        )

    def _kept(self, outcome: Outcome) -> Outcome:
        if self.directory is not None:
            self.directory.record(outcome)
        self.engine.archive.add(outcome)
        self.judged += 1
        return outcome

    def _has_time(self) -> bool:
        """Say whether to go on; each call judges at least one candidate, so it gets on."""
        limit = self.engine.settings.time_limit
        return limit is None or self.judged == 0 or self._seconds() < limit

    def _seconds(self) -> float:
        return time.monotonic() - self.started

    def _notify(
        self, asked: list[Candidate], outcomes: list[Outcome], outcome: Outcome | None
    ) -> None:
        if self.observer is None:
            return
        archive = self.engine.archive
        self.observer(
            SearchEvent(
                generation=self.engine.state.generation,
                generations=self.engine.settings.generations,
                index=len(outcomes),
                total=len(asked),
                evaluated=len(archive),
                archive_hits=self.engine.archive_hits,
                failed=archive.failed,
                dropped=archive.dropped,
                seconds=self._seconds(),
                best=archive.champion,
                outcome=outcome,
            )
        )


def _settings(given: SearchSettings | None, run: RunDirectory | None) -> SearchSettings:
    if run is None:
        return given or SearchSettings()
    if given is None:
        return run.search
    for name, value in given.model_dump().items():
        stored = getattr(run.search, name)
        if value != stored and name not in _EXTENDABLE:
            flag = "--" + name.replace("_", "-")
            raise UsageError(
                f"{flag} {value} differs from {stored}, with which the run {run.path} began: leave"
                " it out, or begin a new run"
            )
    return given


def _check_cases(archive: Archive, fitness: Fitness, run: RunDirectory) -> None:
    for outcome in archive.outcomes:
        if outcome.cases > fitness.cases or (outcome.full and outcome.cases != fitness.cases):
            raise GppruneError(
                f"the run {run.path} judged its candidates on {outcome.cases} cases, but the"
                f" fitness has {fitness.cases}: resume with the run's own problem"
            )
