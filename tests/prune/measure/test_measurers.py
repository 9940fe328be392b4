"""Measurers: statistics of one's own, what is shared, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from tiny_families import tiny
from torch import Tensor, nn

from gpprune.errors import GppruneError, UsageError
from gpprune.primitives import STATISTICS, Inputs, Outputs, Sign, Statistic
from gpprune.prune import (
    MEASURERS,
    UPDATES,
    Activations,
    Damping,
    LinearLayer,
    Measurer,
    Recipe,
    Update,
    calibrate,
    linear_layers,
    load_model,
    prune_model,
)
from gpprune.prune.measure.accumulator import Extent
from gpprune.prune.measure.gradients import SquaredGradients
from gpprune.prune.measure.hessians import InputGrams


@pytest.fixture
def model(tiny_model_dir: Path) -> nn.Module:
    return load_model(str(tiny_model_dir)).model


@pytest.fixture
def sequences(tiny_tokens: Tensor) -> Tensor:
    return tiny_tokens[: 3 * 40].view(3, 40)


def test_every_statistic_has_a_measurer() -> None:
    assert STATISTICS.keys() == MEASURERS.keys()
    assert all(measurer.costs for measurer in MEASURERS.values())


# A statistic of one's own


class Peaks(Activations):
    """Each input feature's greatest magnitude over all tokens."""

    def see(self, name: str, inputs: Tensor, outputs: Tensor) -> None:
        peak = inputs.abs().flatten(0, -2).amax(0)
        self.seen[name] = torch.maximum(peak, self.seen.get(name, peak))


PEAK = Statistic(
    "M", Inputs, "greatest input", Sign.NONNEGATIVE, probe=lambda layer: layer.inputs.sqrt()
)


@pytest.fixture
def peaks() -> Iterator[None]:
    with STATISTICS.including(PEAK), MEASURERS.including(Measurer("M", Peaks, "next to nothing")):
        yield


def inputs_of(model: nn.Module, sequences: Tensor, name: str) -> Tensor:
    """What a layer reads, ``[tokens, in]``."""
    seen: list[Tensor] = []
    module = model.get_submodule(name)
    handle = module.register_forward_hook(lambda m, args, output: seen.append(args[0].clone()))
    with torch.no_grad():
        for sequence in sequences:
            model(sequence[None])
    handle.remove()
    return torch.cat([x.flatten(0, -2) for x in seen])


@pytest.mark.usefixtures("peaks")
@pytest.mark.parametrize("order", ["sequential", "dense"])
def test_a_formula_reads_a_statistic_of_ones_own(
    model: nn.Module, sequences: Tensor, order: str
) -> None:
    name = "model.layers.0.mlp.down_proj"
    weight = linear_layers(model)[name].weight.clone()
    recipe = Recipe(metric="mul(abs(W), M)", sparsity=0.5)
    assert recipe.reads == {"M"}
    peak = calibrate(model, sequences, ["M"])[name]["M"]
    assert torch.equal(peak, inputs_of(model, sequences, name).abs().amax(0))
    prune_model(model, recipe, sequences, order=order)
    lost = (weight.abs() * peak).sort(dim=1, stable=True).indices[:, : weight.shape[1] // 2]
    wanted = torch.zeros(weight.shape, dtype=torch.bool).scatter_(1, lost, True)
    assert torch.equal(linear_layers(model)[name].weight == 0, wanted)


@pytest.mark.usefixtures("peaks")
@pytest.mark.parametrize("order", ["sequential", "dense"])
def test_one_of_ones_own_is_measured_block_by_block_or_not(
    model: nn.Module, sequences: Tensor, order: str
) -> None:
    """Of activations it is measured anew in each block, unless its entry says otherwise."""
    name = "model.layers.1.self_attn.q_proj"
    fixed = Measurer("M", Peaks, "", anew=False)
    masks = []
    for entry in (MEASURERS["M"], fixed):
        with _replaced(entry):
            pruned = _copy(model)
            prune_model(
                pruned, Recipe(metric="mul(abs(W), M)", sparsity=0.6), sequences, order=order
            )
            masks.append(linear_layers(pruned)[name].weight == 0)
    assert torch.equal(*masks) is (order == "dense")


def _copy(model: nn.Module) -> nn.Module:
    return load_model(model.name_or_path).model


class _replaced:
    """Another measurer of a statistic for a while."""

    def __init__(self, entry: Measurer) -> None:
        self._entry = entry

    def __enter__(self) -> None:
        self._before = MEASURERS.remove(self._entry.name)
        MEASURERS.add(self._entry)

    def __exit__(self, *_: object) -> None:
        MEASURERS.remove(self._entry.name)
        MEASURERS.add(self._before)


def unbroken(
    weight: Tensor, mask: Tensor, statistics: Mapping[str, Tensor], damping: Damping
) -> Tensor:
    """Keeps a reference to nothing but what it is given."""
    gram = statistics["Gram"]
    return weight * gram.diagonal()


def test_a_matrix_is_measured_for_an_update_alone(model: nn.Module, sequences: Tensor) -> None:
    """No formula reads it, and layers that read one tensor share it."""
    gram = Statistic("Gram", None, "inputs' products")
    measurer = Measurer("Gram", InputGrams, "", lambda held, layer, extent: held / extent.samples)
    update = Update("scaled", "", unbroken, frozenset({"Gram"}))
    with (
        STATISTICS.including(gram),
        MEASURERS.including(measurer),
        UPDATES.including(update),
    ):
        measured = calibrate(model, sequences, ["Gram", "D"])
        query, key = (measured[f"model.layers.0.self_attn.{n}_proj"] for n in "qk")
        assert query["Gram"] is key["Gram"]
        x = inputs_of(model, sequences, "model.layers.0.self_attn.q_proj").double()
        assert torch.allclose(query["Gram"].double(), x.t() @ x / 3, rtol=1e-4, atol=1e-4)
        assert query["Gram"].dtype == torch.float32
        weight = linear_layers(model)["model.layers.0.self_attn.q_proj"].weight.clone()
        recipe = Recipe(metric="abs(W)", sparsity=0.5, update="scaled")
        assert recipe.reads == {"Gram"}
        prune_model(model, recipe, sequences)
        found = linear_layers(model)["model.layers.0.self_attn.q_proj"].weight
        wanted = (weight * query["Gram"].diagonal()).masked_fill(found == 0, 0)
        assert torch.allclose(found, wanted, rtol=1e-4)
        with pytest.raises(UsageError):
            Recipe(metric="mul(abs(W), Gram)", sparsity=0.5)


def test_what_is_made_of_the_weight_too_is_each_layers_own(
    model: nn.Module, sequences: Tensor
) -> None:
    """Query and key read one tensor; the squared norms of their outputs, w' A w, are two."""
    cost = Statistic(
        "Q", Outputs, "w' A w", Sign.NONNEGATIVE, probe=lambda layer: layer.outputs.square()
    )

    def of(held: Tensor, layer: LinearLayer, extent: Extent) -> Tensor:
        weight = layer.weight.double()
        return ((weight @ held) * weight).sum(1) / extent.samples

    measurer = Measurer("Q", InputGrams, "", of, of_weight=True)
    with STATISTICS.including(cost), MEASURERS.including(measurer):
        for found in calibrate(model, sequences, ["Q", "D", "Y"]).values():
            # without biases, that is what an output neuron's norm is made of
            assert torch.allclose(found["Q"].sqrt(), found["Y"], rtol=1e-4, atol=1e-5)


def test_statistics_of_one_accumulator_share_it(model: nn.Module, sequences: Tensor) -> None:
    made = []

    class Counted(Peaks):
        def __init__(self, layers: Mapping[str, LinearLayer]) -> None:
            super().__init__(layers)
            made.append(len(layers))

    twice = Measurer("M2", Counted, "", lambda held, layer, extent: 2 * held)
    other = Statistic("M2", Inputs, "", Sign.NONNEGATIVE, probe=lambda layer: layer.inputs)
    with (
        STATISTICS.including(PEAK, other),
        MEASURERS.including(Measurer("M", Counted, ""), twice),
    ):
        for found in calibrate(model, sequences, ["M", "X", "M2"]).values():
            assert torch.equal(found["M2"], 2 * found["M"])
    assert made == [14]


# Only what is named


def test_without_names_nothing_runs(model: nn.Module, sequences: Tensor) -> None:
    model.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    assert calibrate(model, sequences, []) == {name: {} for name in linear_layers(model)}


def test_without_gradients_nothing_runs_back(model: nn.Module, sequences: Tensor) -> None:
    made: list[bool] = []
    model.lm_head.register_forward_hook(lambda *_: made.append(torch.is_grad_enabled()))
    calibrate(model, sequences, ["X", "Y", "D"])
    assert not made  # the head is not even run
    calibrate(model, sequences, ["G"])
    assert made == [True] * 3


@pytest.mark.parametrize("names", [["Z"], ["X", "Z"], ["W"]])
def test_an_unknown_statistic_is_named(
    model: nn.Module, sequences: Tensor, names: list[str]
) -> None:
    with pytest.raises(UsageError, match=f"no statistic '{names[-1]}': choose from X, Y, G, D"):
        calibrate(model, sequences, names)


def test_a_statistic_without_a_measurer_is_named(model: nn.Module, sequences: Tensor) -> None:
    with STATISTICS.including(PEAK):
        with pytest.raises(UsageError, match=r"'M' has no measurer.*MEASURERS"):
            calibrate(model, sequences, ["M"])
        with pytest.raises(UsageError, match="'M' has no measurer"):
            prune_model(model, Recipe(metric="mul(abs(W), M)", sparsity=0.5), sequences)
    assert not any((layer.weight == 0).any() for layer in linear_layers(model).values())


def test_a_backward_pass_is_not_promised_block_by_block() -> None:
    with pytest.raises(UsageError, match=r"'M' needs a backward pass.*anew=False"):
        Measurer("M", SquaredGradients, "")


@pytest.mark.parametrize(
    ("of", "says"),
    [
        (lambda held, layer, extent: held[:3], r"shape \[3\]: Inputs of that layer have \[64\]"),
        (lambda held, layer, extent: -held - 1, "NONNEGATIVE"),
    ],
)
def test_a_measurer_that_is_wrong_is_named(
    model: nn.Module, sequences: Tensor, of: object, says: str
) -> None:
    wrong = Measurer("M", Peaks, "", of)  # type: ignore[arg-type]
    with (
        STATISTICS.including(PEAK),
        MEASURERS.including(wrong),
        pytest.raises(UsageError, match=f"measurer of 'M'.*q_proj.*{says}"),
    ):
        calibrate(model, sequences, ["M"])


# What cannot be scored by


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["X", "Y", "G"])
@pytest.mark.parametrize("order", ["sequential", "dense"])
def test_numbers_that_are_none_are_the_models_fault(
    model: nn.Module, sequences: Tensor, value: float, name: str, order: str
) -> None:
    damaged = "model.layers.1.mlp.down_proj"
    model.get_submodule(damaged).register_forward_pre_hook(
        lambda module, args: (args[0] * value,), prepend=True
    )
    layer = r"model\.layers\.\d\." if name == "G" else damaged
    with pytest.raises(GppruneError, match=f"statistic {name} of '{layer}.*model is damaged") as e:
        calibrate(model, sequences, [name])
    assert "formula" not in str(e.value)
    # where `max` and `min` hide a NaN, too
    recipe = Recipe(metric=f"max(0.1, mul(abs(W), {name}))", sparsity=0.5)
    with pytest.raises(GppruneError, match=f"statistic {name} of '{layer}"):
        prune_model(model, recipe, sequences, order=order)


@pytest.mark.parametrize("order", ["sequential", "dense"])
@pytest.mark.parametrize("metric", ["wanda", "mul(abs(W), Y)", "sparsegpt", "gblm"])
def test_a_layer_that_is_never_called_is_refused_and_not_scored_on_zeros(
    order: str, metric: str
) -> None:
    mamba = tiny("mamba")
    before = {name: value.clone() for name, value in mamba.state_dict().items()}
    tokens = torch.arange(40).view(2, 20)
    with pytest.raises(GppruneError, match=r"no token reached 'backbone\.layers\.0\.mixer\.dt_p"):
        recipe = Recipe(metric=metric, sparsity=0.5, pattern="layer")
        prune_model(mamba, recipe, tokens, order=order)
    assert all(torch.equal(value, before[name]) for name, value in mamba.state_dict().items())


@pytest.mark.parametrize("metric", ["magnitude", "mul(abs(W), G)"])
def test_a_layer_that_is_never_called_is_pruned_without_activations(metric: str) -> None:
    mamba = tiny("mamba")
    report = prune_model(mamba, Recipe(metric=metric, sparsity=0.5), torch.arange(40).view(2, 20))
    assert report.zeros == report.coverage.size // 2  # some of A_log are zero anyway


def test_an_idle_layer_is_refused(model: nn.Module, sequences: Tensor) -> None:
    name = "model.layers.1.self_attn.k_proj"
    model.get_submodule(name).register_forward_pre_hook(
        lambda module, args: (torch.zeros_like(args[0]),)
    )
    for statistic in ("X", "D"):
        with pytest.raises(GppruneError, match=f"no token reached '{name}', so its {statistic}"):
            calibrate(model, sequences, [statistic])
    calibrate(model, sequences, ["G"])


def test_the_share_of_zeros_is_that_of_all_matrices_of_the_blocks() -> None:
    """Llama 4's experts are left alone: a fifth of the whole is most of the rest."""
    llama, tokens = tiny("llama4"), torch.arange(40).view(2, 20)
    with pytest.raises(UsageError, match=r"experts.*give less than 0\.31"):
        prune_model(llama, Recipe(metric="magnitude", sparsity=0.5), tokens)
    report = prune_model(llama, Recipe(metric="magnitude", sparsity=0.2), tokens)
    data = report.as_dict()
    assert data["sparsity"] > 0.6 and data["size"] == report.coverage.pruned_size
    assert data["blocks"]["zeros"] == data["zeros"] == report.block_zeros
    assert data["blocks"]["sparsity"] == report.zeros / report.coverage.size
    assert data["blocks"]["sparsity"] == pytest.approx(0.2, abs=1e-4)
    assert data["blocks"]["size"] == data["size"] + data["blocks"]["left_size"]
    roles = {left["role"]: left["reason"] for left in data["blocks"]["left"]}
    assert "3-D" in roles["feed_forward.experts.down_proj"]
