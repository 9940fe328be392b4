"""Whole MLP channels and heads pruned: which go, what makes up for them, and what is left."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shaken_models import KINDS, logits, shaken
from torch import Tensor, nn

from gpprune.errors import GppruneError, UsageError
from gpprune.prune import (
    Recipe,
    calibrate,
    couplings,
    free_units,
    linear_layers,
    parse_pattern,
    prune_model,
    shrink,
)

SURGEON = "div(Gx, Ai)"  # of a column, but for a constant


def text() -> Tensor:
    return torch.randint(1, 64, (4, 24), generator=torch.Generator().manual_seed(0))


def gone(model: nn.Module, kind: str) -> list[list[int]]:
    """Of each axis of a kind the units that nothing reads."""
    return [
        free_units(model, axis).nonzero().flatten().tolist()
        for axis in couplings(model).offered
        if axis.kind == kind
    ]


@settings(max_examples=40)  # some of 0.3 s each
@given(
    st.sampled_from(KINDS),
    st.sampled_from([2, 4]),
    st.sampled_from(["mlp", "heads", "mlp,heads"]),
    st.floats(0, 0.25),
    st.sampled_from(["magnitude", "wanda", SURGEON]),
    st.sampled_from(["none", "least-squares"]),
)
def test_units_go_whole_and_as_many_as_fit(
    kind: str, keys: int, pattern: str, sparsity: float, metric: str, update: str
) -> None:
    model = shaken(kind, keys)
    layers = linear_layers(model)
    total = sum(layer.weight.numel() for layer in layers.values())
    axes = {
        axis.name: axis
        for axis in couplings(model).offered
        if axis.kind in [{"mlp": "hidden"}.get(name, name) for name in pattern.split(",")]
    }
    heads = 32 * 8 * 2 * (1 if keys == 4 or kind in ("opt", "gpt2") else 2)
    heads += 32 * 8 * 2  # keys and values
    fed = 1 if kind in ("opt", "gpt2") else 2
    sizes = {"hidden": 32 * (1 + fed), "heads": heads}
    recipe = Recipe(metric=metric, sparsity=sparsity, pattern=pattern, update=update)
    report = prune_model(model, recipe, text(), order="dense")
    target = round(sparsity * total)
    assert target - max(sizes[axis.kind] for axis in axes.values()) < report.zeros <= target
    counted = 0
    for axis in axes.values():
        free = free_units(model, axis)
        counted += int(free.sum()) * sizes[axis.kind]
        assert not free.all()
        for place in axis.places[1:]:  # what fed it is zero, and nothing else
            name = place.parameter.removesuffix(".weight")
            if name in layers and place.parameter.endswith(".weight"):
                rows = layers[name].weight.eq(0).all(1)
                assert torch.equal(rows[place.index].all(1), free)
    assert counted == report.zeros


def test_the_cheapest_a_weight_go() -> None:
    """By LLM Surgeon's cost of a column, in float64 from what was measured."""
    model, tokens = shaken("llama", 2), text()
    found = calibrate(model, tokens, ["Gx", "Ai"])
    costs: list[tuple[float, int, int, int]] = []
    axes = [axis for axis in couplings(model).offered if axis.kind in ("hidden", "heads")]
    for at, axis in enumerate(axes):
        held = found[axis.name]
        columns = held["Gx"].double().numpy() / held["Ai"].double().numpy()
        size = 96 if axis.kind == "hidden" else 32 * 8 * (2 + 2 + 1 + 1)
        for unit, members in enumerate(axis.places[0].index.numpy()):
            costs.append((float(columns[members].sum()) / size, size, at, unit))
    total = sum(layer.weight.numel() for layer in linear_layers(model).values())
    left, wanted = round(0.25 * total), [list[int]() for _ in axes]
    for _, size, at, unit in sorted(costs):
        if size <= left and len(wanted[at]) < axes[at].units - 1:
            wanted[at].append(unit)
            left -= size
    recipe = Recipe(metric=SURGEON, sparsity=0.25, pattern="mlp,heads")
    prune_model(model, recipe, tokens, order="dense")
    assert gone(model, "heads") == [sorted(own) for own in wanted[:2]]
    assert gone(model, "hidden") == [sorted(own) for own in wanted[2:]]


def test_what_stays_is_the_least_squares_fit() -> None:
    """W_K + W_R A_RK (A_KK)^-1, in float64; nothing is made up for that only fed what went."""
    model, dense, tokens = shaken("llama", 2), shaken("llama", 2), text()
    gram = calibrate(model, tokens, ["aaT"])
    recipe = Recipe(metric="wanda", sparsity=0.2, pattern="mlp", update="least-squares(400)")
    prune_model(model, recipe, tokens, order="dense")
    before = linear_layers(dense)
    for name, layer in linear_layers(model).items():
        weight, own = before[name].weight.double().numpy(), layer.weight.double().numpy()
        stays = (own != 0).any(0)
        if not name.endswith("down_proj"):
            rows = (own != 0).any(1)
            assert np.array_equal(own[rows], weight[rows])
            continue
        a = gram[name]["aaT"].double().numpy()
        a = a + 0.01 * np.diag(a).mean() * np.eye(len(a))
        moved = (
            weight[:, ~stays] @ a[np.ix_(~stays, stays)] @ np.linalg.inv(a[np.ix_(stays, stays)])
        )
        fitted = weight[:, stays] + moved
        assert np.abs(own[:, stays] - fitted).max() < 1e-3 * np.abs(fitted).max()
        assert np.abs(weight[:, stays] - fitted).max() > 1e-2 * np.abs(fitted).max()


@pytest.mark.parametrize("order", ["sequential", "true-sequential", "corrected"])
@pytest.mark.parametrize("update", ["refit", "kron-admm", "sparsegpt"])
def test_every_order_and_update_takes_whole_units(order: str, update: str) -> None:
    model = shaken("qwen2", 2)
    recipe = Recipe(metric=SURGEON, sparsity=0.2, pattern="mlp,heads", update=update)
    prune_model(model, recipe, text(), order=order)
    counts = [len(own) for kind in ("hidden", "heads") for own in gone(model, kind)]
    before = logits(model)
    found = shrink(model)
    assert [axis.removed for axis in found.axes if axis.kind == "hidden"] == counts[:2]
    assert [axis.removed for axis in found.axes if axis.kind == "heads"] == counts[2:]
    assert sum(counts) > 0
    assert float((logits(model) - before).norm() / before.norm()) < 1e-5


def test_units_only_grow_over_shots(tmp_path: Path) -> None:
    recipe = Recipe(metric=SURGEON, sparsity=0.3, pattern="mlp", update="refit", shots=3)
    model, seen = shaken("llama", 2), list[list[list[int]]]()

    def look(label: str, done: int, total: int) -> None:
        if label == "shots":
            seen.append(gone(model, "hidden"))

    report = prune_model(model, recipe, text(), keep=tmp_path / "shots", progress=look)
    assert [shot.sparsity for shot in report.shots] == pytest.approx([0.1, 0.2, 0.3], abs=0.01)
    assert len(seen) == 4
    for before, after in pairwise(seen):
        assert all(set(one) <= set(more) for one, more in zip(before, after, strict=True))
    resumed = shaken("llama", 2)
    prune_model(resumed, recipe, text(), keep=tmp_path / "shots")
    assert gone(resumed, "hidden") == seen[-1]


def test_a_cap_holds_each_axis_back() -> None:
    free = Recipe(metric="wanda", sparsity=0.15, pattern="mlp")
    capped = free.model_copy(update={"cap": 0.3})
    models = [shaken("llama"), shaken("llama")]
    for model, recipe in zip(models, (free, capped), strict=True):
        prune_model(model, recipe, text())
    counts = [[len(own) for own in gone(model, "hidden")] for model in models]
    assert sum(counts[0]) == sum(counts[1])
    assert max(counts[0]) > max(counts[1])
    assert max(counts[1]) <= 0.3 * 48


def test_more_than_there_is_is_refused() -> None:
    model = shaken("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(GppruneError, match=r"can give [0-9,]+ of [0-9,]+ weights"):
        prune_model(model, Recipe(metric="magnitude", sparsity=0.6, pattern="heads"), text())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_cap_that_leaves_no_room_is_refused() -> None:
    """Rows and columns come short of 30 % of each layer, and so of 30 % of all."""
    recipe = Recipe(metric="magnitude", sparsity=0.3, pattern="free", cap=0.3)
    with pytest.raises(GppruneError, match="a greater cap"):
        prune_model(shaken("llama"), recipe, text())


def test_a_layer_alone_cannot_be_pruned_by_units() -> None:
    with pytest.raises(UsageError, match="lies in several layers"):
        parse_pattern("mlp").check_layer("this layer", (8, 8))
    with pytest.raises(UsageError, match="no room for the allocation"):
        Recipe(metric="wanda", sparsity=0.5, pattern="mlp", allocation="owl")
    with pytest.raises(UsageError, match="exchanges single weights"):
        Recipe(metric="wanda", sparsity=0.5, pattern="mlp", update="swaps")
    assert Recipe(metric="wanda", sparsity=0.5, pattern="heads,mlp,heads").shape.text == "mlp,heads"


def test_free_rows_and_columns_go_as_published() -> None:
    """LLM Surgeon's costs of rows and columns, sorted in float64; size r C + c R - r c."""
    model, tokens, dense = shaken("llama", 2), text(), shaken("llama", 2)
    found = calibrate(model, tokens, ["Gx", "Ai", "Ay", "Gi"])
    layers = linear_layers(dense)
    order: list[tuple[float, str, int, int]] = []
    for name in layers:
        held = {key: value.double().numpy() for key, value in found[name].items()}
        for dim, costs in ((1, held["Gx"] / held["Ai"]), (0, held["Ay"] / held["Gi"])):
            order += [(float(cost), name, dim, at) for at, cost in enumerate(costs)]
    total = sum(layer.weight.numel() for layer in layers.values())
    left = round(0.2 * total)
    masks = {name: torch.zeros(layer.weight.shape).bool() for name, layer in layers.items()}
    for _, name, dim, at in sorted(order):
        after = masks[name].clone()
        after.select(dim, at).fill_(True)
        more = int(after.sum()) - int(masks[name].sum())
        if more <= left and after.sum() <= 0.99 * after.numel():
            masks[name], left = after, left - more
    recipe = Recipe(metric=SURGEON, sparsity=0.2, pattern="free", update="refit")
    assert recipe.reads >= {"Gx", "Ai", "Ay", "Gi"}
    report = prune_model(model, recipe, tokens, order="dense")
    for name, layer in linear_layers(model).items():
        assert torch.equal(layer.weight == 0, masks[name]), name
    assert report.zeros == sum(int(mask.sum()) for mask in masks.values())
    assert any(bool(mask.all(1).any()) for mask in masks.values())


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("metric", ["magnitude", "mul(Gx, A)", "mul(sqr(W), mul(Gk, A))"])
def test_free_rows_and_columns_grow(metric: str, shots: int) -> None:
    recipe = Recipe(metric=metric, sparsity=0.3, pattern="free", update="surgeon", shots=shots)
    model = shaken("opt")
    report = prune_model(model, recipe, text())
    assert report.sparsity == pytest.approx(0.3, abs=0.01)
    for layer in linear_layers(model).values():
        zero = layer.weight == 0
        assert torch.equal(zero, zero.all(1)[:, None] | zero.all(0))


def test_a_metric_without_a_counterpart_for_rows_is_named() -> None:
    with pytest.raises(UsageError, match="reads X, which is of inputs or outputs alone"):
        Recipe(metric="wanda", sparsity=0.3, pattern="free")
    recipe = Recipe(metric="mul(colsum(abs(W)), div(Gx, Ai))", sparsity=0.3, pattern="free")
    assert recipe.counterpart is not None
    assert recipe.counterpart.text == "mul(rowsum(abs(W)), div(Ay, Gi))"
