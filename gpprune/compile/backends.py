"""Ways to run a program. One contract: named tensors in, scores `[out_features, in_features]` out.

`reference` is float64 and plain, one whole value at a time: what tests compare to. `blocked` has
no compile latency: it goes over the matrix in blocks of rows that stay in cache, once for each
level of reductions and once for the scores. `inductor` hands the whole program to
`torch.compile` with dynamic shapes, so one compile serves every layer of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from gpprune.compile.program import Apply, Instruction, Literal, Load, Program, Reduce, sweeps
from gpprune.compile.reductions import Partial, finish, merge, partial

Runner = Callable[[Mapping[str, Tensor], tuple[int, int], Tensor], None]

# Elements a block: four float32 temporaries of this size fit the L2 caches of two cores.
BLOCK = 1 << 16
# Elsewhere every instruction of a block is a kernel to launch, which takes microseconds.
LAUNCHED_BLOCK = 1 << 24


def _placed(value: Tensor, axes: frozenset[str], dtype: torch.dtype) -> Tensor:
    """A terminal at its natural shape: `[out, in]`, `[1, in]` or `[out, 1]`."""
    wide = value.to(dtype)
    if axes == {"in"}:
        return wide.reshape(1, -1)
    return wide.reshape(-1, 1) if axes == {"out"} else wide


def whole(
    instruction: Instruction,
    values: Mapping[int, Tensor],
    terminals: Mapping[str, Tensor],
    shape: tuple[int, int],
    like: Tensor,
) -> Tensor:
    """One instruction on whole values.

    Args:
        instruction: of a program.
        values: of earlier instructions, by place, each at its natural shape: `[out, in]`,
            `[1, in]`, `[out, 1]` or `[1, 1]`.
        terminals: tensors by name, of which a `Load` takes one: `[out, in]`, `[in]` or `[out]`.
        shape: `(out_features, in_features)` of the matrix.
        like: a tensor with the dtype and on the device of the result.

    Returns:
        The instruction's value, at its natural shape.
    """
    match instruction:
        case Load(name, axes):
            return _placed(terminals[name], axes, like.dtype)
        case Literal(value):
            return torch.full((1, 1), value, dtype=like.dtype, device=like.device)
        case Apply(_, apply, arguments):
            return apply(*(values[a] for a in arguments))
        case Reduce(_, _, _, (source,)):
            return finish(instruction, partial(instruction, values[source]), shape, like.dtype)


def reference(program: Program) -> Runner:
    """Every instruction on whole tensors in the dtype of `out` (float64 by the kernel's choice)."""

    def run(terminals: Mapping[str, Tensor], shape: tuple[int, int], out: Tensor) -> None:
        values: dict[int, Tensor] = {}
        for place, instruction in enumerate(program.instructions):
            values[place] = whole(instruction, values, terminals, shape, out)
        out.copy_(values[program.root])

    return run


def inductor(program: Program) -> Runner:
    """The same instructions traced by `torch.compile` into fused kernels."""

    def scores(tensors: list[Tensor], shape: tuple[int, int], out: Tensor) -> None:
        terminals = dict(zip(names, tensors, strict=True))
        values: dict[int, Tensor] = {}
        for place, instruction in enumerate(program.instructions):
            values[place] = whole(instruction, values, terminals, shape, out)
        # inside, so that the kernel writes there: a copy afterwards would move as much again
        out.copy_(values[program.root])

    names = sorted(program.terminals)
    # A code object of its own for each program: recompilation limits are counted by code object
    # (pytorch issue 124269), so a search may compile as many formulas as it likes.
    scores.__code__ = scores.__code__.replace(co_name=f"scores_{id(program):x}")
    compiled = torch.compile(
        scores,
        dynamic=True,
        fullgraph=True,
        # Pruner-Zero's gradients are rounded to float16, which fusion would else leave out
        options={"emulate_precision_casts": True},
    )

    def run(terminals: Mapping[str, Tensor], shape: tuple[int, int], out: Tensor) -> None:
        compiled([terminals[name] for name in names], shape, out)

    return run


class Blocked:
    """Blocks of rows that stay in cache; no matrix is ever held but the scores.

    At each level the vectors and numbers that are ready are computed whole, then one sweep over
    the matrix feeds every reduction of that level. The last sweep writes the scores.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.sweeps = sweeps(program)

    def __call__(
        self, terminals: Mapping[str, Tensor], shape: tuple[int, int], out: Tensor
    ) -> None:
        """Compute the scores.

        Args:
            terminals: tensors by name, on the device of `out`.
            shape: `(out_features, in_features)`.
            out: where the scores go, of that shape; its dtype is computed in.
        """
        values: dict[int, Tensor] = {}
        for sweep in self.sweeps:
            for place in sweep.small:
                instruction = self.program.instructions[place]
                values[place] = whole(instruction, values, terminals, shape, out)
            found: dict[int, Partial] = {}
            for rows in _row_blocks(shape, out.device) if sweep.needed else ():
                block = self._block(sweep.needed, values, terminals, rows, out.dtype)
                if self.program.root in block:
                    out[rows] = block[self.program.root]
                self._reduce(sweep.reduced, block, found)
            for place, part in found.items():
                values[place] = finish(self.program.reduce_at(place), part, shape, out.dtype)
        if self.program.root in values:
            out.copy_(values[self.program.root])

    def _block(
        self,
        needed: Sequence[int],
        values: Mapping[int, Tensor],
        terminals: Mapping[str, Tensor],
        rows: slice,
        dtype: torch.dtype,
    ) -> dict[int, Tensor]:
        block: dict[int, Tensor] = {}
        for place in needed:
            match self.program.instructions[place]:
                case Load(name):
                    block[place] = terminals[name][rows].to(dtype)
                case Apply(_, apply, arguments):
                    block[place] = apply(
                        *(block[a] if a in block else _cut(values[a], rows) for a in arguments)
                    )
        return block

    def _reduce(
        self, reduced: Sequence[int], block: Mapping[int, Tensor], found: dict[int, Partial]
    ) -> None:
        for place in reduced:
            reduce = self.program.reduce_at(place)
            part = partial(reduce, block[reduce.arguments[0]])
            found[place] = merge(reduce, found[place], part) if place in found else part


def _row_blocks(shape: tuple[int, int], device: torch.device) -> Iterator[slice]:
    block = BLOCK if device.type == "cpu" else LAUNCHED_BLOCK
    rows = max(1, block // max(1, shape[1]))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


def _cut(value: Tensor, rows: slice) -> Tensor:
    """A vector's part in a block of rows: all of it where it does not vary by row."""
    return value[rows] if value.shape[0] > 1 else value
