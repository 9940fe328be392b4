"""The recipe: everything that says how to prune a model, as one JSON artefact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from gpprune.errors import UsageError
from gpprune.primitives import STATISTICS, Formula, unit_of
from gpprune.primitives import allocation as read_allocation
from gpprune.primitives import metric as read_metric
from gpprune.primitives.transposed import transposed
from gpprune.prune.allocate.learned import LEARNED
from gpprune.prune.orders import CORRECTED, check_order
from gpprune.prune.schedule import SCHEDULES
from gpprune.prune.select.pattern import Pattern
from gpprune.prune.select.patterns import FREE, parse_pattern
from gpprune.prune.update.damping import DAMPING, Damping
from gpprune.prune.update.table import UPDATES


class Recipe(BaseModel):
    """How to prune: metric, allocation, sparsity, pattern and weight update.

    A recipe holds no model and applies to any. It is immutable, and a wrong value is a
    :class:`gpprune.errors.UsageError` that names it.

    Attributes:
        metric: the name of a published formula, or a formula's text.
        allocation: how the sparsity is shared out: the name of a published allocation, a formula's
            text, or a learned one, such as ``"besa"``. ``"uniform"``: all layers the same.
        unit: what has a sparsity of its own, ``"layer"`` or ``"block"``; left out, what the
            published allocation's code takes, else ``"layer"``.
        sparsity: the share of weights to prune, in ``[0, 1)``; left out, it is what the pattern
            implies (``"2:4"`` is 0.5).
        pattern: ``"row"``, ``"rows:N"``, ``"layer"``, ``"N:M"`` or another of `PATTERNS`;
            ``"model"`` shares the sparsity out by itself, beside a uniform allocation.
        update: what happens to the weights that stay, one of `UPDATES`; ``"none"``: nothing.
        damp_inputs: what an update that inverts a layer's E[a a^T] (a: its inputs) adds to the
            diagonal first, as a share of the diagonal's mean.
        damp_outputs: the same of E[g g^T] (g: the gradients at its outputs).
        shots: in how many shots the sparsity is reached; everything is measured again before each,
            and what is pruned stays so (LLM Surgeon, arXiv 2312.17244).
        schedule: how far each shot goes, one of `SCHEDULES`.
        cap: the largest share of a layer's weights that one shot may take, where layers differ.
        order: how calibration and pruning take turns, one of `ORDERS`; left out, it is for whoever
            prunes to say.
        synthetic_samples: how many sequences the dense model writes to calibrate on, beside the
            given text; each shot has so many more than the one before.
        recover: epochs of training after each shot, see `gpprune.prune.distil`.
        idle_experts: where few tokens reach one, ``"share"`` what others read, or ``"dense"``.
        permute: the metric of which an N:M pattern is to keep the most, as input features are
            permuted first, ``"metric"`` for its own: see `gpprune.prune.permute_channels`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    metric: str = "wanda"
    allocation: str = "uniform"
    unit: Literal["layer", "block"] = "layer"
    sparsity: float = 0.0
    pattern: str = "row"
    update: str = "none"
    damp_inputs: NonNegativeFloat = DAMPING.inputs
    damp_outputs: NonNegativeFloat = DAMPING.outputs
    shots: PositiveInt = 1
    schedule: str = "linear"
    cap: Annotated[float, Field(gt=0, le=1)] = 1.0
    order: str | None = None
    synthetic_samples: NonNegativeInt = 0
    recover: NonNegativeInt = 0
    idle_experts: Literal["share", "dense"] = "share"
    permute: str | None = None

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UsageError(_sentence(error)) from error

    @model_validator(mode="before")
    @classmethod
    def _imply(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        pattern, allocation = values.get("pattern", "row"), values.get("allocation", "uniform")
        if values.get("sparsity") is None and isinstance(pattern, str):
            values = {**values, "sparsity": parse_pattern(pattern).target(None)}
        if values.get("unit") is None:
            values = {**values, "unit": unit_of(str(allocation)) or "layer"}
        return values

    @field_validator("update")
    @classmethod
    def _check_update(cls, update: str) -> str:
        return UPDATES.find(update).name

    @field_validator("schedule")
    @classmethod
    def _check_schedule(cls, schedule: str) -> str:
        return SCHEDULES.find(schedule).name

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Read the formulas and the pattern, so that what is wrong with them is said now."""
        _ = self.formula, self.allocator, self.permuting, self.counterpart
        self.shape.target(self.sparsity)
        if self.allocator is None or self.allocator.names:  # a number alone is uniform
            self.shape.check_room(f"the allocation {self.allocation!r}")
        UPDATES.find(self.update).check_whole(self.shape)
        if self.permute:
            self.shape.check_groups(f"permuting channels by {self.permute!r}")
        self.in_order(None)
        longest = max(after - before for before, after in pairwise((0.0, *self.parts)))
        if longest * self.sparsity > self.cap + 1e-9:
            raise UsageError(
                f"the cap {self.cap:g} is less than the share of {longest * self.sparsity:.3g} "
                f"that one of {self.shots} shots takes of all weights: give more shots, or a "
                "greater cap"
            )
        return self

    def in_order(self, order: str | None) -> str:
        """The order in which to prune: the one that is given, else its own, else sequential.

        Raises:
            UsageError: there is no such order, or it does not go with the update; or nothing is
                measured on the synthetic samples.
        """
        chosen = order or self.order or "sequential"
        check_order(chosen, self.update)
        needed = self.reads | self.permutes_by or self.allocator is None or self.recover
        if self.synthetic_samples and not (needed or chosen == CORRECTED):
            raise UsageError(
                f"{self.synthetic_samples} synthetic samples are of no use: neither the metric nor "
                "the allocation nor the weight update reads anything of a text; ask for none"
            )
        return chosen

    @property
    def parts(self) -> list[float]:
        """The share of the zeros that are there after each shot, the last 1."""
        return SCHEDULES.find(self.schedule).parts(self.shots)

    @classmethod
    def make(cls, **values: Any) -> Recipe:
        """A recipe from keyword arguments in which None stands for "not given".

        Raises:
            UsageError: naming the value that is wrong.
        """
        return cls(**{name: value for name, value in values.items() if value is not None})

    @cached_property
    def formula(self) -> Formula:
        """The metric as a formula."""
        return read_metric(self.metric)

    @cached_property
    def allocator(self) -> Formula | None:
        """The allocation as a formula; None for one that is learned."""
        return None if self.allocation in LEARNED else read_allocation(self.allocation)

    @cached_property
    def permuting(self) -> Formula | None:
        """The metric that channels are permuted by; None: they are not."""
        if self.permute == "metric":
            return self.formula
        return None if self.permute is None else read_metric(self.permute)

    @cached_property
    def counterpart(self) -> Formula | None:
        """What says of rows what the metric says of columns; None: no rows compete with them."""
        return transposed(self.formula) if FREE in self.shape.units else None

    @property
    def permutes_by(self) -> frozenset[str]:
        """The statistics that the permutation follows from."""
        return frozenset() if self.permuting is None else self.permuting.names & STATISTICS.keys()

    @property
    def reads(self) -> frozenset[str]:
        """The statistics that metric, allocation and update ask for, by name."""
        return self.shares_by | UPDATES.find(self.update).reads

    @property
    def measures_once(self) -> bool:
        """Whether masks on the given text are all: nothing written, trained, permuted or capped."""
        more = self.synthetic_samples or self.recover or self.permute
        return self.shots == 1 and self.cap == 1 and not more

    @property
    def shares_by(self) -> frozenset[str]:
        """The statistics that the zeros of every layer follow from."""
        if self.allocator is None:
            allocation = LEARNED.find(self.allocation).reads
        else:
            allocation = self.allocator.names & STATISTICS.keys()
        other = frozenset() if self.counterpart is None else self.counterpart.names
        return allocation | ((self.formula.names | other) & STATISTICS.keys())

    @property
    def varies(self) -> bool:
        """Whether layers may differ in their sparsity."""
        if self.shape.sparsity is not None:  # then an allocation is a number, which is uniform
            return False
        return self.allocation != "uniform" or self.shape.across

    @property
    def damping(self) -> Damping:
        """What the update adds to the diagonals of the curvature."""
        return Damping(self.damp_inputs, self.damp_outputs)

    @property
    def shape(self) -> Pattern:
        """The pattern, parsed."""
        return parse_pattern(self.pattern)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A recipe with other values, which are checked as those of a new one are.

        Raises:
            UsageError: naming the value that is wrong.
        """
        own = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**(own | dict(update or {})))

    @model_serializer(mode="wrap")
    def _record(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Its values but for those that say nothing: of one shot, of a damping that is not read."""
        values: dict[str, Any] = written(self)
        if self.shots == 1 and self.schedule == "linear" and self.cap == 1:
            del values["shots"], values["schedule"], values["cap"]
        if not UPDATES.find(self.update).reads and self.damping == DAMPING:
            del values["damp_inputs"], values["damp_outputs"]
        for name in ("order", "synthetic_samples", "recover", "idle_experts", "permute"):
            if values[name] == type(self).model_fields[name].default:
                del values[name]
        return values

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """Read a recipe's JSON, alone or as the ``gpprune_recipe.json`` of a checkpoint.

        Raises:
            UsageError: the file cannot be read, or is no recipe.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"cannot read the recipe {str(path)!r}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the recipe {str(path)!r} is not JSON: {error}") from error
        data = data.get("recipe", data) if isinstance(data, dict) else data
        if not isinstance(data, dict):
            raise UsageError(f"the recipe {str(path)!r} is not a JSON object")
        try:
            return cls(**data)
        except UsageError as error:
            raise UsageError(f"the recipe {str(path)!r}: {error}") from error

    def write(self, path: str | Path) -> None:
        """Write the recipe as JSON.

        Raises:
            UsageError: the file cannot be written.
        """
        try:
            Path(path).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write the recipe {str(path)!r}: {error.strerror}") from error


def _sentence(error: ValidationError) -> str:
    """The first complaint of pydantic as one sentence that names the field and the value."""
    first = error.errors(include_url=False)[0]
    if cause := first.get("ctx", {}).get("error"):
        return str(cause)
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"a recipe has no {field!r}: it has {', '.join(Recipe.model_fields)}"
    return f"the recipe's {field} is {first['input']!r}: {first['msg'].lower()}"
