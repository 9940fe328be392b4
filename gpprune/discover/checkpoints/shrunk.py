"""A checkpoint without the units that it computes the same without."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gpprune.evals.speed import tokens_a_second
from gpprune.progress import Progress, silent
from gpprune.prune import (
    Loaded,
    Shrinking,
    check_output,
    load_model,
    locate,
    prune_report,
    read_record,
    save_again,
    shrink,
)


@dataclass(frozen=True)
class Size:
    """How large and how fast a model is.

    Attributes:
        parameters: how many it has.
        bytes: what they take.
        tokens_a_second: see `gpprune.evals.speed.tokens_a_second`.
    """

    parameters: int
    bytes: int
    tokens_a_second: float


@dataclass(frozen=True)
class Shrunk:
    """A checkpoint that dead units were taken out of.

    Attributes:
        shrinking: what was taken out, and what was not.
        before: the model before.
        after: the model as it was written.
    """

    shrinking: Shrinking
    before: Size
    after: Size

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values for JSON."""
        return asdict(self)

    def figures(self) -> dict[str, tuple[float, float]]:
        """Numbers before and after by what they are of."""
        counts = {
            f"{kind}, of which {dead:,} dead": (units, units - removed)
            for kind, (units, dead, removed) in self.shrinking.counts().items()
        }
        before, after = self.before, self.after
        return {
            **counts,
            "parameters": (before.parameters, after.parameters),
            "bytes": (before.bytes, after.bytes),
            "tokens read a second": (before.tokens_a_second, after.tokens_a_second),
        }


def shrink_to(
    out: str | Path, model: str, *, uniform: bool = False, progress: Progress = silent
) -> Shrunk:
    """Write a checkpoint without the hidden channels and heads that it computes the same without.

    Args:
        out: the directory to make; it appears when it is complete.
        model: what `gpprune.load_model` takes; it is read in its own dtype.
        uniform: whether all blocks are to be alike, so that plain transformers loads the result.
        progress: called as `progress(label, done, total)`.

    Raises:
        UsageError: there is no such model, or `out` exists or cannot be written.
        GppruneError: the model cannot be had or written, or has nothing to prune.
    """
    path = check_output(out)
    record = read_record(locate(model, progress))
    loaded = load_model(model, dtype="auto", progress=progress)
    before = _size(loaded)
    progress("taking out dead units", 0, 1)
    start = time.perf_counter()
    found = shrink(loaded.model, uniform=uniform)
    report = prune_report(loaded.model, time.perf_counter() - start)
    progress("taking out dead units", 1, 1)
    after = _size(loaded)
    save_again(loaded, path, record=record and replace(record, shrunk=True), report=report)
    return Shrunk(found, before, after)


def _size(loaded: Loaded) -> Size:
    parameters = list(loaded.model.parameters())
    stored = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    count = sum(parameter.numel() for parameter in parameters)
    return Size(count, stored, tokens_a_second(loaded.model))
