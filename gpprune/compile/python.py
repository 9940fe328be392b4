"""A formula as Python source that needs torch alone and computes the kernel's scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from gpprune.compile.program import (
    MATRIX,
    Apply,
    Instruction,
    Literal,
    Load,
    Program,
    Reduce,
    lower,
)
from gpprune.compile.reductions import ROUNDING
from gpprune.compile.sources import sources
from gpprune.errors import UsageError
from gpprune.primitives import METRIC, Formula
from gpprune.primitives.weights.lowering import saturate


def reduce(x: Tensor, kind: str, dims: list[int], shape: tuple[int, int]) -> Tensor:
    """Reduce x along dims, with sums in float64.

    Args:
        x: [out, in], [1, in], [out, 1] or [1, 1].
        kind: sum, mean, norm, min, max, std or std1.
        dims: [0] is over output neurons, [1] over input features.
        shape: to which x is broadcast first.
    """
    x = x.double().expand(shape)
    if kind == "min":
        value = x.amin(dims, keepdim=True)
    elif kind == "max":
        value = x.amax(dims, keepdim=True)
    elif kind == "sum":
        value = x.sum(dims, keepdim=True)
    elif kind == "mean":
        value = x.mean(dims, keepdim=True)
    elif kind == "norm":
        value = x.square().sum(dims, keepdim=True).sqrt()
    else:  # std, or unbiased std1, which is 0 of a single value
        value = x.std(dims, correction=int(kind == "std1" and x.numel() > 1), keepdim=True)
        # what a constant leaves behind is its rounding, not a deviation
        value = torch.where(value <= ROUNDING * x.mean(dims, keepdim=True).abs(), 0.0, value)
    return saturate(value).float()


_DIMS = {"out": "[0]", "in": "[1]", "all": "[0, 1]"}
_SHAPES = {
    MATRIX: "W.shape",
    frozenset({"in"}): "(1, W.shape[1])",
    frozenset({"out"}): "(W.shape[0], 1)",
    frozenset(): "(1, 1)",
}
_PLACED = {"in": "reshape(1, -1)", "out": "reshape(-1, 1)"}


def python_source(formula: Formula) -> str:
    """Source of `scores(W, X=..., Y=..., G=...)`: `[out_features, in_features]`, float32.

    `W` is always an argument, since it gives the shape.

    Raises:
        UsageError: a formula of another language than a metric's, or one that calls a primitive
            whose function cannot be written down: it is no `def` at the top level of a file, or
            uses what is neither torch's, nor a number, nor another such function.
    """
    if formula.language is not METRIC:
        raise UsageError(
            f"a formula of the {formula.language.name} language has no Python of its own: it "
            "reads a whole model; use unicode or latex"
        )
    program = lower(formula)
    helpers = _helpers(formula, program)
    names = sorted(program.terminals - {"W"})
    body = [f"    {name} = {_terminal(program, name)}" for name in sorted({"W", *names})]
    body += _statements(program)
    arguments = ", ".join(["W", *(["*", *names] if names else [])])
    signature = f"def scores({arguments}):"
    doc = f'    """{formula.text}"""'
    parts = [*helpers, "\n".join([signature, doc, *body])]
    return "\n\n\n".join(part.strip("\n") for part in parts) + "\n"


def _terminal(program: Program, name: str) -> str:
    loads = [i for i in program.instructions if isinstance(i, Load) and i.name == name]
    axes = loads[0].axes if loads else MATRIX
    return ".".join([name, "float()", *(_PLACED[a] for a in axes if axes != MATRIX)])


def _helpers(formula: Formula, program: Program) -> list[str]:
    """Imports and the functions that the program calls."""
    called: list[Callable[..., Tensor]] = []
    if any(isinstance(i, Reduce) for i in program.instructions):
        called.append(reduce)
    called += [i.apply for i in program.instructions if isinstance(i, Apply)]
    try:
        return sources((f for f in called if not _is_torch(f)), taken=("scores",))
    except UsageError as error:
        raise UsageError(f"{formula.text} cannot be written as Python: {error}") from error


def _is_torch(function: object) -> bool:
    return getattr(torch, getattr(function, "__name__", ""), None) is function


def _statements(program: Program) -> list[str]:
    """One assignment for each value used twice, the rest written inside one another."""
    uses = Counter(a for i in program.instructions for a in i.arguments)
    text: dict[int, str] = {}
    lines: list[str] = []
    for place, instruction in enumerate(program.instructions):
        text[place] = _expression(instruction, text)
        inside = isinstance(instruction, Load | Literal) or uses[place] < 2
        if not inside:
            lines.append(f"    v{place} = {text[place]}")
            text[place] = f"v{place}"
    return [*lines, f"    return ({text[program.root]}).expand(W.shape)"]


def _expression(instruction: Instruction, text: dict[int, str]) -> str:
    match instruction:
        case Load(name):
            return name
        case Literal(value):
            return f"torch.full((1, 1), {value!r}, device=W.device)"
        case Reduce(kind, axis, over, (source,)):
            return f'reduce({text[source]}, "{kind}", {_DIMS[axis]}, {_SHAPES[over]})'
        case Apply(_, apply, arguments):
            called = f"torch.{apply.__name__}" if _is_torch(apply) else apply.__name__
            return f"{called}({', '.join(text[a] for a in arguments)})"
