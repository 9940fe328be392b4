"""How formulas arise and change: random trees, crossovers and mutations, on DEAP's trees."""

from .crossover import cross as cross
from .crossover import graft as graft
from .crossover import join as join
from .crossover import merge as merge
from .mutation import MUTATIONS as MUTATIONS
from .mutation import mutate as mutate
from .mutation import tune as tune
from .trees import Tree as Tree
from .trees import half_and_half as half_and_half
from .trees import reproducible as reproducible
