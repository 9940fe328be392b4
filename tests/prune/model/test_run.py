from __future__ import annotations

import pytest
import torch
from tiny_families import tiny
from torch import nn

from gpprune.prune.model.run import body, next_token_loss, quiet_model
from gpprune.prune.model.sequential import BlockRunner

TOKENS = torch.arange(4, 20)[None]


def _caching(model: nn.Module) -> list[object]:
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    return [getattr(config, "use_cache", "it does not say") for config in configs]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_quiet_model_keeps_nothing_and_is_as_it_was_afterwards(family: str) -> None:
    model = tiny(family)
    model.train()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    caching = _caching(model)
    with pytest.raises(KeyError), quiet_model(model):
        assert not any(module.training for module in model.modules())
        assert model(TOKENS).past_key_values is None
        raise KeyError
    assert [module.training for module in model.modules()] == modes
    assert _caching(model) == caching


def test_a_block_beside_a_vision_tower_runs_again_and_again() -> None:
    model = tiny("gemma3")
    with quiet_model(model):
        runner = BlockRunner(model, TOKENS)
        first, second = (runner.output(0, 0) for _ in range(2))
    assert torch.equal(first, second)


def test_the_loss_is_that_of_the_next_token() -> None:
    model = tiny("llama")
    with torch.no_grad():
        logits = model(TOKENS).logits
        assert torch.equal(body(model)(TOKENS)[0], model.model(TOKENS)[0])
    chances = logits[0].softmax(-1)
    picked = [chances[place, TOKENS[0, place + 1]].log() for place in range(15)]
    assert torch.allclose(next_token_loss(logits, TOKENS), -torch.stack(picked).mean())
