from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gpprune.errors import GppruneError, Unfit, UsageError
from gpprune.evals import (
    MetricMasking,
    ModelFitness,
    calibration_samples,
    window_losses,
    windows,
)
from gpprune.primitives import METRIC, parse, published
from gpprune.prune import Recipe, calibrate, linear_layers, prune_model


def fitness_of(model, statistics, judged, *, dtype=None, **how):
    """Judges metrics by the loss of the pruned model's next tokens."""
    return ModelFitness(MetricMasking(model, statistics, **how), judged, dtype=dtype)


@pytest.fixture(scope="module", params=["tiny_model_dir", "tiny_gpt2_dir"])
def model(request: pytest.FixtureRequest):
    folder: Path = request.getfixturevalue(request.param)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def samples(tiny_tokens):
    return calibration_samples(tiny_tokens, 4, 64, seed=0)


@pytest.fixture(scope="module")
def statistics(model, samples):
    return calibrate(model, samples, ["X", "Y", "G", "D"])


@pytest.fixture(scope="module")
def judged(tiny_tokens):
    return windows(tiny_tokens, 4, 64)


@pytest.fixture
def fitness(model, statistics, judged):
    return fitness_of(model, statistics, judged, sparsity=0.5)


def formula(text: str):
    return parse(text, METRIC)


@pytest.mark.parametrize("pattern", ["row", "layer", "2:4"])
@pytest.mark.parametrize("name", ["magnitude", "wanda", "pruner-zero", "sparsegpt"])
def test_losses_are_those_of_the_pruned_model(
    model, statistics, samples, judged, name: str, pattern: str
):
    fitness = fitness_of(model, statistics, judged, sparsity=0.5, pattern=pattern)
    trial = fitness.prepare(published[name].canonical(None))
    pruned = copy.deepcopy(model)
    recipe = Recipe(metric=name, sparsity=0.5, pattern=pattern)
    prune_model(pruned, recipe, samples, order="dense")
    wanted = window_losses(pruned, judged)
    torch.testing.assert_close(
        torch.tensor(trial(0, 4), dtype=torch.float64), wanted, rtol=1e-6, atol=1e-6
    )


def test_cases_are_windows_and_are_judged_one_by_one(fitness):
    assert fitness.cases == 4
    trial = fitness.prepare(published["wanda"])
    whole = trial(0, 4)
    assert trial(0, 2) + trial(2, 4) == whole
    assert trial(1, 1) == []


def test_the_given_model_is_only_read(model, statistics, judged):
    before = copy.deepcopy(model.state_dict())
    fitness = fitness_of(model, statistics, judged, sparsity=0.9, dtype=torch.bfloat16)
    fitness.prepare(published["magnitude"])(0, 4)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_each_formula_starts_from_dense_weights(fitness):
    (first,) = fitness.evaluate(published["wanda"], fitness.windows)
    fitness.evaluate(published["magnitude"], fitness.windows)
    (again,) = fitness.evaluate(published["wanda"], fitness.windows)
    assert torch.equal(first.losses, again.losses)


def test_restore_gives_the_dense_model(fitness, model, judged):
    fitness.prepare(published["magnitude"])
    fitness.restore()
    for name, layer in linear_layers(fitness.model).items():
        assert torch.equal(layer.weight, linear_layers(model)[name].weight)
    torch.testing.assert_close(
        torch.tensor(fitness.dense().losses.tolist(), dtype=torch.float64),
        window_losses(model, judged),
    )


def test_a_stale_trial_is_an_error(fitness):
    trial = fitness.prepare(published["wanda"])
    fitness.prepare(published["magnitude"])
    with pytest.raises(GppruneError, match="prepare it again"):
        trial(0, 1)
    trial = fitness.prepare(published["wanda"])
    fitness.restore()
    with pytest.raises(GppruneError, match="prepare it again"):
        trial(0, 1)


def test_a_failed_prepare_ends_the_trial_before_it(fitness):
    trial = fitness.prepare(published["wanda"])
    with pytest.raises(Unfit):
        fitness.prepare(formula("sub(W, W)"))
    with pytest.raises(GppruneError, match="prepare it again"):
        trial(0, 1)


def test_half_precision_copy_is_the_model_loaded_in_half_precision(
    tiny_model_dir, model, statistics, judged
):
    fitness = fitness_of(model, statistics, judged, sparsity=0.5, dtype=torch.bfloat16)
    kept = {name: buffer.dtype for name, buffer in model.named_buffers()}
    assert {name: buffer.dtype for name, buffer in fitness.model.named_buffers()} == kept
    assert {parameter.dtype for parameter in fitness.model.parameters()} == {torch.bfloat16}
    folder = model.name_or_path
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    assert fitness.dense().losses.tolist() == window_losses(loaded, judged).tolist()


def test_tied_weights_stay_tied(fitness, model):
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    inner = fitness.model
    assert (inner.get_output_embeddings().weight is inner.get_input_embeddings().weight) == tied


def test_masks_come_from_the_weights_as_given_and_not_as_judged(model, statistics, judged):
    """Rounded to bfloat16, weights tie; the masks must not."""
    exact = fitness_of(model, statistics, judged, sparsity=0.5)
    rounded = fitness_of(model, statistics, judged, sparsity=0.5, dtype=torch.bfloat16)
    exact.prepare(published["wanda"])
    rounded.prepare(published["wanda"])
    for name, layer in linear_layers(exact.model).items():
        zero = linear_layers(rounded.model)[name].weight == 0
        assert torch.equal(layer.weight == 0, zero)


def test_a_constant_formula_is_unfit(fitness):
    with pytest.raises(Unfit, match="no terminal"):
        fitness.prepare(formula("colsum(add(1, 2))"))


def test_constant_scores_are_unfit_and_name_the_layer(fitness, model):
    first = next(iter(linear_layers(model)))
    with pytest.raises(Unfit, match=f"all scores of {first} are 0"):
        fitness.prepare(formula("sub(W, W)"))


def test_nan_scores_are_unfit_and_name_the_layer(model, statistics, judged):
    second = list(linear_layers(model))[1]
    holed = dict(statistics)
    holed[second] = {**statistics[second], "X": statistics[second]["X"] * math.nan}
    fitness = fitness_of(model, holed, judged, sparsity=0.5)
    with pytest.raises(Unfit, match=f"NaN among the scores of {second}"):
        fitness.prepare(published["wanda"])


def test_a_statistic_that_was_not_measured_is_a_usage_error(model, samples, judged):
    without = calibrate(model, samples, ["X", "Y"])
    fitness = fitness_of(model, without, judged, sparsity=0.5)
    fitness.prepare(published["wanda"])
    with pytest.raises(UsageError, match="G"):
        fitness.prepare(published["pruner-zero"])
    with pytest.raises(UsageError, match=r"reads D, which was not measured.*naming D"):
        fitness.prepare(published["sparsegpt"])


@pytest.mark.parametrize(
    "wrong", [{"sparsity": 1.0}, {"sparsity": None}, {"sparsity": 0.5, "pattern": "star"}]
)
def test_impossible_targets_are_usage_errors(model, statistics, judged, wrong: dict):
    with pytest.raises(UsageError):
        fitness_of(model, statistics, judged, **wrong)


def test_a_pattern_that_does_not_fit_names_the_layer(model, statistics, judged):
    with pytest.raises(UsageError, match="does not fit"):
        fitness_of(model, statistics, judged, sparsity=None, pattern="3:7")


def test_no_windows_is_a_usage_error(model, statistics):
    with pytest.raises(UsageError, match="windows"):
        fitness_of(model, statistics, torch.zeros(0, 8, dtype=torch.int64), sparsity=0.5)
