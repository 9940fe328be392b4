"""Recipes under the protocol of the published codes, on SmolLM2-135M.

    python -m benchmarks.protocol RECIPE.json [RECIPE.json ...] [--order dense]
        [--sparsity 0.5 0.6] [--update none refit] [--permute none metric]
        [--synthetic-samples 24] [--shots 8] [--recover 2] [--keep DIR]

The model is pruned decoder block by decoder block, each calibrated on the output of the pruned ones
before it, and judged in float32, on the very tokens that the published codes were given, and on C4
beside them. With ``--order dense`` one calibration on the dense model serves all recipes of one
shot without synthetic samples and training. Another model needs tokens of its own tokenizer.
``--keep`` goes on after the last finished shot of the same command.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.flags import UPDATE_NAMES, add_model, parser_of, positive, update_name
from benchmarks.shown import print_table, progress
from gpprune.evals import ModelFitness, copy_as, evaluate, metric_masking
from gpprune.progress import Progress
from gpprune.prune import (
    ORDERS,
    Recipe,
    Writer,
    calibrate,
    linear_layers,
    load_model,
    prune_model,
)
from gpprune.prune.orders import goes_by_block

TOKENS = Path(__file__).parents[1] / "tests" / "data" / "reference_protocol.safetensors"
SHOWN = {"evaluation": "perplexity", "c4": "C4"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("protocol", __doc__)
    add_protocol(parser, order="sequential")
    parser.add_argument("--permute", nargs="+", help="what channels are permuted by; none: nothing")
    parser.add_argument("--synthetic-samples", type=positive, help="in place of the recipes'")
    parser.add_argument("--keep", type=Path, help="for the weights after each shot of one recipe")
    given = parser.parse_args(arguments)
    tokens = stored_tokens(given.tokens)
    calibration = tokens["calibration"][: given.samples]
    texts = {name: tokens[name][: given.windows] for name in SHOWN if name in tokens}
    recipes = [
        (str(path), recipe)
        for path in given.recipes
        for recipe in variants(
            Recipe.read(path),
            given.sparsity,
            given.update,
            given.permute,
            synthetic_samples=given.synthetic_samples,
            shots=given.shots,
            recover=given.recover,
        )
    ]
    if given.keep is not None and len(recipes) > 1:
        parser.error(f"--keep is for one recipe in one variant, not {len(recipes)}")
    rows, permuted = [], any(recipe.permute for _, recipe in recipes)
    with progress() as report:
        judge = Judge(
            given.model, calibration, list(texts.values()), given.order, report, given.keep
        )
        judge.prepare(recipe for _, recipe in recipes)
        for path, recipe in recipes:
            start = time.perf_counter()
            figures = judge(recipe)
            seconds = time.perf_counter() - start
            shown = [f"{figure:.2f}" for figure in figures]
            how = [f"{recipe.sparsity:g}", *([recipe.permute or "none"] if permuted else [])]
            how.append(recipe.update)
            rows.append([path, *how, *shown, f"{seconds:.0f}"])
            print(*rows[-1], flush=True)  # a later one may fail
    columns = ["recipe", "sparsity", *(["permuted by"] if permuted else []), "update"]
    columns += [*(SHOWN[name] for name in texts), "seconds"]
    print_table(columns, rows)


def add_protocol(parser: ArgumentParser, order: str) -> None:
    """Recipes, the model and the tokens, and what is stated in place of the recipes' own.

    Args:
        parser: to add them to.
        order: of calibration, by default.
    """
    parser.add_argument("recipes", type=Path, nargs="+")
    add_model(parser)
    parser.add_argument(
        "--tokens",
        type=Path,
        default=TOKENS,
        help="safetensors with `calibration` [samples, length], `evaluation` [windows, length] and "
        "perhaps `c4`, likewise",
    )
    parser.add_argument("--samples", type=positive, help="the first so many; by default all")
    parser.add_argument("--windows", type=positive, help="the first so many; by default all")
    parser.add_argument("--order", choices=ORDERS, default=order, help="of calibration")
    parser.add_argument("--sparsity", type=float, nargs="+", help="in place of the recipes'")
    parser.add_argument("--update", type=update_name, nargs="+", help=UPDATE_NAMES)
    parser.add_argument("--shots", type=positive, help="in place of the recipes'")
    parser.add_argument("--recover", type=positive, help="likewise")


def variants(
    recipe: Recipe,
    sparsities: Sequence[float] | None,
    updates: Sequence[str] | None,
    permutes: Sequence[str] | None = None,
    **others: int | None,
) -> list[Recipe]:
    """A recipe at other sparsities, with other updates, permutations and values than its own."""
    others = {name: value for name, value in others.items() if value is not None}
    if sparsities is None and updates is None and permutes is None and not others:
        return [recipe]
    stated = recipe.model_dump() | others
    if others:
        stated["order"] = None  # --order has the last word
    own: Sequence[str | None] = permutes or [recipe.permute]
    orders = [None if name == "none" else name for name in own]
    names = ("sparsity", "update", "permute")
    changes = product(sparsities or [recipe.sparsity], updates or [recipe.update], orders)
    return [Recipe(**{**stated, **dict(zip(names, each, strict=True))}) for each in changes]


class Judge:
    """Prunes and judges by recipe after recipe.

    Args:
        model: what `gpprune.load_model` takes.
        calibration: `[samples, length]`, int64.
        texts: each `[windows, length]`, int64.
        order: of calibration.
        report: called as `report(label, done, total)`.
        keep: a directory for the weights after each shot, see `gpprune.prune.prune_model`.

    Attributes:
        pruned: the model as it was pruned last, until it is pruned again; dense at first.
    """

    def __init__(
        self,
        model: str,
        calibration: Tensor,
        texts: Sequence[Tensor],
        order: str,
        report: Progress,
        keep: Path | None = None,
    ) -> None:
        self._keep = keep
        self._calibration, self._texts = calibration, texts
        self._order, self._report = order, report
        self._dense = self.pruned = load_model(model).model
        self._statistics: dict[str, Mapping[str, Tensor]] = {}
        self._writer = Writer(self._dense, calibration)

    def prepare(self, recipes: Iterable[Recipe]) -> None:
        """See that recipes can be followed, then measure and write once what they can share."""
        recipes, layers = list(recipes), linear_layers(self._dense)
        shapes = {name: layer.weight.shape for name, layer in layers.items()}
        for recipe in recipes:
            recipe.in_order(self._order)
            recipe.shape.check_model(shapes)
        for recipe in recipes:
            by_block = goes_by_block(self._order, recipe.reads)
            self._writer(recipe.synthetic_samples * recipe.shots, self._report, by_block=by_block)
        names = {name for recipe in recipes if self._shares(recipe) for name in recipe.reads}
        if names:
            self._statistics = calibrate(
                self._dense, self._calibration, names, progress=self._report
            )

    def __call__(self, recipe: Recipe) -> list[float]:
        """The figure of each text."""
        if self._shares(recipe):
            masking = metric_masking(
                self._dense, self._statistics, sparsity=recipe.sparsity, pattern=recipe.pattern
            )
            fitness = ModelFitness(
                masking, self._texts[0], update=recipe.update, damping=recipe.damping
            )
            formula = recipe.formula.canonical(recipe.shape.group)
            figures = [found.figure for found in fitness.evaluate(formula, *self._texts)]
            self.pruned = fitness.model
            return figures
        self.pruned = copy_as(self._dense)
        prune_model(
            self.pruned,
            recipe,
            self._calibration,
            order=self._order,
            keep=self._keep,
            writer=self._writer,
            progress=self._report,
        )
        return self.judged(self.pruned)

    def judged(self, model: nn.Module) -> list[float]:
        """The figure of a model on each text."""
        return [evaluate(model, text, progress=self._report).figure for text in self._texts]

    def _shares(self, recipe: Recipe) -> bool:
        """Whether the dense model's statistics on the given text say all, without an allocation."""
        return self._order == "dense" and recipe.measures_once and recipe.allocation == "uniform"


def stored_tokens(path: Path) -> dict[str, Tensor]:
    """The tokens of a protocol by what they are for, int64; the file keeps them in 32 bits."""
    return {name: tokens.long() for name, tokens in load_file(path).items()}


if __name__ == "__main__":
    main()
