"""Layers of other sizes than a model's configuration gives them: in memory, and in a checkpoint."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gpprune.errors import GppruneError, UsageError

SHAPES_FILE = "gpprune_shapes.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
# Where a layer keeps its sizes beside its weight: of nn.Linear, and of Conv1D along each dimension.
_FEATURES = (("out_features", "in_features"), ("nx", "nf"))


class Shapes(BaseModel):
    """What of a model is not as its configuration says.

    Attributes:
        shapes: of parameters by name.
        attributes: of modules by name: the numbers, such as of heads, that their code goes by.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    shapes: dict[str, Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=2)]]
    attributes: dict[str, dict[str, PositiveInt]] = {}

    @classmethod
    def of(cls, model: nn.Module) -> Shapes:
        """What of a model is not as its configuration says; nothing of one without."""
        plain = as_configured(model)
        if plain is None:
            return cls(shapes={})
        wanted = {name: value.shape for name, value in plain.named_parameters()}
        shapes = {
            name: tuple(value.shape)
            for name, value in model.named_parameters()
            if value.shape != wanted.get(name)
        }
        changed: dict[str, dict[str, int]] = {}
        for name, module in plain.named_modules():
            own = model.get_submodule(name)
            if any(hasattr(own, field) for fields in _FEATURES for field in fields):
                continue  # follows from the weight
            for field, value in whole_numbers(module):
                if (found := getattr(own, field, value)) != value:
                    changed.setdefault(name, {})[field] = found
        return cls(shapes=shapes, attributes=changed)

    def write(self, folder: Path) -> None:
        """Write the file of a checkpoint; nothing where all is as its configuration says."""
        if self.shapes:
            text = self.model_dump_json(indent=2) + "\n"
            (folder / SHAPES_FILE).write_text(text, encoding="utf-8")

    def fill(self, model: nn.Module, folder: Path, misfits: Iterable[str]) -> None:
        """Give a model that was read from a checkpoint its own shapes, and the weights in them.

        Args:
            model: as its configuration says.
            folder: of the checkpoint.
            misfits: the parameters that the checkpoint has in other shapes.

        Raises:
            GppruneError: these are not the parameters or shapes that the file names.
        """
        if sorted(misfits) != sorted(self.shapes):
            odd = sorted(set(misfits) ^ self.shapes.keys())
            raise GppruneError(f"the shape of {odd[0]!r} is not the one that {SHAPES_FILE} says")
        for name, shape in self.shapes.items():
            values = _stored(folder, name)
            if tuple(values.shape) != shape:
                raise GppruneError(
                    f"{name!r} has the shape {list(values.shape)}, and {SHAPES_FILE} says "
                    f"{list(shape)}"
                )
            set_parameter(model, name, values.to(model.get_parameter(name)))
        for name, fields in self.attributes.items():
            try:
                module = model.get_submodule(name)
            except AttributeError as error:
                raise GppruneError(f"{SHAPES_FILE} names {name!r}, which is no module") from error
            known = dict(whole_numbers(module))
            for field, value in fields.items():
                if field not in known:
                    raise GppruneError(f"{SHAPES_FILE}: {name!r} has no number {field!r}")
                setattr(module, field, value)


def read_shapes(folder: str | Path) -> Shapes | None:
    """What a checkpoint says of its own shapes; None if it says nothing.

    Raises:
        UsageError: the file cannot be read, or is damaged.
    """
    path = Path(folder) / SHAPES_FILE
    if not path.is_file():
        return None
    try:
        return Shapes.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UsageError(
            f"{str(path)!r} is damaged: fetch or write the checkpoint again"
        ) from error


def set_parameter(model: nn.Module, name: str, values: Tensor) -> None:
    """Replace a parameter, in all places that share it, by one of another shape."""
    before = model.get_parameter(name)
    new = nn.Parameter(values.detach(), requires_grad=before.requires_grad)
    for module in model.modules():
        for own, parameter in module.named_parameters(recurse=False):
            if parameter is not before:
                continue
            setattr(module, own, new)
            if own != "weight" or new.ndim != 2:
                continue
            for fields in _FEATURES:
                if all(hasattr(module, field) for field in fields):
                    for field, size in zip(fields, new.shape, strict=True):
                        setattr(module, field, size)


def as_configured(model: nn.Module) -> nn.Module | None:
    """A model without values that is as the configuration says; None if it has none."""
    config = getattr(model, "config", None)
    return None if config is None else _configured(type(model), config)


def _configured(make: Callable[[Any], nn.Module], config: Any) -> nn.Module:
    with torch.device("meta"):
        return make(copy.deepcopy(config))


def whole_numbers(owner: object) -> Iterator[tuple[str, int]]:
    """The attributes of a module or configuration that are positive whole numbers."""
    for field, value in list(vars(owner).items()):
        if type(value) is int and value > 0:
            yield field, value


def counting(owner: object, units: int, members: int) -> Iterator[tuple[str, int]]:
    """The attributes that may count units, or parts of them.

    Args:
        owner: a module or configuration.
        units: how many there are.
        members: how many parts each has, at most.
    """
    for field, value in whole_numbers(owner):
        if value % units == 0 and units * members % value == 0:
            yield field, value


class FewerUnits(NamedTuple):
    """Units of a model that became fewer.

    Attributes:
        before: how many they were.
        after: how many they are.
        members: how many parts each has, at most.
        head_dim: of a head, where they are heads: not all configurations name it.
    """

    before: int
    after: int
    members: int
    head_dim: int | None = None


def fit_configuration(model: nn.Module, changes: Iterable[FewerUnits]) -> bool:
    """Let a model's configuration say its shapes, if it can.

    Of the numbers in the configuration, those are changed that bring it nearer to the model.

    Args:
        model: of the transformers library; its configuration is changed where that succeeds.
        changes: what became fewer.

    Returns:
        Whether plain transformers makes a model of these shapes now.
    """
    config: Any = getattr(model, "config", None)
    if config is None:
        return False
    before = _configurations(model)
    least = _misfits(model, config)
    for change in changes:
        for part, _ in before:
            if change.head_dim is not None and getattr(part, "head_dim", None) is None:
                part.head_dim = change.head_dim
            for field, old in counting(part, change.before, change.members):
                setattr(part, field, old // change.before * change.after)
                found = _misfits(model, config)
                if found < least:
                    least = found
                else:
                    setattr(part, field, old)
    if least:
        _restore(before)
    return not least


@contextmanager
def trying(model: nn.Module) -> Iterator[None]:
    """Put a model's configuration back as it was where this context ends with an error."""
    before = _configurations(model)
    try:
        yield
    except BaseException:
        _restore(before)
        raise


def _configurations(model: nn.Module) -> list[tuple[Any, dict[str, Any]]]:
    """The configurations that may say a model's shapes, and what they say."""
    config = getattr(model, "config", None)
    parts = (config, getattr(config, "text_config", None))
    return [(part, copy.copy(vars(part))) for part in parts if part is not None]


def _restore(configurations: list[tuple[Any, dict[str, Any]]]) -> None:
    for part, values in configurations:
        vars(part).clear()
        vars(part).update(values)


def _misfits(model: nn.Module, config: Any) -> float:
    """How many parameters a configuration gives other shapes; infinity if it makes no model."""
    try:
        plain = _configured(type(model), config)
    except Exception:  # whatever a number that does not fit makes a model's code raise
        return float("inf")
    wanted = {name: value.shape for name, value in plain.named_parameters()}
    own = {name: value.shape for name, value in model.named_parameters()}
    return sum(own.get(name) != wanted.get(name) for name in own.keys() | wanted.keys())


def _stored(folder: Path, name: str) -> Tensor:
    """A parameter as it lies in a checkpoint's safetensors.

    Raises:
        GppruneError: it does not.
    """
    index = folder / _INDEX
    try:
        file = json.loads(index.read_bytes())["weight_map"][name] if index.is_file() else _WEIGHTS
        with safe_open(folder / Path(file).name, "pt") as opened:
            found: Tensor = opened.get_tensor(name)
            return found
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise GppruneError(f"{name!r} cannot be read from {str(folder)!r} ({error})") from error
