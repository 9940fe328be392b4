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

from gpprune.compile.backends import Blocked, Runner
from gpprune.compile.cpp import native
from gpprune.compile.cpp.machine_source import STRIDE, VARIANTS, code_of, source
from gpprune.compile.cpp.passes import WIDENED, Pass, Sweeping, Work, made_of
from gpprune.compile.program import Apply, Program

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
        ("code", ctypes.c_int32),
        ("variant", ctypes.c_int32),
        ("result", _Place),
        ("arguments", _Place * 3),
    )


def machine(program: Program) -> Runner:
    """The program on the machine; as `Blocked` where there is no compiler, or for another device.

    So are weights of float64.
    """
    function = built()
    return Blocked(program) if function is None else _Machine(program, function)


def built() -> Callable[..., None] | None:
    """The machine's one function; None where it cannot be built."""
    found = native.functions(source(), sweep="pnnnnp")
    return None if found is None else found[0]


class _Machine(Sweeping):
    def __init__(self, program: Program, function: Callable[..., None]) -> None:
        super().__init__(program)
        self.function = function

    def work(self, at: int, given: Pass) -> Work:
        """The sweep's steps, in a scratch of each thread's own."""
        steps = _Steps(given)

        def run(part: Mapping[int, Tensor], first: int, last: int) -> None:
            listed = steps.listed(part)
            scratch = torch.empty(steps.scratch)
            given_to = (listed, len(listed), first, last, given.shape[1], scratch.data_ptr())
            self.function(*given_to)

        return run


@dataclass(frozen=True)
class _Operation:
    """A step before it is known where things lie: places of values in the program."""

    code: str
    result: int
    arguments: tuple[int, ...]


class _Steps:
    """The steps of one pass."""

    def __init__(self, given: Pass) -> None:
        self.given = given
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
            step.code = code_of(operation.code)
            step.result = self._result(operation.result, part)
            arguments = operation.arguments
            if operation.code in WIDENED.values():
                step.arguments[0] = self._matrix(operation.result)
            for at, argument in enumerate(arguments):
                step.arguments[at] = self._argument(argument)
            if len(arguments) > 1:
                code = self.given.program.instructions
                moves = [code[a].axes >= {"in"} for a in arguments]
                step.variant = VARIANTS.index((moves[0], moves[1]))
        return steps

    def _operations(self) -> list[_Operation]:
        program, sweep = self.given.program, self.given.sweep
        found = [
            _Operation(WIDENED[matrix.dtype], place, ())
            for place, matrix in self.given.matrices.items()
            if place in sweep.needed and matrix.dtype != torch.float32
        ]
        for place in sweep.needed:
            instruction = program.instructions[place]
            if isinstance(instruction, Apply):
                found.append(_Operation(instruction.name, place, instruction.arguments))
        for place in sweep.reduced:
            reduce = program.reduce_at(place)
            code = f"{made_of(reduce)} {reduce.axis}"
            found.append(_Operation(code, place, reduce.arguments))
        if self.given.streamed:
            found.append(_Operation("stream", _OUT, (program.root,)))
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
