"""`gpprune inspect`: what a checkpoint holds, and whether that is what its record says."""

from __future__ import annotations

from typing import Annotated

import typer

from gpprune.cli import options
from gpprune.cli.console import print_json, print_table, progress, say, tell_left_alone
from gpprune.discover import inspect_checkpoint
from gpprune.errors import GppruneError
from gpprune.prune import AXES, Inspection
from gpprune.prune.inspection import GROUPS
from gpprune.prune.model.sources import known


def inspect(
    model: Annotated[str, typer.Argument(metavar="DIR", help=f"{known()}.")],
    layers: Annotated[bool, typer.Option(help="A row a layer, in place of one a role.")] = False,
    json: options.Json = False,
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
    columns = ["layer" if each else "role", "sparsity", *([] if each else ["least-most"])]
    columns += [*(f"of {size}" for size in GROUPS), "dead out", "dead in"]
    rows = [
        [
            name,
            f"{group.sparsity:.4f}",
            *([] if each else [f"{group.least:.3f}-{group.most:.3f}"]),
            *(str(group.kept.get(size, "-")) for size in GROUPS),
            f"{group.dead_outputs:,}",
            f"{group.dead_inputs:,}",
        ]
        for name, group in found.groups(each=each).items()
    ]
    print_table(columns, rows, title=title, numbers=columns[1:], lines=not each)
    say("of 4, of 8: the most weights that stay in any 4 or 8 consecutive inputs of an output")


def _print_axes(found: Inspection) -> None:
    rows = [
        [kind, str(axes), str(units), str(free), AXES[kind]]
        for (kind, units), (axes, free) in found.axis_counts().items()
    ]
    if rows:
        title = "coupled axes, each permuted in all its weights: the logits stayed as they were"
        columns = ["kind", "axes", "units each", "free", "a unit is one of the"]
        print_table(columns, rows, title=title, numbers=columns[1:4])
        say("free: nothing reads the unit, so that the model is the same without it")
    for (kind, why), count in found.refusals().items():
        say(f"no coupled axis of the kind {kind} in {count} places: {why}")


def _say_record(found: Inspection) -> None:
    say(f"SHA-256 of the weights {found.digest}")
    record = found.record
    if record is None:
        say("no record of gpprune lies beside them")
        return
    say(record.sentence)
    if record.source is not None:
        say(f"SHA-256 of the weights before {record.source}")
    if not found.faults:
        say(f"as the record says: {', '.join(record.claims)}")
