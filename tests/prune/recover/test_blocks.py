"""A pruned model's blocks are trained one after another to write what the dense one's do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from recovering import divergence, pruned_copy, same, sharp
from tiny_families import FAMILIES, tiny
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from gpprune.errors import GppruneError, UsageError
from gpprune.prune import SavedBlocks, forget_saved, has_saved, linear_layers, reconstruct


@pytest.fixture
def sequences() -> Tensor:
    return torch.randint(1, 64, (5, 24), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _errors(dense: nn.Module, pruned: nn.Module, sequences: Tensor) -> list[float]:
    """Of each block, in float64 from the models' own hidden states."""
    pairs = [m(sequences, output_hidden_states=True).hidden_states for m in (dense, pruned)]
    found = []
    for wanted, own in list(zip(*pairs, strict=True))[1:-1]:  # the last is behind a norm
        share = (own - wanted).double().square().mean(-1) / wanted.double().square().mean(-1)
        found.append(float(share.mean()))
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mixtral", "gptoss", "gemma3text"])
def test_it_comes_nearer_to_the_dense_model(family: str, sequences: Tensor) -> None:
    dense = sharp(family)
    model = pruned_copy(dense, 0.3)
    before, whole = divergence(dense, model, sequences), copy.deepcopy(dense)
    losses = reconstruct(model, dense, sequences, 20, rate=5e-3)
    assert len(losses) == 20
    assert losses[-1] < 0.7 * losses[0]
    assert divergence(dense, model, sequences) < 0.8 * before
    assert same(dense, whole)


def test_the_loss_is_the_error_of_the_states(sequences: Tensor) -> None:
    dense = sharp("llama")
    model = pruned_copy(dense, 0.3)
    wanted = _errors(dense, model, sequences)
    # a rate of 0 changes nothing: both blocks' errors are those of the pruned model
    (loss,) = reconstruct(model, dense, sequences, 1, rate=0.0)
    with torch.no_grad():
        blocks = [m.model.layers[-1] for m in (dense, model)]  # type: ignore[union-attr, index]
        last: list[Any] = []
        for block in blocks:
            block.register_forward_hook(lambda _, __, out: last.append(out))  # type: ignore[union-attr]
        dense(sequences, use_cache=False), model(sequences, use_cache=False)
    end = (last[1] - last[0]).double().square().mean(-1) / last[0].double().square().mean(-1)
    assert loss == pytest.approx((wanted[0] + float(end.mean())) / 2, rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gptoss"])
def test_zeros_stay_and_all_else_but_linear_layers(family: str, sequences: Tensor) -> None:
    dense = sharp(family)
    model = pruned_copy(dense, 0.5)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    flags = [one.requires_grad for one in model.parameters()]
    reconstruct(model, dense, sequences, 2)
    trained = {layer.parameter_name for layer in linear_layers(model).values()}
    for name, one in model.named_parameters():
        if name in trained:
            assert torch.equal(one == 0, before[name] == 0)
            assert not torch.equal(one, before[name])
        else:
            assert torch.equal(one, before[name])
    assert [one.requires_grad for one in model.parameters()] == flags


@pytest.mark.parametrize("at", [3, 10, 14])
def test_a_training_that_was_broken_off_goes_on(at: int, sequences: Tensor, tmp_path: Path) -> None:
    dense = sharp("llama")
    wanted = pruned_copy(dense)
    losses = reconstruct(wanted, dense, sequences, 2)
    saved = SavedBlocks(tmp_path / "kept", {"of": "this"})

    def breaking(label: str, done: int, total: int) -> None:
        if label == "recovering" and done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct(pruned_copy(dense), dense, sequences, 2, saved=saved, progress=breaking)
    assert has_saved(tmp_path / "kept") == (at > 10)
    model = pruned_copy(dense)
    assert reconstruct(model, dense, sequences, 2, saved=saved) == losses
    assert same(model, wanted)
    with pytest.raises(UsageError, match="another training"):
        other = SavedBlocks(tmp_path / "kept", {"of": "that"})
        reconstruct(pruned_copy(dense), dense, sequences, 2, saved=other)
    (tmp_path / "kept" / "block-1.safetensors").write_bytes(b"damaged")
    with pytest.raises(GppruneError, match="damaged"):
        reconstruct(pruned_copy(dense), dense, sequences, 2, saved=saved)
    forget_saved(tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_what_does_not_fit_is_said(sequences: Tensor) -> None:
    dense, model = tiny("llama"), pruned_copy(tiny("llama"))
    with pytest.raises(UsageError, match="no text"):
        reconstruct(model, dense, sequences[:0], 1)
    shorter = tiny("llama")
    del shorter.model.layers[1]  # type: ignore[union-attr, operator]
    with pytest.raises(UsageError, match="has 1 blocks and the pruned one 2"):
        reconstruct(model, shorter, sequences, 1)
    with pytest.raises(UsageError, match="are 24 wide and those of the pruned one 16"):
        _, fields = FAMILIES["llama"]
        wider = LlamaConfig(**{**fields, "hidden_size": 24})
        reconstruct(model, LlamaForCausalLM(wider).eval(), sequences, 1)
    with pytest.raises(GppruneError, match="block by block"):
        reconstruct(pruned_copy(tiny("hrm")), tiny("hrm"), sequences, 1)
