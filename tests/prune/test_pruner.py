from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gpprune.compile import kernel
from gpprune.errors import GppruneError, UsageError
from gpprune.primitives import metric
from gpprune.prune import (
    PruneReport,
    Recipe,
    blocks,
    calibrate,
    layer_scores,
    linear_layers,
    load_model,
    prune_mask,
    prune_model,
    pruned_count,
)

DIRECTORIES = ["tiny_model_dir", "tiny_gpt2_dir"]
WANDA = Recipe(metric="wanda", sparsity=0.5)


@pytest.fixture(params=DIRECTORIES)
def folder(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def sequences(tiny_tokens: Tensor) -> Tensor:
    return tiny_tokens[: 4 * 48].view(4, 48)


def zeros_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: layer.weight == 0 for name, layer in linear_layers(model).items()}


def naive_sequential(model: nn.Module, recipe: Recipe, sequences: Tensor) -> None:
    """Wanda's order by its meaning: measure the whole, partly pruned model before each block."""
    score = kernel(recipe.formula, "reference")
    dense = calibrate(model, sequences, ["G"])
    for index in range(len(blocks(model))):
        statistics = calibrate(model, sequences, score.terminals - {"W", "G"})
        for name, layer in linear_layers(model).items():
            if layer.block != index:
                continue
            scores = score(W=layer.weight, **statistics[name] | dense[name])
            count = int(recipe.sparsity * layer.in_features)
            order = torch.sort(scores, dim=1, stable=True).indices[:, :count]
            layer.weight.scatter_(1, order, 0.0)


@pytest.mark.parametrize(
    "metric",
    ["wanda", "mul(abs(W), add(mul(X, Y), G))", "sparsegpt", "div(mul(abs(W), sqrt(G)), D)"],
)
def test_sequential_is_block_by_block_on_the_pruned_model(
    folder: str, sequences: Tensor, metric: str
) -> None:
    recipe = Recipe(metric=metric, sparsity=0.5)
    ours, naive = load_model(folder).model, load_model(folder).model
    naive_sequential(naive, recipe, sequences)
    prune_model(ours, recipe, sequences)
    expected = zeros_of(naive)
    total = sum(mask.numel() for mask in expected.values())
    differing = sum(int((mask ^ expected[name]).sum()) for name, mask in zeros_of(ours).items())
    assert differing <= total / 1000  # rounding may exchange near-equal scores
    dense = load_model(folder).model
    prune_model(dense, recipe, sequences, order="dense")
    apart = sum(int((mask ^ expected[name]).sum()) for name, mask in zeros_of(dense).items())
    assert apart > 2 * differing  # the order matters, so the comparison above tells


@pytest.mark.parametrize("order", ["sequential", "dense"])
@pytest.mark.parametrize(
    ("pattern", "sparsity"), [("row", 0.5), ("row", 0.29), ("layer", 0.37), ("2:4", None)]
)
def test_the_target_is_met_exactly(
    folder: str, sequences: Tensor, order: str, pattern: str, sparsity: float | None
) -> None:
    model = load_model(folder).model
    outside = {k: v.clone() for k, v in model.state_dict().items() if k not in _weights(model)}
    recipe = Recipe.make(metric="wanda", pattern=pattern, sparsity=sparsity)
    report = prune_model(model, recipe, sequences, order=order)
    for name, zeros in zeros_of(model).items():
        if pattern == "layer":
            assert int(zeros.sum()) == pruned_count(recipe.sparsity, zeros.numel())
        else:
            count = pruned_count(recipe.sparsity, zeros.shape[1])
            assert zeros.sum(1).eq(count).all(), name
        if pattern == "2:4":
            assert zeros.reshape(-1, 4).sum(1).eq(2).all()
    assert report.zeros == sum(int(zeros.sum()) for zeros in zeros_of(model).values())
    assert [layer.name for layer in report.layers] == list(linear_layers(model))
    assert all(torch.equal(value, model.state_dict()[k]) for k, value in outside.items())


def _weights(model: nn.Module) -> set[str]:
    return {f"{name}.weight" for name in linear_layers(model)}


def test_weights_that_stay_are_untouched(folder: str, sequences: Tensor) -> None:
    before, after = load_model(folder).model, load_model(folder).model
    prune_model(after, WANDA, sequences)
    kept = linear_layers(before)
    for name, layer in linear_layers(after).items():
        assert torch.equal(layer.weight, kept[name].weight.masked_fill(layer.weight == 0, 0))


def test_pruning_nothing_changes_nothing(folder: str, sequences: Tensor) -> None:
    model = load_model(folder).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prune_model(model, Recipe(metric="wanda", sparsity=0.0), sequences)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_model_keeps_its_mode_hooks_and_flags(folder: str, sequences: Tensor) -> None:
    model = load_model(folder).model.train()
    model.config.use_cache = True
    prune_model(model, Recipe(metric="pruner-zero", sparsity=0.5), sequences)
    prune_model(model, WANDA, sequences)
    assert model.training and model.config.use_cache is True
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert "forward" not in module.__dict__


def test_a_good_metric_beats_the_opposite_of_it(folder: str, tiny_tokens: Tensor) -> None:
    sequences = tiny_tokens[: 8 * 64].view(8, 64)

    def loss(metric: str) -> float:
        model = load_model(folder).model
        prune_model(model, Recipe(metric=metric, sparsity=0.5), sequences)
        with torch.no_grad():
            logits = model(sequences).logits[:, :-1].flatten(0, 1)
        return nn.functional.cross_entropy(logits, sequences[:, 1:].flatten()).item()

    assert loss("wanda") < loss("neg(mul(abs(W), X))")


def test_pruning_twice_gives_the_same_model(folder: str, sequences: Tensor) -> None:
    first, second = load_model(folder).model, load_model(folder).model
    for model in (first, second):
        prune_model(model, Recipe(metric="ria", sparsity=0.6, pattern="layer"), sequences)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_a_report_is_plain_values(folder: str, sequences: Tensor) -> None:
    report = prune_model(load_model(folder).model, WANDA, sequences)
    assert isinstance(report, PruneReport)
    data = report.as_dict()
    assert data["zeros"] == report.zeros and data["sparsity"] == report.sparsity == 0.5
    assert data["layers"][0]["sparsity"] == 0.5


def test_a_metric_without_x_or_y_needs_no_pass(folder: str, sequences: Tensor) -> None:
    labels: list[str] = []
    model = load_model(folder).model
    recipe = Recipe(metric="magnitude", sparsity=0.5)
    prune_model(model, recipe, sequences, progress=lambda label, *_: labels.append(label))
    assert set(labels) == {"pruning"}


@pytest.mark.parametrize("order", ["sequential", "dense"])
def test_nan_statistics_name_the_layer(tiny_model_dir: Path, sequences: Tensor, order: str) -> None:
    model = load_model(str(tiny_model_dir)).model
    model.model.layers[1].input_layernorm.weight.data[3] = float("nan")
    with pytest.raises(GppruneError, match=r"model\.layers\.1\.self_attn\.q_proj.*NaN"):
        prune_model(model, WANDA, sequences, order=order)


def test_nothing_is_pruned_when_the_pattern_does_not_fit(
    tiny_gpt2_dir: Path, sequences: Tensor
) -> None:
    model = load_model(str(tiny_gpt2_dir)).model
    with pytest.raises(UsageError, match=r"transformer\.h\.0.*not divisible by 5"):
        prune_model(model, Recipe.make(pattern="2:5"), sequences)
    assert not any(mask.any() for mask in zeros_of(model).values())


def test_an_unknown_order_and_empty_tokens_are_named(folder: str, sequences: Tensor) -> None:
    model = load_model(folder).model
    with pytest.raises(UsageError, match="'backwards'"):
        prune_model(model, WANDA, sequences, order="backwards")
    with pytest.raises(UsageError, match="calibrat"):
        prune_model(model, WANDA, sequences[:0])


def test_scores_and_masks_of_one_layer(folder: str, sequences: Tensor) -> None:
    model = load_model(folder).model
    layer = next(iter(linear_layers(model).values()))
    statistics = calibrate(model, sequences, ["X"])[layer.name]
    score = kernel(WANDA.formula)
    buffer = torch.empty(layer.weight.shape)
    scores = layer_scores(score, layer.weight, statistics, buffer)
    assert scores is buffer
    assert torch.allclose(scores, layer.weight.abs() * statistics["X"])
    mask = prune_mask(scores, 0.5, "row")
    assert mask.sum(1).eq(layer.in_features // 2).all()
    with pytest.raises(UsageError, match="reads G"):
        layer_scores(kernel(metric("gblm")), layer.weight, statistics)


class _Mixing(nn.Module):
    """A decoder whose hidden states are scaled between its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        state = self.embed(tokens)
        for block in self.blocks:
            state = block(state) * 0.5
        return state


class _Skipping(_Mixing):
    """A decoder whose blocks read the first block's output beside their own states."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Reader() for _ in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        state = early = self.embed(tokens)
        for block in self.blocks:
            state = block(state, early)
            early = state * 0.5
        return state


class _Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, state: Tensor, early: Tensor) -> Tensor:
        return self.linear(state) + early


@pytest.mark.parametrize("kind", [_Mixing, _Skipping])
def test_blocks_that_are_no_chain_are_refused_untouched(kind: type[nn.Module]) -> None:
    model = kind()
    tokens = torch.arange(12).view(2, 6)
    with pytest.raises(GppruneError, match="order='dense'"):
        prune_model(model, WANDA, tokens)
    assert not any(mask.any() for mask in zeros_of(model).values())
    assert prune_model(model, WANDA, tokens, order="dense").sparsity == 0.5


def naive_true_sequential(model: nn.Module, recipe: Recipe, sequences: Tensor) -> None:
    """By its meaning: measure the whole, partly pruned model before each group of layers."""
    score = kernel(recipe.formula, "reference")
    groups = ["q_proj k_proj v_proj", "o_proj", "gate_proj up_proj", "down_proj"]
    for index in range(len(blocks(model))):
        for group in groups:
            statistics = calibrate(model, sequences, score.terminals - {"W"})
            for name, layer in linear_layers(model).items():
                if layer.block == index and name.rpartition(".")[2] in group.split():
                    scores = score(W=layer.weight, **statistics[name])
                    count = int(recipe.sparsity * layer.in_features)
                    order = torch.sort(scores, dim=1, stable=True).indices[:, :count]
                    layer.weight.scatter_(1, order, 0.0)


def test_true_sequential_is_group_by_group_on_the_pruned_model(
    tiny_model_dir: Path, sequences: Tensor
) -> None:
    recipe = Recipe(metric="wanda", sparsity=0.5)
    naive = load_model(str(tiny_model_dir)).model
    naive_true_sequential(naive, recipe, sequences)
    expected = zeros_of(naive)
    total = sum(mask.numel() for mask in expected.values())
    differing = {}
    for order in ("true-sequential", "sequential"):
        model = load_model(str(tiny_model_dir)).model
        prune_model(model, recipe, sequences, order=order)
        found = zeros_of(model)
        differing[order] = sum(int((found[name] ^ expected[name]).sum()) for name in expected)
    assert differing["true-sequential"] <= total / 1000  # rounding may exchange near-equal scores
    assert differing["sequential"] > 2 * differing["true-sequential"]
