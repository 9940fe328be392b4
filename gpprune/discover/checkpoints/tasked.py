"""Models side by side on the tasks that papers judge by, each beside the dense one."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from torch import nn

from gpprune.discover.checkpoints.task_table import OnTasks, TaskTable
from gpprune.discover.contenders import metric_contenders, named_recipe
from gpprune.discover.texts import Texts
from gpprune.discover.workbench import Workbench
from gpprune.errors import UsageError
from gpprune.evals import compute_dtype, copy_as
from gpprune.evals.tasks import (
    DOCUMENTS,
    Answers,
    Quiz,
    ask,
    named_tasks,
    quizzes,
)
from gpprune.files import expanded, forget, whole_file
from gpprune.journal import as_json, file_to_come
from gpprune.progress import Progress, silent
from gpprune.prune import (
    Loaded,
    Recipe,
    configuration_digest,
    load_model,
    prune_model,
    stored_digest,
    tokenizer_digest,
    tokens_digest,
)

_PACKAGES = ("gpprune", "lm_eval", "torch", "transformers", "datasets")


@dataclass(frozen=True)
class Beside:
    """What is judged beside the dense model: a checkpoint, or the model pruned by a recipe."""

    name: str
    what: str | Recipe


def contenders_beside(given: Sequence[str], sparsity: Sequence[float] | None) -> list[Beside]:
    """What is judged beside the dense model.

    Args:
        given: each a checkpoint's directory, a recipe's file, a published metric or formula text.
        sparsity: one or more shares for recipes and metrics; None: a recipe's own, 0.5 of metrics.

    Raises:
        UsageError: one is none of these.
    """
    found: list[Beside] = []
    for text in given:
        path = expanded(text)
        if path.is_dir():
            found.append(Beside(path.resolve().name, text))
        elif path.is_file():
            own, recipe = named_recipe(path)
            found += [Beside(f"{own} {each.sparsity:g}", each) for each in _at(recipe, sparsity)]
        else:
            if path.suffix == ".json" or ("/" in text and "(" not in text):
                raise UsageError(f"there is no checkpoint or recipe {text!r}: name another")
            for each in metric_contenders([text], sparsity):
                name = f"{each.name} {each.recipe.sparsity:g}"
                found.append(Beside(name, each.recipe))
    takes = [each.what for each in found if isinstance(each.what, Recipe)]
    if sparsity is not None and all(one.shape.sparsity is not None for one in takes):
        raise UsageError(
            f"nothing takes the sparsity {', '.join(map(str, sparsity))}: a checkpoint and a "
            "pattern such as 2:4 have their own; leave it out, or name a metric or a recipe"
        )
    names = ["dense", *(each.name for each in found)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two models are called {twice[0]!r}: name each once, or rename a file")
    return found


def _at(recipe: Recipe, sparsity: Sequence[float] | None) -> Iterator[Recipe]:
    if sparsity is None or recipe.shape.sparsity is not None:
        yield recipe
    else:
        yield from (recipe.model_copy(update={"sparsity": share}) for share in sparsity)


def judge_on_tasks(
    model: str | Loaded = "smollm2",
    *,
    tasks: Sequence[str],
    beside: Sequence[str] = (),
    sparsity: Sequence[float] | None = None,
    data: str | Path | None = None,
    documents: int | None = DOCUMENTS,
    texts: Texts | None = None,
    dtype: str = "auto",
    out: str | Path | None = None,
    progress: Progress = silent,
) -> TaskTable:
    """Judge a model, and what is pruned of it, on tasks.

    All are asked the same documents. Answers are kept in `OUT.answers` after every few documents,
    so that the same call goes on from there; it goes when `OUT` is written.

    Args:
        model: dense: what `gpprune.load_model` takes, or a loaded model in float32.
        tasks: names of `gpprune.evals.tasks.TASKS` and `GROUPS`.
        beside: see `contenders_beside`; a recipe is followed in its own order.
        sparsity: likewise.
        data: a folder of rows, see `gpprune.evals.tasks.rows.local_rows`; None: of the hub.
        documents: of each task, drawn with the seed of `texts`; None: all.
        texts: what recipes are calibrated on.
        dtype: what is judged in: "auto", "float32" or "bfloat16".
        out: a file for `TaskTable.as_dict`; None: nothing is written or kept.
        progress: called as `progress(label, done, total)`.

    Raises:
        UsageError: lm-eval is not installed; a name is none; rows, model or text are not there;
            `out` exists.
        GppruneError: a model cannot be had or pruned, or lm-eval fails.
    """
    chosen, others, texts = (
        named_tasks(tasks),
        contenders_beside(beside, sparsity),
        texts or Texts(),
    )
    path = None if out is None else file_to_come(out)
    keep = None if path is None else answers_beside(path)
    compute_dtype(dtype)
    asked = quizzes(chosen, data=data, documents=documents, seed=texts.seed, progress=progress)
    recipes = any(isinstance(each.what, Recipe) for each in others)
    reads = [(texts.calibration_text, "calibration")] if recipes else []
    if not recipes:  # no text is read: a model may take shorter ones than its windows
        texts = replace(texts, window_length=2)
    bench = Workbench(model, texts, dtype=dtype, reads=reads, progress=progress)
    judge = _Judge(bench, asked, keep, stored_digest(bench.loaded), progress)
    models = [judge.dense(), *(judge.beside(each) for each in others)]
    stated = {
        "model": bench.loaded.name,
        "model_sha256": judge.digest,
        "dtype": str(bench.dtype).removeprefix("torch."),
        "seed": texts.seed,
        "begin_of_text": False,
        "chat_template": False,
        "versions": {name: version(name) for name in _PACKAGES},
    }
    found = TaskTable(tuple(models), tuple(asked), stated)
    if path is not None and keep is not None:
        whole_file(path, as_json(found.as_dict()))
        forget(keep, lambda file: file.suffix == ".jsonl")
    return found


def answers_beside(out: Path) -> Path:
    """Where answers are kept until the results are written."""
    return out.parent / f"{out.name}.answers"


def answers_kept(out: str | Path | None) -> str | None:
    """What an unfinished `judge_on_tasks` has left to go on from, for a reader; None: nothing."""
    kept = None if out is None else answers_beside(expanded(out))
    if kept is None or not kept.is_dir():
        return None
    return f"answers are kept in {kept}: the same command goes on"


@dataclass(frozen=True, eq=False)
class _Judge:
    """What asking every model takes."""

    bench: Workbench
    quizzes: Sequence[Quiz]
    keep: Path | None
    digest: str
    progress: Progress

    def dense(self) -> OnTasks:
        identity = {"model": self.digest}
        return self._judged("dense", identity, None, self.bench.loaded, lambda: self.bench.judged)

    def beside(self, other: Beside) -> OnTasks:
        if isinstance(other.what, str):
            loaded = load_model(other.what, progress=self.progress)
            own = {"model": stored_digest(loaded)}
            return self._judged(other.name, own, None, loaded, lambda: self._cast(loaded.model))
        recipe = other.what
        identity: dict[str, Any] = {
            "model": self.digest,
            "recipe": recipe.model_dump(),
            "calibration": tokens_digest(self.bench.calibration()),
        }
        whole = self.bench.loaded
        return self._judged(other.name, identity, recipe, whole, lambda: self._pruned(recipe))

    def _pruned(self, recipe: Recipe) -> nn.Module:
        fresh = copy.deepcopy(self.bench.loaded.model)
        prune_model(fresh, recipe, self.bench.calibration(), progress=self.progress)
        return self._cast(fresh)

    def _cast(self, model: nn.Module) -> nn.Module:
        same = next(model.parameters()).dtype == self.bench.dtype
        return model if same else copy_as(model, self.bench.dtype)

    def _judged(
        self,
        name: str,
        identity: Mapping[str, Any],
        recipe: Recipe | None,
        loaded: Loaded,
        made: Callable[[], nn.Module],
    ) -> OnTasks:
        """A model with its marks.

        Args:
            name: what it is called.
            identity: what tells its weights from others'.
            recipe: how it is pruned for this, if it is.
            loaded: what has its tokenizer.
            made: makes it, in the dtype that it is judged in; called once, if anything is open.
        """
        start = time.perf_counter()
        identity = {
            **identity,
            "tokenizer": tokenizer_digest(loaded.tokenizer),
            "configuration": configuration_digest(loaded),
            "dtype": str(self.bench.dtype),
            "lm_eval": version("lm_eval"),
        }
        answers = Answers(self.keep, identity)
        model, whole = cache(made), cast(Any, loaded.model)
        config = whole.config

        def told(label: str, done: int, total: int) -> None:
            self.progress(f"{name}: {label}", done, total)

        found = [
            ask(model, loaded.tokenizer, config, quiz, answers, progress=told)
            for quiz in self.quizzes
        ]
        return OnTasks(name, recipe, tuple(found), time.perf_counter() - start)
