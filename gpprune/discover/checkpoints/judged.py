"""What any checkpoint holds, and how good its model is."""

from __future__ import annotations

import time

from gpprune.discover.compare import Row
from gpprune.discover.texts import Texts
from gpprune.discover.workbench import Workbench
from gpprune.errors import UsageError
from gpprune.evals import LOSSES, NEXT_TOKEN
from gpprune.progress import Progress, silent
from gpprune.prune import Inspection, Loaded, inspect_model, load_model, locate, read_record


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
        UsageError: the loss compares with a dense model, which is not given here.
        GppruneError: the model or text cannot be had.
    """
    texts = texts or Texts()
    if LOSSES.find(loss).compares:
        raise UsageError(
            f"the loss {loss!r} compares a pruned model with the dense one, and one model is given:"
            " score metrics, allocations or a recipe by it"
        )
    bench = Workbench(
        model, texts, dtype=dtype, loss=loss, reads=[(texts.text, split)], progress=progress
    )
    windows = bench.windows(split)
    start = time.perf_counter()
    evaluation = bench.dense(windows, progress)
    seconds = time.perf_counter() - start
    dtype_name = str(bench.dtype).removeprefix("torch.")
    return Row(bench.loaded.name, None, evaluation, seconds), dtype_name
