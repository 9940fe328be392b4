"""What every search has: a model, texts, how it prunes, what it starts from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, ClassVar

from gpprune.discover.rivals import Rival
from gpprune.discover.texts import METRIC_TEXTS, Texts
from gpprune.discover.workbench import Workbench
from gpprune.evals import NEXT_TOKEN, ModelFitness
from gpprune.evals.in_order import RECIPE, RecipeFitness, judging_update
from gpprune.evals.masking import Masking
from gpprune.primitives import METRIC, STATISTICS, Formula, Language
from gpprune.progress import Progress, silent
from gpprune.prune import DAMPING, UPDATES, Damping, Recipe, Update, parse_pattern


@dataclass(frozen=True)
class Goal(ABC):
    """What is searched for, on which model and text.

    Attributes:
        texts: what is judged and calibrated on.
        model: what `gpprune.load_model` takes.
        sparsity: the share of weights to prune.
        pattern: which weights compete.
        dtype: what the model is judged in: "auto", "float32" or "bfloat16".
        loss: what is measured, a name of `gpprune.evals.LOSSES`.
        update: what happens to the weights that stay, a name of `gpprune.prune.UPDATES`.
        order: in which the report prunes under the update, and the recipe: one of
            `gpprune.prune.ORDERS`; None: "dense", or "sequential" where the draft is `RECIPE`.
        draft: such a name, by which the search judges; `RECIPE`: by all that the recipe does, order
            and shots; None: the update's own draft, if it has one.
        damp_inputs: see `gpprune.Recipe`, as all that follow.
        damp_outputs: the search's own damping too.
        shots: of the recipe; a search judges one, unless its draft is `RECIPE`.
        schedule: the same.
        starts: formulas that it starts from beside the published ones.
    """

    texts: Texts = METRIC_TEXTS
    model: str = "smollm2"
    sparsity: float = 0.5
    pattern: str = "row"
    dtype: str = "auto"
    loss: str = NEXT_TOKEN.name
    update: str = "none"
    damp_inputs: float = DAMPING.inputs
    damp_outputs: float = DAMPING.outputs
    shots: int = 1
    schedule: str = "linear"
    draft: str | None = None
    order: str | None = None
    starts: tuple[str, ...] = ()

    kind: ClassVar[str]
    language: ClassVar[Language]
    preset: ClassVar[str]  # the settings of a search that is given none
    varied: ClassVar[str]  # the field in which a rival may differ
    spread: ClassVar[bool] = False  # whether windows are from all over the text, or the first

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", str(self.model))  # a Path is a name too

    def stored(self) -> dict[str, Any]:
        """Plain values for `settings.toml`."""
        values = {**asdict(self), "goal": self.kind}
        plain = asdict(Texts())
        for name in ("task_data", "documents", "more_texts"):  # of few searches
            if values["texts"][name] == plain[name]:
                del values["texts"][name]
        return values

    def check(self) -> None:
        """See that its fields make a recipe, with a pattern that has room for what is searched for.

        Raises:
            UsageError: they do not, there is no such draft, or a text is given twice or beside a
                loss that reads no text or one.
        """
        recipe, _ = self._recipe(), self.judged_by
        self.texts.check(self.loss)
        if self.language is not METRIC:
            recipe.shape.check_room("an allocation")

    def canonical(self, formula: Formula, setting: str | None = None) -> Formula:
        """The form that a search keeps of a formula.

        Args:
            formula: of the goal's language.
            setting: of the varied field, in place of the goal's own.
        """
        pattern = setting if setting is not None and self.varied == "pattern" else self.pattern
        return formula.canonical(parse_pattern(pattern).group)

    @abstractmethod
    def seeds(self) -> Mapping[str, Formula]:
        """What the search starts from, by name."""

    @abstractmethod
    def masking(
        self, bench: Workbench, setting: str | None = None, progress: Progress = silent
    ) -> Masking:
        """What a formula prunes.

        Args:
            bench: holds the model and its statistics.
            setting: of the varied field, in place of the goal's own.
            progress: called while anything is measured.
        """

    def fitness(self, bench: Workbench, progress: Progress = silent) -> ModelFitness:
        """Judges formulas on validation text, with what `bench` holds."""
        made: Callable[..., ModelFitness] = ModelFitness
        if self.draft == RECIPE:
            made = partial(RecipeFitness, recipe_of=self.recipe, calibration=bench.calibration())
        return made(
            self.masking(bench, progress=progress),
            bench.windows("validation", spread=self.spread),
            loss=bench.loss,
            update=self.judged_by,
            damping=Damping(self.damp_inputs, self.damp_outputs),
            dtype=bench.dtype,
            kinds=len(bench.texts.judged),
        )

    def variant(self, fitness: ModelFitness, bench: Workbench, setting: str) -> ModelFitness:
        """The fitness in another setting of the varied field, on the same copy of the model."""
        return fitness.under(self.masking(bench, setting))

    @abstractmethod
    def rivals(self) -> list[Rival]:
        """The published formulas of the report."""

    @abstractmethod
    def recipe(self, formula: Formula) -> Recipe:
        """How to prune by an evolved formula."""

    @property
    def statistics(self) -> frozenset[str]:
        """What the search reads: what formulas may draw, seeds', the update's, its estimate's."""
        drawn = (name for name, entry in STATISTICS.items() if entry.searched and entry.type)
        updates = (UPDATES.find(self.update), self.judged_by)
        read = (update.reads | frozenset(update.foretold_by or ()) for update in updates)
        return frozenset(drawn).union(
            *read, *(seed.names & STATISTICS.keys() for seed in self.seeds().values())
        )

    @property
    def judged_by(self) -> Update:
        """The update that the search judges by: the goal's, or its draft."""
        return judging_update(self.update, self.draft)

    @property
    def own_setting(self) -> str:
        """The goal's own setting of the varied field."""
        return str(getattr(self, self.varied))

    def _recipe(self, **chosen: str) -> Recipe:
        own = {field.name: getattr(self, field.name) for field in fields(Goal)}
        return Recipe(**{name: own[name] for name in Recipe.model_fields.keys() & own}, **chosen)
