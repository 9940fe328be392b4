"""Recipes whose shots are followed by training."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from recovering import divergence, same, sharp, weights
from torch import Tensor, nn

from gpprune import errors
from gpprune.progress import silent
from gpprune.prune import (
    ORDERS,
    Predictions,
    Recipe,
    distil,
    linear_layers,
    prune_model,
    synthetic_samples,
)
from gpprune.prune.model.run import quiet_model
from gpprune.prune.once import prune_once
from gpprune.prune.shots import mean_loss
from gpprune.prune.stage import Stage


@pytest.fixture
def sequences() -> Tensor:
    return torch.randint(1, 64, (5, 24), generator=torch.Generator().manual_seed(0))


def writing_over(model: nn.Module) -> nn.Module:
    """A model that writes into what a layer has read."""

    def over(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        inputs[0].mul_(1.0)

    model.model.layers[0].mlp.down_proj.register_forward_hook(over)
    return model


def test_a_model_that_cannot_be_trained_is_refused_before_it_is_pruned(sequences: Tensor):
    model = writing_over(sharp("llama"))
    before = weights(model)
    with pytest.raises(errors.GppruneError, match="writes over what its gradients need"):
        prune_model(model, Recipe(metric="magnitude", sparsity=0.5, recover=1), sequences)
    assert all(torch.equal(one, before[name]) for name, one in model.named_parameters())
    prune_model(model, Recipe(metric="magnitude", sparsity=0.5), sequences)


@pytest.mark.parametrize("order", ["dense", "sequential", "corrected"])
@pytest.mark.parametrize("count", [0, 4])
def test_a_recipe_recovers_on_its_text(order: str, count: int, sequences: Tensor):
    how = {"metric": "kron-obd", "pattern": "model", "sparsity": 0.5, "update": "refit(3)"}
    plain = Recipe(**how, synthetic_samples=count)
    model = sharp("llama")
    by_hand = copy.deepcopy(model)
    report = prune_model(model, plain.model_copy(update={"recover": 2}), sequences, order=order)
    text = sequences
    if count:
        text = torch.cat([sequences, synthetic_samples(by_hand, sequences, count)])
    dense = Predictions(by_hand, text)
    wanted = prune_model(by_hand, plain, sequences, order=order)
    distil(by_hand, dense, range(len(text)), 2)
    assert same(model, by_hand)
    assert report.zeros == wanted.zeros


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("count", [0, 4])
def test_a_report_says_what_training_brought(shots: int, count: int, sequences: Tensor):
    how = {"metric": "kron-obd", "pattern": "model", "sparsity": 0.5, "update": "refit(3)"}
    recipe = Recipe(**how, shots=shots, synthetic_samples=count, recover=20)
    model = sharp("llama")
    whole, plain = copy.deepcopy(model), copy.deepcopy(model)
    written = synthetic_samples(model, sequences, count * shots).split(count) if count else []
    found = prune_model(model, recipe, sequences).shots
    wanted = prune_model(plain, recipe.model_copy(update={"recover": 0}), sequences)
    assert len(found) == shots
    assert found[-1].zeros == wanted.zeros
    assert all(shot.recovered not in (None, shot.after) for shot in found)
    assert divergence(whole, model, sequences) < divergence(whole, plain, sequences)
    assert found[0].before == mean_loss(whole, torch.cat([sequences, *written[:1]]))
    assert found[-1].recovered == mean_loss(model, torch.cat([sequences, *written]))
    for before, shot in pairwise(found):
        assert (shot.before == before.recovered) == (count == 0)
    if wanted.shots:
        assert found[0].after == wanted.shots[0].after
        assert wanted.shots[0].recovered is None


@pytest.mark.parametrize("count", [0, 4])
def test_training_of_shots_that_are_left(count: int, sequences: Tensor, tmp_path: Path):
    recipe = Recipe(metric="magnitude", sparsity=0.6, shots=3, synthetic_samples=count, recover=2)
    model = sharp("llama")
    broken, again, last = (copy.deepcopy(model) for _ in range(3))
    prune_model(model, recipe, sequences)
    steps: list[tuple[str, int]] = []

    def breaking(label: str, done: int, total: int) -> None:
        if (label, done) == ("shots", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_model(broken, recipe, sequences, keep=tmp_path / "kept", progress=breaking)
    how = {"keep": tmp_path / "kept", "progress": lambda label, *at: steps.append((label, at[1]))}
    prune_model(again, recipe, sequences, **how)
    assert same(model, again)
    # also of the text of shots that are over
    assert ("predictions", 5 + 3 * count) in steps
    steps.clear()
    finished = prune_model(last, recipe, sequences, **how)
    assert same(model, last)
    assert len(finished.shots) == 3
    assert not any(label == "predictions" for label, _ in steps)


def test_a_shot_trains_on_the_text_of_all_so_far(sequences: Tensor):
    recipe = Recipe(metric="magnitude", sparsity=0.6, shots=3, synthetic_samples=4, recover=2)
    steps = []

    def listen(label: str, done: int, total: int) -> None:
        if label == "recovering" and done == total:
            steps.append(total)

    prune_model(sharp("llama"), recipe, sequences, progress=listen)
    assert steps == [2 * 5, 2 * 7, 2 * 9]  # of two sequences: of 9, of 13, of 17


@pytest.mark.parametrize("order", ORDERS)
def test_a_shot_goes_on_from_what_was_trained(order: str, sequences: Tensor):
    """And is not carried back to the dense model layer by layer."""
    how = {"metric": "kron-obd", "pattern": "model", "sparsity": 0.6, "update": "refit(3)"}
    recipe = Recipe(**how, shots=2, recover=2)
    model = sharp("llama")
    by_hand = copy.deepcopy(model)
    prune_model(model, recipe, sequences, order=order)
    dense = Predictions(by_hand, sequences)
    held: dict[str, Tensor] = {}
    for part in recipe.parts:
        stage = Stage(part, held, None)
        with quiet_model(by_hand):
            held = prune_once(by_hand, recipe, sequences, order, silent, stage).masks
        distil(by_hand, dense, range(len(sequences)), 2)
    assert same(model, by_hand)


@pytest.mark.parametrize("shots", [1, 2])
def test_a_mask_of_weights_alone_reads_text_to_recover(shots: int, sequences: Tensor):
    how = {"metric": "magnitude", "sparsity": 0.5, "synthetic_samples": 4, "shots": shots}
    with pytest.raises(errors.UsageError, match="4 synthetic samples are of no use"):
        Recipe(**how)
    model = sharp("llama")
    before = weights(model)
    prune_model(model, Recipe(**how, recover=1), sequences)
    for name, layer in linear_layers(model).items():
        kept = layer.parameter != 0
        assert int(kept.sum()) == kept.numel() // 2
        assert not torch.equal(layer.parameter[kept], before[f"{name}.weight"][kept])


def test_a_recipe_holds_it_if_there_is_any(tmp_path: Path):
    assert "recover" not in Recipe(sparsity=0.5).model_dump()
    recipe = Recipe(sparsity=0.5, recover=3)
    recipe.write(tmp_path / "recipe.json")
    assert Recipe.read(tmp_path / "recipe.json") == recipe
    with pytest.raises(errors.UsageError, match="recover is -1"):
        Recipe(sparsity=0.5, recover=-1)
