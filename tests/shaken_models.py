"""Small models of several families with grouped heads, biases and ties, all parameters random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

_FIELDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 16},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt2": {"n_embd": 32, "n_inner": 48, "n_head": 4, "n_layer": 2, "n_positions": 64},
}
KINDS = sorted(_FIELDS)


def shaken(
    kind: str, keys: int = 4, *, bias: bool = False, tied: bool = True, words: int = 64
) -> nn.Module:
    """A model of width 32 with 48 hidden channels and 4 heads of width 8 in each of two blocks.

    Norms and biases are random too, so that none may be forgotten.

    Args:
        kind: one of `KINDS`.
        keys: how many heads of keys and values there are, of a kind that groups them.
        bias: whether linear layers have one, of a kind that may.
        tied: whether the head is the embedding.
        words: of the vocabulary.
    """
    fields: dict[str, Any] = {"vocab_size": words, "bos_token_id": 0, "eos_token_id": 0}
    if kind != "gpt2":
        fields |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        fields |= {"num_attention_heads": 4, "num_key_value_heads": keys, "pad_token_id": 0}
        fields |= {"max_position_embeddings": 64}
    if kind == "llama":
        fields |= {"attention_bias": bias, "mlp_bias": bias}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **{**fields, **_FIELDS[kind]}, tie_word_embeddings=tied)
        model: nn.Module = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return model


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """Of some tokens, float64."""
    tokens = torch.randint(1, 64, (2, 12), generator=torch.Generator().manual_seed(1))
    found: Tensor = model(input_ids=tokens, use_cache=False).logits.double()
    return found
