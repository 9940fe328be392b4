"""Which trees a search draws: random ones, joins of seeds, and offspring of the population."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from gpprune.gp.outcome import Outcome
from gpprune.gp.settings import SearchSettings
from gpprune.gp.variation import Tree, cross, half_and_half, join, merge, mutate, tune
from gpprune.primitives import Formula, Language


@dataclass(frozen=True)
class Draft:
    """A tree as variation made it, how it came about, and the keys of its parents."""

    tree: Tree
    origin: str
    parents: tuple[str, ...] = ()


class Breeder:
    """Draws trees from the global `random`, as the settings say."""

    def __init__(
        self, language: Language, settings: SearchSettings, seeds: Mapping[str, Formula]
    ) -> None:
        """Prepare to draw.

        Args:
            language: what trees are made of.
            settings: the chances of everything.
            seeds: canonical formulas that the search began with, by name.
        """
        self.language = language
        self.settings = settings
        self.seeds = seeds

    def initial(self) -> Callable[[], Draft]:
        """Draw how a tree of generation 0 comes about: the function draws one at each call.

        Random trees are all but worthless beside formulas that people have published, so many
        are joins of two seeds.
        """
        able = self.settings.strategy == "evolution" and len(self.seeds) > 1
        return self._joined if able and random.random() < self.settings.joins else self._random

    def later(self, population: Sequence[Outcome]) -> Callable[[], Draft]:
        """As `initial`, for a later generation, whose parents are in a population, best first."""
        fresh = (
            self.settings.strategy == "random"
            or not population
            or random.random() < self.settings.immigrants
        )
        return self._random if fresh else partial(self._offspring, population)

    def _random(self) -> Draft:
        nodes = half_and_half(self.language, self.settings.min_depth, self.settings.max_depth)
        return Draft(Tree(nodes), "random")

    def _joined(self) -> Draft:
        (one, first), (other, second) = random.sample(list(self.seeds.items()), 2)
        whole = self.settings.merge and random.random() < 0.5
        combine = merge if whole else join
        tree = combine(first.tree, second.tree, self.language)
        return Draft(tree, f"join of {one} and {other}")

    def _offspring(self, population: Sequence[Outcome]) -> Draft:
        if self.settings.merge and random.random() < self.settings.merge:
            return self._merged(population)
        if self.settings.tune and random.random() < self.settings.tune:
            parent = self._parent(population)
            return Draft(tune(self._tree(parent), self.language), "tune", _keys(parent))
        return self._bred(population)

    def _merged(self, population: Sequence[Outcome]) -> Draft:
        parent = self._parent(population)
        partner = random.choice(
            ("parent", "seed", "random") if self.seeds else ("parent", "random")
        )
        parents = _keys(parent)
        if partner == "parent":
            other = self._parent(population, besides=parent)
            parents = _keys(parent, other)
            donor = self._tree(other)
        elif partner == "seed":
            donor = random.choice(list(self.seeds.values())).tree
        else:
            donor = self._random().tree
        tree = merge(self._tree(parent), donor, self.language)
        return Draft(tree, f"merge with {partner}", parents)

    def _bred(self, population: Sequence[Outcome]) -> Draft:
        crossover, mutation = self._operators()
        parent = self._parent(population)
        parents = _keys(parent)
        tree = self._tree(parent)
        names = []
        if crossover:
            other = self._parent(population, besides=parent)
            parents = _keys(parent, other)
            names.append("crossover")
            tree = cross(tree, self._tree(other), self.language)
        if mutation:
            tree, name = mutate(tree, self.language)
            names.append(name)
        return Draft(tree, "+".join(names), parents)

    def _operators(self) -> tuple[bool, bool]:
        """Draw whether to cross and whether to mutate; at least one is true."""
        chances = self.settings.crossover, self.settings.mutation
        crossover, mutation = (random.random() < chance for chance in chances)
        if not crossover and not mutation:
            crossover = random.random() < chances[0] / sum(chances)
            mutation = not crossover
        return crossover, mutation

    def _parent(self, population: Sequence[Outcome], besides: Outcome | None = None) -> Outcome:
        """Draw a parent: the best of `tournament` among the `top_k` of a share of all.

        `besides` is the other parent, which is drawn again only if it is alone.
        """
        others = [outcome for outcome in population if outcome is not besides] or population
        count = max(1, round(self.settings.sample * len(others)))
        drawn = sorted(random.sample(range(len(others)), count))[: self.settings.top_k]
        return others[min(random.choices(drawn, k=self.settings.tournament))]

    def _tree(self, parent: Outcome) -> Tree:
        """A tree that variation may change."""
        return parent.parsed(self.language).tree


def _keys(*parents: Outcome) -> tuple[str, ...]:
    """The keys of parents, once for each."""
    return tuple(dict.fromkeys(parent.key for parent in parents))
