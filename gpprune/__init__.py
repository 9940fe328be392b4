"""Discover how to prune large language models.

import gpprune

formula = gpprune.parse("mul(abs(W), X)")
scores = gpprune.kernel(formula)(W=weight, X=x)
report = gpprune.prune_model(model, gpprune.Recipe(metric="wanda", sparsity=0.5), tokens)
found = gpprune.discover(gpprune.MetricGoal(model="smollm2", sparsity=0.5))
table = gpprune.compare(["wanda", "ria"], model="smollm2", sparsity=0.5)
result = gpprune.evolve(gpprune.METRIC, my_fitness)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compile import kernel as kernel
    from .compile import render as render
    from .discover import AllocationGoal as AllocationGoal
    from .discover import Comparison as Comparison
    from .discover import Contender as Contender
    from .discover import Discovery as Discovery
    from .discover import JointGoal as JointGoal
    from .discover import MetricGoal as MetricGoal
    from .discover import RayCluster as RayCluster
    from .discover import Texts as Texts
    from .discover import carry_over as carry_over
    from .discover import compare as compare
    from .discover import compare_recipes as compare_recipes
    from .discover import describe as describe
    from .discover import describe_run as describe_run
    from .discover import discover as discover
    from .discover import evaluate_model as evaluate_model
    from .discover import inspect_checkpoint as inspect_checkpoint
    from .discover import judge_on_tasks as judge_on_tasks
    from .discover import prune_to as prune_to
    from .discover import recover_to as recover_to
    from .discover import resume as resume
    from .discover import share_out as share_out
    from .discover import shrink_to as shrink_to
    from .discover import summarise as summarise
    from .errors import GppruneError as GppruneError
    from .errors import Unfit as Unfit
    from .errors import UsageError as UsageError
    from .gp import Fitness as Fitness
    from .gp import RunDirectory as RunDirectory
    from .gp import SearchSettings as SearchSettings
    from .gp import evolve as evolve
    from .primitives import ALLOCATION as ALLOCATION
    from .primitives import JOINT as JOINT
    from .primitives import METRIC as METRIC
    from .primitives import Formula as Formula
    from .primitives import FormulaError as FormulaError
    from .primitives import Language as Language
    from .primitives import allocation as allocation
    from .primitives import metric as metric
    from .primitives import parse as parse
    from .primitives import published as published
    from .prune import Recipe as Recipe
    from .prune import load_model as load_model
    from .prune import prune_model as prune_model

__version__ = "0.1.0"

# Names by room. Imported when first asked for: torch and transformers take seconds, in which a
# Ctrl-C would end in a traceback from the midst of them.
_ROOMS = {
    "compile": ("kernel", "render"),
    "discover": (
        "AllocationGoal",
        "Comparison",
        "Contender",
        "Discovery",
        "JointGoal",
        "MetricGoal",
        "RayCluster",
        "Texts",
        "carry_over",
        "compare",
        "compare_recipes",
        "describe",
        "describe_run",
        "discover",
        "evaluate_model",
        "inspect_checkpoint",
        "judge_on_tasks",
        "prune_to",
        "recover_to",
        "resume",
        "share_out",
        "shrink_to",
        "summarise",
    ),
    "errors": ("GppruneError", "Unfit", "UsageError"),
    "gp": ("Fitness", "RunDirectory", "SearchSettings", "evolve"),
    "primitives": (
        "ALLOCATION",
        "JOINT",
        "METRIC",
        "Formula",
        "FormulaError",
        "Language",
        "allocation",
        "metric",
        "parse",
        "published",
    ),
    "prune": ("Recipe", "load_model", "prune_model"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = ["__version__", *_ROOM_OF]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_ROOM_OF[name]}", __name__), name)
