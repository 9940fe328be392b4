"""A pruned or shrunk checkpoint in one call, what any holds, and how good a model is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gpprune.discover.workbench import Texts, Workbench
from gpprune.errors import UsageError
from gpprune.progress import Progress, silent
from gpprune.prune import (
    DTYPES,
    Loaded,
    PruneReport,
    Recipe,
    check_output,
    check_shots,
    check_still,
    forget_shots,
    prune_model,
    recounted,
    save_pruned,
    stored_digest,
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
    source = stored_digest(loaded)
    check_still(loaded.model, bench.calibration())
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
    return out.parent / f"{out.name}.shots"
