"""A device that is the CPU by another name, so that tests without a GPU see tensors mixed up.

Torch refuses most operations on tensors of two devices; on a machine with one device nothing does.
Tensors "on" the stand-in are refused beside those of the CPU where CUDA would refuse them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"
_CPU = torch.device("cpu")
_ELSEWHERE = 1 << 60  # native code that reads at such an address crashes, as on a GPU's
# These take tensors of two devices on CUDA, too: copies, and indices that lie on the CPU.
_MIXING = {"aten::_to_copy", "aten::copy_", "aten::copy"}
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class _Hook(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return True

    def has_primary_context(self, index: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


class _Guard(torch._C._acc.DeviceGuard):
    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


class _Module:
    """What torch asks of a device's module."""

    def is_available(self) -> bool:
        return True

    def is_autocast_enabled(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return []


@cache
def register() -> torch.device:
    """Make the device known, which has to be done before a process's first gradient."""
    _setup_privateuseone_for_python_backend(NAME, _Module(), _Hook(), _Guard())
    return torch.device(NAME, 0)


def _dispatched(
    owner: Any,
    func: Any,
    types: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    return _run(func, args, dict(kwargs or {}))


class _There(Tensor):
    """A tensor of the stand-in: a shell around one of the CPU."""

    own: Tensor

    @staticmethod
    def __new__(cls, own: Tensor) -> _There:
        shell: _There = Tensor._make_wrapper_subclass(
            cls,
            own.shape,
            strides=own.stride(),
            storage_offset=own.storage_offset(),
            dtype=own.dtype,
            layout=own.layout,
            device=register(),
        )
        shell.own = own
        return shell

    __torch_function__ = torch._C._disabled_torch_function_impl

    __torch_dispatch__ = classmethod(_dispatched)  # type: ignore[assignment]

    def data_ptr(self) -> int:
        return self.own.data_ptr() + _ELSEWHERE

    def tolist(self) -> Any:
        return self.own.tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copy: Tensor = _There(self.own.detach().clone())
            if isinstance(self, nn.Parameter):
                copy = nn.Parameter(copy, requires_grad=self.requires_grad)
            memo[id(self)] = copy
        return memo[id(self)]  # type: ignore[no-any-return]


class _Making(TorchDispatchMode):
    """Lets tensors be made on the stand-in, where no tensor of it is among the arguments."""

    __torch_dispatch__ = _dispatched


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """An operation, done on the CPU."""
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, _There)]
    _check(func, args, there, [t for t in tensors if not isinstance(t, _There) and t.dim()])
    goes = bool(there)
    own_args, own_kwargs = tree_map(lambda x: x.own if isinstance(x, _There) else x, (args, kwargs))
    if kwargs.get("device") is not None:
        goes = torch.device(kwargs["device"]).type == NAME
        own_kwargs["device"] = _CPU
    found = func(*own_args, **own_kwargs)
    if "out" in kwargs:
        return kwargs["out"]
    name = func._schema.name
    if name.endswith("_") and not name.endswith("__") and isinstance(args[0], Tensor):
        return args[0]
    known = {id(tensor.own): tensor for tensor in there}

    def shell(each: Any) -> Any:
        return known.get(id(each)) or _There(each) if goes and isinstance(each, Tensor) else each

    return tree_map(lambda x: shell(x) if type(x) in (Tensor, nn.Parameter) else x, found)


def _check(func: Any, args: Sequence[Any], there: list[_There], here: list[Tensor]) -> None:
    """Refuse what CUDA would refuse: tensors of both devices, but for numbers and some cases."""
    name = func._schema.name
    if not there or not here or name in _MIXING:
        return
    if name in _INDEXING and isinstance(args[0], _There):
        return
    shapes = [list(tensor.shape) for tensor in (*there, *here)]
    raise RuntimeError(f"{name} on tensors of {NAME} and of the CPU, of shapes {shapes}")


@contextmanager
def stand_in() -> Iterator[str]:
    """The name of the device, which tensors and modules can be taken to meanwhile."""
    register()
    with _Making():
        yield NAME
