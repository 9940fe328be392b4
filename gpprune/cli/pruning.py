"""`gpprune prune`, `recover` and `shrink`: a pruned checkpoint, a trained and a smaller one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gpprune.cli import options
from gpprune.cli.console import (
    going_on,
    going_on_from,
    print_json,
    print_table,
    progress,
    say,
    tell,
)
from gpprune.discover import Texts, prune_to, recover_to, shrink_to
from gpprune.discover.checkpoints.pruned import kept_beside
from gpprune.discover.checkpoints.recovered import AIMS, training_beside
from gpprune.discover.texts import TEST_LENGTH
from gpprune.errors import UsageError
from gpprune.files import expanded
from gpprune.prune import Adapters, Recipe, has_saved, parse_pattern
from gpprune.prune.model.sources import known


def prune(
    out: options.Out,
    model: options.ModelSpec = "smollm2",
    metric: Annotated[
        str | None, typer.Option(help="A published metric or formula text; else wanda.")
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Share of weights to prune, [0, 1); else 0.5.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(help="row, layer, model, N:M, N:8, mlp,heads or others; row.")
    ] = None,
    allocation: Annotated[
        str | None, typer.Option(help="A published one, besa, or formula text; else uniform.")
    ] = None,
    unit: Annotated[
        options.Unit | None, typer.Option(metavar="UNIT", help="layer or block, for --allocation.")
    ] = None,
    update: options.GivenUpdate = None,
    damp_inputs: options.DampInputs = None,
    damp_outputs: options.DampOutputs = None,
    permute: options.Permute = None,
    shots: options.Shots = None,
    schedule: options.ScheduleOption = None,
    cap: options.Cap = None,
    recipe: Annotated[
        Path | None, typer.Option(help="A recipe (JSON) in place of --metric and the like.")
    ] = None,
    calibration_text: options.CalibrationSpec = "wikitext2",
    calibration_samples: options.Samples = 8,
    synthetic_samples: Annotated[
        int | None, typer.Option(help="More, which the dense model writes.", min=0)
    ] = None,
    recover: Annotated[
        int | None, typer.Option(help="Epochs of training after each shot; zeros stay.", min=0)
    ] = None,
    idle_experts: options.IdleExperts = None,
    window_length: options.WindowLength = TEST_LENGTH,
    seed: options.Seed = 0,
    order: options.OwnOrder = None,
    dtype: options.Written = "auto",
    stream: Annotated[
        bool | None, typer.Option(help="A block in memory at a time; else where need be.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Prune a model and write it as a Hugging Face checkpoint (safetensors) with its recipe."""
    given = options.given(metric=metric, sparsity=sparsity, pattern=pattern, allocation=allocation)
    given |= options.given(unit=unit, update=update, shots=shots, schedule=schedule, cap=cap)
    given |= options.given(damp_inputs=damp_inputs, damp_outputs=damp_outputs, permute=permute)
    own = options.given(order=order, synthetic_samples=synthetic_samples, recover=recover)
    own |= options.given(idle_experts=idle_experts)
    chosen = _recipe(recipe, given).model_copy(update=own)
    texts = Texts(
        calibration_text=calibration_text,
        calibration_samples=calibration_samples,
        window_length=window_length,
        seed=seed,
    )
    with progress() as report, going_on(lambda: kept_beside(out)):
        outcome = prune_to(
            out, chosen, model=model, texts=texts, dtype=dtype, stream=stream, progress=report
        )
    for sentence in outcome.sentences:
        tell(sentence)
    if json:
        print_json({"out": str(out), "recipe": chosen.model_dump(), **outcome.as_dict()})
        return
    for title, columns, rows in outcome.tables(f"{chosen.metric} -> {out}"):
        print_table(columns, rows, title=title, numbers=columns[1:])


def shrink(
    model: Annotated[str, typer.Argument(metavar="DIR", help=f"{known()}.")],
    out: options.Out,
    uniform: Annotated[
        bool, typer.Option(help="Leave all blocks alike: plain transformers loads it.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Take dead hidden channels and heads out of a checkpoint; it computes what it did."""
    with progress() as report:
        found = shrink_to(out, model, uniform=uniform, progress=report)
    for sentence in found.shrinking.sentences:
        tell(sentence)
    if json:
        print_json({"out": str(out), **found.as_dict()})
        return
    rows = [[what, f"{b:,.0f}", f"{a:,.0f}"] for what, (b, a) in found.figures().items()]
    columns = ["of", "before", "after"]
    print_table(columns, rows, title=f"{model} -> {out}", numbers=columns[1:])


def recover(
    model: Annotated[str, typer.Argument(metavar="DIR", help=f"{known()}.")],
    out: options.Out,
    dense: Annotated[
        str | None, typer.Option(help="What it was pruned from; else its record says.")
    ] = None,
    loss: Annotated[str, typer.Option(help=f"What training lowers: {', '.join(AIMS)}.")] = AIMS[0],
    text: Annotated[str, typer.Option("--text", help="Trained on: as for prune.")] = "wikitext2",
    samples: Annotated[int, typer.Option("--samples", help="Sequences of it.", min=1)] = 32,
    synthetic_samples: Annotated[
        int, typer.Option(help="More, which the dense model writes.", min=0)
    ] = 0,
    epochs: Annotated[int, typer.Option("--epochs", help="How often all is read.", min=1)] = 1,
    rank: Annotated[
        int | None,
        typer.Option(help="Of low-rank adapters, merged in the end; else all weights."),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option("--layer", help="That have adapters, as q_proj; by default all. Repeatable."),
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="The highest learning rate.")] = None,
    window_length: options.WindowLength = TEST_LENGTH,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Train the weights that a pruned checkpoint has left; every zero stays a zero."""
    if layers and rank is None:
        raise UsageError(f"--layer {layers[0]} is for adapters: give --rank too, such as --rank 8")
    adapters = None if rank is None else Adapters(rank, 2.0 * rank, tuple(layers or ()))
    texts = Texts(
        calibration_text=text, calibration_samples=samples, window_length=window_length, seed=seed
    )
    kept = training_beside(expanded(out))
    with progress() as report, going_on_from(kept, has_saved, "what was trained is"):
        found = recover_to(
            out,
            model,
            dense=dense,
            texts=texts,
            written=synthetic_samples,
            epochs=epochs,
            rate=rate,
            adapters=adapters,
            aim=loss,
            progress=report,
        )
    if json:
        print_json({"out": str(out), **found.as_dict()})
        return
    rows = [[str(at), f"{one:.4f}"] for at, one in enumerate(found.losses, start=1)]
    print_table(["epoch", "loss"], rows, title=f"{model} -> {out}", numbers=["epoch", "loss"])
    say(f"{found.zeros:,} of {found.size:,} weights are 0, as before")


def _recipe(recipe: Path | None, given: dict[str, Any]) -> Recipe:
    """The recipe of a file, or of the flags; both at once is a UsageError."""
    if recipe is None:
        pattern = parse_pattern(given.get("pattern", "row"))
        implied = {"sparsity": 0.5} if pattern.sparsity is None else {}
        return Recipe(**(implied | given))
    for name, value in given.items():
        flag = name.replace("_", "-")
        raise UsageError(f"--{flag} {value} and --recipe {recipe} exclude one another: give one")
    return Recipe.read(expanded(recipe))
