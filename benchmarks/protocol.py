"""Evolved recipes under the protocol of the published codes, on SmolLM2-135M.

    python -m benchmarks.protocol RECIPE.json [RECIPE.json ...]

The model is pruned decoder block by decoder block, each calibrated on the output of the pruned ones
before it, and judged in float32, on the very tokens that the published codes were given.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import load_file

from gpprune.cli.console import print_table, progress
from gpprune.evals import Judgement, window_losses
from gpprune.prune import Recipe, load_model, prune_model

TOKENS = Path(__file__).parent.parent / "tests" / "data" / "reference_protocol.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", type=Path, nargs="+")
    given = parser.parse_args()
    recipes = [Recipe.read(path) for path in given.recipes]
    tokens = load_file(TOKENS)
    rows = []
    for path, recipe in zip(given.recipes, recipes, strict=True):
        model = load_model("smollm2").model
        with progress() as report:
            prune_model(model, recipe, tokens["calibration"], progress=report)
            judged = Judgement(window_losses(model, tokens["evaluation"], report))
        rows.append([str(path), f"{recipe.sparsity:g}", f"{judged.perplexity:.2f}"])
    print_table(["recipe", "sparsity", "perplexity"], rows, numbers=["sparsity", "perplexity"])


if __name__ == "__main__":
    main()
