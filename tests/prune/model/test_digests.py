from __future__ import annotations

from pathlib import Path

import torch

from gpprune.prune import load_model, model_digest, tokenizer_digest


def test_a_digest_tells_models_apart(copy: Path) -> None:
    loaded = load_model(str(copy))
    digest = model_digest(loaded)
    assert model_digest(load_model(str(copy))) == digest and len(digest) == 64
    others = {model_digest(load_model(str(copy), dtype=torch.bfloat16))}
    weight = loaded.model.get_parameter("model.layers.1.mlp.up_proj.weight")
    with torch.no_grad():
        weight[3, 5] = -weight[3, 5]
        others.add(model_digest(loaded))
        weight[3, 5] = -weight[3, 5]
        assert model_digest(loaded) == digest
        swapped = weight.data.t().contiguous().view(weight.shape)  # the same bytes elsewhere
        weight.data = swapped
        others.add(model_digest(loaded))
    assert len(others | {digest}) == 4


def test_a_digest_reads_what_a_transposed_view_shows(tiny_gpt2_dir: Path) -> None:
    loaded = load_model(str(tiny_gpt2_dir))
    digest = model_digest(loaded)
    weight = loaded.model.get_parameter("transformer.h.0.mlp.c_fc.weight")
    weight.data = weight.data.t().contiguous().t()
    assert model_digest(loaded) == digest


def test_a_digest_tells_tokenizers_apart(copy: Path) -> None:
    tokenizer = load_model(str(copy)).tokenizer
    digest = tokenizer_digest(tokenizer)
    tokenizer("a long text that is cut", truncation=True, max_length=4)
    assert tokenizer_digest(tokenizer) == digest  # how it was called last is no part of it
    assert tokenizer_digest(load_model(str(copy)).tokenizer) == digest and len(digest) == 64
    tokenizer.add_tokens(["river-valley"])
    assert tokenizer_digest(tokenizer) != digest


class _Plain:
    """A tokenizer without a backend that can be written as JSON."""

    def __init__(self, words: list[str]) -> None:
        self._words = words

    def get_vocab(self) -> dict[str, int]:
        return {word: place for place, word in enumerate(self._words)}


def test_a_tokenizer_without_a_backend_has_a_digest() -> None:
    assert tokenizer_digest(_Plain(["a", "b"])) == tokenizer_digest(_Plain(["a", "b"]))
    assert tokenizer_digest(_Plain(["a", "b"])) != tokenizer_digest(_Plain(["b", "a"]))
