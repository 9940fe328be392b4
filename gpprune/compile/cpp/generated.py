"""A backend for formulas that score many weights: C++ written for the one program.

It reads its matrices once a sweep and writes the scores once, whatever lies between (see
`generated_source`). A formula compiles in some 0.2 s, and is found in the cache folder the next
time (see `native`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping

from torch import Tensor

from gpprune.compile.cpp import native
from gpprune.compile.cpp.generated_source import Operand, Types, operands_of, source
from gpprune.compile.cpp.passes import Pass, Sweeping, Work, is_swept
from gpprune.compile.program import Program

Functions = Mapping[int, Callable[..., None]]


class Generated(Sweeping):
    """C++ written and compiled for one program, and for the types of its matrices."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.compiled: dict[Types, Functions] = {}
        self.operands = [operands_of(program, sweep) for sweep in self.sweeps]

    def work(self, at: int, given: Pass) -> Work | None:
        """The sweep's function, on these tensors; None where it cannot be compiled."""
        types = tuple(matrix.dtype for matrix in given.matrices.values())
        functions = self.compiled.get(types) or self._compile(types)
        if functions is None:
            return None
        self.compiled[types] = functions
        function, operands = functions[at], self.operands[at]

        def run(part: Mapping[int, Tensor], first: int, last: int) -> None:
            places = [_place(given, part, operand) for operand in operands]
            base = (ctypes.c_void_p * len(places))(*(address for address, _ in places))
            stride = (ctypes.c_int64 * len(places))(*(step for _, step in places))
            function(base, stride, first, last, given.shape[1], given.streamed)

        return run

    def _compile(self, types: Types) -> Functions | None:
        """The functions, by the number of the sweep."""
        numbers = [number for number, sweep in enumerate(self.sweeps) if sweep.needed]
        signatures = {f"sweep{number}": "ppnnnn" for number in numbers}
        found = native.functions(source(self.program, types), **signatures)
        return None if found is None else dict(zip(numbers, found, strict=True))


def is_generated(program: Program) -> bool:
    """Whether the program, for float32, is in the cache folder."""
    return is_swept(program) and native.is_built(source(program))


def _place(given: Pass, part: Mapping[int, Tensor], operand: Operand) -> tuple[int, int]:
    """An operand's address, and how many bytes one row lies after another."""
    if operand.place is None:
        return given.out.data_ptr(), 4 * given.out.stride(0)
    if operand.place in given.matrices:
        matrix = given.matrices[operand.place]
        return matrix.data_ptr(), matrix.element_size() * matrix.stride(0)
    value = part[operand.place] if operand.reduced else given.values[operand.place]
    return value.data_ptr(), value.element_size() if operand.axes == {"out"} else 0
