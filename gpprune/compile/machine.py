"""The backend without compile latency: a machine that reads a program as data.

Its C++ (see `machine_source`) is built once, see `native`. A program becomes a list of steps for
each sweep; rows are shared out over threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from . import native
from .backends import Blocked, Runner, whole
from .machine_source import STRIDE, VARIANTS, code_of, source
from .program import MATRIX, Apply, Load, Program, Sweep, sweeps
from .reductions import Partial, finish

_NARROW = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
_STREAMED = 1 << 24  # bytes of scores that no cache would keep for who reads them next
_OUT = -1  # where the scores go, beside the places of the program
# What a reduction is made of, where that is not its own kind.
_MADE_OF = {"mean": "sum", "std": "moments", "std1": "moments"}


class _Place(ctypes.Structure):
    """Where a value lies: a slot of the scratch, or base + row * `row` + column * `size` bytes."""

    _fields_ = (
        ("base", ctypes.c_void_p),
        ("row", ctypes.c_int64),
        ("size", ctypes.c_int32),
        ("slot", ctypes.c_int32),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_int32),
        ("variant", ctypes.c_int32),
        ("result", _Place),
        ("arguments", _Place * 3),
    )


class UnfitProgramError(Exception):
    """The machine cannot run a program."""


def machine(program: Program) -> Runner:
    """The program on the machine; as `Blocked` where there is no compiler, or for another device.

    So are a program that it has no steps for, and weights of float64.
    """
    blocked = Blocked(program)
    function = built()
    try:
        run = _Machine(program, function) if function is not None else None
    except UnfitProgramError:
        run = None

    def runner(terminals: Mapping[str, Tensor], shape: tuple[int, int], out: Tensor) -> None:
        able = run if run is not None and run.takes(terminals, shape, out) else blocked
        able(terminals, shape, out)

    return runner


@dataclass(frozen=True)
class _Operation:
    """A step before it is known where things lie: places of values in the program."""

    code: str
    result: int
    arguments: tuple[int, ...]


class _Machine:
    """A program's sweeps as steps."""

    def __init__(self, program: Program, function: Callable[..., None]) -> None:
        self.program = program
        self.function = function
        self.sweeps = sweeps(program)
        self.operations = [self._operations(sweep) for sweep in self.sweeps]
        self.matrices = [
            i.name for i in program.instructions if isinstance(i, Load) and i.axes == MATRIX
        ]

    def takes(self, terminals: Mapping[str, Tensor], shape: tuple[int, int], out: Tensor) -> bool:
        """Whether it can run on these tensors: on the CPU, of at most 32 bits, in rows."""
        if out.device.type != "cpu" or out.dtype != torch.float32 or out.stride(1) != 1:
            return False
        found = [terminals[name] for name in self.matrices]
        fits = {torch.float32, *_NARROW}
        return min(shape) > 0 and all(
            m.device.type == "cpu" and m.dtype in fits and m.stride(1) == 1 for m in found
        )

    def __call__(
        self, terminals: Mapping[str, Tensor], shape: tuple[int, int], out: Tensor
    ) -> None:
        """Run on these terminals into `out`."""
        values: dict[int, Tensor] = {}
        for sweep, operations in zip(self.sweeps, self.operations, strict=True):
            for place in sweep.small:
                instruction = self.program.instructions[place]
                small = whole(instruction, values, terminals, shape, out)
                values[place] = small.contiguous()
            if operations:
                matrices = {
                    place: terminals[instruction.name]
                    for place in sweep.needed
                    if isinstance(instruction := self.program.instructions[place], Load)
                }
                found = _Pass(self.program, sweep, operations, values, matrices, shape, out)
                values.update(found.run(self.function))
        root = self.program.root
        if root in values:
            out.copy_(values[root])
        elif isinstance(load := self.program.instructions[root], Load):
            out.copy_(terminals[load.name])

    def _operations(self, sweep: Sweep) -> list[_Operation]:
        found = []
        for place in sweep.needed:
            instruction = self.program.instructions[place]
            if isinstance(instruction, Apply):
                found.append(_Operation(instruction.name, place, instruction.arguments))
        for place in sweep.reduced:
            reduce = self.program.reduce_at(place)
            kind = {"mean": "sum", "std": "moments", "std1": "moments"}.get(
                reduce.kind, reduce.kind
            )
            found.append(_Operation(f"{kind} {reduce.axis}", place, reduce.arguments))
        return found


class _Pass:
    """One sweep over given tensors."""

    def __init__(
        self,
        program: Program,
        sweep: Sweep,
        operations: list[_Operation],
        values: Mapping[int, Tensor],
        matrices: Mapping[int, Tensor],
        shape: tuple[int, int],
        out: Tensor,
    ) -> None:
        self.program = program
        self.sweep = sweep
        self.values = values
        self.matrices = matrices
        self.shape = shape
        self.out = out
        narrow = [
            _Operation(_NARROW[matrix.dtype], place, ())
            for place, matrix in matrices.items()
            if matrix.dtype in _NARROW
        ]
        self.operations = [*narrow, *operations]
        if not sweep.reduced and out.nbytes > _STREAMED:
            self.operations.append(_Operation("stream", _OUT, (program.root,)))
        self.slots = self._slots()

    def run(self, function: Callable[..., None]) -> dict[int, Tensor]:
        """The values of the sweep's reductions; the scores go into `out`."""
        rows, columns = self.shape
        shares = native.shares(rows, columns)
        parts = [self._accumulators() for _ in shares]

        def share(at: int) -> None:
            steps = self._steps(parts[at])
            scratch = torch.empty(max(1, 1 + max(self.slots.values(), default=0)) * STRIDE)
            function(steps, len(steps), *shares[at], columns, scratch.data_ptr())

        native.together(share, len(shares))
        return {place: self._finished(place, parts) for place in self.sweep.reduced}

    def _slots(self) -> dict[int, int]:
        """A slot of the scratch for each value between steps, given back after its last use."""
        last = {a: at for at, o in enumerate(self.operations) for a in o.arguments}
        slots: dict[int, int] = {}
        free: list[int] = []
        used = 0
        for at, operation in enumerate(self.operations):
            for argument in set(operation.arguments):
                if argument in slots and last[argument] == at:
                    free.append(slots[argument])
            if operation.result not in last:
                continue  # the scores, or a reduction
            if free:
                slots[operation.result] = free.pop()
            else:
                slots[operation.result] = used
                used += 1
        return slots

    def _accumulators(self) -> dict[int, Tensor]:
        """What a thread reduces into, float64."""
        found = {}
        for place in self.sweep.reduced:
            reduce = self.program.reduce_at(place)
            size = {"in": self.shape[0], "out": self.shape[1], "all": 3}[reduce.axis]
            start = {"min": torch.inf, "max": -torch.inf}.get(reduce.kind, 0.0)
            found[place] = torch.full((size,), start, dtype=torch.float64)
        return found

    def _steps(self, parts: Mapping[int, Tensor]) -> ctypes.Array[_Step]:
        steps = (_Step * len(self.operations))()
        for step, operation in zip(steps, self.operations, strict=True):
            step.code = code_of(operation.code)
            step.result = self._result(operation.result, parts)
            given = operation.arguments
            if operation.code in _NARROW.values():
                step.arguments[0] = self._matrix(operation.result)
            for at, argument in enumerate(given):
                step.arguments[at] = self._argument(argument)
            if len(given) > 1:
                moves = [self.program.instructions[a].axes >= {"in"} for a in given]
                step.variant = VARIANTS.index((moves[0], moves[1]))
        return steps

    def _result(self, place: int, parts: Mapping[int, Tensor]) -> _Place:
        if place in parts:
            axis = self.program.reduce_at(place).axis
            row, size = {"in": (8, 0), "out": (0, 8), "all": (0, 0)}[axis]
            return _Place(parts[place].data_ptr(), row, size, -1)
        if place in self.slots:
            return _Place(None, 0, 0, self.slots[place])
        return _Place(self.out.data_ptr(), 4 * self.out.stride(0), 4, -1)

    def _matrix(self, place: int) -> _Place:
        matrix = self.matrices[place]
        size = matrix.element_size()
        return _Place(matrix.data_ptr(), size * matrix.stride(0), size, -1)

    def _argument(self, place: int) -> _Place:
        if place in self.slots:
            return _Place(None, 0, 0, self.slots[place])
        if place in self.matrices:
            return self._matrix(place)
        value = self.values[place]
        row = 4 if value.shape[0] > 1 else 0
        return _Place(value.data_ptr(), row, 4 if value.shape[1] > 1 else 0, -1)

    def _finished(self, place: int, parts: list[dict[int, Tensor]]) -> Tensor:
        """A reduction's value of what each thread found."""
        reduce = self.program.reduce_at(place)
        rows, columns = self.shape
        found = torch.stack([part[place] for part in parts])
        shape = {"in": (rows, 1), "out": (1, columns), "all": (1, 1)}[reduce.axis]
        count = {"in": columns, "out": rows, "all": rows * columns}[reduce.axis]
        second = None
        if reduce.kind in ("std", "std1"):
            _, first, second = _joined(found)
            second = second.reshape(1, 1)
        elif reduce.kind in ("min", "max"):
            first = found.amin(0) if reduce.kind == "min" else found.amax(0)
        else:
            first = found.sum(0)
        if reduce.axis == "all":
            first = first.reshape(-1)[:1]
        part = Partial(count, first.reshape(shape), second)
        return finish(reduce, part, self.shape, self.out.dtype).contiguous()


def _joined(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, sums and squares about the mean of several parts as those of one."""
    count, total, spread = states[0].unbind()
    for other, more, apart in states[1:]:
        shift = more / other - total / count
        spread = spread + apart + shift * shift * (count * other / (count + other))
        count, total = count + other, total + more
    return count, total, spread


@lru_cache(maxsize=1)
def built() -> Callable[..., None] | None:
    """The machine's one function; None where it cannot be built."""
    found = native.functions(source(), sweep="pnnnnp")
    return None if found is None else found[0]
