"""Experts that are stored as one parameter: each one's matrices become linear layers of their own.

transformers keeps the experts of a block as stacks, ``[experts, out, in]`` or ``[experts, in,
out]``, which its own code multiplies by without calling any module. An opened stack computes the
same by calling a module for each matrix, so that whatever listens to linear layers listens to
experts. The parameters stay where they are, and so does all that is saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

# What transformers' interface for experts says of each class that goes by it.
_FLAGS = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "num_experts")


class Expert(nn.Module):
    """One expert's matrix, called as a linear layer is; it has no parameters of its own.

    Args:
        owner: the module that has the stack.
        stack: the name of the parameter in it.
        place: which expert.
    """

    def __init__(self, owner: nn.Module, stack: str, place: int) -> None:
        super().__init__()
        self._owner = (owner,)  # torch does not look into a tuple: it would go round in circles
        self.stack = stack
        self.place = place

    @property
    def owner(self) -> nn.Module:
        """The module that has the stack."""
        return self._owner[0]

    @property
    def parameter(self) -> nn.Parameter:
        """The whole stack."""
        found: nn.Parameter = getattr(self._owner[0], self.stack)
        return found

    @property
    def transposed(self) -> bool:
        """Whether the stack's matrices lie ``[in, out]``."""
        return bool(self._owner[0].is_transposed)

    @property
    def bias(self) -> Tensor | None:
        """``[out]``."""
        biases: Tensor | None = getattr(self._owner[0], f"{self.stack}_bias", None)
        return None if biases is None else biases[self.place]

    def forward(self, inputs: Tensor) -> Tensor:
        """What a linear layer with this matrix gives: ``[..., in]`` to ``[..., out]``."""
        weight = self.parameter[self.place]
        return functional.linear(inputs, weight.t() if self.transposed else weight, self.bias)

    def extra_repr(self) -> str:
        """Which matrix it is, where the model is printed."""
        return f"{self.stack}[{self.place}]"


def open_experts(model: nn.Module) -> None:
    """Give every stack of experts a module for each matrix, where that was not done before.

    They are named as in ``mlp.experts.3.down_proj``. The model computes what it did, but for
    rounding, and its parameters and configuration are as they were. Experts that do not go by the
    interface of transformers 5 stay closed.
    """
    for module in list(model.modules()):
        if _is_closed(module):
            stacks = list(_stacks(module))
            for place in range(len(module.get_parameter(stacks[0]))):
                own = nn.ModuleDict({stack: Expert(module, stack, place) for stack in stacks})
                module.add_module(str(place), own)
            module.__class__ = _opened(cast(Any, type(module)))


def routers(module: nn.Module) -> Iterator[nn.Linear]:
    """The linear layers in a module that say which experts a token goes to, and how much of it.

    Such a layer lies beside experts, alone in its module if it has one, and has an output for each
    expert or one for all. Pruning it would save nothing and change what all experts read.
    """
    for owner in module.modules():
        counts = {n for child in owner.children() if (n := experts_in(child) or _closed_in(child))}
        for child in owner.children() if counts else ():
            linear = [part for part in child.modules() if isinstance(part, nn.Linear)]
            if len(linear) == 1 and linear[0].out_features in counts | {1}:
                yield linear[0]


def experts_in(module: nn.Module) -> int:
    """How many experts a module of a block is; 0: it is none.

    They are an opened stack, or a list of modules of one class.
    """
    if getattr(module, "opened_experts", False):
        return int(cast(Any, module).num_experts)
    if not isinstance(module, nn.ModuleList) or len(module) < 2:
        return 0
    alike = len({type(one) for one in module}) == 1 and all(map(_multiplies, module))
    return len(module) if alike else 0


def _multiplies(module: nn.Module) -> bool:
    return any(isinstance(part, nn.Linear) for part in module.modules())


def _closed_in(module: nn.Module) -> int:
    """How many experts a stack that cannot be opened has; 0: it is none."""
    own = [p.shape[0] for p in module.parameters(recurse=False) if p.ndim == 3]
    convolution = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return own[0] if own and not convolution else 0


def _stacks(module: Any) -> Iterator[str]:
    yield "gate_up_proj" if module.has_gate else "up_proj"
    yield "down_proj"


def _is_closed(module: nn.Module) -> bool:
    """Whether a module is a stack of experts by the interface of transformers, not opened yet."""
    if getattr(module, "opened_experts", False):
        return False
    if not all(hasattr(module, flag) for flag in _FLAGS):
        return False
    found = [getattr(module, stack, None) for stack in _stacks(module)]
    return all(
        isinstance(one, nn.Parameter) and one.ndim == 3 and one.is_floating_point() for one in found
    )


@cache
def _opened(kind: Any) -> Any:
    """The class of a stack whose experts are called one by one."""
    return type(
        kind.__name__,
        (kind,),
        {
            "forward": _forward,
            "opened_experts": True,
            "__module__": kind.__module__,
            "__reduce__": lambda self: (_reopened, (kind,), self.__dict__),
        },
    )


def _reopened(kind: Any) -> Any:
    """An opened stack without its state, for a copy."""
    return _opened(kind).__new__(_opened(kind))


def _forward(self: Any, hidden_states: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
    """The sum of what the experts give that each token goes to, by their shares.

    Args:
        self: an opened stack.
        hidden_states: ``[tokens, hidden]``.
        chosen: int64 ``[tokens, choices]``: to which experts each goes; as many as there are: none.
        shares: ``[tokens, choices]``.

    Returns:
        ``[tokens, hidden]``.
    """
    first, last = _stacks(self)
    found = torch.zeros_like(hidden_states)
    for place in torch.unique(chosen).tolist():
        if place >= self.num_experts:
            continue
        rows, choices = torch.where(chosen == place)
        own = self._modules[str(place)]
        inner = own[first](hidden_states[rows])
        inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
        outer = own[last](inner)
        if self.has_post_expert_norm:
            outer = self.post_expert_norm(outer)
        found.index_add_(0, rows, (outer * shares[rows, choices, None]).to(found.dtype))
    return found
