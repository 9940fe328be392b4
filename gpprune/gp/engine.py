"""The search itself, without its evaluations: ask for a generation's formulas, tell what came."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from gpprune.errors import UsageError
from gpprune.gp.archive import Archive, Outcome, Proposal, fittest, ranked
from gpprune.gp.settings import SearchSettings
from gpprune.gp.variation import Tree, cross, half_and_half, join, merge, mutate, seeded, tune
from gpprune.primitives import Formula, FormulaError, Language, parse

Canonical = Callable[[Formula], Formula]
Fingerprint = Callable[[Formula], str | None]

TRIES = 40


@dataclass(frozen=True)
class State:
    """What a search carries from one generation to the next, beside the archive.

    `generation` is the number of the generation to ask for; `population` holds keys, best first;
    `archive_hits` counts the draws that the archive had already answered.
    """

    generation: int = 0
    population: tuple[str, ...] = ()
    archive_hits: int = 0


class _Known:
    """What need not be judged again: the keys of formulas, and the behaviours of those told."""

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        self.keys: set[str] = set()
        self.behaviours: set[str] = set()
        for outcome in outcomes:
            self.add(outcome)

    def add(self, formula: Outcome | Proposal) -> None:
        self.keys.add(formula.key)
        if formula.behaviour is not None:
            self.behaviours.add(formula.behaviour)


class Engine:
    """A (mu + lambda) search over typed trees, generation by generation.

    Generation 0 asks for the seeds and random formulas up to the population; each later one for
    `offspring` new formulas. Formulas are kept in canonical form. Every draw follows from
    (settings.seed, generation, slot) and from the outcomes of earlier generations alone, so
    asking again after a crash asks for the same, and the order of evaluation does not matter.
    """

    def __init__(
        self,
        language: Language,
        settings: SearchSettings,
        seeds: Mapping[str, Formula],
        canonical: Canonical,
        fingerprint: Fingerprint | None,
        state: State,
        archive: Archive,
    ) -> None:
        self.language = language
        self.settings = settings
        self.state = state
        self.archive = archive
        self._canonical = canonical
        self._fingerprint = fingerprint
        self._seeds = {name: canonical(seed) for name, seed in seeds.items()}
        for name, seed in seeds.items():
            if seed.language is not language:
                raise UsageError(
                    f"the seed {name!r} is a {seed.language.name} formula, but the search is for"
                    f" {language.name} formulas: leave it out"
                )
        self._formula = lru_cache(maxsize=1024)(lambda text: parse(text, language))

    def ask(self) -> list[Proposal]:
        """Return the current generation's formulas, none of which was evaluated before it.

        Adds to `state.archive_hits`. A generation is smaller than asked for when `TRIES` draws
        in a row bring nothing new, as happens when a small language is used up.
        """
        generation = self.state.generation
        # A broken-off generation may be in the archive in part; it must not count as known.
        known = _Known(o for o in self.archive.outcomes if o.generation < generation)
        asked: list[Proposal] = []
        hits = 0
        if generation == 0:
            asked, hits = self._seeded_proposals(known)
            count = max(0, self.settings.population - len(asked))
        else:
            count = self.settings.offspring
        for slot in range(count):
            proposal, slot_hits = self._draw(slot, known)
            hits += slot_hits
            if proposal is not None:
                known.add(proposal)
                asked.append(proposal)
        self.state = State(generation, self.state.population, self.state.archive_hits + hits)
        return asked

    def tell(self, outcomes: Sequence[Outcome]) -> State:
        """Take the outcomes of what was asked, select, and return the next generation's state."""
        union = [*self.population, *outcomes]
        survivors = fittest(union, self.settings.population, self.settings.kin)
        self.state = State(
            self.state.generation + 1,
            tuple(outcome.key for outcome in survivors),
            self.state.archive_hits,
        )
        return self.state

    @property
    def population(self) -> list[Outcome]:
        """The outcomes of the current population, best first."""
        return [self.archive[key] for key in self.state.population]

    def reference(self, judged: Sequence[Outcome]) -> tuple[float, ...] | None:
        """Return the losses that this generation's formulas must keep up with.

        They are those of the top_k-th fully judged formula of the population, or of the last
        one if there are fewer. Generation 0 has no population: there it is `judged`, the seeds'
        outcomes. None if nothing was judged fully.
        """
        pool = ranked(self.population or judged)
        full = [outcome for outcome in pool if outcome.full][: self.settings.top_k]
        return full[-1].losses if full else None

    def _seeded_proposals(self, known: _Known) -> tuple[list[Proposal], int]:
        asked: list[Proposal] = []
        for name, formula in self._seeds.items():
            proposal = self._unless_known(known, formula, f"seed {name}", raced=False)
            if proposal is not None:
                known.add(proposal)
                asked.append(proposal)
        return asked, len(self._seeds) - len(asked)

    def _unless_known(
        self,
        known: _Known,
        formula: Formula,
        origin: str,
        parents: tuple[str, ...] = (),
        raced: bool = True,
    ) -> Proposal | None:
        """Propose a formula, unless it or one that does the same is known."""
        key = formula.digest
        if key in known.keys:
            return None
        try:
            behaviour = self._fingerprint(formula) if self._fingerprint else None
        except MemoryError:
            raise
        except Exception:  # the search records what is wrong with it when it judges it
            behaviour = None
        if behaviour in known.behaviours:
            return None
        return Proposal(key, formula, origin, parents, raced, behaviour)

    def _draw(self, slot: int, known: _Known) -> tuple[Proposal | None, int]:
        """Draw until a formula within the limits is new; also return the archive's hits."""
        hits = 0
        with seeded(self.settings.seed, self.state.generation, slot):
            fresh = (
                self.state.generation == 0
                or self.settings.strategy == "random"
                or not self.state.population
                or random.random() < self.settings.immigrants
            )
            joins = self._joins_seeds()
            for _ in range(TRIES):
                if joins:
                    tree, origin, parents = self._joined_seeds()
                else:
                    tree, origin, parents = self._random() if fresh else self._offspring()
                formula = self._settled(tree)
                if formula is None:
                    continue
                proposal = self._unless_known(known, formula, origin, parents)
                if proposal is not None:
                    return proposal, hits
                hits += formula.digest not in parents  # an unchanged parent saves no evaluation
        return None, hits

    def _settled(self, tree: Tree) -> Formula | None:
        """Return the canonical formula of a tree, None if it is past the limits."""
        try:
            formula = self._canonical(Formula(tree, self.language))
        except FormulaError:  # larger than any formula may be
            return None
        fits = (
            formula.depth <= self.settings.depth_limit
            and formula.complexity <= self.settings.size_limit
        )
        return formula if fits else None

    def _joins_seeds(self) -> bool:
        """Whether a formula of generation 0 is to come of two seeds.

        Random trees are all but worthless beside formulas that people have published.
        """
        able = self.settings.strategy == "evolution" and len(self._seeds) > 1
        return self.state.generation == 0 and able and random.random() < self.settings.joins

    def _joined_seeds(self) -> tuple[Tree, str, tuple[str, ...]]:
        (one, first), (other, second) = random.sample(list(self._seeds.items()), 2)
        whole = self.settings.merge and random.random() < 0.5
        combine = merge if whole else join
        return combine(first.tree, second.tree, self.language), f"join of {one} and {other}", ()

    def _random(self) -> tuple[Tree, str, tuple[str, ...]]:
        nodes = half_and_half(self.language, self.settings.min_depth, self.settings.max_depth)
        return Tree(nodes), "random", ()

    def _offspring(self) -> tuple[Tree, str, tuple[str, ...]]:
        if self.settings.merge and random.random() < self.settings.merge:
            parent = self._parent()
            keys = [parent.key]
            kind = random.choice(
                ("parent", "seed", "random") if self._seeds else ("parent", "random")
            )
            if kind == "parent":
                other = self._parent(besides=parent.key)
                keys.append(other.key)
                donor = self._formula(other.text).tree
            elif kind == "seed":
                donor = random.choice(list(self._seeds.values())).tree
            else:
                donor, _, _ = self._random()
            tree = merge(self._formula(parent.text).tree, donor, self.language)
            return tree, f"merge with {kind}", tuple(dict.fromkeys(keys))
        if self.settings.tune and random.random() < self.settings.tune:
            parent = self._parent()
            tree = tune(self._formula(parent.text).tree, self.language)
            return tree, "tune", (parent.key,)
        crossover, mutation = self._operators()
        parent = self._parent()
        parents = [parent.key]
        tree = self._formula(parent.text).tree
        names = []
        if crossover:
            other = self._parent(besides=parent.key)
            parents.append(other.key)
            names.append("crossover")
            tree = cross(tree, self._formula(other.text).tree, self.language)
        if mutation:
            tree, name = mutate(tree, self.language)
            names.append(name)
        return tree, "+".join(names), tuple(dict.fromkeys(parents))

    def _operators(self) -> tuple[bool, bool]:
        """Draw whether to cross and whether to mutate; at least one is true."""
        chances = self.settings.crossover, self.settings.mutation
        crossover, mutation = (random.random() < chance for chance in chances)
        if not crossover and not mutation:
            crossover = random.random() < chances[0] / sum(chances)
            mutation = not crossover
        return crossover, mutation

    def _parent(self, besides: str = "") -> Outcome:
        """Draw a parent: the best of `tournament` among the `top_k` of a share of all.

        `besides` is the key of the other parent, which is drawn again only if it is alone.
        """
        keys = [key for key in self.state.population if key != besides] or [besides]
        count = max(1, round(self.settings.sample * len(keys)))
        drawn = sorted(random.sample(range(len(keys)), count))[: self.settings.top_k]
        return self.archive[keys[min(random.choices(drawn, k=self.settings.tournament))]]
