"""How fast a model reads."""

from __future__ import annotations

import time

import torch
from torch import nn

from gpprune.prune.model.run import quiet_model

LENGTH = 512
_PASSES = 5


@torch.no_grad()
def tokens_a_second(model: nn.Module, length: int = LENGTH, passes: int = _PASSES) -> float:
    """The tokens of one sequence that a model reads a second, in the fastest of some passes.

    Args:
        model: a causal language model.
        length: of the sequence; less where the model takes no so long one.
        passes: how many, after one that is not timed.
    """
    config = getattr(model, "config", None)
    longest = getattr(config, "max_position_embeddings", None) or length
    device = next(model.parameters()).device
    tokens = torch.zeros(1, min(length, longest), dtype=torch.int64, device=device)
    seconds = []
    with quiet_model(model):
        for _ in range(passes + 1):
            start = time.perf_counter()
            model(input_ids=tokens)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return tokens.shape[1] / min(seconds[1:])
