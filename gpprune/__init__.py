"""Discover how to prune large language models.

import gpprune

formula = gpprune.parse("mul(abs(W), X)")
scores = gpprune.kernel(formula)(W=weight, X=x)
report = gpprune.prune_model(model, gpprune.Recipe(metric="wanda"), calibration=tokens)
result = gpprune.evolve(gpprune.METRIC, my_fitness)
"""

from .compile import kernel as kernel
from .compile import render as render
from .errors import GppruneError as GppruneError
from .errors import Unfit as Unfit
from .errors import UsageError as UsageError
from .gp import Fitness as Fitness
from .gp import RunDirectory as RunDirectory
from .gp import SearchSettings as SearchSettings
from .gp import evolve as evolve
from .primitives import METRIC as METRIC
from .primitives import Formula as Formula
from .primitives import FormulaError as FormulaError
from .primitives import Language as Language
from .primitives import parse as parse
from .primitives import published as published
from .prune import Recipe as Recipe
from .prune import load_model as load_model
from .prune import prune_model as prune_model

__version__ = "0.1.0"
