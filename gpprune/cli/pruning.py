"""`gpprune prune`: a pruned checkpoint on disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from gpprune.cli import options
from gpprune.cli.console import print_json, print_table, progress, tell, tell_left_alone
from gpprune.cli.options import (
    CalibrationSpec,
    Cap,
    DampInputs,
    DampOutputs,
    GivenUpdate,
    Json,
    ModelSpec,
    Out,
    OwnOrder,
    Samples,
    ScheduleOption,
    Seed,
    Shots,
    Unit,
    WindowLength,
)
from gpprune.discover import Texts, prune_to
from gpprune.discover.checkpoints import shots_beside
from gpprune.discover.workbench import TEST_LENGTH
from gpprune.errors import GppruneError, UsageError
from gpprune.files import expanded
from gpprune.prune import PruneReport, Recipe, has_shots, parse_pattern


def prune(
    out: Out,
    model: ModelSpec = "smollm2",
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="A published metric or formula text; else wanda."),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option("--sparsity", help="Share of weights to prune, [0, 1); else 0.5."),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option("--pattern", help="row, rows:N, cols:N, layer, model, N:M or N:8; else row."),
    ] = None,
    allocation: Annotated[
        str | None,
        typer.Option("--allocation", help="A published one, besa, or formula text; else uniform."),
    ] = None,
    unit: Annotated[
        Unit | None,
        typer.Option("--unit", metavar="UNIT", help="layer or block, for --allocation."),
    ] = None,
    update: GivenUpdate = None,
    damp_inputs: DampInputs = None,
    damp_outputs: DampOutputs = None,
    shots: Shots = None,
    schedule: ScheduleOption = None,
    cap: Cap = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", help="A recipe (JSON) in place of --metric and the like."),
    ] = None,
    calibration_text: CalibrationSpec = "wikitext2",
    calibration_samples: Samples = 8,
    synthetic_samples: Annotated[
        int | None,
        typer.Option("--synthetic-samples", help="More, which the dense model writes.", min=0),
    ] = None,
    recover: Annotated[
        int | None,
        typer.Option("--recover", help="Epochs of training after each shot; zeros stay.", min=0),
    ] = None,
    window_length: WindowLength = TEST_LENGTH,
    seed: Seed = 0,
    order: OwnOrder = None,
    json: Json = False,
) -> None:
    """Prune a model and write it as a Hugging Face checkpoint (safetensors) with its recipe."""
    given = options.given(metric=metric, sparsity=sparsity, pattern=pattern, allocation=allocation)
    given |= options.given(unit=unit, update=update, shots=shots, schedule=schedule, cap=cap)
    given |= options.given(damp_inputs=damp_inputs, damp_outputs=damp_outputs)
    chosen = _recipe(recipe, given)
    own = options.given(order=order, synthetic_samples=synthetic_samples, recover=recover)
    chosen = chosen.model_copy(update=own)
    texts = Texts(
        calibration_text=calibration_text,
        calibration_samples=calibration_samples,
        window_length=window_length,
        seed=seed,
    )
    with progress() as report, _kept(expanded(out)):
        outcome = prune_to(out, chosen, model=model, texts=texts, progress=report)
    tell_left_alone(outcome.coverage)
    if json:
        print_json({"out": str(out), "recipe": chosen.model_dump(), **outcome.as_dict()})
    else:
        if outcome.shots:
            _print_shots(outcome)
        _print_layers(outcome, f"{chosen.metric} -> {out}")


@contextmanager
def _kept(out: Path) -> Iterator[None]:
    """Say how to go on, if pruning is broken off between two shots."""
    try:
        yield
    except GppruneError:
        raise
    except BaseException:
        if has_shots(shots_beside(out)):
            tell(f"finished shots are kept in {shots_beside(out)}: the same command goes on")
        raise


def _print_shots(outcome: PruneReport) -> None:
    rows = [
        [
            str(number),
            f"{shot.sparsity:.4f}",
            f"{shot.before:.4f}",
            f"{shot.after:.4f}",
            f"{shot.after - shot.before:+.4f}",
            "" if shot.predicted is None else f"{shot.predicted:+.4f}",
            *([] if shot.recovered is None else [f"{shot.recovered:.4f}"]),
            f"{shot.seconds:.0f}",
        ]
        for number, shot in enumerate(outcome.shots, start=1)
    ]
    trained = [] if outcome.shots[0].recovered is None else ["recovered"]
    told = ["shot", "sparsity", "loss before", "after", "change", "predicted"]
    columns = [*told, *trained, "seconds"]
    print_table(columns, rows, title="shots, nats a token of calibration text", numbers=columns)


def _print_layers(outcome: PruneReport, title: str) -> None:
    rows = [
        [layer.name, f"{layer.zeros:,}", f"{layer.size:,}", f"{layer.sparsity:.4f}"]
        for layer in outcome.layers
    ]
    rows.append(["all", f"{outcome.zeros:,}", f"{outcome.size:,}", f"{outcome.sparsity:.4f}"])
    if outcome.coverage.left:
        blocks, zeros = outcome.coverage.size, outcome.block_zeros
        share = f"{outcome.block_sparsity:.4f}"
        rows.append(["all matrices of the blocks", f"{zeros:,}", f"{blocks:,}", share])
    columns = ["layer", "zeros", "weights", "sparsity"]
    print_table(columns, rows, title=title, numbers=columns[1:])


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
