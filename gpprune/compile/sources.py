"""The source of functions and of all that they use, so that the text runs without gpprune.

A function's text is taken as it stands in its file. What it uses must be torch's, a number, or
another such function.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType
from typing import Any

import torch

from gpprune.errors import UsageError

_IMPORTS = {"torch": ("import torch", torch), "Tensor": ("from torch import Tensor", torch.Tensor)}


def sources(functions: Iterable[Callable[..., Any]], taken: Iterable[str] = ()) -> list[str]:
    """Imports, constants and functions, each once and before its use.

    Args:
        functions: those that are called; their names are kept.
        taken: names that the text around them gives to something else.

    Raises:
        UsageError: one has no source of its own, or uses what the text cannot hold.
    """
    gathered = _Gathered(taken)
    for function in functions:
        gathered.add(getattr(function, "__name__", type(function).__name__), function)
    return gathered.parts()


class _Gathered:
    """Text by name, in the order in which it must stand."""

    def __init__(self, taken: Iterable[str]) -> None:
        self.values: dict[str, object] = {"torch": torch, **dict.fromkeys(taken)}
        self.constants: list[str] = []
        self.functions: list[str] = []

    def parts(self) -> list[str]:
        """Imports as one part, constants as one, and each function."""
        imports = [line for name, (line, _) in _IMPORTS.items() if name in self.values]
        constants = ["\n".join(self.constants)] if self.constants else []
        return ["\n".join(imports), *constants, *self.functions]

    def add(self, name: str, value: object) -> None:
        """Have a name stand for a value."""
        if name in self.values:
            if self.values[name] is not value:
                raise UsageError(f"two things in it are called {name}: rename one")
            return
        self.values[name] = value
        if name in _IMPORTS and _IMPORTS[name][1] is value:
            return
        if isinstance(value, FunctionType):
            self._add_function(name, value)
        elif isinstance(value, int | float):
            self.constants.append(f"{name} = {_number(value)}")
        else:
            raise UsageError(
                f"{name} is neither torch's, nor a number, nor a function with a source of its own"
            )

    def _add_function(self, name: str, function: FunctionType) -> None:
        text = _text(name, function)
        for used in _names(text, function):
            self.add(used, function.__globals__[used])
        self.functions.append(text)


def _number(value: float) -> str:
    return repr(value) if math.isfinite(value) else f"float({str(value)!r})"


def _text(name: str, function: FunctionType) -> str:
    """A function as it stands in its file."""
    if function.__name__ == function.__qualname__ == name and name.isidentifier():
        try:
            return inspect.getsource(function)
        except (OSError, TypeError):
            pass  # typed at a prompt, or made by another program
    raise UsageError(
        f"the function {function.__qualname__!r} has no source that stands alone: write it with "
        "`def` at the top level of a file"
    )


def _names(text: str, function: FunctionType) -> Iterator[str]:
    """The global names that a function uses, without those that Python has."""
    read = (node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name))
    for name in dict.fromkeys(read):
        own = name in function.__code__.co_varnames or name not in function.__globals__
        if not own and getattr(builtins, name, None) is not function.__globals__[name]:
            yield name
