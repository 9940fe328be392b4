"""Calibration text that the dense model writes itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gpprune.errors import GppruneError, UsageError
from gpprune.memory import give_back
from gpprune.progress import Progress, silent
from gpprune.prune.model.quiet import quiet_transformers
from gpprune.prune.model.run import quiet_model
from gpprune.prune.model.sequential import BlockRunner

PROMPT = 32  # tokens of the given text that a piece goes on from
PIECE = 256  # tokens; of longer ones the keys and values that are read again cost most of the time
_BATCH = 32  # pieces at a time


@torch.no_grad()
def synthetic_samples(
    model: nn.Module, tokens: Tensor, count: int, *, seed: int = 0, progress: Progress = silent
) -> Tensor:
    """Sequences that a model writes, to calibrate on beside the text that it goes on from.

    Each sequence is of even pieces of at most `PIECE` tokens, each going on from `PROMPT` tokens at
    a random place of the given text. The next token is drawn from the model's own prediction,
    without the end of the text (self-calibration, Williams et al. 2024, arXiv 2410.17170). Keys and
    values of 32 pieces are in memory.

    Args:
        model: a causal language model, dense.
        tokens: the given text, ``[samples, length]``, int64.
        count: how many sequences, each as long as the given ones.
        seed: of all draws; the global ones are left alone.
        progress: called as ``progress("writing calibration text", done, total)``.

    Returns:
        ``[count, length]``, int64, on the device of `tokens`.

    Raises:
        UsageError: the model cannot write text.
        GppruneError: what it predicts is not finite.
    """
    length = tokens.shape[1]
    pieces = -(-length // PIECE)
    piece = -(-length // pieces)
    prompt = min(PROMPT, piece // 2)
    draw = torch.Generator().manual_seed(seed)
    rows = torch.arange(count * pieces) % len(tokens)
    starts = torch.randint(length - prompt + 1, (count * pieces,), generator=draw)
    places = starts[:, None] + torch.arange(prompt)
    batches = torch.split(tokens.cpu()[rows[:, None], places], _BATCH)
    written = []
    for at, batch in enumerate(batches):
        steps = _Steps(progress, at * piece, len(batches) * piece)
        written.append(_written_on(model, batch, piece, seed * 1_000_003 + at, steps))
    give_back()
    return torch.cat(written).view(count, pieces * piece)[:, :length].contiguous().to(tokens.device)


class Writer:
    """Synthetic samples for several recipes: each number of them is written once.

    Args:
        model: see `synthetic_samples`.
        tokens: likewise.
    """

    def __init__(self, model: nn.Module, tokens: Tensor) -> None:
        self._model, self._tokens = model, tokens
        self._written: dict[int, Tensor] = {}

    def __call__(
        self, count: int, progress: Progress = silent, *, by_block: bool = False
    ) -> Tensor | None:
        """So many of them, ``[count, length]``; None for 0.

        Args:
            count: how many.
            progress: see `synthetic_samples`.
            by_block: whether they are to be measured on block by block.

        Raises:
            NotAChain: the model cannot be measured so; nothing is written then.
            UsageError: see `synthetic_samples`.
            GppruneError: likewise.
        """
        if count and count not in self._written:
            if by_block:
                with quiet_model(self._model):
                    BlockRunner(self._model, self._tokens[:1])
            self._written[count] = synthetic_samples(
                self._model, self._tokens, count, progress=progress
            )
        return self._written.get(count)


class _Steps:
    """Says how far a batch is, as a criterion that stops nothing."""

    def __init__(self, progress: Progress, before: int, total: int) -> None:
        self._progress, self._before, self._total = progress, before, total

    def __call__(self, tokens: Tensor, scores: Any, **_: Any) -> Tensor:
        self._progress("writing calibration text", self._before + tokens.shape[1], self._total)
        return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)


def _finite(tokens: Tensor, scores: Tensor) -> Tensor:
    """Scores as they are, seen before the draw, which on a GPU would take the process along."""
    if bool((scores.isnan() | scores.isposinf()).any()):
        raise GppruneError(
            "what the model predicts is NaN or infinite, so that it cannot write calibration text: "
            "a weight outside the blocks is damaged, or the dtype too narrow"
        )
    return scores


def _written_on(model: Any, prompts: Tensor, length: int, seed: int, steps: _Steps) -> Tensor:
    """Prompts ``[pieces, prompt]``, gone on to ``[pieces, length]``; no piece ends early."""
    # Imported late: transformers takes a second.
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    own = getattr(model, "generation_config", None)
    if own is None or not callable(getattr(model, "generate", None)):
        raise _no_writer(model, "it has no generate()")
    device = next(model.parameters()).device
    prompts = prompts.to(device)
    # In its place, for what the model's own says of repetitions and the like would be filled in.
    model.generation_config = GenerationConfig(
        do_sample=True,
        top_k=0,
        min_length=length,
        max_length=length,
        eos_token_id=own.eos_token_id,
        pad_token_id=0,
    )
    try:
        with _draws(device, seed), quiet_model(model), quiet_transformers():
            found: Tensor = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                logits_processor=LogitsProcessorList([_finite]),
                stopping_criteria=StoppingCriteriaList([steps]),
                use_cache=True,
            )
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise _no_writer(model, str(error)) from error
    finally:
        model.generation_config = own
    if found.shape != (len(prompts), length):
        raise _no_writer(model, f"it gives {list(found.shape)} tokens")
    return found.cpu()


def _no_writer(model: nn.Module, why: str) -> UsageError:
    first = why.partition("\n")[0]
    return UsageError(
        f"{type(model).__name__} cannot write synthetic samples ({first}): calibrate without them"
    )


@contextmanager
def _draws(device: torch.device, seed: int) -> Iterator[None]:
    """The generators that a model's draws come from, at a seed and afterwards as they were."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
