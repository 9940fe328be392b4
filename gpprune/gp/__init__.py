"""The search: typed trees varied, raced on paired cases, archived, and resumed after a crash.

Knows nothing of language models; it improves formulas under any object with the `Fitness`
protocol.
"""

from .archive import Archive as Archive
from .archive import front as front
from .fidelity import RungRanks as RungRanks
from .fitness import Fitness as Fitness
from .fitness import FunctionFitness as FunctionFitness
from .fitness import Mixed as Mixed
from .fitness import Screened as Screened
from .fitness import Trial as Trial
from .fitness import Unfit as Unfit
from .outcome import Outcome as Outcome
from .rundir import RunDirectory as RunDirectory
from .screen import Screening as Screening
from .screen import kendall_tau as kendall_tau
from .search import SearchEvent as SearchEvent
from .search import SearchResult as SearchResult
from .search import evolve as evolve
from .settings import PRESETS as PRESETS
from .settings import SearchSettings as SearchSettings
from .settings import duration as duration
from .settings import settings_of as settings_of
from .workers import Crew as Crew
from .workers import Forks as Forks
from .workers import RayActors as RayActors
