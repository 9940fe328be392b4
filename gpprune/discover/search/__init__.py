"""The search on a model, by one process or several, and the judgement of its winners."""

from .crews import RayCluster as RayCluster
from .crews import hired as hired
from .ready import ready as ready
from .search import discover as discover
from .search import resume as resume
