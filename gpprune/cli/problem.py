"""From flags to a loaded model, its statistics and a fitness: what the commands have in common."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gpprune.cli.console import Report
from gpprune.errors import UsageError
from gpprune.evals import (
    Judgement,
    MetricFitness,
    calibration_samples,
    compute_dtype,
    read_text,
    tokenize,
    window_losses,
    windows,
)
from gpprune.primitives import METRIC, METRICS, Formula, parse, published
from gpprune.prune import (
    MEASURERS,
    Loaded,
    Recipe,
    calibrate,
    check_sparsity,
    check_weights,
    linear_layers,
    load_model,
    parse_pattern,
    prune_model,
)

TEST_WINDOWS = 10
TEST_LENGTH = 1024
# The first windows of a text are of two or three articles. Over all of the text it takes more.
TEST_SPREAD = 20


@dataclass(frozen=True)
class Texts:
    """Which text is judged and calibrated on, and how much of it."""

    text: str = "wikitext2"
    calibration_text: str = "wikitext2"
    windows: int = TEST_WINDOWS
    window_length: int = TEST_LENGTH
    calibration_samples: int = 8
    seed: int = 0


class Workbench:
    """A loaded model with what is measured and judged of it, each made when first asked for."""

    def __init__(
        self,
        model: str,
        dtype: str,
        texts: Texts,
        report: Report | None,
        *,
        reads: Iterable[tuple[str, str]] = (),
        terminals: Collection[str] = ("X", "Y", "G"),
    ) -> None:
        """Read the texts `(spec, split)` in `reads` before the model: they fail sooner.

        `terminals` are what formulas may read: G and D are measured only for who needs them.
        """
        self.texts = texts
        self._text = {(spec, split): read_text(spec, split) for spec, split in reads}
        self.terminals = terminals
        self.report = report
        self.dtype = compute_dtype(dtype)
        self.loaded: Loaded = load_model(model, dtype=torch.float32, progress=report)
        self._layers = linear_layers(self.loaded.model)
        check_weights(self._layers)
        self._tokens: dict[tuple[str, str], Tensor] = {}

    def check_pattern(self, text: str) -> None:
        """See that a pattern fits every layer, before anything is measured for it."""
        for layer in self._layers.values():
            parse_pattern(text).check_layer(repr(layer.name), layer.weight.shape)

    def tokens(self, spec: str, split: str) -> Tensor:
        """A text's tokens, `[tokens]`."""
        if (spec, split) not in self._tokens:
            text = self._text.pop((spec, split), None) or read_text(spec, split)
            self._tokens[spec, split] = tokenize(text, self.loaded.tokenizer)
        return self._tokens[spec, split]

    def windows(self, split: str, *, spread: bool = False) -> Tensor:
        """The windows that are judged on, `[windows, window_length]`.

        The first ones; with `spread`, at even distances over the text, less what `test_windows`
        takes of a text without parts.
        """
        tokens = self.tokens(self.texts.text, split)
        count, length = self.texts.windows, self.texts.window_length
        if spread and self._without_parts:
            tokens = tokens[: len(tokens) - count * length]
        return windows(tokens, count, length, spread=spread)

    @property
    def _without_parts(self) -> bool:
        parts = (self.tokens(self.texts.text, split) for split in ("validation", "test"))
        return torch.equal(*parts)

    def test_windows(self, *, spread: bool = False) -> Tensor:
        """Windows of text that a search never sees: the first 10 of 1,024 tokens of the test part.

        With `spread`, 20 from all over it. A text without parts gives its last ones, as many and as
        long as those searched on.
        """
        tokens = self.tokens(self.texts.text, "test")
        if not self._without_parts:
            count = TEST_SPREAD if spread else TEST_WINDOWS
            return windows(tokens, count, TEST_LENGTH, spread=spread)
        count, length = self.texts.windows, self.texts.window_length
        windows(tokens, 2 * count, length)  # there must be as many to search on
        return windows(tokens[len(tokens) - count * length :], count, length)

    def calibration(self) -> Tensor:
        """The calibration sequences, `[samples, window_length]`."""
        texts = self.texts
        tokens = self.tokens(texts.calibration_text, "calibration")
        return calibration_samples(
            tokens, texts.calibration_samples, texts.window_length, texts.seed
        )

    @cached_property
    def judged(self) -> Any:
        """The dense model in the dtype that it is judged in."""
        if self.dtype == torch.float32:
            return self.loaded.model
        return load_model(self.loaded.name, dtype=self.dtype).model

    @cached_property
    def statistics(self) -> dict[str, dict[str, Tensor]]:
        """The statistics among the terminals, of the dense model's layers."""
        return calibrate(
            self.loaded.model,
            self.calibration(),
            [name for name in MEASURERS if name in self.terminals],
            progress=self.report,
        )

    def dense(self, tokens: Tensor) -> Judgement:
        """The dense model on windows `[windows, length]`."""
        return Judgement(window_losses(self.judged, tokens, self.report))

    def pruned(self, recipe: Recipe, tokens: Tensor) -> Judgement:
        """A fresh model on windows, pruned block after block: the sequential order."""
        fresh = load_model(self.loaded.name).model
        prune_model(fresh, recipe, self.calibration(), progress=self.report)
        return Judgement(window_losses(fresh.to(self.dtype), tokens, self.report))

    def fitness(self, windows: Tensor, sparsity: float, pattern: str) -> MetricFitness:
        """A fitness that judges metrics on these windows."""
        return MetricFitness(
            self.loaded.model,
            self.statistics,
            windows,
            sparsity=sparsity,
            pattern=pattern,
            dtype=self.dtype,
        )


def formulas(given: Iterable[str] | None) -> dict[str, Formula]:
    """Formulas by name: published ones by their name, others by their text; all by default."""
    names = list(given or published)
    return {name: named_formula(name) for name in names}


def named_formula(text: str) -> Formula:
    """A published formula by name, else formula text."""
    return published[text] if text in published else parse(text, METRIC)


def pattern_of(name: str, given: str | None) -> str:
    """The pattern asked for, else the one a published metric's own code uses, else rows."""
    if given is not None:
        return parse_pattern(given).text
    return METRICS[name].pattern if name in METRICS else "row"


def sparsities(text: str) -> list[float]:
    """`0.5,0.6` as numbers.

    Raises:
        UsageError: not numbers in [0, 1).
    """
    values = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            raise UsageError(
                f"--sparsity {part!r} is not a number: write for example 0.5,0.6"
            ) from None
        check_sparsity(value)
        values.append(value)
    return values
