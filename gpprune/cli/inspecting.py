"""`gpprune inspect`: what a checkpoint holds, and whether that is what its record says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import typer

from gpprune.cli.console import print_json, print_table, progress, say, tell_left_alone
from gpprune.cli.options import Json
from gpprune.discover import inspect_checkpoint
from gpprune.errors import GppruneError
from gpprune.prune import AXES, InspectedLayer, Inspection
from gpprune.prune.inspection import GROUPS
from gpprune.prune.model.sources import known


def inspect(
    model: Annotated[str, typer.Argument(metavar="DIR", help=f"{known()}.")],
    layers: Annotated[
        bool, typer.Option("--layers", help="A row a layer, in place of one a role.")
    ] = False,
    json: Json = False,
) -> None:
    """Show what a checkpoint holds; fail if it is not what the record beside it says."""
    with progress() as report:
        found = inspect_checkpoint(model, progress=report)
    tell_left_alone(found.coverage)
    if json:
        print_json({"model": model, **found.as_dict()})
    else:
        _print_layers(found, layers, model)
        _print_axes(found)
        _say_record(found)
    if found.faults:
        more = f", and {len(found.faults) - 1} more such" if len(found.faults) > 1 else ""
        raise GppruneError(f"{model!r} is not what its record says: {found.faults[0]}{more}")


def _print_layers(found: Inspection, each: bool, title: str) -> None:
    groups: dict[str, list[InspectedLayer]] = {}
    for layer in found.layers:
        groups.setdefault(layer.name if each else layer.role, []).append(layer)
    groups["all"] = list(found.layers)
    spread = [] if each else ["least-most"]
    numbers = ["sparsity", *spread, *(f"of {size}" for size in GROUPS), "dead out", "dead in"]
    rows = [[name, *_row(group, bool(spread))] for name, group in groups.items()]
    columns = ["layer" if each else "role", *numbers]
    print_table(columns, rows, title=title, numbers=numbers, lines=not each)
    say("of 4, of 8: the most weights that stay in any 4 or 8 consecutive inputs of an output")


def _print_axes(found: Inspection) -> None:
    groups: dict[tuple[str, int], list[int]] = {}
    for axis in found.axes:
        groups.setdefault((axis.kind, axis.units), []).append(axis.free)
    rows = [
        [kind, str(len(free)), str(units), str(sum(free)), AXES[kind]]
        for (kind, units), free in groups.items()
    ]
    if rows:
        title = "coupled axes, each permuted in all its weights: the logits stayed as they were"
        columns = ["kind", "axes", "units each", "free", "a unit is one of the"]
        print_table(columns, rows, title=title, numbers=columns[1:4])
        say("free: nothing reads the unit, so that the model is the same without it")
    for (kind, why), count in Counter((axis.kind, axis.why) for axis in found.refused).items():
        say(f"no coupled axis of the kind {kind} in {count} places: {why}")


def _row(group: Sequence[InspectedLayer], spread: bool) -> list[str]:
    zeros, size = sum(layer.zeros for layer in group), sum(layer.size for layer in group)
    shares = [layer.sparsity for layer in group]
    kept = [
        str(max(layer.kept[size] for layer in group)) if all(size in x.kept for x in group) else "-"
        for size in GROUPS
    ]
    dead = [sum(layer.dead_outputs for layer in group), sum(layer.dead_inputs for layer in group)]
    return [
        f"{zeros / size:.4f}",
        *([f"{min(shares):.3f}-{max(shares):.3f}"] if spread else []),
        *kept,
        *(f"{count:,}" for count in dead),
    ]


def _say_record(found: Inspection) -> None:
    say(f"SHA-256 of the weights {found.digest}")
    record = found.record
    if record is None:
        say("no record of gpprune lies beside them")
        return
    recipe = record.recipe
    parts = [recipe.metric, f"pattern {recipe.pattern}", f"sparsity {recipe.sparsity:g}"]
    parts += [f"update {recipe.update}"] if recipe.update != "none" else []
    parts += [f"{recipe.shots} shots"] if recipe.shots > 1 else []
    say(f"pruned from {record.model!r} by {', '.join(parts)}")
    if record.source is not None:
        say(f"SHA-256 of the weights before {record.source}")
    if not found.faults:
        as_said = ["the zeros of every layer"]
        as_said += [f"every group of {recipe.pattern}"] if recipe.shape.sparsity else []
        as_said += [] if record.digest is None else ["the weights' SHA-256"]
        say(f"as the record says: {', '.join(as_said)}")
