"""A backend without compile latency that is not slowed down by temporaries: a program as data.

Its C++ (see `machine_source`) is built once, see `native`. A program becomes a list of steps for
each sweep (see `passes`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpprune.compile.cpp import native
from gpprune.compile.cpp.machine_source import STRIDE, Moves, Operations, operations
from gpprune.compile.cpp.passes import WIDENED, Pass, Sweeping, Work
from gpprune.compile.program import Apply

_OUT = -1  # where the scores go, beside the places of the program


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
        ("code", ctypes.c_int64),
        ("result", _Place),
        ("arguments", _Place * 3),
    )


def built() -> Callable[..., None] | None:
    """The machine's one function; None where it cannot be built."""
    found = native.functions(operations().source, sweep="pnnnnp")
    return None if found is None else found[0]


class Machine(Sweeping):
    """A program as data to the machine.

    It is as `Blocked` where the machine cannot be built, or lacks one of the primitives.
    """

    def work(self, at: int, given: Pass) -> Work | None:
        """The sweep's steps, in a scratch of each thread's own."""
        known, function = operations(), built()
        if function is None or not known.do(self.program):
            return None
        steps = _Steps(given, known)

        def run(part: Mapping[int, Tensor], first: int, last: int) -> None:
            listed = steps.listed(part)
            scratch = torch.empty(steps.scratch)
            given_to = (listed, len(listed), first, last, given.shape[1], scratch.data_ptr())
            function(*given_to)

        return run


@dataclass(frozen=True)
class _Operation:
    """A step before it is known where things lie: places of values in the program."""

    name: str
    result: int
    arguments: tuple[int, ...]
    moves: Moves = ()


class _Steps:
    """The steps of one pass."""

    def __init__(self, given: Pass, known: Operations) -> None:
        self.given = given
        self.known = known
        self.operations = self._operations()
        self.slots = self._slots()

    @property
    def scratch(self) -> int:
        """How many floats a thread needs."""
        return max(1, 1 + max(self.slots.values(), default=0)) * STRIDE

    def listed(self, part: Mapping[int, Tensor]) -> ctypes.Array[_Step]:
        """The steps, with what is reduced going into `part`."""
        steps = (_Step * len(self.operations))()
        for step, operation in zip(steps, self.operations, strict=True):
            step.code = self.known.codes[operation.name, operation.moves]
            step.result = self._result(operation.result, part)
            if not operation.arguments:  # a widening
                step.arguments[0] = self._matrix(operation.result)
            for at, argument in enumerate(operation.arguments):
                step.arguments[at] = self._argument(argument)
        return steps

    def _operations(self) -> list[_Operation]:
        program, sweep = self.given.program, self.given.sweep
        found = [
            _Operation(f"from {WIDENED[matrix.dtype]}", place, ())
            for place, matrix in self.given.matrices.items()
            if place in sweep.needed and matrix.dtype != torch.float32
        ]
        for place in sweep.needed:
            instruction = program.instructions[place]
            if isinstance(instruction, Apply):
                arguments = instruction.arguments
                moves = tuple("in" in program.instructions[a].axes for a in arguments)
                found.append(_Operation(instruction.name, place, arguments, moves))
        for place in sweep.reduced:
            reduce = program.reduce_at(place)
            name = f"{reduce.made_of} {reduce.axis}"
            found.append(_Operation(name, place, reduce.arguments))
        if self.given.streamed:
            found.append(_Operation("to memory", _OUT, (program.root,)))
        return found

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

    def _result(self, place: int, part: Mapping[int, Tensor]) -> _Place:
        if place in part:
            axis = self.given.program.reduce_at(place).axis
            row, size = {"in": (8, 0), "out": (0, 8), "all": (0, 0)}[axis]
            return _Place(part[place].data_ptr(), row, size, -1)
        if place in self.slots:
            return _Place(None, 0, 0, self.slots[place])
        out = self.given.out
        return _Place(out.data_ptr(), 4 * out.stride(0), 4, -1)

    def _matrix(self, place: int) -> _Place:
        matrix = self.given.matrices[place]
        size = matrix.element_size()
        return _Place(matrix.data_ptr(), size * matrix.stride(0), size, -1)

    def _argument(self, place: int) -> _Place:
        if place in self.slots:
            return _Place(None, 0, 0, self.slots[place])
        if place in self.given.matrices:
            return self._matrix(place)
        value = self.given.values[place]
        row = 4 if value.shape[0] > 1 else 0
        return _Place(value.data_ptr(), row, 4 if value.shape[1] > 1 else 0, -1)
