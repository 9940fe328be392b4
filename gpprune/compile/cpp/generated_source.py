"""The C++ of one program: a function for each sweep, in which every value is a register."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from gpprune.compile.cpp.machine_source import CHUNK
from gpprune.compile.cpp.passes import WIDENED
from gpprune.compile.cpp.source import EACH, PRELUDE, loop
from gpprune.compile.program import MATRIX, Apply, Literal, Load, Program, Sweep, sweeps

STREAMED = 256  # floats of a chunk of scores, which are streamed past the caches soon

_HEAD = """
namespace {
template <class T> inline T* at(char* base, int64 bytes) {
  return reinterpret_cast<T*>(base + bytes);
}
}  // namespace
"""
_SIGNATURE = """
extern "C" void sweep{number}(char* const* base, const int64* stride, int64 first, int64 last,
                       int64 columns, int64 streamed) {{
  constexpr int64 CHUNK = {chunk};
  (void)streamed;
  for (int64 row = first; row < last; row++)
    for (int64 column = 0; column < columns; column += CHUNK) {{
      const int64 n = min(CHUNK, columns - column);"""
_INDENT = " " * 6

Types = tuple[torch.dtype, ...]


def source(program: Program, types: Types | None = None) -> str:
    """The program's C++: a function for each sweep.

    Args:
        program: as `lower` gives it.
        types: of its matrices, in their order; None for float32.
    """
    return PRELUDE + _HEAD + body(program, types)


def body(program: Program, types: Types | None = None) -> str:
    """As `source`, without what all programs share."""
    loads = [p for p, i in enumerate(program.instructions) if isinstance(i, Load)]
    matrices = [p for p in loads if program.instructions[p].axes == MATRIX]
    widened = dict.fromkeys(matrices, "float32")
    if types is not None:
        widened = {p: WIDENED[t] for p, t in zip(matrices, types, strict=True)}
    written = [
        "\n".join(_Writer(program, sweep, number, widened).lines())
        for number, sweep in enumerate(sweeps(program))
        if sweep.needed
    ]
    return "\n".join(written) + "\n"


@dataclass(frozen=True)
class Operand:
    """What a sweep is given: a value at a place, or (`place` None) where the scores go."""

    place: int | None
    name: str
    axes: frozenset[str]
    reduced: bool = False


def operands_of(program: Program, sweep: Sweep) -> list[Operand]:
    """What a sweep is given, in order: matrices, vectors and numbers, reductions, the scores."""
    code = program.instructions
    loaded = [p for p in sweep.needed if isinstance(code[p], Load)]
    read = {a for p in sweep.needed for a in code[p].arguments} - set(sweep.needed)
    small = [p for p in sorted(read) if not isinstance(code[p], Literal)]
    found = [Operand(p, _name(program, p), code[p].axes) for p in (*loaded, *small)]
    for place in sweep.reduced:
        axis = program.reduce_at(place).axis
        axes = frozenset({"in": {"out"}, "out": {"in"}, "all": set[str]()}[axis])
        found.append(Operand(place, f"v{place}", axes, reduced=True))
    return found if sweep.reduced else [*found, Operand(None, "scores", MATRIX)]


def _name(program: Program, place: int) -> str:
    instruction = program.instructions[place]
    return instruction.name if isinstance(instruction, Load) else f"v{place}"


def _filled(scalar: str, names: Mapping[str, str]) -> str:
    """An expression of `a`, `b` and `c` with what they stand for."""
    return re.sub(r"\b[abc]\b", lambda letter: names[letter[0]], scalar)


class _Writer:
    """The C++ of one sweep."""

    def __init__(
        self, program: Program, sweep: Sweep, number: int, widened: Mapping[int, str]
    ) -> None:
        self.program = program
        self.sweep = sweep
        self.number = number
        self.widened = widened
        self.operands = operands_of(program, sweep)
        chunked = [p for p in sweep.reduced if program.reduce_at(p).axis != "out"]
        sources = {program.reduce_at(p).arguments[0] for p in chunked}
        # what lies in memory as float32 is reduced where it lies
        self.stored = sorted(p for p in sources if widened.get(p) != "float32")

    def lines(self) -> Iterator[str]:
        """Its function."""
        # chunks of the machine's size: sums are added up in the same order, to the same bits
        chunk = CHUNK if self.sweep.reduced else STREAMED
        yield _SIGNATURE.format(number=self.number, chunk=chunk)
        for at, operand in enumerate(self.operands):
            yield _INDENT + self._declared(at, operand)
        for place in self.stored:
            yield f"{_INDENT}float t{place}[CHUNK];"
        if not self.sweep.reduced:
            yield f"{_INDENT}float chunk[CHUNK];"
            yield f"{_INDENT}float* result = streamed ? chunk : scores;"
        each = list(self._each())
        if each:
            yield from loop([*self._values(), *each], _INDENT)
        yield from self._after()
        yield "    }"
        yield "}"

    def _declared(self, at: int, operand: Operand) -> str:
        there = f"(base[{at}], row * stride[{at}])"
        kind = self._kind(operand)
        if "in" in operand.axes:
            return f"{kind}* {operand.name} = at<{kind}>{there} + column;"
        reference = "&" if operand.reduced else ""
        return f"{kind}{reference} {operand.name} = *at<{kind}>{there};"

    def _kind(self, operand: Operand) -> str:
        if operand.place is None:
            return "float"
        if operand.reduced:
            return "double"
        return "const float" if self._is_wide(operand.place) else "const uint16"

    def _is_wide(self, place: int) -> bool:
        return self.widened.get(place, "float32") == "float32"

    def _values(self) -> Iterator[str]:
        for place in self.sweep.needed:
            instruction = self.program.instructions[place]
            if isinstance(instruction, Load):
                read = f"{instruction.name}[i]"
                wide = read if self._is_wide(place) else f"from_{self.widened[place]}({read})"
                yield f"const float v{place} = {wide};"
            elif isinstance(instruction, Apply):
                lowering = instruction.lowering
                letters = ["abc"[at] for at in lowering.reads]
                names = dict(zip(letters, map(self._used, instruction.arguments), strict=True))
                yield f"const float v{place} = {_filled(lowering.scalar, names)};"

    def _used(self, place: int) -> str:
        instruction = self.program.instructions[place]
        if isinstance(instruction, Literal):
            return f"float({instruction.value!r})"
        if place in self.sweep.needed:
            return f"v{place}"
        name = _name(self.program, place)
        return f"{name}[i]" if "in" in instruction.axes else name

    def _each(self) -> Iterator[str]:
        for place in self.stored:
            yield f"t{place}[i] = v{place};"
        for place in self.sweep.reduced:
            reduce = self.program.reduce_at(place)
            if reduce.axis == "out":
                yield EACH[reduce.made_of].format(f"v{place}[i]", f"v{reduce.arguments[0]}")
        if not self.sweep.reduced:
            yield f"result[i] = v{self.program.root};"

    def _after(self) -> Iterator[str]:
        for place in self.sweep.reduced:
            reduce = self.program.reduce_at(place)
            (source,) = reduce.arguments
            if reduce.axis != "out":
                kept = f"t{source}" if source in self.stored else _name(self.program, source)
                yield f"{_INDENT}{reduce.made_of}(v{place}, {kept}, n);"
        if not self.sweep.reduced:
            yield f"{_INDENT}if (streamed) stream(scores, chunk, n);"
