"""A search that needs no model: formulas are judged by how far their words are from a target.

Run as a program it searches in a run directory and prints what it found, or kills itself, or
may write no file past a number of bytes:

    python toy_search.py RUN [--kill COUNT prepare|trial|recorded] [--limit BYTES]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpprune.gp import RunDirectory, SearchEvent, SearchResult, SearchSettings, Unfit, evolve
from gpprune.primitives import METRIC, Formula, published

TARGET = "mul(abs(W), sqrt(add(X, G)))"
SETTINGS = SearchSettings(population=12, offspring=8, generations=4, seed=3)
SEEDS = {name: published[name] for name in ("magnitude", "wanda", "ria")}


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[A-Za-z_]+", text))


def noise(text: str, case: int) -> float:
    """A number in [0, 1) that is the same in every process; a multiple of 2^-16."""
    digest = hashlib.sha256(f"{text}/{case}".encode()).digest()
    return int.from_bytes(digest[:2], "big") / 65536


class Words:
    """Loss of a case: the multiset distance of the words to the target's, and some noise."""

    def __init__(self, cases: int = 16, spread: float = 0.5, pause: float = 0.0) -> None:
        self.cases = cases
        self.spread = spread
        self.pause = pause
        self.prepared: list[str] = []

    def true_loss(self, text: str) -> float:
        """Distance, and a trifle that makes different formulas different."""
        goal, found = words(TARGET), words(text)
        return (goal - found).total() + (found - goal).total() + noise(text, -1) / 1024

    def prepare(self, formula: Formula) -> Any:
        self.prepared.append(formula.text)
        if not words(formula.text).keys() & {"W", "X", "Y", "G"}:
            raise Unfit("no terminal")
        base = self.true_loss(formula.text)

        def trial(start: int, stop: int) -> Sequence[float]:
            time.sleep(self.pause)
            return [
                case + base + self.spread * noise(formula.text, case) for case in range(start, stop)
            ]

        return trial


def facts(result: SearchResult) -> list[list[Any]]:
    """All that must repeat from one run to the next: everything but the seconds."""
    rows = [[result.generations, result.archive_hits, result.stopped]]
    for o in result.outcomes:
        row = [o.key, o.text, o.fitness, list(o.losses), o.full, o.reason, o.origin]
        rows.append([*row, list(o.parents), o.generation])
    return rows


class Doomed(Words):
    """Kills its process once `count` candidates are done: at the next one's prepare or trial."""

    def __init__(self, count: int, moment: str) -> None:
        super().__init__()
        self.count, self.moment = count, moment
        self.done = 0

    def observe(self, event: SearchEvent) -> None:
        self.done = event.evaluated
        self.fall("recorded")

    def fall(self, moment: str) -> None:
        if moment == self.moment and self.done >= self.count:
            os.kill(os.getpid(), signal.SIGKILL)

    def prepare(self, formula: Formula) -> Any:
        self.fall("prepare")
        trial = super().prepare(formula)

        def doomed(start: int, stop: int) -> Sequence[float]:
            self.fall("trial")
            return trial(start, stop)

        return doomed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--kill", nargs=2, default=("1000000", "never"))
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    if not arguments.run.exists():
        RunDirectory.create(arguments.run, SETTINGS, {})
    if arguments.limit is not None:  # as `ulimit -f` does
        resource.setrlimit(resource.RLIMIT_FSIZE, (arguments.limit, arguments.limit))
    count, moment = arguments.kill
    fitness = Doomed(int(count), moment)
    with RunDirectory.open(arguments.run) as run:
        result = evolve(METRIC, fitness, seeds=SEEDS, run=run, observer=fitness.observe)
    print(json.dumps(facts(result)))


if __name__ == "__main__":
    main()
