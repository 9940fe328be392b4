"""A pruned or shrunk checkpoint in one call, what any holds, and how good a model is."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gpprune.discover.compare import Row
from gpprune.discover.workbench import Texts, Workbench
from gpprune.errors import UsageError
from gpprune.evals import NEXT_TOKEN
from gpprune.evals.speed import tokens_a_second
from gpprune.progress import Progress, silent
from gpprune.prune import (
    DTYPES,
    Inspection,
    Loaded,
    PruneReport,
    Recipe,
    Shrinking,
    check_output,
    check_shots,
    forget_shots,
    inspect_model,
    load_model,
    locate,
    model_digest,
    prune_model,
    prune_report,
    read_record,
    recounted,
    save_pruned,
    save_shrunk,
    shrink,
)


def prune_to(
    out: str | Path,
    recipe: Recipe,
    *,
    model: str | Loaded = "smollm2",
    texts: Texts | None = None,
    order: str | None = None,
    dtype: str = "auto",
    progress: Progress = silent,
) -> PruneReport:
    """Prune a model by a recipe and write it as a Hugging Face checkpoint with its recipe.

    The weights after each shot of a recipe of several are kept in a directory beside `out`, see
    `shots_beside`, until the checkpoint is written: the same call goes on from there.

    Args:
        out: the directory to make; it appears when it is complete.
        recipe: how to prune.
        model: what `gpprune.load_model` takes, or a loaded model in float32, pruned in place.
        texts: what is calibrated on.
        order: one of `gpprune.prune.ORDERS`; left out, the recipe's own, see `gpprune.prune_model`.
        dtype: what the weights are written in, one of `gpprune.prune.DTYPES`; "auto": what the
            model's checkpoint has.
        progress: called as `progress(label, done, total)`.

    Returns:
        What became of every layer.

    Raises:
        UsageError: the recipe cannot be followed in the order, or `out` exists or cannot be
            written; nothing has been done then.
        GppruneError: the model or text cannot be had, pruned or written.
    """
    if order is not None:
        recipe = recipe.model_copy(update={"order": order})  # the checkpoint says so
    if dtype not in ("auto", *DTYPES):
        raise UsageError(f"there is no dtype {dtype!r}: choose from auto, {', '.join(DTYPES)}")
    path = check_output(out)
    keep = shots_beside(path) if recipe.shots > 1 else None
    if keep is not None:
        check_shots(keep)
    texts = texts or Texts()
    bench = Workbench(
        model,
        texts,
        dtype="float32",
        reads=[(texts.calibration_text, "calibration")],
        progress=progress,
    )
    loaded = bench.loaded
    with loaded.stored.applied(loaded.model):
        source = model_digest(loaded)
    report = prune_model(loaded.model, recipe, bench.calibration(), keep=keep, progress=progress)
    if dtype != "auto":
        loaded = replace(loaded, stored=loaded.stored.become(loaded.model, DTYPES[dtype]))
    with loaded.stored.applied(loaded.model):
        report = recounted(report, loaded.model)
    save_pruned(loaded, recipe, report, path, source=source)
    if keep is not None:
        forget_shots(keep)
    return report


def shots_beside(out: Path) -> Path:
    """Where the weights after each shot are kept while a checkpoint is made."""
    return out.with_name(f"{out.name}.shots")


def inspect_checkpoint(model: str, *, progress: Progress = silent) -> Inspection:
    """What a checkpoint holds: zeros, groups of N:M, dead rows and columns, digests.

    One that gpprune wrote is compared with the record beside its weights.

    Args:
        model: what `gpprune.load_model` takes; it is read in its own dtype.
        progress: called as `progress(label, done, total)`.

    Raises:
        UsageError: there is no such model, or its record is damaged.
        GppruneError: the model cannot be had, or has nothing to prune.
    """
    record = read_record(locate(model, progress))
    return inspect_model(load_model(model, dtype="auto", progress=progress).model, record)


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
    save_shrunk(loaded, path, record=record, report=report)
    return Shrunk(found, before, after)


def _size(loaded: Loaded) -> Size:
    parameters = list(loaded.model.parameters())
    stored = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    count = sum(parameter.numel() for parameter in parameters)
    return Size(count, stored, tokens_a_second(loaded.model))


def evaluate_model(
    model: str | Loaded = "smollm2",
    *,
    texts: Texts | None = None,
    split: str = "test",
    dtype: str = "auto",
    loss: str = NEXT_TOKEN.name,
    progress: Progress = silent,
) -> tuple[Row, str]:
    """How good a model is on the first windows of a text.

    Args:
        model: what `gpprune.load_model` takes, or a loaded model.
        texts: what is judged on.
        split: "calibration", "validation" or "test".
        dtype: what is judged in: "auto", "float32" or "bfloat16".
        loss: what is measured, a name of `gpprune.evals.LOSSES`.
        progress: called as `progress(label, done, total)`.

    Returns:
        The evaluation with its seconds, and the dtype that was judged in.

    Raises:
        GppruneError: the model or text cannot be had.
    """
    texts = texts or Texts()
    bench = Workbench(
        model, texts, dtype=dtype, loss=loss, reads=[(texts.text, split)], progress=progress
    )
    windows = bench.windows(split)
    start = time.perf_counter()
    evaluation = bench.dense(windows, progress)
    seconds = time.perf_counter() - start
    dtype_name = str(bench.dtype).removeprefix("torch.")
    return Row(bench.loaded.name, None, evaluation, seconds), dtype_name
