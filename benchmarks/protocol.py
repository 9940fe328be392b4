"""Evolved recipes under the protocol of the published codes, on SmolLM2-135M.

    python -m benchmarks.protocol RECIPE.json [RECIPE.json ...]

The model is pruned decoder block by decoder block, each calibrated on the output of the pruned ones
before it, and judged in float32, on the very tokens that the published codes were given. Another
model needs tokens of its own tokenizer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from benchmarks.flags import add_model, parser_of, positive
from benchmarks.shown import print_table, progress
from gpprune.evals import evaluate
from gpprune.prune import ORDERS, Recipe, load_model, prune_model

TOKENS = Path(__file__).parents[1] / "tests" / "data" / "reference_protocol.safetensors"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("protocol", __doc__)
    parser.add_argument("recipes", type=Path, nargs="+")
    add_model(parser)
    parser.add_argument(
        "--tokens",
        type=Path,
        default=TOKENS,
        help="safetensors with `calibration` [samples, length] and `evaluation` [windows, length]",
    )
    parser.add_argument("--samples", type=positive, help="the first so many; by default all")
    parser.add_argument("--windows", type=positive, help="the first so many; by default all")
    parser.add_argument("--order", choices=ORDERS, default="sequential", help="of calibration")
    given = parser.parse_args(arguments)
    recipes = [Recipe.read(path) for path in given.recipes]
    tokens = stored_tokens(given.tokens)
    calibration = tokens["calibration"][: given.samples]
    evaluation = tokens["evaluation"][: given.windows]
    rows = []
    for path, recipe in zip(given.recipes, recipes, strict=True):
        model = load_model(given.model).model
        with progress() as report:
            start = time.perf_counter()
            prune_model(model, recipe, calibration, order=given.order, progress=report)
            seconds = time.perf_counter() - start
            judged = evaluate(model, evaluation, progress=report)
        rows.append([str(path), f"{recipe.sparsity:g}", f"{judged.figure:.2f}", f"{seconds:.0f}"])
    print_table(["recipe", "sparsity", "perplexity", "seconds of pruning"], rows)


def stored_tokens(path: Path) -> dict[str, Tensor]:
    """The tokens of a protocol by what they are for, int64; the file keeps them in 32 bits."""
    return {name: tokens.long() for name, tokens in load_file(path).items()}


if __name__ == "__main__":
    main()
