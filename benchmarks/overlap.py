"""How long workers wait for a slow candidate, by how generations overlap.

    python -m benchmarks.overlap [--workers 4 16] [--candidates 240] [--seconds 1] [--spread 0.65]

A candidate sleeps for as long as its text draws, log-normally: a worker needs no core, so that the
figures are of the waiting alone. A spread of 0.65 in the logarithm is what searches of metrics on
SmolLM2-135M have, whose race judges some on 2 windows of 8. The rival of each row is the search
without overlap of as many workers.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.flags import parser_of, positive
from benchmarks.shown import print_table
from gpprune.gp import SearchSettings, evolve
from gpprune.primitives import METRIC, METRICS, Formula

OFFSPRING = 12


@dataclass(frozen=True)
class Sleeping:
    """A fitness that takes time and no core: the longer a formula, the worse it is."""

    seconds: float
    spread: float
    cases: int = 2

    def prepare(self, formula: Formula) -> Callable[[int, int], list[float]]:
        """See `gpprune.gp.Fitness`."""
        time.sleep(self.seconds * math.exp(random.Random(formula.text).gauss(0, self.spread)))
        return lambda start, stop: [float(formula.complexity + case) for case in range(start, stop)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("overlap", __doc__)
    parser.add_argument("--workers", type=positive, nargs="+", default=[4, 16])
    parser.add_argument("--candidates", type=positive, default=240)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--spread", type=float, default=0.65)
    given = parser.parse_args(arguments)
    rows = []
    for workers in given.workers:
        rival = None
        steady = {"offspring": 1, "overlap": 2 * workers}
        for how in ({"overlap": 0}, {"overlap": 1}, {"overlap": 2}, steady):
            offspring = how.get("offspring", OFFSPRING)
            settings = SearchSettings(
                population=16,
                offspring=offspring,
                generations=given.candidates // offspring,
                overlap=how["overlap"],
                race_z=math.inf,
            )
            started = time.perf_counter()
            found = evolve(
                METRIC,
                Sleeping(given.seconds, given.spread),
                settings=settings,
                seeds={name: entry.formula for name, entry in METRICS.items()},
                workers=workers,
            )
            took = time.perf_counter() - started
            each = took / found.evaluated
            rival = rival or each
            busy = sum(outcome.seconds for outcome in found.outcomes) / took / workers
            counts = map(str, (workers, offspring, how["overlap"], found.evaluated))
            rows.append([*counts, f"{took:.1f}", f"{busy:.0%}", f"{rival / each:.2f}"])
    columns = ["workers", "offspring", "overlap", "judged", "seconds", "at work", "ratio"]
    print_table(columns, rows)


if __name__ == "__main__":
    main()
