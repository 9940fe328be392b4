"""Shots go on where all that a layer reads, or all that it moves, has been pruned away."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_families import tiny
from torch import Tensor, nn

from gpprune.errors import GppruneError
from gpprune.prune import Recipe, calibrate, linear_layers, prune_model
from gpprune.prune.allocate.budget import total_zeros

UP, GATE, DOWN = (f"model.layers.1.mlp.{name}_proj" for name in ("up", "gate", "down"))
PATTERNS = ["row", "layer", "model", "2:4"]


@pytest.fixture
def sequences() -> Tensor:
    return torch.randint(1, 64, (4, 32), generator=torch.Generator().manual_seed(0))


class Vanishing:
    """A progress that zeroes a layer between the first shot and the second, and what is left."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self._model = model
        self._name = name
        self.weights: dict[str, Tensor] = {}

    def __call__(self, label: str, done: int, total: int) -> None:
        if (label, done) == ("shots", 1):
            layers = linear_layers(self._model)
            layers[self._name].write(torch.zeros_like(layers[self._name].weight))
            self.weights = {name: layer.weight.clone() for name, layer in layers.items()}


def in_order(held: Tensor, zeros: int, pattern: str) -> Tensor:
    """What went before, and of each group the next weights in their order, one by one."""
    mask = held.clone(memory_format=torch.contiguous_format)
    if pattern == "2:4":
        groups, each = mask.view(-1, 4), 2
    elif pattern == "row":
        groups, each = mask, zeros // len(mask)
    else:
        groups, each = mask.view(1, -1), zeros
    for group in groups:
        for at in range(len(group)):
            if int(group.sum()) < each:
                group[at] = True
    return mask


def pruned(
    sequences: Tensor, gone: str, order: str = "dense", family: str = "llama", **recipe: object
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights before the second of three shots, when a layer has gone, and after the last."""
    model = tiny(family)
    vanish = Vanishing(model, gone)
    chosen = Recipe.make(**{"metric": "wanda", "sparsity": 0.5, "shots": 3, **recipe})
    report = prune_model(model, chosen, sequences, order=order, progress=vanish)
    assert all(torch.isfinite(weight).all() for weight in model.state_dict().values())
    if chosen.pattern == "model":
        assert report.shots[-1].zeros == total_zeros(0.5, report.size)
    return vanish.weights, {name: layer.weight for name, layer in linear_layers(model).items()}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("update", ["none", "refit", "least-squares", "sparsegpt"])
@pytest.mark.parametrize("order", ["dense", "sequential"])
def test_a_layer_that_reads_nothing_goes_in_order(
    sequences: Tensor, pattern: str, update: str, order: str
) -> None:
    before, after = pruned(sequences, UP, order, pattern=pattern, update=update)
    mask = after[DOWN] == 0
    assert torch.equal(mask, in_order(before[DOWN] == 0, int(mask.sum()), pattern))
    assert torch.equal(after[DOWN][~mask], before[DOWN][~mask])
    if pattern == "model":  # before the weights of all others
        assert int(mask.sum()) == math.ceil(0.99 * mask.numel())
    assert not torch.equal(after[GATE], before[GATE])


@pytest.mark.parametrize("update", ["sparsegpt-blocks", "surgeon", "independent", "admm"])
@pytest.mark.parametrize("pattern", ["row", "2:4"])
def test_every_update_leaves_it(sequences: Tensor, pattern: str, update: str) -> None:
    before, after = pruned(sequences, UP, "true-sequential", pattern=pattern, update=update)
    mask = after[DOWN] == 0
    assert torch.equal(mask, in_order(before[DOWN] == 0, int(mask.sum()), pattern))
    assert torch.equal(after[DOWN][~mask], before[DOWN][~mask])


@pytest.mark.parametrize("metric", ["surgeon", "kron-obd", "sparsegpt", "mul(abs(W), Y)"])
def test_a_metric_of_any_statistics_goes_on(sequences: Tensor, metric: str) -> None:
    before, after = pruned(sequences, UP, metric=metric, pattern="layer")
    mask = after[DOWN] == 0
    assert torch.equal(mask, in_order(before[DOWN] == 0, int(mask.sum()), "layer"))


def test_a_metric_of_weights_alone_has_its_say(sequences: Tensor) -> None:
    before, after = pruned(sequences, UP, metric="magnitude", update="least-squares")
    left = after[DOWN] != 0
    ranks = before[DOWN].abs().argsort(1, descending=True).argsort(1)
    assert torch.equal(left, ranks < after[DOWN].shape[1] // 2)
    assert torch.equal(after[DOWN][left], before[DOWN][left])


@pytest.mark.parametrize("order", ["dense", "sequential"])
def test_a_layer_that_moves_nothing_goes_in_order(sequences: Tensor, order: str) -> None:
    """What the gate writes is multiplied by the zeros of up: no loss has a gradient at it."""
    before, after = pruned(sequences, UP, order, metric="surgeon", pattern="model", update="refit")
    mask = after[GATE] == 0
    assert int(mask.sum()) == math.ceil(0.99 * mask.numel())
    assert torch.equal(mask, in_order(before[GATE] == 0, int(mask.sum()), "model"))
    assert torch.equal(after[GATE][~mask], before[GATE][~mask])


def test_the_layers_of_other_families_too(sequences: Tensor) -> None:
    into, out = (f"transformer.h.1.mlp.{name}" for name in ("c_fc", "c_proj"))
    before, after = pruned(sequences, into, family="gpt2", pattern="layer", update="least-squares")
    mask = after[out] == 0
    assert torch.equal(mask, in_order(before[out] == 0, int(mask.sum()), "layer"))
    assert torch.equal(after[out][~mask], before[out][~mask])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("order", ["dense", "sequential"])
def test_a_layer_that_a_shot_itself_cuts_off(sequences: Tensor, pattern: str, order: str) -> None:
    """The highest scores go first, and those are all that up has, in a quarter of its columns."""
    model = tiny("llama")
    up = linear_layers(model)[UP]
    up.write(torch.where(torch.arange(up.in_features) % 4 == 1, 100 * up.weight.sign(), 0))
    metric = "neg(mul(abs(W), X))"
    recipe = Recipe(metric=metric, pattern=pattern, sparsity=0.5, shots=4)
    report = prune_model(model, recipe, sequences, order=order)
    assert not up.weight.any()
    assert [shot.zeros for shot in report.shots] == sorted(shot.zeros for shot in report.shots)
    down = linear_layers(model)[DOWN].weight
    if pattern == "2:4":
        assert ((down == 0).view(-1, 4).sum(1) == 2).all()
    elif pattern == "row":
        assert ((down == 0).sum(1) == down.shape[1] // 2).all()


@pytest.mark.parametrize("allocation", ["owl", "dsa", "alphapruning", "snip", "global", "besa"])
def test_allocations_go_on(sequences: Tensor, allocation: str) -> None:
    before, after = pruned(sequences, UP, pattern="layer", allocation=allocation, unit="layer")
    mask = after[DOWN] == 0
    assert torch.equal(mask, in_order(before[DOWN] == 0, int(mask.sum()), "layer"))


def test_the_first_shot_refuses_a_layer_that_reads_nothing(sequences: Tensor) -> None:
    model = tiny("llama")
    up = linear_layers(model)[UP]
    up.write(torch.zeros_like(up.weight))
    with pytest.raises(GppruneError, match=f"no token reached '{DOWN}', so its X"):
        prune_model(model, Recipe(metric="wanda", sparsity=0.5, shots=2), sequences)


def test_what_was_never_called_is_measured_as_zeros_where_that_is_asked_for() -> None:
    mamba, tokens = tiny("mamba"), torch.arange(40).view(2, 20)
    name = "backbone.layers.0.mixer.dt_proj"
    found = calibrate(mamba, tokens, ["X", "Y", "A", "aaT", "Gk", "ggT", "F"], cut_off=True)
    layer = linear_layers(mamba)[name]
    shapes = {statistic: list(value.shape) for statistic, value in found[name].items()}
    out, inputs = layer.weight.shape
    assert shapes == {
        **{"X": [inputs], "A": [inputs], "aaT": [inputs, inputs]},
        **{"Y": [out], "Gk": [out], "ggT": [out, out], "F": [out, inputs]},
    }
    assert not any(value.any() for value in found[name].values())
    plain = calibrate(tiny("llama"), tokens, ["X", "ggT"])
    lenient = calibrate(tiny("llama"), tokens, ["X", "ggT"], cut_off=True)
    for name, statistics in plain.items():
        for statistic, value in statistics.items():
            assert torch.equal(value, lenient[name][statistic])
