"""A pruned checkpoint, trained so that it predicts more of what the dense model does."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpprune.discover.workbench import Texts, Workbench
from gpprune.errors import GppruneError, UsageError
from gpprune.progress import Progress, silent
from gpprune.prune import (
    Adapters,
    Aim,
    Loaded,
    NextTokens,
    Predictions,
    Record,
    Saved,
    check_output,
    check_saved,
    distil,
    forget_saved,
    load_model,
    locate,
    model_digest,
    prune_report,
    read_record,
    save_again,
    synthetic_samples,
)

AIMS = ("kl", "next-token")
"""What is trained towards: what the dense model predicts, or the next tokens of the text."""


@dataclass(frozen=True)
class Recovered:
    """What training did.

    Attributes:
        losses: the mean loss of each epoch while it was trained, in nats a token.
        sequences: how many each epoch read, `written` of them by the dense model.
        written: see there.
        zeros: how many weights of the linear layers are 0, before and after.
        size: how many there are.
        seconds: how long it took, since it last went on.
    """

    losses: tuple[float, ...]
    sequences: int
    written: int
    zeros: int
    size: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values for JSON."""
        return asdict(self)


def recover_to(
    out: str | Path,
    model: str,
    *,
    dense: str | None = None,
    texts: Texts | None = None,
    written: int = 0,
    epochs: int = 1,
    rate: float | None = None,
    adapters: Adapters | None = None,
    aim: str = "kl",
    progress: Progress = silent,
) -> Recovered:
    """Train what is left of a pruned checkpoint and write it; what is 0 stays 0.

    What was trained is kept in a directory beside `out` after each step, see `training_beside`,
    until the checkpoint is written: the same call goes on from there.

    Args:
        out: the directory to make; it appears when it is complete.
        model: pruned; what `gpprune.load_model` takes.
        dense: the model that it was pruned from; left out, the one that its record names.
        texts: what is trained on, as what is calibrated on.
        written: how many more sequences to train on, which the dense model writes.
        epochs: how often all of it is read.
        rate: the highest learning rate; see `gpprune.prune.distil`.
        adapters: trained in place of the weights, and merged.
        aim: one of `AIMS`.
        progress: called as `progress(label, done, total)`.

    Raises:
        UsageError: there is no such aim, the dense model is not known or another one, or `out`
            exists or cannot be written; nothing has been done then.
        GppruneError: a model or text cannot be had, or the training fails.
    """
    if aim not in AIMS:
        raise UsageError(f"there is no loss {aim!r} to recover by: choose from {', '.join(AIMS)}")
    path = check_output(out)
    keep = training_beside(path)
    check_saved(keep)
    record = read_record(locate(model, progress))
    teacher = _teacher(dense, record, model) if aim == "kl" or written else None
    texts = texts or Texts()
    reads = [(texts.calibration_text, "calibration")]
    bench = Workbench(model, texts, dtype="float32", reads=reads, progress=progress)
    loaded, tokens = bench.loaded, bench.calibration()
    start = time.perf_counter()
    about = {"model": model_digest(loaded), "epochs": epochs, "rate": rate, "aim": aim}
    about |= {"adapters": adapters and asdict(adapters), "written": written}
    whole = None if teacher is None else load_model(teacher, progress=progress)
    if whole is not None:
        _check_alike(whole, loaded)
        about |= {"dense": model_digest(whole)}
        if written:
            more = synthetic_samples(
                whole.model, tokens, written, seed=texts.seed, progress=progress
            )
            tokens = torch.cat([tokens, more.to(tokens)])
    about |= {"text": _digest(tokens)}
    goal: Aim = NextTokens(tokens)
    if aim == "kl" and whole is not None:
        goal = Predictions(whole.model, tokens, progress)
    before = prune_report(loaded.model, 0.0).zeros
    losses = distil(
        loaded.model,
        goal,
        range(len(tokens)),
        epochs,
        rate=rate,
        adapters=adapters,
        saved=Saved(keep, about),
        progress=progress,
    )
    seconds = time.perf_counter() - start
    with loaded.stored.applied(loaded.model):
        report = prune_report(loaded.model, seconds)
    if report.zeros < before:
        raise GppruneError(f"{before - report.zeros:,} zeros are lost: this is a defect")
    trained = record and replace(record, recovered=record.recovered + epochs)
    save_again(loaded, path, record=trained, report=report)
    forget_saved(keep)
    return Recovered(tuple(losses), len(tokens), written, report.zeros, report.size, seconds)


def training_beside(out: Path) -> Path:
    """Where what was trained is kept while a checkpoint is made."""
    return out.with_name(f"{out.name}.training")


def _teacher(dense: str | None, record: Record | None, model: str) -> str:
    """The dense model's name."""
    if dense is not None:
        return dense
    if record is None:
        raise UsageError(
            f"no record beside {model!r} says what it was pruned from: name the dense model, or "
            "recover by the loss 'next-token'"
        )
    return record.model


def _check_alike(dense: Loaded, pruned: Loaded) -> None:
    """See that both models know the same tokens."""
    rows = [one.model.get_input_embeddings().weight.shape[0] for one in (dense, pruned)]  # type: ignore[operator]
    if rows[0] != rows[1]:
        raise UsageError(
            f"the dense model {dense.name!r} knows {rows[0]} tokens and {pruned.name!r} {rows[1]}: "
            "name the model that it was pruned from"
        )


def _digest(tokens: Tensor) -> str:
    return hashlib.sha256(tokens.cpu().contiguous().numpy().tobytes()).hexdigest()
