"""The search itself, without its evaluations: ask for a generation's formulas, tell what came."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from gpprune.errors import UsageError
from gpprune.gp.archive import Archive, fittest, ranked
from gpprune.gp.breeding import Breeder, Draft
from gpprune.gp.outcome import START, Candidate, Outcome, seed_origin
from gpprune.gp.paired import Bar, usual_variance
from gpprune.gp.settings import SearchSettings
from gpprune.gp.state import State
from gpprune.gp.variation import reproducible
from gpprune.memory import out_of_memory
from gpprune.primitives import Formula, FormulaError, Language, parse

Canonical = Callable[[Formula], Formula]
Fingerprint = Callable[[Formula], str | None]

TRIES = 40


class _Known:
    """What need not be judged again: the keys of formulas, and the behaviours of those told."""

    def __init__(self, candidates: Iterable[Candidate]) -> None:
        self.keys: set[str] = set()
        self.behaviours: set[str] = set()
        for candidate in candidates:
            self.add(candidate)

    def add(self, candidate: Candidate) -> None:
        self.keys.add(candidate.key)
        if candidate.behaviour is not None:
            self.behaviours.add(candidate.behaviour)


class Engine:
    """A (mu + lambda) search over typed trees, generation by generation.

    Generation 0 asks for the seeds and random formulas up to the population; each later one for
    `offspring` new formulas. Formulas are kept in canonical form. Every draw follows from
    (settings.seed, generation, slot) and from the outcomes of earlier generations alone, so
    asking again after a crash asks for the same, and the order of evaluation does not matter.

    With an `overlap` of n a generation is bred from the one n before its last, generation 0 at the
    least, and may be asked for once that one is told of: the n between may still be judged.
    """

    def __init__(
        self,
        language: Language,
        settings: SearchSettings,
        seeds: Mapping[str, Formula],
        canonical: Canonical,
        fingerprint: Fingerprint | None,
        states: Sequence[State],
        archive: Archive,
        starts: Sequence[Formula] = (),
    ) -> None:
        """Prepare a search.

        Args:
            language: what formulas are made of.
            settings: what the search does.
            seeds: formulas to start from, by name.
            canonical: brings formulas that are the same candidate to one form.
            fingerprint: says of a canonical form what it does, None where nothing does.
            states: after each complete generation, in order: what to go on from.
            archive: all outcomes so far; whoever judges adds to it.
            starts: formulas of earlier searches that generation 0 judges beside the seeds.

        Raises:
            UsageError: a seed or a start is of another language.
        """
        self.settings = settings
        self.archive = archive
        self._states = [State(), *states]
        self._asked: dict[int, tuple[list[Candidate], int]] = {}  # and the archive's hits
        self.language = language
        self._canonical = canonical
        self._fingerprint = fingerprint
        given = {**seeds, **{start.text: start for start in starts}}
        for name, seed in given.items():
            if seed.language is not language:
                raise UsageError(
                    f"the seed {name!r} is a {seed.language.name} formula, but the search is for"
                    f" {language.name} formulas: leave it out"
                )
        self._seeds = {name: canonical(seed) for name, seed in seeds.items()}
        self._starts = [canonical(start) for start in starts]
        self._breeder = Breeder(language, settings, self._seeds)

    @property
    def state(self) -> State:
        """Where the search stands: after the last generation that was told of."""
        return self._states[-1]

    @property
    def archive_hits(self) -> int:
        """How many draws the archive had answered, those of generations under way included."""
        return self.state.archive_hits + sum(hits for _, hits in self._asked.values())

    def ask(self, generation: int) -> list[Candidate] | None:
        """Return a generation's formulas, none of which was asked for in another.

        A generation is smaller than asked for when `TRIES` draws in a row bring nothing new, as
        happens when a small language is used up.

        Args:
            generation: the oldest that was not told of, or one after those that were asked for.

        Returns:
            The same, however often it is asked for, and nothing of what was told of; None while
            what it is bred from is not known.
        """
        if generation < self.state.generation:
            return []
        if generation not in self._asked:
            if self.bred_from(generation) > self.state.generation:
                return None
            self._asked[generation] = self._generation(generation)
        return self._asked[generation][0]

    def bred_from(self, generation: int) -> int:
        """How many generations are told of in the state that a generation is bred from."""
        return max(1, generation - self.settings.overlap) if generation else 0

    def tell(self, outcomes: Sequence[Outcome]) -> State:
        """Take the outcomes of the oldest generation asked for, select, and return the state."""
        generation = self.state.generation
        union = [*self._population(self.state), *outcomes]
        survivors = fittest(
            union,
            self.settings.population,
            self.settings.kin,
            self.language if self.settings.select == "pareto" else None,
        )
        _, hits = self._asked.pop(generation)
        keys = tuple(outcome.key for outcome in survivors)
        self._states.append(State(generation + 1, keys, self.state.archive_hits + hits))
        return self.state

    def _population(self, state: State) -> list[Outcome]:
        """The outcomes of a population, best first."""
        return [self.archive[key] for key in state.population]

    def _parents(self, generation: int) -> list[Outcome]:
        """The population that a generation is bred from, best first."""
        return self._population(self._states[self.bred_from(generation)])

    def bars(self, generation: int, judged: Sequence[Outcome]) -> tuple[Bar, ...]:
        """Return what a generation's formulas must keep up with.

        It is the losses of the top_k-th fully judged formula of the population that it is bred
        from, or of the last one if there are fewer; where shorter formulas may be worse, of those
        that are no longer.

        Args:
            generation: which.
            judged: all that it may know of. Generation 0 has no population: there these are the
                seeds' outcomes, and stand for it.

        Returns:
            Nothing if nothing was judged fully.
        """
        population = self._parents(generation) or judged
        full = [outcome for outcome in ranked(population) if outcome.full]
        by_length = self.settings.select == "pareto"

        def size_of(outcome: Outcome) -> int:
            return outcome.parsed(self.language).complexity if by_length else 0

        bars = []
        for size in sorted({size_of(outcome) for outcome in full}):
            no_longer = [outcome for outcome in full if size_of(outcome) <= size]
            losses = no_longer[: self.settings.top_k][-1].losses
            known = (outcome for outcome in judged if outcome.full and size_of(outcome) <= size)
            bars.append(Bar(size, losses, usual_variance(known, losses)))
        return tuple(bars)

    def _generation(self, generation: int) -> tuple[list[Candidate], int]:
        """The formulas of a generation, and how many draws the archive answered."""
        # A broken-off generation may be in the archive in part; it must not count as known.
        known = _Known(o for o in self.archive.outcomes if o.generation < self.state.generation)
        for under_way, _ in self._asked.values():
            for other in under_way:
                known.add(other)
        asked: list[Candidate] = []
        hits = 0
        drawing = self._breeder.initial
        count = self.settings.offspring
        if generation == 0:
            asked, hits = self._seed_candidates(known)
            count = max(0, self.settings.population - len(asked))
        else:
            drawing = partial(self._breeder.later, self._parents(generation))
        for slot in range(count):
            with reproducible(self.settings.seed, generation, slot):
                candidate, slot_hits = self._draw(drawing(), generation, known)
            hits += slot_hits
            if candidate is not None:
                known.add(candidate)
                asked.append(candidate)
        return asked, hits

    def _seed_candidates(self, known: _Known) -> tuple[list[Candidate], int]:
        asked: list[Candidate] = []
        given = [(formula, seed_origin(name)) for name, formula in self._seeds.items()]
        given += [(formula, START) for formula in self._starts]
        for formula, origin in given:
            candidate = self._unless_known(known, Draft(formula.tree, origin), formula, 0)
            if candidate is not None:
                known.add(candidate)
                asked.append(candidate)
        return asked, len(given) - len(asked)

    def _unless_known(
        self, known: _Known, draft: Draft, formula: Formula, generation: int
    ) -> Candidate | None:
        """A candidate of a draft's formula, unless it or one that does the same is known."""
        if formula.digest in known.keys:
            return None
        behaviour = self._behaviour(formula)
        if behaviour in known.behaviours:
            return None
        return Candidate(
            key=formula.digest,
            text=formula.text,
            origin=draft.origin,
            parents=draft.parents,
            generation=generation,
            behaviour=behaviour,
            # What a custom form's tree holds may be another primitive than its text is read as;
            # a search that is resumed knows the text alone.
            formula=parse(formula.text, self.language),
        )

    def _behaviour(self, formula: Formula) -> str | None:
        try:
            return self._fingerprint(formula) if self._fingerprint else None
        except Exception as error:
            if out_of_memory(error):
                raise
            return None  # the search records what is wrong with it when it judges it

    def _draw(
        self, drawn: Callable[[], Draft], generation: int, known: _Known
    ) -> tuple[Candidate | None, int]:
        """Draw until a formula within the limits is new; also return the archive's hits."""
        hits = 0
        for _ in range(TRIES):
            draft = drawn()
            formula = self._settled(draft)
            if formula is None:
                continue
            candidate = self._unless_known(known, draft, formula, generation)
            if candidate is not None:
                return candidate, hits
            hits += formula.digest not in draft.parents  # an unchanged parent saves nothing
        return None, hits

    def _settled(self, draft: Draft) -> Formula | None:
        """Return the canonical formula of a tree, None if it is past the limits."""
        try:
            formula = self._canonical(Formula(draft.tree, self.language))
        except FormulaError:  # larger than any formula may be
            return None
        fits = (
            formula.depth <= self.settings.depth_limit
            and formula.complexity <= self.settings.size_limit
        )
        return formula if fits else None
