"""The best evolved formulas beside the published ones, on text that no search saw."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from gpprune.compile import render
from gpprune.discover.goals.goal import Goal
from gpprune.discover.rivals import Choice, Rival, as_strict
from gpprune.discover.texts import short_names
from gpprune.discover.workbench import Workbench
from gpprune.errors import Unfit, UsageError
from gpprune.evals import RECIPE, Evaluation, LayerZeros, ModelFitness
from gpprune.gp import SearchResult
from gpprune.primitives import Formula
from gpprune.progress import Progress, silent

WINNERS = 3
RIVALS = ("all", "best")


@dataclass(frozen=True)
class Shown:
    """Which formulas a report shows.

    Attributes:
        rivals: "all" published ones, or the "best" on validation text.
        winners: how many of the best evolved ones.

    Raises:
        UsageError: no such choice, or no winner.
    """

    rivals: str = "all"
    winners: int = WINNERS

    def __post_init__(self) -> None:
        if self.rivals not in RIVALS:
            raise UsageError(
                f"there is no choice of rivals {self.rivals!r}: choose from {', '.join(RIVALS)}"
            )
        if self.winners < 1:
            raise UsageError(f"{self.winners} winners cannot be judged: give --winners 1 or more")


@dataclass(frozen=True, eq=False)
class Judged:
    """How good the model is that a formula has pruned.

    Attributes:
        validation: on the texts that the search judged on, all in one.
        tests: on what the search never saw of each text, by its name.
    """

    validation: Evaluation
    tests: Mapping[str, Evaluation]

    @property
    def test(self) -> Evaluation:
        """On what the search never saw: of several texts the mean loss of each."""
        first, *more = self.tests.values()
        means = [first.mean, *(test.mean for test in more)]
        return Evaluation(torch.tensor(means, dtype=torch.float64), first.loss) if more else first

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        figure = self.validation.loss.figure
        each = {text: _finite(test.figure) for text, test in self.tests.items()}
        return {
            f"validation_{figure}": _finite(self.validation.figure),
            f"test_{figure}": _finite(self.test.figure),
            **({f"test_{figure}_by_text": each} if len(each) > 1 else {}),
        }


@dataclass(frozen=True, eq=False)
class Finding:
    """A formula of a search's report.

    Attributes:
        name: a published name, or `evolved 1`.
        origin: its paper, or how and when it was evolved.
        formula: the formula.
        setting: the pattern or the unit that it was judged in, see `Goal.varied`.
        evolved: whether the search made it.
        judged: under the goal's weight update.
        masks_alone: in the same setting without the update; None where the goal has no update.
        layers: of an evolved one, how much of each layer its masks take.
    """

    name: str
    origin: str
    formula: Formula
    setting: str
    evolved: bool
    judged: Judged
    masks_alone: Judged | None
    layers: tuple[LayerZeros, ...] = ()

    @property
    def validation(self) -> Evaluation:
        """On the texts that the search judged on, under the goal's weight update."""
        return self.judged.validation

    @property
    def test(self) -> Evaluation:
        """On what the search never saw of the texts, under the goal's weight update."""
        return self.judged.test

    @property
    def closed_form(self) -> str:
        """The formula on one line, as a person reads it."""
        return render(self.formula.canonical(None), "line")

    def as_dict(self, varied: str) -> dict[str, Any]:
        """Plain values for JSON; `varied` is what the setting is of, see `Goal.varied`."""
        alone = {} if self.masks_alone is None else {"masks_alone": self.masks_alone.as_dict()}
        return {
            "name": self.name,
            "origin": self.origin,
            "formula": self.formula.text,
            "key": self.formula.key,
            varied: self.setting,
            **self.judged.as_dict(),
            **alone,
            "closed_form": self.closed_form,
            **({"layers": [asdict(layer) for layer in self.layers]} if self.layers else {}),
        }


def find(
    goal: Goal,
    bench: Workbench,
    fitness: ModelFitness,
    result: SearchResult,
    *,
    shown: Shown = Shown(),
    progress: Progress = silent,
) -> tuple[Finding, ...]:
    """Judge the published formulas and the best evolved ones on validation and test text.

    Under a weight update the formulas and the settings of rivals that are shown are those that the
    search's own judgement has as the best. What is shown is judged with the whole update, where
    the search judged by its draft, and with masks alone. The best evolved one comes first.

    Args:
        goal: what was searched for.
        bench: holds the model and the texts.
        fitness: judged the search's candidates.
        result: what the search found.
        shown: which formulas.
        progress: called as `progress(label, done, formulas)`.
    """
    judges = _Judges(goal, bench, fitness, progress)
    chosen, published = [], goal.rivals()
    for done, rival in enumerate(published):
        progress("judging published formulas on validation text", done, len(published))
        chosen.append(judges.best(rival))
    progress("judging published formulas on validation text", len(published), len(published))
    if shown.rivals == "best":
        chosen = [min(chosen, key=lambda found: _standing(judges.validation(found[0])))]
    origins = [(choice, f"published, {paper.split(',')[0]}", False) for choice, paper in chosen]
    origins += [(choice, origin, True) for choice, origin in _evolved(goal, result, shown.winners)]
    findings = []
    for done, (choice, origin, evolved) in enumerate(origins):
        progress("judging on test text", done, len(origins))
        findings.append(judges.finding(choice, origin, evolved))
    progress("judging on test text", len(origins), len(origins))
    evolved_ones = [finding for finding in findings if finding.evolved]
    evolved_ones.sort(key=lambda finding: _standing(finding.validation))
    named = [
        replace(finding, name=f"evolved {place}")
        for place, finding in enumerate(evolved_ones, start=1)
    ]
    return (*(finding for finding in findings if not finding.evolved), *named)


def _evolved(goal: Goal, result: SearchResult, winners: int) -> Iterator[tuple[Choice, str]]:
    for outcome in result.archive.evolved(winners):
        formula = outcome.parsed(goal.language)
        origin = f"{outcome.origin}, generation {outcome.generation}"
        yield Choice("evolved", formula, goal.own_setting), origin


class _Judges:
    """Fitnesses by their setting, all on one pruned copy of the model."""

    def __init__(
        self, goal: Goal, bench: Workbench, fitness: ModelFitness, progress: Progress
    ) -> None:
        self.goal = goal
        self.progress = progress
        self.bench = bench
        specs = bench.texts.judged
        self.tests = {
            name: bench.test_windows(spread=goal.spread, text=spec)
            for name, spec in zip(short_names(specs), specs, strict=True)
        }
        self.fitness = {goal.own_setting: fitness}

    def best(self, rival: Rival) -> tuple[Choice, str]:
        """The choice that serves a rival best on validation text, and its paper."""
        fair = [choice for choice in rival.choices if self._is_fair(choice)]
        return min(fair, key=lambda choice: _standing(self.validation(choice))), rival.paper

    def _is_fair(self, choice: Choice) -> bool:
        """Whether its masks are as constrained as the search's."""
        if self.goal.varied != "pattern":
            return True
        shapes = (layer.shape for layer in self.bench.layers.values())
        return all(as_strict(choice.setting, self.goal.pattern, shape) for shape in shapes)

    def validation(self, choice: Choice, update: str | None = None) -> Evaluation:
        """On the fitness's own windows, which it remembers as it judged them in the search."""
        fitness, form = self._judge(choice, update)
        try:
            losses = fitness.prepare(form)(0, fitness.cases)
        except Unfit:  # as a search has it: no masks, and so the worst loss
            losses = [math.inf] * fitness.cases
        return Evaluation(torch.tensor(losses, dtype=torch.float64), fitness.loss)

    def finding(self, choice: Choice, origin: str, evolved: bool) -> Finding:
        """A choice on validation and test text, as the goal has it and with masks alone."""
        alone = None if self.goal.update == "none" else self._judged(choice, "none")
        shown = (choice.name, origin, choice.formula, choice.setting)
        judged = self._judged(choice, self.goal.update)
        layers: tuple[LayerZeros, ...] = ()
        if evolved and math.isfinite(judged.validation.mean):
            fitness, form = self._judge(choice, "none")
            layers = fitness.masking.layer_zeros(form)
        return Finding(*shown, evolved, judged, alone, layers)

    def _judged(self, choice: Choice, update: str) -> Judged:
        order, whole = self.goal.order, self.goal.draft == RECIPE
        if update == self.goal.update and order not in (None, "dense") and not whole:
            return self._in_order(choice, order)
        validation = self.validation(choice, update)
        if not math.isfinite(validation.mean):  # nor is it judged again
            return Judged(validation, dict.fromkeys(self.tests, validation))
        fitness, form = self._judge(choice, update)
        return self._of(validation, *fitness.evaluate(form, *self.tests.values()))

    def _of(self, validation: Evaluation, *tests: Evaluation) -> Judged:
        return Judged(validation, dict(zip(self.tests, tests, strict=True)))

    def _in_order(self, choice: Choice, order: str) -> Judged:
        """A choice on a copy of the model that is pruned in one shot of its recipe."""
        own = self.fitness[self.goal.own_setting]
        worst = Evaluation(torch.tensor([math.inf], dtype=torch.float64), own.loss)
        if not math.isfinite(self.validation(choice).mean):
            return Judged(worst, dict.fromkeys(self.tests, worst))
        varied: dict[str, Any] = {self.goal.varied: choice.setting}
        recipe = replace(self.goal, **varied).recipe(choice.formula)
        once = recipe.model_copy(update={"shots": 1, "schedule": "linear", "cap": 1.0})
        try:
            texts = [own.windows, *self.tests.values()]
            return self._of(*self.bench.pruned(once, texts, order, self.progress))
        except Unfit:  # on the pruned blocks' states, where the search has judged the dense ones'
            return Judged(worst, dict.fromkeys(self.tests, worst))

    def _judge(self, choice: Choice, update: str | None) -> tuple[ModelFitness, Formula]:
        """What judges a choice, and the form that it takes; the update is the search's if None."""
        setting = choice.setting
        if setting not in self.fitness:
            own = self.fitness[self.goal.own_setting]
            self.fitness[setting] = self.goal.variant(own, self.bench, setting)
        fitness = self.fitness[setting]
        return fitness.under(fitness.masking, update), self.goal.canonical(choice.formula, setting)


def _standing(evaluation: Evaluation) -> tuple[bool, float]:
    """What is better comes first; what is no number comes last."""
    mean = evaluation.mean
    return math.isnan(mean), mean


def _finite(figure: float) -> float | None:
    """A figure as JSON can hold it: nothing for infinity and NaN."""
    return figure if math.isfinite(figure) else None
