"""Low-rank adapters under the mask, and trainings that are broken off."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from recovering import divergence, pruned_copy, same, sharp, swapped, weights
from torch import Tensor, nn

from gpprune.errors import GppruneError, UsageError
from gpprune.prune import (
    Adapters,
    NextTokens,
    Predictions,
    Saved,
    check_saved,
    distil,
    forget_saved,
    has_saved,
    linear_layers,
)

FAMILIES = ["llama", "gpt2", "opt", "mixtral", "gptoss", "qwen3moe", "rwkv"]


@pytest.fixture
def sequences() -> Tensor:
    return torch.randint(1, 64, (5, 24), generator=torch.Generator().manual_seed(0))


def _pruned(family: str, sequences: Tensor) -> tuple[nn.Module, nn.Module, Predictions]:
    """A pruned model, the dense one and what that predicts."""
    model = sharp(family)
    dense, whole = Predictions(model, sequences), copy.deepcopy(model)
    swapped(model, pruned_copy(model, 0.3))
    return model, whole, dense


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_come_nearer_to_the_dense_model_and_keep_the_zeros(
    family: str, sequences: Tensor
) -> None:
    model, whole, dense = _pruned(family, sequences)
    linear_layers(model)  # opens experts
    before, names = weights(model), [name for name, _ in model.named_parameters()]
    classes = [type(module) for module in model.modules()]
    far = divergence(whole, model, sequences)
    distil(model, dense, range(5), 30, rate=1e-2, adapters=Adapters(rank=4))
    assert divergence(whole, model, sequences) < 0.7 * far
    assert [name for name, _ in model.named_parameters()] == names
    assert [type(module) for module in model.modules()] == classes
    assert all(parameter.requires_grad for parameter in model.parameters())
    ours = {layer.parameter_name for layer in linear_layers(model).values()}
    for name, one in model.named_parameters():
        gone = before[name] == 0
        assert torch.equal(one == 0, gone) if name in ours else torch.equal(one, before[name])


def test_what_is_merged_is_of_low_rank_where_nothing_is_gone(sequences: Tensor) -> None:
    model = sharp("llama")
    before = weights(model)
    distil(model, NextTokens(sequences), range(5), 3, adapters=Adapters(rank=2))
    for layer in linear_layers(model).values():
        moved = (layer.parameter - before[layer.parameter_name]).double()
        values = torch.linalg.svdvals(moved)
        assert values[1] > 0 and values[2] < 1e-4 * values[0]


def test_the_first_step_of_adapters_is_adams(sequences: Tensor) -> None:
    """B starts at 0, so that one step moves a weight by ``alpha / rank * dB A`` where it stays."""
    model, whole, dense = _pruned("llama", sequences)
    by_hand, rate = copy.deepcopy(model), 1e-3
    distil(model, dense, [1, 3], 1, rate=rate, adapters=Adapters(rank=2, alpha=6.0))
    for row in (1, 3):
        p = whole(sequences[row][None]).logits[0].detach()
        q = by_hand(sequences[row][None]).logits[0]
        loss = (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1).mean()
        (loss / 2).backward()
    draw = torch.Generator().manual_seed(0)
    for name, layer in linear_layers(by_hand).items():
        weight = layer.parameter
        there = weight != 0
        down = torch.randn(2, weight.shape[1], generator=draw) / weight.shape[1] ** 0.5
        slope = 3.0 * (weight.grad * there) @ down.T
        wanted = weight - there * (3.0 * rate * (slope / (slope.abs() + 1e-8)) @ down)
        torch.testing.assert_close(linear_layers(model)[name].parameter, wanted, atol=2e-5, rtol=0)


def test_only_the_layers_that_are_named_have_adapters(sequences: Tensor) -> None:
    model, _, dense = _pruned("llama", sequences)
    before = weights(model)
    distil(model, dense, range(5), 1, adapters=Adapters(layers=("q_proj", "v_proj")))
    moved = {name for name, one in model.named_parameters() if not torch.equal(one, before[name])}
    assert {name.split(".")[-2] for name in moved} == {"q_proj", "v_proj"}
    for wrong in ("query", "proj", "q_proj.weight"):  # whole parts of names only
        with pytest.raises(UsageError, match=f"no layer is called '{wrong}': there are down_proj"):
            distil(model, dense, range(5), 1, adapters=Adapters(layers=("q_proj", wrong)))
    with pytest.raises(UsageError, match="rank 0"):
        Adapters(rank=0)


def test_the_aim_may_be_the_text(sequences: Tensor) -> None:
    model, _, _ = _pruned("llama", sequences)
    losses = distil(model, NextTokens(sequences), range(5), 20, rate=5e-3)
    assert losses[-1] < losses[0] - 0.3


class _Broken(Exception):
    pass


@pytest.mark.parametrize("adapters", [None, Adapters(rank=3)], ids=["weights", "adapters"])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_training_that_was_broken_off_goes_on(
    family: str, adapters: Adapters | None, sequences: Tensor, tmp_path: Path
) -> None:
    whole, _, dense = _pruned(family, sequences)
    broken, again = copy.deepcopy(whole), copy.deepcopy(whole)
    losses = distil(whole, dense, range(5), 3, adapters=adapters)
    saved = Saved(tmp_path / "kept", {"what": "this"})

    def stop(label: str, done: int, total: int) -> None:
        if done == 5:
            raise _Broken

    with pytest.raises(_Broken):
        distil(broken, dense, range(5), 3, adapters=adapters, saved=saved, progress=stop)
    assert has_saved(tmp_path / "kept")
    steps: list[int] = []
    found = distil(
        again,
        dense,
        range(5),
        3,
        adapters=adapters,
        saved=saved,
        progress=lambda label, done, total: steps.append(done),
    )
    assert steps == [6, 7, 8, 9]
    assert found == losses
    assert same(again, whole)
    forget_saved(tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_another_training_and_a_damaged_one_are_refused(sequences: Tensor, tmp_path: Path) -> None:
    model, _, dense = _pruned("llama", sequences)
    folder = tmp_path / "kept"
    distil(model, dense, range(5), 1, saved=Saved(folder, {"what": "this"}))
    with pytest.raises(UsageError, match="holds another training"):
        distil(model, dense, range(5), 1, saved=Saved(folder, {"what": "that"}))
    (folder / "trained.safetensors").write_bytes(b"nothing")
    with pytest.raises(GppruneError, match="is damaged"):
        distil(model, dense, range(5), 1, saved=Saved(folder, {"what": "this"}))
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is something else"):
        check_saved(folder)


def test_experts_have_adapters_together(sequences: Tensor) -> None:
    model, _, dense = _pruned("mixtral", sequences)
    with pytest.raises(UsageError, match="no layer is called 'up_proj'"):
        distil(model, dense, range(5), 1, adapters=Adapters(layers=("up_proj",)))
    with pytest.raises(UsageError, match=r"no layer is called 'experts.3.down_proj'"):
        distil(model, dense, range(5), 1, adapters=Adapters(layers=("experts.3.down_proj",)))
    before = weights(model)
    distil(model, dense, range(5), 1, adapters=Adapters(layers=("experts.down_proj",)))
    moved = {name for name, one in model.named_parameters() if not torch.equal(one, before[name])}
    assert moved == {f"model.layers.{block}.mlp.experts.down_proj" for block in (0, 1)}


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1e-4, 1.5])
def test_a_rate_that_trains_nothing_is_refused(rate: float, sequences: Tensor) -> None:
    model, _, dense = _pruned("llama", sequences)
    with pytest.raises(UsageError, match=r"lies outside \[0, 1\]"):
        distil(model, dense, range(5), 1, rate=rate)


@pytest.mark.parametrize("adapters", [None, Adapters(rank=3)], ids=["weights", "adapters"])
def test_weights_that_are_no_numbers_are_not_kept(
    adapters: Adapters | None,
    sequences: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spoil(self: torch.optim.Adam) -> None:
        self.param_groups[0]["params"][-1].data.fill_(float("inf"))

    model, _, dense = _pruned("llama", sequences)
    monkeypatch.setattr(torch.optim.Adam, "step", spoil)
    saved = Saved(tmp_path / "kept", {})
    with pytest.raises(GppruneError, match="a weight is not finite"):
        distil(model, dense, range(5), 3, adapters=adapters, saved=saved)
    assert not has_saved(tmp_path / "kept")


def test_a_layer_that_is_never_called_is_no_damage(sequences: Tensor, tmp_path: Path) -> None:
    model, _, dense = _pruned("llama", sequences)
    model.get_submodule("model.layers.1.mlp").register_module("idle", nn.Linear(4, 4))
    saved = Saved(tmp_path / "kept", {})
    adapters = Adapters(rank=2)
    first = distil(model, dense, range(5), 2, adapters=adapters, saved=saved)
    assert distil(model, dense, range(5), 2, adapters=adapters, saved=saved) == first


def test_models_that_rescale_themselves_are_trained_as_they_are(sequences: Tensor) -> None:
    model = sharp("rwkv")
    model.config.rescale_every = 1  # type: ignore[union-attr]
    dense = Predictions(model, sequences)
    losses = [
        distil(copy.deepcopy(model), dense, range(5), 3, rate=0.0, adapters=adapters)
        for adapters in (None, Adapters(rank=2))
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
