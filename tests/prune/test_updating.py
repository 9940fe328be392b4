"""Recipes with weight updates on whole models: budgets, orders, and what the updates are worth."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tiny_families import tiny
from torch import Tensor

from gpprune.discover import Contender, compare, compare_recipes, prune_to
from gpprune.errors import UsageError
from gpprune.prune import (
    ORDERS,
    UPDATES,
    Choice,
    Damping,
    Recipe,
    Update,
    calibrate,
    linear_layers,
    prune_model,
)
from gpprune.prune.update.none import none


@pytest.fixture
def sequences() -> Tensor:
    return torch.randint(1, 64, (4, 32), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("update", [name for name in UPDATES if name != "none"])
@pytest.mark.parametrize(
    ("pattern", "sparsity", "allocation"),
    [("row", 0.29, "uniform"), ("layer", 0.5, "atp(0.3)"), ("2:4", None, "uniform")],
)
def test_every_update_meets_the_budget(
    sequences: Tensor,
    family: str,
    order: str,
    update: str,
    pattern: str,
    sparsity: float | None,
    allocation: str,
) -> None:
    recipe, plain = (
        Recipe.make(
            metric="wanda", pattern=pattern, sparsity=sparsity, allocation=allocation, update=name
        )
        for name in (update, "none")
    )
    found = prune_model(tiny(family), recipe, sequences, order=order)
    wanted = prune_model(tiny(family), plain, sequences)
    assert [layer.zeros for layer in found.layers] == [layer.zeros for layer in wanted.layers]
    assert found.zeros == wanted.zeros > 0


def test_sequential_updates_keep_the_outputs_better(sequences: Tensor) -> None:
    dense = tiny("llama")
    with torch.no_grad():
        wanted = dense(sequences).logits

        def error(update: str) -> float:
            model = tiny("llama")
            prune_model(model, Recipe(sparsity=0.5, update=update), sequences)
            return float((model(sequences).logits - wanted).norm())

        plain = error("none")
        assert all(error(name) < plain for name in UPDATES if name not in ("none", "independent"))


@pytest.mark.parametrize("place", [-1, -2])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2moe", "gemma3"])
def test_corrected_layers_bring_back_what_drifted(
    family: str, place: int, sequences: Tensor
) -> None:
    dense = tiny(family)
    recipe = Recipe(sparsity=0.5, update="least-squares")
    with torch.no_grad():
        wanted = dense(sequences, output_hidden_states=True).hidden_states[place]

        def error(order: str) -> float:
            model = tiny(family)
            prune_model(model, recipe, sequences, order=order)
            found = model(sequences, output_hidden_states=True).hidden_states[place]
            return float((found - wanted).norm())

        assert error("corrected") < error("true-sequential")


def test_a_corrected_order_takes_an_update(sequences: Tensor, tmp_path: Path) -> None:
    model = tiny("llama")
    with pytest.raises(UsageError, match=r"'corrected' makes up for.*name another update"):
        prune_model(model, Recipe(sparsity=0.5), sequences, order="corrected")
    same = zip(model.parameters(), tiny("llama").parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in same)
    with pytest.raises(UsageError, match="name another update"):
        prune_to(tmp_path / "out", Recipe(sparsity=0.5), model="no/model", order="corrected")
    with pytest.raises(UsageError, match="name another update"):
        compare(["wanda"], model="no/model", order="corrected")
    other = Contender("mine", Recipe(sparsity=0.5, order="true-sequential"))
    with pytest.raises(UsageError, match="'mine' is to be pruned in the order 'true-sequential'"):
        compare_recipes([other], model="no/model")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("pattern", ["row", "model"])
def test_statistics_that_are_there_are_not_measured_again(
    sequences: Tensor, order: str, pattern: str
) -> None:
    recipe = Recipe(metric="kron-obd", sparsity=0.5, pattern=pattern, update="refit", order=order)
    ours, theirs = tiny("llama"), tiny("llama")
    dense = calibrate(ours, sequences, recipe.reads)
    said: list[str] = []
    prune_model(ours, recipe, sequences, dense=dense, progress=lambda label, *_: said.append(label))
    assert "calibrating" not in said
    prune_model(theirs, recipe, sequences)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
    # what holds too little is of no use, and what nothing is read of need not be there
    magnitude = Recipe(metric="magnitude", sparsity=0.5)
    prune_model(tiny("llama"), magnitude, sequences, dense={})
    few = {
        name: {"X": held["A"]} for name, held in calibrate(tiny("llama"), sequences, ["A"]).items()
    }
    again = tiny("llama")
    prune_model(again, recipe, sequences, dense=few)
    for one, other in zip(again.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_more_was_measured_changes_no_prediction(sequences: Tensor) -> None:
    recipe = Recipe(metric="wanda", sparsity=0.5, shots=2, order="dense")
    dense = calibrate(tiny("llama"), sequences, ["X", "aaT", "ggT"])
    report = prune_model(tiny("llama"), recipe, sequences, dense=dense)
    assert [shot.predicted for shot in report.shots] == [None, None]


def test_a_layer_that_was_cut_off_is_not_corrected(sequences: Tensor) -> None:
    model = tiny("llama")
    layers = linear_layers(model)
    gate, down = (layers[f"model.layers.1.mlp.{name}_proj"] for name in ("gate", "down"))
    before: dict[str, Tensor] = {}

    def cut(label: str, done: int, total: int) -> None:
        if (label, done) == ("shots", 1):
            down.write(torch.zeros_like(down.weight))
            before["gate"] = gate.weight.clone()

    recipe = Recipe(metric="wanda", sparsity=0.5, update="refit", shots=2, order="corrected")
    prune_model(model, recipe, sequences, progress=cut)
    kept = gate.weight != 0
    assert kept.any()
    assert torch.equal(gate.weight[kept], before["gate"][kept])


def test_shots_are_corrected_too(sequences: Tensor) -> None:
    model = tiny("llama")
    recipe = Recipe(sparsity=0.6, update="refit", shots=3, pattern="layer")
    report = prune_model(model, recipe, sequences, order="corrected")
    assert [shot.zeros for shot in report.shots] == sorted(shot.zeros for shot in report.shots)
    assert report.zeros == report.shots[-1].zeros
    assert report.sparsity == pytest.approx(0.6, abs=0.01)


def test_later_shots_bring_back_what_the_dense_model_did(sequences: Tensor) -> None:
    model = tiny("llama")
    layer = linear_layers(model)["model.layers.1.mlp.down_proj"]
    half: dict[str, Tensor] = {}

    def halve(label: str, done: int, total: int) -> None:
        if (label, done) == ("shots", 1):
            half["weight"] = layer.weight / 2
            layer.write(half["weight"])

    recipe = Recipe(sparsity=0.1, update="least-squares", shots=2, order="corrected")
    prune_model(model, recipe, sequences, progress=halve)
    kept = layer.weight != 0
    assert float(layer.weight[kept].norm()) > 1.1 * float(half["weight"][kept].norm())


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_corrected_shots_go_on_towards_the_dense_model(
    family: str, sequences: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    recipe = Recipe(sparsity=0.6, update="least-squares", shots=3, order="corrected")
    broken, going_on, whole = (tiny(family) for _ in range(3))

    def stop(label: str, done: int, total: int) -> None:
        if label == "counting experts' tokens":
            return
        assert any(scratch.iterdir())  # the dense weights
        if (label, done) == ("shots", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_model(broken, recipe, sequences, keep=tmp_path / "kept", progress=stop)
    assert not any(scratch.iterdir())
    prune_model(going_on, recipe, sequences, keep=tmp_path / "kept")
    prune_model(whole, recipe, sequences)
    others = linear_layers(whole)
    for name, layer in linear_layers(going_on).items():
        assert torch.equal(layer.weight, others[name].weight)

    def unused(*_: object) -> None:
        assert not any(scratch.iterdir())

    prune_model(tiny(family), recipe, sequences, keep=tmp_path / "kept", progress=unused)


def test_a_damping_is_used(sequences: Tensor) -> None:
    weights = []
    for damping in (0.01, 100.0):
        model = tiny("llama")
        recipe = Recipe(sparsity=0.5, update="least-squares", damp_inputs=damping)
        prune_model(model, recipe, sequences, order="dense")
        weights.append(next(iter(linear_layers(model).values())).weight)
    before = next(iter(linear_layers(tiny("llama")).values())).weight
    kept = weights[1] != 0
    far, near = (float((w - before)[kept].norm()) for w in weights)
    assert near < 0.1 * far


def test_a_corrected_order_measures_the_pruned_states_alone(sequences: Tensor) -> None:
    seen: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Update:
        def choose(
            weight: Tensor, choice: Choice, statistics: Mapping[str, Tensor], damping: Damping
        ) -> tuple[Tensor, Tensor]:
            seen.setdefault(name, []).append(statistics["aaT"])
            return weight, choice.mask(weight)

        return Update(name, "", none, frozenset({"aaT"}), choose, keeps=True)

    orders = ("true-sequential", "corrected")
    with UPDATES.including(*map(watch, orders)):
        for order in orders:
            recipe = Recipe(sparsity=0.5, metric="magnitude", update=order)
            prune_model(tiny("llama"), recipe, sequences, order=order)
    assert len(seen["corrected"]) == 14
    assert all(map(torch.equal, seen["corrected"], seen["true-sequential"]))
