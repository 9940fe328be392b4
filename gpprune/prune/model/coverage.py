"""What of a model's decoder blocks is pruned, and what is left alone and why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from gpprune.prune.model.streamed.pages import value_of
from gpprune.prune.model.structure import block_lists, blocks, linear_layers

_PLACE = re.compile(r"(^|\.)\d+(?=\.|$)")  # a number in a name: which expert, which block
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Matrix:
    """A matrix that decoder blocks multiply by, or several that are stored as one parameter.

    Attributes:
        name: the parameter's name, as in ``model.get_parameter(name)``.
        role: what it is called in every block, as ``mlp.experts.down_proj``.
        size: how many weights it has.
        reason: why it is left alone, in plain words; empty for a linear layer's weight, which
            is pruned.
    """

    name: str
    role: str
    size: int
    reason: str = ""


@dataclass(frozen=True)
class LeftRole:
    """All matrices of one role that are left alone.

    Attributes:
        role: what they are called in every block.
        reason: why they are left alone.
        parameters: how many of the model's parameters they are.
        size: how many weights they have together.
    """

    role: str
    reason: str
    parameters: int
    size: int


@dataclass(frozen=True)
class Coverage:
    """All matrices of a model's decoder blocks.

    Attributes:
        pruned: the weights of linear layers, in the model's order.
        left: all others, each with the reason why it is left alone.
    """

    pruned: tuple[Matrix, ...]
    left: tuple[Matrix, ...]

    @property
    def pruned_size(self) -> int:
        """How many weights the pruned matrices have."""
        return _size(self.pruned)

    @property
    def left_size(self) -> int:
        """How many weights the matrices that are left alone have."""
        return _size(self.left)

    @property
    def size(self) -> int:
        """How many weights all matrices have."""
        return self.pruned_size + self.left_size

    @property
    def roles(self) -> tuple[LeftRole, ...]:
        """What is left alone, one entry a role however many blocks there are."""
        groups: dict[tuple[str, str], list[Matrix]] = {}
        for matrix in self.left:
            groups.setdefault((matrix.role, matrix.reason), []).append(matrix)
        return tuple(LeftRole(*key, len(group), _size(group)) for key, group in groups.items())

    @property
    def sentence(self) -> str:
        """One sentence for a reader: the share that is pruned, and what is left alone and why."""
        if not self.left:
            return "all weights of the decoder blocks are in linear layers"
        reasons: dict[str, list[LeftRole]] = {}
        for role in self.roles:
            reasons.setdefault(role.reason, []).append(role)
        left = ", ".join(
            f"{' and '.join(role.role for role in group)} "
            f"({_percent(_size(group), self.size)}: {reason})"
            for reason, group in reasons.items()
        )
        return (
            f"{_percent(self.pruned_size, self.size)} of the weights of the decoder blocks are in "
            f"linear layers that gpprune prunes; left alone: {left}"
        )

    def zeros(self, model: nn.Module) -> int:
        """How many weights of all these matrices, left alone or not, are zero in a model."""
        return sum(
            matrix.size - int(torch.count_nonzero(value_of(model, matrix.name).detach()))
            for matrix in (*self.pruned, *self.left)
        )

    def as_dict(self) -> dict[str, Any]:
        """Sizes and roles as plain values for JSON."""
        return {
            "size": self.size,
            "pruned_size": self.pruned_size,
            "left_size": self.left_size,
            "left": [asdict(role) for role in self.roles],
        }


def coverage(model: nn.Module) -> Coverage:
    """All matrices that the decoder blocks of a model multiply by.

    Those are the weights of linear layers, which gpprune prunes, and every other parameter of two
    or more dimensions: fused experts, routers, kernels of convolutions, states. Vectors (norms,
    biases, also those of experts in a stack) do not count, nor do embeddings and the head, which
    lie outside the blocks. A parameter that several blocks share counts once.

    Raises:
        GppruneError: the model has no decoder blocks that gpprune can prune.
    """
    pruned = {id(layer.slot) for layer in linear_layers(model).values()}
    found = list(_matrices(model, pruned))
    return Coverage(
        tuple(matrix for matrix in found if not matrix.reason),
        tuple(matrix for matrix in found if matrix.reason),
    )


def _matrices(model: nn.Module, pruned: set[int]) -> Iterator[Matrix]:
    """Each matrix in the model's lists of blocks; ``pruned``: ids of those in linear layers."""
    names = {id(module): name for name, module in model.named_modules()}
    chosen, seen = blocks(model), set[int]()
    for modules in block_lists(model):
        name = names[id(modules)]
        elsewhere = "" if modules is chosen else name
        for path, inner, parameter, owner in _parameters(modules):
            if id(parameter) in seen or not _is_matrix(inner, parameter):
                continue
            seen.add(id(parameter))
            role = _PLACE.sub(r"\1*", f"{elsewhere}.*.{inner}" if elsewhere else inner)
            role = role.removesuffix(".weight")
            taken = id(parameter) in pruned
            reason = "" if taken else _reason(role, parameter, owner, elsewhere)
            yield Matrix(f"{name}.{path}", role, parameter.numel(), reason)


def _parameters(modules: nn.ModuleList) -> Iterator[tuple[str, str, nn.Parameter, nn.Module]]:
    """Name in the list, name in the block and owner of each parameter in a list of blocks."""
    for index, block in enumerate(modules):
        for path, owner in block.named_modules():
            for last, parameter in owner.named_parameters(recurse=False):
                inner = f"{path}.{last}" if path else last
                yield f"{index}.{inner}", inner, parameter, owner


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is more than a vector, or a stack of vectors as experts' biases are."""
    if name.rpartition(".")[2] == "bias" or name.endswith("_bias"):
        return False
    # RWKV keeps vectors as [1, 1, width]; a layer of one output is a matrix all the same.
    return parameter.ndim == 2 or sum(length > 1 for length in parameter.shape) > 1


def _reason(role: str, parameter: nn.Parameter, owner: nn.Module, elsewhere: str) -> str:
    """Why a matrix is left alone."""
    if elsewhere:
        return f"in {elsewhere!r}, another list of blocks than the longest"
    if isinstance(owner, _CONVOLUTIONS):
        return "the kernel of a convolution"
    if parameter.ndim > 2:
        what = "experts" if "expert" in role else "matrices"
        return f"{what} stored as one {parameter.ndim}-D parameter"
    if {"router", "gate"} & set(role.split(".")) or "Router" in type(owner).__name__:
        return "a router"
    if isinstance(owner, nn.Linear):
        return "a gate of experts"
    if isinstance(owner, nn.Embedding):
        return "a table that is looked up"
    return "a parameter of no linear layer"


def _size(items: Iterable[Matrix | LeftRole]) -> int:
    return sum(item.size for item in items)


def _percent(part: int, whole: int) -> str:
    """A share with one decimal that says neither none nor all unless it is."""
    share = 100 * part / whole
    if 0 < share < 0.05:
        return "under 0.1 %"
    return "over 99.9 %" if 99.95 <= share < 100 else f"{share:.1f} %"
