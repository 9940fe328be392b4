"""One shot: statistics, scores, masks and new weights of every layer, once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from gpprune.errors import GppruneError
from gpprune.memory import give_back
from gpprune.progress import Progress
from gpprune.prune.coupled.gone import Statistics
from gpprune.prune.coupled.units import units_to_go
from gpprune.prune.measure.accumulator import Extent
from gpprune.prune.measure.calibrate import calibrate
from gpprune.prune.measure.cut_off import is_cut_off
from gpprune.prune.measure.drift import Drift
from gpprune.prune.measure.measuring import Measuring, measurers
from gpprune.prune.model.readers import Group, input_groups
from gpprune.prune.model.sequential import BlockRunner
from gpprune.prune.model.streamed.pages import pages_of
from gpprune.prune.model.structure import LinearLayer, linear_layers
from gpprune.prune.recipe import Recipe
from gpprune.prune.select.patterns import parse_pattern
from gpprune.prune.select.scores import ScoreKernel
from gpprune.prune.select.staged import Within
from gpprune.prune.stage import Outcome, Stage
from gpprune.prune.step import prune_masked
from gpprune.prune.update.choice import Choice, is_local, uniform_zeros
from gpprune.prune.update.correction import corrected
from gpprune.prune.update.gone import Gone
from gpprune.prune.update.refit import predicted_increase
from gpprune.prune.update.table import UPDATES, Update
from gpprune.prune.zeros import recipe_kernel, recipe_zeros, share_of_layers, staged_score


def prune_once(
    model: nn.Module,
    recipe: Recipe,
    calibration: Tensor,
    order: str,
    progress: Progress,
    stage: Stage | None = None,
    dense: Statistics | None = None,
    aside: Collection[str] = (),
) -> Outcome:
    """Prune a model in place, in one shot.

    Args:
        model: in evaluation mode; its weights as they are now are what is measured and changed.
        recipe: how to prune.
        calibration: ``[samples, length]``, int64.
        order: one of `ORDERS`.
        progress: called as ``progress(label, done, total)``.
        stage: where the shot stands among several; by default it is the only one, of which
            nothing is noted: masks take a byte a weight, and the prediction two products.
        dense: what has been measured of the model as it is, by layer name, if it holds all that
            the recipe reads.
        aside: the names of layers that stay as they are.

    Raises:
        GppruneError: see `gpprune.prune.prune_model`.
    """
    keeps, stage = stage is not None, stage or Stage()
    layers = linear_layers(model)
    score = recipe_kernel(recipe, layers)
    measured, zeros, gone = dense, None, None
    share = share_of_layers(model, recipe)
    if recipe.varies or share != recipe.sparsity:
        reads = recipe.reads if order == "dense" else recipe.shares_by | _dense_reads(recipe)
        if reads and measured is None:
            measured = calibrate(
                model,
                calibration,
                stage.measured(reads),
                cut_off=stage.later,
                progress=progress,
            )
        part, held, found = stage.part, stage.held, measured or {}
        if recipe.shape.units:
            gone = units_to_go(model, recipe, found, part=part, held=held, coupled=stage.coupled)
        else:
            asked = recipe.model_copy(update={"sparsity": share})
            zeros = recipe_zeros(model, asked, calibration, found, progress, part=part, held=held)
    job = _Job(
        model,
        layers,
        recipe,
        score,
        calibration,
        progress,
        measured,
        zeros,
        gone,
        stage,
        keeps,
        frozenset(aside),
    )
    with torch.no_grad():
        _ORDERS[order](job)
    return job.outcome


def _dense_reads(recipe: Recipe) -> frozenset[str]:
    """What is the dense model's in every order."""
    return frozenset(m.name for m in measurers(recipe.reads) if not m.anew)


@dataclass(frozen=True, eq=False)
class _Job:
    """What every order of pruning needs."""

    model: nn.Module
    layers: Mapping[str, LinearLayer]
    recipe: Recipe
    score: ScoreKernel
    tokens: Tensor
    progress: Progress
    measured: Statistics | None  # of the dense model, at least those that the zeros follow from
    zeros: Mapping[str, int] | None  # of each layer; None: the same share of each
    gone: Mapping[str, Gone] | None  # of each layer, where whole units go
    stage: Stage
    keeps: bool  # what the outcome says
    aside: frozenset[str]  # layers that stay as they are
    outcome: Outcome = field(default_factory=Outcome)

    def prune(
        self, layer: LinearLayer, statistics: Mapping[str, Tensor], drift: Tensor | None = None
    ) -> None:
        """Prune a layer in place; it makes up for a share of the drift, if one was measured."""
        recipe, weight, update = self.recipe, layer.weight, self.update
        if layer.name in self.aside:
            if self.keeps:
                self.outcome.masks[layer.name] = torch.zeros_like(weight, dtype=torch.bool)
            return
        gone = None if self.gone is None else self.gone[layer.name]
        curved = self.keeps and {"aaT", "ggT"} <= statistics.keys()
        if self.stage.later and is_cut_off(statistics, update.reads):
            update, drift = UPDATES.find("none"), None  # there is nothing to make up for
        try:
            aim = None if drift is None else corrected(weight, drift, statistics["aaT"])
            choice = self._choice(layer, statistics) if gone is None else gone
            first = weight
            if aim is not None and isinstance(choice, Choice) and update.keeps:
                choice = replace(choice, aim=aim)
            elif aim is not None:
                first = aim
            # what is corrected or unread is no damage; what is written in place is kept
            before = gone.without_unread(first) if curved and gone is not None else first
            before = before.clone() if curved and before is weight else before
            pruned = prune_masked(first, choice, statistics, update, weight, recipe.damping)
        except GppruneError as error:
            raise type(error)(f"in {layer.name!r}: {error}") from error
        held = self.stage.held.get(layer.name)
        if held is not None and bool((held.to(pruned.mask.device) & ~pruned.mask).any()):
            raise GppruneError(
                f"in {layer.name!r}: weights of an earlier shot are back: this is a defect"
            )
        if self.keeps:
            self.outcome.masks[layer.name] = pruned.mask
        if curved:
            own = predicted_increase(before, pruned.weight, statistics["aaT"], statistics["ggT"])
            self.outcome.predicted = (self.outcome.predicted or 0.0) + own

    def _choice(self, layer: LinearLayer, statistics: Mapping[str, Tensor]) -> Choice:
        """How a layer's mask is chosen."""
        recipe, shape = self.recipe, layer.shape
        score = staged_score(self.score, statistics, self.stage.held.get(layer.name))
        pattern, part = recipe.shape, self.stage.part
        if self.zeros is not None:
            zeros = self.zeros[layer.name]
        elif pattern.sparsity is not None:  # the number is fixed, and not a share of it
            zeros = round(part * uniform_zeros(pattern, recipe.sparsity, shape))
        else:
            zeros = uniform_zeros(pattern, recipe.sparsity * part, shape)
        together = 1
        if pattern.sparsity is not None and part < 1:
            # a group of M that was cut would be judged twice, on different weights
            together = Choice(score, statistics, pattern, zeros).step(shape, 1)
            score, pattern = Within(score, pattern), parse_pattern("layer")
        local = score is self.score and self.local
        return Choice(score, statistics, pattern, zeros, local, together, recipe.shape)

    @cached_property
    def local(self) -> bool:
        return is_local(self.recipe.formula)

    def report(self, done: int, total: int) -> None:
        self.progress("pruning", done, total)

    @property
    def update(self) -> Update:
        return UPDATES.find(self.recipe.update)

    @property
    def reads(self) -> list[str]:
        """The statistics that scoring and updating a layer take."""
        scored = frozenset[str]() if self.gone is not None else self.score.terminals - {"W"}
        return sorted(self.stage.measured(scored | self.update.reads))

    def dense(self, names: Iterable[str]) -> dict[str, Mapping[str, Tensor]]:
        """Statistics of the dense model by layer name, at least these."""
        if self.measured is not None:
            return dict(self.measured)
        return calibrate(
            self.model,
            self.tokens,
            names,
            cut_off=self.stage.later,
            progress=self.progress,
        )


def _prune_dense(job: _Job) -> None:
    """Every layer on the statistics of the dense model."""
    statistics = job.dense(job.reads)
    pages = pages_of(job.model)
    last = {layer.block: name for name, layer in job.layers.items()}
    if pages is not None:
        pages.start()
    for done, (name, layer) in enumerate(job.layers.items(), start=1):
        held = statistics.pop(name)  # may hold more, and read it from disk
        if pages is not None and layer.block < pages.finished:
            continue
        job.prune(layer, {each: held[each] for each in job.reads})
        if pages is not None and last[layer.block] == name:
            pages.finish(layer.block)
        give_back()
        job.report(done, len(job.layers))


Groups = Callable[[BlockRunner, int, Mapping[str, LinearLayer]], Iterable[Group]]


def _whole(runner: BlockRunner, index: int, layers: Mapping[str, LinearLayer]) -> list[Group]:
    """All layers of a block at once."""
    return [dict(layers)]


def _prune_sequential(job: _Job, groups: Groups = _whole, corrects: bool = False) -> None:
    """Each group of a block's layers on what the already pruned ones before it hand on."""
    anew = {measurer.name for measurer in measurers(job.reads) if measurer.anew}
    if corrects:
        anew.add("aaT")
    if not anew:
        _prune_dense(job)  # nothing that is measured changes as blocks are pruned
        return
    known = set(job.reads) - anew
    dense = job.dense(known)
    cut_off = job.stage.later
    runner = BlockRunner(job.model, job.tokens, job.progress)
    drift = Drift(runner, job.stage.originals) if corrects else None
    pages = pages_of(job.model)
    start = 0 if pages is None else pages.finished
    if pages is not None and start:
        runner.restore(pages.states())
        cut_off |= bool(known)
    if pages is not None:
        pages.start()
    for index in range(start, len(runner)):
        block_layers = {n: layer for n, layer in job.layers.items() if layer.block == index}
        parts = list(groups(runner, index, block_layers))
        if drift is not None:
            drift.enter(index, parts)
        for group in parts:
            measuring, drifted = Measuring(group, sorted(anew)), {}
            watching = partial(measuring.watching, job.model)
            if drift is None:
                with watching():
                    runner.forward(index, keep=False)
            else:
                drifted = drift.measure(group, watching)
            measuring.check_reached(cut_off)
            for name, layer in group.items():
                held = dense.pop(name)  # may hold more, and read it from disk
                found = {each: held[each] for each in known}
                found |= measuring.statistics(name, Extent(*job.tokens.shape))
                job.prune(layer, found, drifted.get(name))
            # Idle experts were refused on the dense model, if anything was measured of it. What
            # is given zeros from here on, the layers before it have cut off.
            cut_off |= bool(known)
        if index + 1 < len(runner):
            runner.forward(index, keep=True)
        if pages is not None:
            pages.finish(index, runner.states)
        give_back()
        job.report(index + 1, len(runner))


_ORDERS: dict[str, Callable[[_Job], None]] = {
    "sequential": _prune_sequential,
    "true-sequential": partial(_prune_sequential, groups=input_groups),
    "corrected": partial(_prune_sequential, groups=input_groups, corrects=True),
    "dense": _prune_dense,
}
