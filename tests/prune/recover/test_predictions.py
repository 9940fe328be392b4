"""What the dense model predicts, kept for when it is pruned."""

from __future__ import annotations

import pytest
import torch
from recovering import pruned_copy, sharp, swapped
from torch import Tensor, nn
from transformers import ModernBertDecoderConfig, ModernBertDecoderForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from gpprune.prune import Predictions

FAMILIES = ["llama", "gpt2", "opt", "gemma3", "mamba", "mixtral", "qwen3moe", "rwkv"]


@pytest.fixture
def sequences() -> Tensor:
    return torch.randint(1, 64, (5, 24), generator=torch.Generator().manual_seed(0))


def kept_of(dense: Predictions) -> list[Tensor]:
    """The tensors that predictions hold, but for the text."""
    referred = [dense.__dict__]
    found: list[Tensor] = []
    while referred:
        one = referred.pop()
        if isinstance(one, Tensor):
            found += [one] if one.is_floating_point() else []
        elif isinstance(one, dict):
            referred += one.values()
        elif isinstance(one, list):
            referred += one
        elif not isinstance(one, nn.Module) and hasattr(one, "__dict__"):
            referred.append(vars(one))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_are_those_before_pruning(family: str, sequences: Tensor):
    model = sharp(family)
    with torch.no_grad():
        wanted = [model(one[None], use_cache=False).logits[0] for one in sequences]
    dense = Predictions(model, sequences)
    assert {part.shape[-1] for part in kept_of(dense)} == {8 if family == "opt" else 16}
    swapped(model, pruned_copy(model))
    rows = [4, 0, 2]
    found = list(dense.of(rows))
    for row, (tokens, logits) in zip(rows, found, strict=True):
        assert torch.equal(tokens[0], sequences[row])
        torch.testing.assert_close(logits, wanted[row])
        assert not logits.requires_grad
    with torch.no_grad():  # and the model does its own again
        now = model(sequences[:1], use_cache=False).logits[0]
    assert not torch.allclose(now, wanted[0], atol=1e-3)


def test_a_head_that_is_called_a_decoder_is_none(sequences: Tensor):
    config = ModernBertDecoderConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        cls_token_id=0,
        sep_token_id=0,
    )
    model = ModernBertDecoderForCausalLM(config).eval()
    dense = Predictions(model, sequences)
    assert {part.shape[-1] for part in kept_of(dense)} == {16}
    with torch.no_grad():
        wanted = model(sequences[1:2]).logits[0]
    ((_, found),) = dense.of([1])
    torch.testing.assert_close(found, wanted)


def test_a_model_without_a_body_keeps_what_it_writes(sequences: Tensor):
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = sharp("llama")

        def forward(self, tokens: Tensor) -> CausalLMOutput:
            return CausalLMOutput(logits=self.inner(tokens).logits * 2)

    model = Whole()
    dense = Predictions(model, sequences)
    with torch.no_grad():
        wanted = model(sequences[3:4]).logits[0]
        for parameter in model.parameters():
            parameter.zero_()
    ((_, found),) = dense.of([3])
    assert torch.equal(found, wanted)
