"""A program run as sweeps of C++ on the CPU: what the machine and generated code share.

Vectors and numbers are computed in torch between the sweeps. In a sweep every thread has its
share of the rows and reduces into doubles of its own, which are joined after it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpprune.compile.backends import Blocked, whole
from gpprune.compile.cpp import native
from gpprune.compile.cpp.source import REDUCTIONS
from gpprune.compile.program import MATRIX, Apply, Load, Program, Sweep, sweeps
from gpprune.compile.reductions import Partial, finish

WIDENED = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
_STREAMED = 1 << 24  # bytes of scores that no cache would keep for who reads them next


Part = Mapping[int, Tensor]
Work = Callable[[Part, int, int], None]


@dataclass(frozen=True)
class Pass:
    """One sweep over given tensors.

    `values` are the vectors and numbers computed so far, contiguous at their natural shape;
    `matrices` what the program loads, by place.
    """

    program: Program
    sweep: Sweep
    values: Mapping[int, Tensor]
    matrices: Mapping[int, Tensor]
    shape: tuple[int, int]
    out: Tensor

    @property
    def streamed(self) -> bool:
        """Whether it gives scores that are better written past the caches."""
        return not self.sweep.reduced and self.out.nbytes > _STREAMED

    def run(self, work: Work) -> dict[int, Tensor]:
        """The sweep's reductions.

        Args:
            work: `work(part, first, last)` does the rows from `first` to before `last`, reducing
                into `part`, float64: a value a row or column, or a number (three for moments).
        """
        shares = native.shares(*self.shape)
        parts = [self._part() for _ in shares]
        native.together(lambda at: work(parts[at], *shares[at]), len(shares))
        return {place: self._finished(place, parts) for place in self.sweep.reduced}

    def _part(self) -> dict[int, Tensor]:
        found = {}
        for place in self.sweep.reduced:
            reduce = self.program.reduce_at(place)
            size = {"in": self.shape[0], "out": self.shape[1], "all": 3}[reduce.axis]
            start = {"min": torch.inf, "max": -torch.inf}.get(reduce.kind, 0.0)
            found[place] = torch.full((size,), start, dtype=torch.float64)
        return found

    def _finished(self, place: int, parts: list[dict[int, Tensor]]) -> Tensor:
        reduce = self.program.reduce_at(place)
        rows, columns = self.shape
        found = torch.stack([part[place] for part in parts])
        shape = {"in": (rows, 1), "out": (1, columns), "all": (1, 1)}[reduce.axis]
        count = {"in": columns, "out": rows, "all": rows * columns}[reduce.axis]
        second = None
        if reduce.made_of == "moments":
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


class Sweeping(ABC):
    """A runner of a program's sweeps in C++; what that cannot do is done by `Blocked`."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.sweeps = sweeps(program)
        self.blocked = Blocked(program)
        self.known = is_swept(program)
        self.loaded = {
            place: i.name
            for place, i in enumerate(program.instructions)
            if isinstance(i, Load) and i.axes == MATRIX
        }

    @abstractmethod
    def work(self, at: int, given: Pass) -> Work | None:
        """What does the rows of the sweep with this number; None if it cannot be had."""

    def __call__(
        self, terminals: Mapping[str, Tensor], shape: tuple[int, int], out: Tensor
    ) -> None:
        """Compute the scores.

        Args:
            terminals: tensors by name, on the device of `out`.
            shape: `(out_features, in_features)`.
            out: where the scores go, of that shape.
        """
        if not (self._takes(terminals, shape, out) and self._run(terminals, shape, out)):
            self.blocked(terminals, shape, out)

    def _takes(self, terminals: Mapping[str, Tensor], shape: tuple[int, int], out: Tensor) -> bool:
        """Whether C++ can do it, and the tensors are on the CPU, of 32 bits or less, in rows."""
        if (
            not self.known
            or out.device.type != "cpu"
            or out.dtype != torch.float32
            or out.stride(1) != 1
        ):
            return False
        found = [terminals[name] for name in self.loaded.values()]
        return min(shape) > 0 and all(
            m.device.type == "cpu" and m.dtype in WIDENED and m.stride(1) == 1 for m in found
        )

    def _run(self, terminals: Mapping[str, Tensor], shape: tuple[int, int], out: Tensor) -> bool:
        values: dict[int, Tensor] = {}
        matrices = {place: terminals[name] for place, name in self.loaded.items()}
        for at, sweep in enumerate(self.sweeps):
            for place in sweep.small:
                instruction = self.program.instructions[place]
                small = whole(instruction, values, terminals, shape, out)
                values[place] = small.contiguous()
            if sweep.reduced or self._computes(sweep):
                given = Pass(self.program, sweep, values, matrices, shape, out)
                work = self.work(at, given)
                if work is None:
                    return False
                values.update(given.run(work))
        root = self.program.root
        if root in values:
            out.copy_(values[root])
        elif root in matrices:
            out.copy_(matrices[root])
        return True

    def _computes(self, sweep: Sweep) -> bool:
        return any(isinstance(self.program.instructions[p], Apply) for p in sweep.needed)


def is_swept(program: Program) -> bool:
    """Whether all reductions of its matrices can be done in C++."""
    reduced = [program.reduce_at(place) for sweep in sweeps(program) for place in sweep.reduced]
    return all(f"{reduce.made_of} {reduce.axis}" in REDUCTIONS for reduce in reduced)


def _joined(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, sums and squares about the mean of several parts as those of one."""
    count, total, spread = states[0].unbind()
    for other, more, apart in states[1:]:
        shift = more / other - total / count
        spread = spread + apart + shift * shift * (count * other / (count + other))
        count, total = count + other, total + more
    return count, total, spread
