"""A model and its texts, and what is measured and judged of them, each made once."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from gpprune.discover.texts import (
    Material,
    Texts,
    check_length,
)
from gpprune.errors import UsageError
from gpprune.evals import (
    LOSSES,
    NEXT_TOKEN,
    Evaluation,
    Reading,
    compute_dtype,
    copy_as,
    evaluate,
    images_digest,
    read_text,
    settled,
)
from gpprune.primitives import STATISTICS
from gpprune.progress import Progress, silent
from gpprune.prune import (
    Coverage,
    Loaded,
    Recipe,
    Writer,
    calibrate,
    check_weights,
    configuration_digest,
    coverage,
    linear_layers,
    load_model,
    model_digest,
    parse_pattern,
    prune_model,
    tokenizer_digest,
)
from gpprune.prune.model.run import quiet_model, show_images
from gpprune.prune.model.sequential import BlockRunner

LayerStatistics = dict[str, Mapping[str, Tensor]]


class Workbench:
    """A loaded model with its texts, its statistics and what is judged of it.

    Attributes:
        material: the texts, as tokens of the model.
        documents: by split and task the SHA-256 of the documents that a loss of tasks reads.
    """

    def __init__(
        self,
        model: str | Loaded,
        texts: Texts,
        *,
        dtype: str = "auto",
        loss: str = NEXT_TOKEN.name,
        reads: Iterable[tuple[str, str]] = (),
        names: Collection[str] = (),
        statistics: LayerStatistics | None = None,
        progress: Progress = silent,
    ) -> None:
        """Read the texts, then load the model: texts fail sooner.

        Args:
            model: what `gpprune.load_model` takes, or a model that is loaded already, in float32.
            texts: what is judged and calibrated on.
            dtype: what to judge in: "auto", "float32" or "bfloat16".
            loss: what is measured, a name of `gpprune.evals.LOSSES`.
            reads: texts to read at once, pairs of specification and split.
            names: what formulas may read: of the statistics those that are named are measured.
            statistics: what `statistics` would measure, where that is known.
            progress: called while the model is loaded.

        Raises:
            UsageError: there is no such loss or dtype, or a text or model cannot be had.
            GppruneError: the model cannot be pruned.
        """
        self.texts = texts
        self.loss = LOSSES.find(loss)
        read = {(spec, split): read_text(spec, split) for spec, split in reads}
        self._names = [name for name in STATISTICS if name in names]
        compute_dtype(dtype)  # what there is not fails before the model is loaded
        self.loaded = model if isinstance(model, Loaded) else load_model(model, progress=progress)
        self.dtype = compute_dtype(dtype, next(self.loaded.model.parameters()).device)
        if self.loaded.stored.beside:  # copies are to see what it will be shown
            show_images(self.loaded.model, torch.empty(0, 1), ())
        self.layers = linear_layers(self.loaded.model)
        check_weights(self.layers)
        check_length(self.loaded, texts.window_length)
        self.material = Material(texts, self.loaded, read)
        self._statistics = statistics
        self.documents: dict[str, Mapping[str, Sequence[str]]] = {}

    @cached_property
    def coverage(self) -> Coverage:
        """All matrices of the decoder blocks: which are pruned, which left alone and why."""
        return coverage(self.loaded.model)

    def check_pattern(self, text: str) -> None:
        """See that a pattern fits every layer, before anything is measured for it."""
        parse_pattern(text).check_model({n: layer.shape for n, layer in self.layers.items()})

    def windows(self, split: str, *, spread: bool = False, text: str | None = None) -> Tensor:
        """The windows that are judged on, `[windows, window_length]`.

        The first ones; with `spread`, at even distances over the text, less what `test_windows`
        takes of a text without parts. Of the bench's own texts, in turns, unless another is given.
        A loss of tasks has documents in their place, see `gpprune.evals.Cases`.
        """
        specs = self.texts.judged if text is None else (text,)
        each = [self.material.windows(spec, split, spread) for spec in specs]
        if len({rows.shape for rows in each}) > 1:
            found = ", ".join(f"{len(rows)} of {rows.shape[1]}" for rows in each)
            raise UsageError(
                f"the texts {', '.join(map(repr, specs))} have {found} windows and tokens: texts "
                "that are judged on together must have as many"
            )
        return self._cases(split, torch.stack(each, 1).flatten(0, 1))

    def test_windows(self, *, spread: bool = False, text: str | None = None) -> Tensor:
        """Windows of text that a search never sees: the first 10 of 1,024 tokens of the test part.

        With `spread`, 20 from all over it. A text without parts gives its last ones, as many and as
        long as those searched on. Of the bench's first text, unless another is given.
        """
        return self._cases("test", self.material.test_windows(text or self.texts.text, spread))

    def _cases(self, split: str, windows: Tensor) -> Tensor:
        """What the loss is measured on: windows, or what it makes in their place, if it can."""
        if self.loss.cases is None:
            return windows
        texts, config = self.texts, self.loaded.model.config
        language = getattr(config, "text_config", config)
        longest = getattr(language, "max_position_embeddings", None)
        rows = (texts.task_data, texts.documents, texts.seed)
        found = self.loss.cases(Reading(self.loaded.tokenizer, longest, windows, split, *rows))
        self.documents[split] = found.documents
        for task, own in found.documents.items():
            other = self.documents.get("test" if split == "validation" else "validation", {})
            if both := set(own) & set(other.get(task, ())):
                raise UsageError(
                    f"{len(both)} documents of {task!r} are searched on and judged on: give rows "
                    "that do not overlap"
                )
        return found.rows

    def calibration(self) -> Tensor:
        """The calibration sequences, `[samples, window_length]`; images in them are shown."""
        return self.material.calibration()

    def check_chain(self) -> None:
        """See that the model can be pruned block by block.

        Raises:
            NotAChain: it cannot.
        """
        with quiet_model(self.loaded.model):
            BlockRunner(self.loaded.model, self.calibration()[:1])

    def statistics(self, progress: Progress = silent) -> LayerStatistics:
        """What formulas may read of each layer of the dense model, measured when first asked."""
        if self._statistics is None:
            self._statistics = calibrate(
                self.loaded.model, self.calibration(), self._names, progress=progress
            )
        return self._statistics

    @cached_property
    def judged(self) -> nn.Module:
        """The dense model in the dtype that it is judged in."""
        return self._in_dtype(self.loaded.model)

    def _in_dtype(self, model: nn.Module) -> nn.Module:
        """A model in the dtype that is judged in: itself, where that is its own."""
        return model if self.dtype == torch.float32 else copy_as(model, self.dtype)

    def dense(self, tokens: Tensor, progress: Progress = silent) -> Evaluation:
        """The dense model on windows `[windows, length]`."""
        dense = self.loaded.model
        return evaluate(self.judged, tokens, self.loss, dense=dense, progress=progress)

    def pruned(
        self, recipe: Recipe, texts: Sequence[Tensor], order: str, progress: Progress = silent
    ) -> list[Evaluation]:
        """A copy of the model, pruned block after block, judged.

        Args:
            recipe: how to prune.
            texts: what is judged on, each `[windows, length]`, int64.
            order: one of `gpprune.prune.ORDERS`, see `gpprune.prune_model`.
            progress: called as `progress(label, done, total)`.
        """
        calibration = self.calibration()  # before the copy, which sees its images too
        fresh = copy.deepcopy(self.loaded.model)
        prune_model(
            fresh,
            recipe,
            calibration,
            order=order,
            dense=self._statistics,
            writer=self._writer,
            progress=progress,
        )
        dense, judged = self.loaded.model, self._in_dtype(fresh)
        return [evaluate(judged, text, self.loss, dense=dense, progress=progress) for text in texts]

    @cached_property
    def _writer(self) -> Writer:
        return Writer(self.loaded.model, self.calibration())

    def digests(self) -> dict[str, str]:
        """What tells the model, its tokenizer and the texts read so far from others."""
        kinds = {"text": self.texts.judged, "calibration text": (self.texts.calibration_text,)}
        known = self.material.read.items()
        read = sorted((settled(spec), split, text) for (spec, split), text in known)
        found = {what: "".join(map(images_digest, specs)) for what, specs in kinds.items()}
        for what, spec in ((what, spec) for what, specs in kinds.items() for spec in specs):
            found[what] += "".join(text for own, _, text in read if own == settled(spec))
        if "validation" in self.documents:
            found["documents of the tasks"] = repr([*self.documents["validation"].items()])
        return {
            "model": model_digest(self.loaded),
            "configuration of the model": configuration_digest(self.loaded),
            "tokenizer": tokenizer_digest(self.loaded.tokenizer),
            **{what: hashlib.sha256(text.encode()).hexdigest() for what, text in found.items()},
        }
