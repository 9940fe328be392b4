"""A formula as a straight-line program: each value computed once, reductions made explicit.

The tree is walked bottom up into a list of instructions in which equal subexpressions share one
entry, constants are folded and powers become roots and products. A primitive that needs
reductions becomes its `Reduce` instructions and one elementwise `Apply`. Every instruction knows
the axes along which its value varies (nothing is broadcast to the matrix before it must be) and
its `level`: how many sweeps over the matrix must be complete before it can be computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from gpprune.compile.simpler import POWERS, folded
from gpprune.errors import UsageError
from gpprune.primitives import METRIC, PRIMITIVES, Formula, Primitive, axes_of, fold
from gpprune.primitives.weights.lowering import Lowering, Reduction

MATRIX = frozenset({"out", "in"})
# What is added up for each kind of reduction: a sum, squares, an extremum, or moments.
MADE_OF = {
    **dict.fromkeys(["sum", "mean"], "sum"),
    **{kind: kind for kind in ("norm", "min", "max")},
    **dict.fromkeys(["std", "std1"], "moments"),
}
AXES = ("in", "out", "all")


@dataclass(frozen=True)
class Load:
    """A terminal: `W`, `X`, `Y`, `G` or `D`."""

    name: str
    axes: frozenset[str]
    level: int = 0
    arguments: tuple[int, ...] = ()


@dataclass(frozen=True)
class Literal:
    """A constant."""

    value: float
    axes: frozenset[str] = frozenset()
    level: int = 0
    arguments: tuple[int, ...] = ()


@dataclass(frozen=True)
class Apply:
    """An elementwise primitive of earlier values, those that its lowering reads."""

    name: str
    apply: Callable[..., Tensor] = field(compare=False)
    arguments: tuple[int, ...]
    axes: frozenset[str]
    level: int
    lowering: Lowering = field(compare=False)


@dataclass(frozen=True)
class Reduce:
    """A reduction of one earlier value, as if it had been broadcast to the axes in `over`."""

    kind: str
    axis: str
    over: frozenset[str]
    arguments: tuple[int]
    axes: frozenset[str]
    level: int

    @property
    def made_of(self) -> str:
        """What is added up for it: one of `MADE_OF`."""
        return MADE_OF[self.kind]


Instruction = Load | Literal | Apply | Reduce


@dataclass(frozen=True)
class Program:
    """Instructions in order of computation; the last one is the score."""

    instructions: tuple[Instruction, ...]

    @property
    def root(self) -> int:
        """Where the score is."""
        return len(self.instructions) - 1

    @property
    def terminals(self) -> frozenset[str]:
        """The names of the tensors that it reads."""
        return frozenset(i.name for i in self.instructions if isinstance(i, Load))

    def reduce_at(self, place: int) -> Reduce:
        """The reduction at a place where there is one."""
        instruction = self.instructions[place]
        if not isinstance(instruction, Reduce):
            raise RuntimeError(f"instruction {place} is not a reduction")
        return instruction

    def swept(self, place: int) -> bool:
        """Whether it is the reduction of a matrix, which takes a sweep."""
        found = self.instructions[place]
        return isinstance(found, Reduce) and self.instructions[found.arguments[0]].axes == MATRIX


@dataclass(frozen=True)
class Sweep:
    """One pass over the matrix, and the vectors and numbers that must be there before it.

    `small` are these, in order; `needed` the matrix-valued instructions of the pass, in order;
    `reduced` the reductions that it feeds. The last sweep has none: it gives the scores.
    """

    small: tuple[int, ...]
    needed: tuple[int, ...]
    reduced: tuple[int, ...]


def sweeps(program: Program) -> tuple[Sweep, ...]:
    """The passes of a program, a level each."""
    code = program.instructions
    last = code[program.root].level
    found = []
    for level in range(last + 1):
        small = [
            p
            for p, i in enumerate(code)
            if i.level == level and i.axes != MATRIX and not program.swept(p)
        ]
        reduced = [p for p, i in enumerate(code) if i.level == level + 1 and program.swept(p)]
        wanted = [code[p].arguments[0] for p in reduced]
        if level == last:
            wanted, reduced = [program.root], []
        found.append(Sweep(tuple(small), _matrices(code, wanted), tuple(reduced)))
    return tuple(found)


def _matrices(code: Sequence[Instruction], wanted: list[int]) -> tuple[int, ...]:
    """The matrix-valued instructions behind those wanted, in order."""
    seen: set[int] = set()
    waiting = list(wanted)
    while waiting:
        at = waiting.pop()
        if at not in seen and code[at].axes == MATRIX:
            seen.add(at)
            waiting.extend(code[at].arguments)
    return tuple(sorted(seen))


def lower(formula: Formula) -> Program:
    """The program that computes a formula's scores, exactly as its tree says.

    Raises:
        UsageError: a primitive of it has a reduction that there is not.
    """
    return _lowered(formula, METRIC.revision)


@lru_cache(maxsize=1024)
def _lowered(formula: Formula, revision: object) -> Program:
    """As `lower`, for one state of the table of primitives."""
    builder = _Builder()
    root = fold(formula.tree, builder.visit)
    used = _reachable(builder.instructions, root)
    place = {old: new for new, old in enumerate(used)}
    return Program(tuple(_moved(builder.instructions[old], place) for old in used))


class _Builder:
    def __init__(self) -> None:
        self.instructions: list[Instruction] = []
        self.known: dict[Instruction, int] = {}

    def visit(self, node: Any, arguments: list[int]) -> int:
        if node.arity:
            return self._simplest(node.name, arguments)
        if isinstance(node.value, float):
            return self._emit(Literal(node.value))
        return self._emit(Load(node.value, axes_of(node.ret)))

    def _emit(self, instruction: Instruction) -> int:
        if instruction not in self.known:
            self.known[instruction] = len(self.instructions)
            self.instructions.append(instruction)
        return self.known[instruction]

    def _simplest(self, name: str, arguments: list[int]) -> int:
        given = [self.instructions[a] for a in arguments]
        numbers = [i.value for i in given if isinstance(i, Literal)]
        if len(numbers) == len(given):
            number = folded(PRIMITIVES[name], numbers)
            if number is not None:
                return self._emit(Literal(number))
        if name == "pow" and numbers[-1] in POWERS:
            return self._written(POWERS[numbers[-1]], arguments[0])
        return self._primitive(PRIMITIVES[name], arguments)

    def _written(self, form: object, x: int) -> int:
        match form:
            case (str(name), *arguments):
                return self._simplest(name, [self._written(a, x) for a in arguments])
            case float(number):
                return self._emit(Literal(number))
        return x

    def _primitive(self, entry: Primitive, arguments: list[int]) -> int:
        common = self._axes(arguments)
        reduced = [self._reduction(r, arguments, common) for r in entry.lowering.reductions]
        if entry.lowering.apply is None:
            return reduced[0]
        given = (*arguments, *reduced)
        inputs = tuple(given[at] for at in entry.lowering.reads)
        return self._emit(
            Apply(
                entry.name,
                entry.lowering.apply,
                inputs,
                self._axes(inputs),
                self._level(inputs),
                entry.lowering,
            )
        )

    def _reduction(self, reduction: Reduction, arguments: list[int], common: frozenset[str]) -> int:
        if reduction.kind not in MADE_OF or reduction.axis not in AXES:
            raise UsageError(
                f"there is no reduction {reduction.kind!r} over {reduction.axis!r}: choose from "
                f"{', '.join(MADE_OF)} over {', '.join(AXES)}"
            )
        source = arguments[reduction.argument]
        over = MATRIX if reduction.over == "matrix" else common
        gone = MATRIX if reduction.axis == "all" else frozenset({reduction.axis})
        found = self.instructions[source]
        # a matrix must be swept to reduce it; a vector is reduced on the spot
        level = found.level + (found.axes == MATRIX)
        return self._emit(
            Reduce(reduction.kind, reduction.axis, over, (source,), found.axes - gone, level)
        )

    def _axes(self, places: list[int] | tuple[int, ...]) -> frozenset[str]:
        return frozenset[str]().union(*(self.instructions[p].axes for p in places))

    def _level(self, places: tuple[int, ...]) -> int:
        return max(self.instructions[p].level for p in places)


def _reachable(instructions: list[Instruction], root: int) -> list[int]:
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        at = waiting.pop()
        if at not in seen:
            seen.add(at)
            waiting.extend(instructions[at].arguments)
    return sorted(seen)


def _moved(instruction: Instruction, place: dict[int, int]) -> Instruction:
    arguments = tuple(place[a] for a in instruction.arguments)
    match instruction:
        case Apply():
            return replace(instruction, arguments=arguments)
        case Reduce():
            return replace(instruction, arguments=(arguments[0],))
    return instruction
