"""Several workers that judge at once: forks of the search, or actors of a Ray cluster."""

from .actors import RayActors as RayActors
from .actors import connect as connect
from .actors import disconnect as disconnect
from .forks import Forks as Forks
from .pool import Crew as Crew
from .pool import Hired as Hired
from .pool import check_count as check_count
