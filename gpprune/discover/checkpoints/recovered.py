"""A pruned checkpoint, trained so that it predicts more of what the dense model does."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpprune.discover.texts import Texts
from gpprune.discover.workbench import Workbench
from gpprune.errors import GppruneError, UsageError
from gpprune.progress import Progress, silent
from gpprune.prune import (
    BLOCK_RATE,
    Adapters,
    Aim,
    Loaded,
    NextTokens,
    Predictions,
    Record,
    Saved,
    SavedBlocks,
    check_output,
    check_rate,
    check_saved,
    check_still,
    configuration_digest,
    distil,
    embedded,
    forget_saved,
    linear_layers,
    load_model,
    locate,
    model_digest,
    prune_report,
    read_record,
    reconstruct,
    save_again,
    stored_digest,
    synthetic_samples,
    tokens_digest,
)

AIMS = ("kl", "next-token", "blocks")
"""What is trained towards: what the dense model predicts, the next tokens of the text, or, block
after block, the dense model's hidden states."""


@dataclass(frozen=True)
class Recovered:
    """What training did.

    Attributes:
        losses: the mean loss of each epoch while it was trained, in nats a token; of "blocks" as a
            share of the square of the dense model's hidden states.
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
        rate: the highest learning rate; see `gpprune.prune.distil` and `gpprune.prune.reconstruct`.
        adapters: trained in place of the weights, and merged; not of "blocks".
        aim: one of `AIMS`.
        progress: called as `progress(label, done, total)`.

    Raises:
        UsageError: there is no such aim or rate, the aim has no adapters, the dense model is not
            known, another one than the record says, or of other tokens or blocks, or `out` exists
            or cannot be written; nothing has been done then.
        GppruneError: a model or text cannot be had, or the training fails.
    """
    _check_aim(aim, adapters, dense, written)
    path = check_output(out)
    keep = training_beside(path)
    check_saved(keep)
    record = read_record(locate(model, progress))
    texts = texts or Texts()
    reads = [(texts.calibration_text, "calibration")]
    bench = Workbench(model, texts, dtype="float32", reads=reads, progress=progress)
    loaded, tokens = bench.loaded, bench.calibration()
    check_still(loaded.model, tokens)
    start = time.perf_counter()
    if adapters is not None:
        adapters.check(linear_layers(loaded.model))
    rate = BLOCK_RATE if rate is None and aim == "blocks" else check_rate(rate, adapters)
    about: dict[str, Any] = {"epochs": epochs, "rate": rate, "aim": aim, "written": written}
    about |= {"adapters": adapters and asdict(adapters)}
    asked = aim != "next-token" or written
    whole = _dense(dense, record, model, progress) if asked else None
    if whole is not None:
        _check_alike(whole, loaded)
        about |= {"dense": whole.name}
        if written:
            more = synthetic_samples(
                whole.model, tokens, written, seed=texts.seed, progress=progress
            )
            tokens = torch.cat([tokens, more.to(tokens)])
    about |= {"sequences": len(tokens)}
    exact = {"model": model_digest(loaded), "text": tokens_digest(tokens)}
    exact |= {"configuration": configuration_digest(loaded)}
    exact |= {} if whole is None else {"dense_sha256": model_digest(whole)}
    before = prune_report(loaded.model, 0.0).zeros
    losses = _train(
        loaded, whole, tokens, epochs, rate, adapters, aim, keep, {**about, **exact}, progress
    )
    seconds = time.perf_counter() - start
    with loaded.stored.applied(loaded.model):
        report = prune_report(loaded.model, seconds)
    if report.zeros < before:
        raise GppruneError(f"{before - report.zeros:,} zeros are lost: this is a defect")
    trained = record and replace(record, trainings=(*record.trainings, about))
    save_again(loaded, path, record=trained, report=report)
    forget_saved(keep)
    return Recovered(tuple(losses), len(tokens), written, report.zeros, report.size, seconds)


def _check_aim(aim: str, adapters: Adapters | None, dense: str | None, written: int) -> None:
    """See that what is asked for goes together."""
    if aim not in AIMS:
        raise UsageError(f"there is no loss {aim!r} to recover by: choose from {', '.join(AIMS)}")
    if adapters is not None and aim == "blocks":
        raise UsageError(f"adapters of rank {adapters.rank} are not trained by the loss 'blocks'")
    if dense is not None and aim == "next-token" and not written:
        raise UsageError(
            f"the dense model {dense!r} is of no use: the loss {aim!r} asks for none, and nothing "
            "is to be written; leave it out"
        )


def _train(
    loaded: Loaded,
    whole: Loaded | None,
    tokens: Tensor,
    epochs: int,
    rate: float,
    adapters: Adapters | None,
    aim: str,
    keep: Path,
    identity: dict[str, Any],
    progress: Progress,
) -> list[float]:
    """Train a pruned model in place, going on from what is kept of the same training.

    Returns:
        The mean loss of each epoch.
    """
    if aim == "blocks" and whole is not None:
        kept = SavedBlocks(keep, identity)
        return reconstruct(
            loaded.model, whole.model, tokens, epochs, rate=rate, saved=kept, progress=progress
        )
    goal: Aim = NextTokens(tokens)
    if aim == "kl" and whole is not None:
        goal = Predictions(whole.model, tokens, progress)
    return distil(
        loaded.model,
        goal,
        range(len(tokens)),
        epochs,
        rate=rate,
        adapters=adapters,
        saved=Saved(keep, identity),
        progress=progress,
    )


def training_beside(out: Path) -> Path:
    """Where what was trained is kept while a checkpoint is made."""
    return out.parent / f"{out.name}.training"


def _dense(dense: str | None, record: Record | None, model: str, progress: Progress) -> Loaded:
    """The dense model: the one that is named, or else the one that the record names."""
    if dense is not None:
        return load_model(dense, progress=progress)
    if record is None:
        raise UsageError(
            f"no record beside {model!r} says what it was pruned from: name the dense model"
        )
    try:
        found = load_model(record.model, progress=progress)
    except GppruneError as error:
        raise type(error)(
            f"{error} (the record beside {model!r} names it as the dense model: name another place)"
        ) from error
    if record.source not in (None, stored_digest(found)):
        raise UsageError(
            f"{record.model!r}, which {model!r} was pruned from, has other weights now: name the "
            "dense model"
        )
    return found


def _check_alike(dense: Loaded, pruned: Loaded) -> None:
    """See that both models know the same tokens."""
    rows = [embedded(one.model) for one in (dense, pruned)]
    if rows[0] != rows[1]:
        raise UsageError(
            f"the dense model {dense.name!r} knows {rows[0]} tokens and {pruned.name!r} {rows[1]}: "
            "name the model that it was pruned from"
        )
