"""`gpprune eval`: how good a model is."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from gpprune.cli import options
from gpprune.cli.console import going_on, print_json, print_table, progress, say, tell
from gpprune.discover import Texts, evaluate_model, judge_on_tasks
from gpprune.discover.checkpoints.tasked import answers_kept
from gpprune.discover.contenders import levels
from gpprune.discover.texts import TEST_LENGTH, TEST_WINDOWS
from gpprune.errors import UsageError
from gpprune.evals import LOSSES, NEXT_TOKEN, PACKAGED
from gpprune.evals.tasks import DOCUMENTS

_of_tasks = partial(typer.Option, rich_help_panel="Tasks")
_ASKED = _of_tasks(help="In place of text: seven, piqa, mmlu, gsm8k, or some of these.")
_ROWS = _of_tasks(help="A folder of rows, as NAME.judge.jsonl; else the hub's.")
_DOCUMENTS = _of_tasks(help="Documents drawn of each; 0: all.", min=0)
_BESIDE = _of_tasks(help="Judged too: a checkpoint, a recipe or a metric; may be repeated.")
_OUT = _of_tasks(help="Written: JSON with each document's outcome.")


def evaluate(
    model: options.ModelSpec = "smollm2",
    text: options.TextSpec = "wikitext2",
    split: options.SplitOption = options.Split.test,
    windows: options.Windows = TEST_WINDOWS,
    window_length: options.WindowLength = TEST_LENGTH,
    loss: options.LossOption = NEXT_TOKEN.name,
    dtype: options.DTypeOption = options.DType.auto,
    tasks: Annotated[str | None, _ASKED] = None,
    task_data: Annotated[Path | None, _ROWS] = None,
    per_task_docs: Annotated[int, _DOCUMENTS] = DOCUMENTS,
    beside: Annotated[list[str] | None, _BESIDE] = None,
    sparsity: options.Levels = None,
    out: Annotated[Path | None, _OUT] = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Judge a model on text, by its perplexity or another loss; or on tasks, pruned ones beside."""
    texts = Texts(text=text, windows=windows, window_length=window_length, seed=seed)
    if tasks is not None:
        stated = {
            "loss": loss != NEXT_TOKEN.name,
            "text": text != PACKAGED,
            "split": split != "test",
        }
        if of_text := [flag for flag, given in stated.items() if given]:
            raise UsageError(f"--{of_text[0]} is not of --tasks, which ask in place of a text")
        how = {"data": task_data, "documents": per_task_docs or None, "sparsity": levels(sparsity)}
        _on_tasks(model, tasks, texts, json, beside=beside or [], dtype=dtype, out=out, **how)
        return
    texts = replace(texts, task_data=None if task_data is None else str(task_data))
    asked = {"beside": beside, "sparsity": sparsity, "out": out}
    asked |= {} if LOSSES.find(loss).cases else {"task-data": task_data}
    for flag, given in asked.items():
        if given:
            raise UsageError(f"--{flag} is of --tasks: name tasks, such as --tasks seven")
    with progress() as report:
        found, judged_in = evaluate_model(
            model, texts=texts, split=split, dtype=dtype, loss=loss, progress=report
        )
    judged, name = found.evaluation, found.evaluation.loss
    of = text if name.cases is None else name.name
    row = {"model": model, "text": of, "split": str(split), **judged.as_dict()}
    row |= {"window_length": window_length, "dtype": judged_in, "seconds": round(found.seconds, 2)}
    if json:
        print_json(row)
        return
    row |= {name.figure: f"{judged.figure:.3f}", name.mean: f"{judged.mean:.4f}"}
    print_table(["of", "is"], [[what, str(value)] for what, value in row.items()])


def _on_tasks(model: str, tasks: str, texts: Texts, json: bool, **how: Any) -> None:
    named = tasks.replace(" ", "").split(",")
    with progress() as report, going_on(lambda: answers_kept(how["out"])):
        found = judge_on_tasks(model, tasks=named, texts=texts, progress=report, **how)
    for sentence in found.sentences:
        tell(sentence)
    if json:
        print_json(found.as_dict())
        return
    for title, columns, rows in found.tables():
        print_table(columns, rows, title=title)
    say("in brackets: less than two standard errors above guessing")
