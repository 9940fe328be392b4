"""Models of every family come in, are pruned in all that they should be, and go out again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
import transformers
from short_texts import short_texts
from tiny_families import tiny
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from gpprune.discover import evaluate_model, prune_to
from gpprune.errors import GppruneError, UsageError
from gpprune.prune import Recipe, calibrate, prune_model

TEXTS = short_texts(calibration_samples=4, window_length=32)
# What of the blocks stays dense, by the last parts of its name.
GATES = ("mlp.gate", "mlp.router", "block_sparse_moe.router", "shared_expert_gate")
PRUNED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3text", "phi3"), ()),
    **dict.fromkeys(("olmo2", "opt", "gpt2", "gptj", "gptneox", "bloom", "falcon", "mpt"), ()),
    **dict.fromkeys(("starcoder2", "gemma3", "llava", "qwen2vl", "llama4whole", "idefics3"), ()),
    "mamba2": ("conv1d",),
    **dict.fromkeys(("mixtral", "granitemoe", "qwen2moe", "qwen3moe", "gptoss", "deepseek"), GATES),
    "qwen3next": (*GATES, "conv1d"),
}
REFUSED = {
    "mamba": "dt_proj",
    "jamba": "several classes",
    "t5": "is of type 't5'",
    "paligemma": "from those after it",
}


def _saved(folder: Path, family: str, tokenizer: PreTrainedTokenizerFast) -> str:
    if family == "t5":  # no causal language models: the configuration says so
        name, fields = tiny_families.FAMILIES[family]
        getattr(transformers, name)(**fields).save_pretrained(folder)
    else:
        model: Any = tiny(family)
        model.resize_token_embeddings(512)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _reloaded(folder: Path) -> nn.Module:
    config = transformers.AutoConfig.from_pretrained(folder)
    model: nn.Module = tiny_families.made_by(config).from_pretrained(folder)
    return model


def _matrices(model: nn.Module) -> dict[str, Tensor]:
    """The matrices of the longest list of blocks under the decoder, without gpprune's help."""
    inner: Any = model
    decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else model
    lists = [m for m in decoder.modules() if isinstance(m, nn.ModuleList)]
    longest = max((one for one in lists if len(one) == 2), key=lambda m: len(list(m.modules())))
    return {
        name: value.detach()
        for name, value in longest.named_parameters()
        if value.ndim > 1 and not name.endswith("bias")
    }


@pytest.mark.parametrize("stream", [False, True], ids=["memory", "streamed"])
@pytest.mark.parametrize("family", PRUNED)
def test_half_of_every_matrix_goes(
    family: str, stream: bool, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    source = _saved(tmp_path / "in", family, tiny_tokenizer)
    out = tmp_path / "out"
    report = prune_to(out, Recipe(sparsity=0.5), model=source, texts=TEXTS, stream=stream)
    found = _matrices(_reloaded(out))
    left = {n for n in found if n.removesuffix(".weight").endswith(PRUNED[family] or "-")}
    for name, matrix in found.items():
        zeros = (matrix == 0).sum(-1)
        if name in left:
            assert int(zeros.sum()) == 0, name
        elif not left:
            assert int(zeros.sum()) == matrix.numel() // 2, name
    size = sum(matrix.numel() for matrix in found.values())
    assert report.block_zeros == sum(int((matrix == 0).sum()) for matrix in found.values())
    assert report.block_zeros == size // 2  # of all, what is left alone too
    assert report.coverage.left_size == sum(found[name].numel() for name in left)
    assert report.coverage.size == size
    judged, _ = evaluate_model(
        str(out), texts=short_texts(windows=2, window_length=32), dtype="float32"
    )
    assert math.isfinite(judged.evaluation.figure)


@pytest.mark.parametrize("pattern", ["row", "layer", "model"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3moe", "gptoss", "deepseek", "mamba2"])
@pytest.mark.parametrize("sparsity", [0.3, 0.7])
def test_layers_make_up_for_what_is_left_alone(family: str, pattern: str, sparsity: float) -> None:
    model = tiny(family)
    tokens = torch.randint(64, (4, 32), generator=torch.Generator().manual_seed(0))
    report = prune_model(model, Recipe(sparsity=sparsity, pattern=pattern), tokens)
    assert report.coverage.left_size > 0
    assert report.block_zeros == round(sparsity * report.coverage.size)


def test_a_mixture_that_asks_for_its_balance_is_measured() -> None:
    """Checkpoints that are trained on say so; the statistics are those of any other."""
    plain, asking = tiny("mixtral"), tiny("mixtral")
    asking.config.output_router_logits = True  # type: ignore[union-attr]
    tokens = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))
    own, found = (calibrate(model, tokens, ["X", "Gk"]) for model in (plain, asking))
    for name, values in own.items():
        assert all(torch.equal(value, found[name][key]) for key, value in values.items())
    assert asking.config.output_router_logits is True  # type: ignore[union-attr]


def test_more_than_the_layers_have_is_refused() -> None:
    model, tokens = tiny("mamba2"), torch.ones(2, 16, dtype=torch.int64)
    with pytest.raises(UsageError, match=r"conv1d.*give less than 0\.9"):
        prune_model(model, Recipe(sparsity=0.95), tokens)


@pytest.mark.parametrize("family", ["mistral", "gptj", "gptneox", "falcon", "gptoss", "gemma3"])
def test_two_of_four_inputs_stay(
    family: str, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    source = _saved(tmp_path / "in", family, tiny_tokenizer)
    out = tmp_path / "out"
    prune_to(out, Recipe(pattern="2:4"), model=source, texts=TEXTS, stream=True)
    for name, matrix in _matrices(AutoModelForCausalLM.from_pretrained(out)).items():
        if not name.removesuffix(".weight").endswith(PRUNED[family] or "-"):
            stack = family == "gptoss" and matrix.ndim == 3  # [experts, in, out]
            along = matrix.transpose(1, 2) if stack else matrix
            assert (along.reshape(-1, 4) != 0).sum(1).eq(2).all(), name


@pytest.mark.parametrize("stream", [False, True], ids=["memory", "streamed"])
@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_pruned_is_refused_by_what_was_found(
    family: str, stream: bool, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    source = _saved(tmp_path / "in", family, tiny_tokenizer)
    with torch.no_grad(), pytest.raises(GppruneError, match=REFUSED[family]):
        prune_to(tmp_path / "out", Recipe(sparsity=0.5), model=source, texts=TEXTS, stream=stream)
    assert not (tmp_path / "out").exists()
