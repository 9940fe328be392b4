"""Searches of ours against those of the published loops, each for as long, on text neither saw.

    python -m benchmarks.duels [--seconds 1200] [--seeds 0 1 2] [--kinds allocation metric]
        [--samples 8] [--windows 8] [--length 2048] [--keep DIR]

A published loop is that of `benchmarks.loops`, in a search with its paper's settings; it starts
from the published formulas, as ours does, though the papers start from random ones. It judges every
candidate on all windows. Ours has the command line's settings and texts, or those of ``--ours``.
Calibration counts. The best of each is then pruned with block by block, calibrated as the published
loop is, and judged in float32 on 20 windows of 1,024 tokens of test text. ``--keep`` keeps the
figures of each search, so that the same command goes on.
"""

from __future__ import annotations

import json
import math
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.flags import add_length, add_model, add_ours, of_size, parser_of, positive
from benchmarks.loops import PublishedLoop
from benchmarks.shown import print_table
from gpprune.discover import AllocationGoal, Goal, MetricGoal, Texts, Workbench
from gpprune.discover.search import ready
from gpprune.files import whole_file
from gpprune.gp import PRESETS, SearchResult, SearchSettings, evolve
from gpprune.primitives import parse
from gpprune.prune import Loaded, load_model

PAPERS = {"allocation": ("DSA", "dsa"), "metric": ("Pruner-Zero", "pruner-zero")}
MANY = 100_000  # generations: the time ends a search


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _parser()
    given = parser.parse_args(arguments)
    loaded = load_model(given.model, device="cpu")
    kept = _Kept(given, parser)
    theirs = Texts(
        windows=given.windows, window_length=given.length, calibration_samples=given.samples
    )
    rows, better = [], 0
    for kind in given.kinds:
        goal = _goal(kind, given, theirs)
        for seed in given.seeds:
            duel = _Duel(goal, loaded, given.seconds, seed)
            loop = kept.figures(f"{kind}-{seed}-loop", duel.loop)
            ours = kept.figures(f"{kind}-{seed}-gpprune", partial(duel.ours, given.ours))
            better += ours["test"] < loop["test"]
            rows.append([kind, str(seed), PAPERS[kind][0], *_shown(loop), *_shown(ours)])
            print(*rows[-1], flush=True)  # the next one takes a while
    columns = ["", "seed", "loop of", "judged", "test", "ours judged", "test"]
    print_table(columns, rows, title=f"{given.seconds} s each on {given.model}")
    print(f"gpprune's is better on test text in {better} of {len(rows)}")


def _parser() -> ArgumentParser:
    parser = parser_of("duels", __doc__)
    add_model(parser)
    parser.add_argument("--seconds", type=positive, default=1200, help="of each search")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", choices=PAPERS, default=[*PAPERS])
    parser.add_argument("--samples", type=positive, default=8, help="calibration sequences")
    parser.add_argument("--windows", type=positive, default=8)
    add_length(parser, 2048)
    add_ours(parser)
    parser.add_argument("--keep", type=Path, help="a directory for the figures of each search")
    return parser


def _goal(kind: str, given: Namespace, texts: Texts) -> Goal:
    if kind == "allocation":
        return AllocationGoal(texts, given.model)
    return MetricGoal(texts, given.model, sparsity=0.5)


class _Duel:
    """The two searches of one goal and seed; the goal has the texts of the published loop."""

    def __init__(self, goal: Goal, loaded: Loaded, seconds: int, seed: int) -> None:
        self.goal, self.loaded, self.seconds, self.seed = goal, loaded, seconds, seed

    def loop(self) -> dict[str, Any]:
        """The published loop."""
        start = time.monotonic()
        bench = ready(self.goal, self.loaded)
        preset = PRESETS[PAPERS[self.goal.kind][1]].replaced(race_z=math.inf)
        loop = PublishedLoop(self.goal, bench)
        result = evolve(
            self.goal.language,
            loop,
            settings=self._settings(preset, start),
            seeds=self.goal.seeds(),
            canonical=self.goal.canonical,
        )
        return self._figures(self.goal, result)

    def ours(self, amounts: Sequence[int] | None) -> dict[str, Any]:
        """The search of the command line; `amounts` are windows, their length, and sequences."""
        start = time.monotonic()
        own = self.goal.__class__(model=self.goal.model, sparsity=self.goal.sparsity)
        if isinstance(own, MetricGoal):
            own = replace(own, pattern="layer")  # as the command line has it
        own = replace(own, texts=of_size(own.texts, amounts))
        bench = ready(own, self.loaded)
        fitness = own.fitness(bench)
        result = evolve(
            own.language,
            fitness,
            settings=self._settings(PRESETS[own.preset], start),
            seeds=own.seeds(),
            canonical=own.canonical,
            fingerprint=fitness.fingerprint,
        )
        return self._figures(own, result)

    def _settings(self, preset: SearchSettings, start: float) -> SearchSettings:
        left = max(1.0, self.seconds - (time.monotonic() - start))
        return preset.replaced(generations=MANY, time_limit=left, seed=self.seed)

    def _figures(self, goal: Goal, result: SearchResult) -> dict[str, Any]:
        (best,) = result.best(1)
        recipe = goal.recipe(parse(best.text, goal.language))
        judge = Workbench(self.loaded, self.goal.texts, dtype="float32")
        test = judge.test_windows(spread=True)
        (found,) = judge.pruned(recipe, [test], "sequential")
        return {"formula": best.text, "judged": result.evaluated, "test": found.figure}


class _Kept:
    """Figures of searches, in a directory if there is one."""

    def __init__(self, given: Namespace, parser: ArgumentParser) -> None:
        self.folder: Path | None = given.keep
        self.parser = parser
        others = {name: value for name, value in vars(given).items() if name != "keep"}
        # which searches are asked for is no part of how each is done
        self.how = {
            name: str(value) for name, value in others.items() if name not in ("seeds", "kinds")
        }

    def figures(self, name: str, search: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Those of a search, which is run if they are not there."""
        if self.folder is None:
            return search()
        path = self.folder / f"{name}.json"
        if path.is_file():
            known = json.loads(path.read_text(encoding="utf-8"))
            if known["how"] != self.how:
                self.parser.error(f"{path} is of other settings: give another --keep")
            return dict(known["figures"])
        found = search()
        self.folder.mkdir(parents=True, exist_ok=True)
        whole_file(path, json.dumps({"how": self.how, "figures": found}, indent=2) + "\n")
        return found


def _shown(figures: dict[str, Any]) -> list[str]:
    return [str(figures["judged"]), f"{figures['test']:.2f}"]


if __name__ == "__main__":
    main()
