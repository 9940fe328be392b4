"""A pruned or shrunk checkpoint in one call, what any holds, and how good a model is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from gpprune.discover.texts import Texts
from gpprune.discover.workbench import Workbench
from gpprune.errors import UsageError
from gpprune.files import expanded, missing_parents, remove_empty
from gpprune.progress import Progress, silent
from gpprune.prune import (
    DTYPES,
    Loaded,
    NotStreamed,
    PruneReport,
    Recipe,
    check_blocks,
    check_output,
    check_shots,
    check_still,
    check_streamable,
    configuration_digest,
    forget_blocks,
    forget_shots,
    has_blocks,
    has_shots,
    open_streamed,
    prune_model,
    recounted,
    save_pruned,
    save_streamed,
    short_of_memory,
    stored_digest,
    tokens_digest,
)


def prune_to(
    out: str | Path,
    recipe: Recipe,
    *,
    model: str | Loaded = "smollm2",
    texts: Texts | None = None,
    order: str | None = None,
    dtype: str = "auto",
    stream: bool | None = None,
    progress: Progress = silent,
) -> PruneReport:
    """Prune a model by a recipe and write it as a Hugging Face checkpoint with its recipe.

    The weights after each shot of a recipe of several are kept in a directory beside `out`, see
    `shots_beside`, until the checkpoint is written: the same call goes on from there. So are the
    blocks that are finished of a model that is streamed, see `blocks_beside`.

    Args:
        out: the directory to make; it appears when it is complete.
        recipe: how to prune.
        model: what `gpprune.load_model` takes, or a loaded model in float32, pruned in place.
        texts: what is calibrated on.
        order: one of `gpprune.prune.ORDERS`; left out, the recipe's own, see `gpprune.prune_model`.
        dtype: what the weights are written in, one of `gpprune.prune.DTYPES`; "auto": what the
            model's checkpoint has.
        stream: whether one decoder block is in memory at a time, with the same outcome; None:
            where the model would not fit.
        progress: called as `progress(label, done, total)`.

    Returns:
        What became of every layer.

    Raises:
        UsageError: the recipe cannot be followed in the order or by streaming, or `out` exists or
            cannot be written; nothing has been done then.
        GppruneError: the model or text cannot be had, pruned or written.
    """
    if order is not None:
        recipe = recipe.model_copy(update={"order": order})  # the checkpoint says so
    if dtype not in ("auto", *DTYPES):
        raise UsageError(f"there is no dtype {dtype!r}: choose from auto, {', '.join(DTYPES)}")
    path = check_output(out)
    texts = texts or Texts()
    if stream and isinstance(model, Loaded):
        raise UsageError("a model that is loaded is in memory: name it, to have it streamed")
    if isinstance(model, str):
        short = _short(stream, path, model, progress)
        if stream or short is not None:
            given = None if dtype == "auto" else dtype
            with _saying(short):
                return _stream_to(path, recipe, model, texts, given, progress)
    report = _prune_whole(path, recipe, model, texts, dtype, progress)
    if has_blocks(blocks_beside(path)):  # of a streamed run that was not finished
        forget_blocks(blocks_beside(path))
    return report


def _prune_whole(
    path: Path,
    recipe: Recipe,
    model: str | Loaded,
    texts: Texts,
    dtype: str,
    progress: Progress,
) -> PruneReport:
    """As `prune_to`, of a model in memory."""
    keep = shots_beside(path) if recipe.shots > 1 else None
    if keep is not None:
        check_shots(keep)
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


def _short(stream: bool | None, path: Path, model: str, progress: Progress) -> str | None:
    """Why a model is streamed though nobody asked for it; None: it is not, or somebody did."""
    if stream is not None:
        return None
    if has_blocks(blocks_beside(path)):  # what has begun so goes on so
        return f"finished blocks are kept in {str(blocks_beside(path))!r}"
    return short_of_memory(model, progress)


@contextmanager
def _saying(short: str | None) -> Iterator[None]:
    """Say of what cannot be streamed why it was to be, where nobody asked for it."""
    try:
        yield
    except NotStreamed as error:
        if short is None:
            raise
        raise NotStreamed(f"{short}; {error}: give --no-stream to try it all the same") from error


def _stream_to(
    path: Path, recipe: Recipe, model: str, texts: Texts, dtype: str | None, progress: Progress
) -> PruneReport:
    """As `prune_to`, with one decoder block in memory at a time."""
    check_streamable(recipe)
    keep = blocks_beside(path)
    check_blocks(keep)
    streamed = open_streamed(
        model, keep, dtype=None if dtype is None else DTYPES[dtype], progress=progress
    )
    loaded = streamed.loaded
    bench = Workbench(
        loaded,
        texts,
        dtype="float32",
        reads=[(texts.calibration_text, "calibration")],
        progress=progress,
    )
    tokens = bench.calibration()
    check_still(loaded.model, tokens)
    source = stored_digest(loaded, progress)
    missing = missing_parents(keep)
    streamed.begin(
        {
            "model": source,
            "configuration": configuration_digest(loaded),
            "recipe": recipe.model_dump(),
            "calibration": tokens_digest(tokens),
            "dtype": dtype,
        }
    )
    try:
        report = prune_model(loaded.model, recipe, tokens, progress=progress)
        save_streamed(streamed, recipe, report, path, source=source, progress=progress)
    except BaseException:
        if not streamed.pages.finished:  # there is nothing to go on from
            forget_blocks(keep)
            remove_empty(missing)
        raise
    finally:
        streamed.pages.close()
    forget_blocks(keep)
    return report


def blocks_beside(out: Path) -> Path:
    """Where the finished blocks of a streamed model are kept while a checkpoint is made."""
    return out.parent / f"{out.name}.blocks"


def kept_beside(out: str | Path) -> str | None:
    """What an unfinished `prune_to` has left to go on from, for a reader; None: nothing."""
    path = expanded(out)
    for kept, has, what in (
        (shots_beside(path), has_shots, "shots"),
        (blocks_beside(path), has_blocks, "blocks"),
    ):
        if has(kept):
            return f"finished {what} are kept in {kept}: the same command goes on"
    return None


def shots_beside(out: Path) -> Path:
    """Where the weights after each shot are kept while a checkpoint is made."""
    return out.parent / f"{out.name}.shots"
