"""The use cases: search on a model, compare recipes, prune to a checkpoint, report, draw.

All that the commands do is here for a notebook; the commands parse, call and print. The room is
called as what it is for: `gpprune.discover(goal)` is `gpprune.discover.search.discover(goal)`.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from inspect import signature
from types import ModuleType

from .checkpoints.judged import evaluate_model as evaluate_model
from .checkpoints.judged import inspect_checkpoint as inspect_checkpoint
from .checkpoints.pruned import prune_to as prune_to
from .checkpoints.recovered import recover_to as recover_to
from .checkpoints.shrunk import shrink_to as shrink_to
from .checkpoints.tasked import judge_on_tasks as judge_on_tasks
from .compare import Comparison as Comparison
from .compare import compare as compare
from .compare import compare_recipes as compare_recipes
from .contenders import Contender as Contender
from .contenders import allocation_contenders as allocation_contenders
from .contenders import metric_contenders as metric_contenders
from .describe import Description as Description
from .describe import describe as describe
from .describe import describe_run as describe_run
from .describe import ingredients as ingredients
from .findings import Finding as Finding
from .findings import Judged as Judged
from .goals.goal import Goal as Goal
from .goals.layered import AllocationGoal as AllocationGoal
from .goals.layered import JointGoal as JointGoal
from .goals.metric import MetricGoal as MetricGoal
from .report import RECIPE_FILE as RECIPE_FILE
from .report import Discovery as Discovery
from .runs import RunSummary as RunSummary
from .runs import summarise as summarise
from .search import RayCluster as RayCluster
from .search import discover as discover
from .search import hired as hired
from .search import resume as resume
from .sharing import Sharing as Sharing
from .sharing import share_out as share_out
from .stored import GOALS as GOALS
from .texts import Texts as Texts
from .transfer.carry_over import carry_over as carry_over
from .transfer.result import CarryOver as CarryOver
from .workbench import Workbench as Workbench


class _CalledRoom(ModuleType):
    """A module that is its main function too: a package and a function share the name."""

    __call__ = staticmethod(discover)
    __signature__ = signature(discover)

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        return import_module, (self.__name__,)


sys.modules[__name__].__class__ = _CalledRoom
