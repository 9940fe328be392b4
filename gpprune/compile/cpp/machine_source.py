"""The C++ of the machine, assembled from the table of primitives.

One function, `sweep`, goes over rows of a matrix in chunks that stay in the first-level cache and
does a list of steps on each: an elementwise primitive, a widening of 16-bit numbers, or a
reduction into doubles. What a step does is a number, so a formula is data: nothing is compiled
for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from gpprune.compile.cpp.source import EACH, PRELUDE, REDUCTIONS, loop
from gpprune.compile.program import Apply, Program
from gpprune.primitives import PRIMITIVES, Lowering, Primitive, axes_of

CHUNK = 1024  # floats of a chunk: 4 KB, so that eight temporaries fit a first-level cache
# Slots lie no multiple of 4 KB apart: a store and a load at such a distance wait for each other.
STRIDE = CHUNK + 80

# Reductions, widenings and the last step, by name; what the primitives compute comes after them.
OTHERS = (*REDUCTIONS, "from float16", "from bfloat16", "to memory")

_HEAD = r"""
struct Place { char* base; int64 row; int32 size; int32 slot; };
struct Step { int64 code; Place result; Place arguments[3]; };

constexpr int64 CHUNK = @CHUNK@, STRIDE = @STRIDE@;

inline char* at(const Place& p, int64 row, int64 column, float* scratch) {
  if (p.slot >= 0) return reinterpret_cast<char*>(scratch + p.slot * STRIDE);
  return p.base + row * p.row + column * p.size;
}

extern "C" void sweep(const Step* steps, int64 count, int64 first, int64 last,
                      int64 columns, float* scratch) {
  for (int64 row = first; row < last; row++)
    for (int64 column = 0; column < columns; column += CHUNK) {
      const int64 n = min(CHUNK, columns - column);
      for (int64 s = 0; s < count; s++) {
        const Step& step = steps[s];
        char* result = at(step.result, row, column, scratch);
        const float* x = reinterpret_cast<float*>(at(step.arguments[0], row, column, scratch));
        const float* y = reinterpret_cast<float*>(at(step.arguments[1], row, column, scratch));
        const float* z = reinterpret_cast<float*>(at(step.arguments[2], row, column, scratch));
        float* r = reinterpret_cast<float*>(result);
        double* d = reinterpret_cast<double*>(result);
        (void)y; (void)z;
        switch (step.code) {
"""

_TAIL = """
        }
      }
    }
}
"""


Moves = tuple[bool, ...]
"""Which of an elementwise step's arguments vary along a chunk; of other steps nothing."""


@dataclass(frozen=True)
class Operations:
    """What a machine can do: its C++, and the code of each step.

    Attributes:
        source: of the machine.
        codes: by the name of one of `OTHERS` or of a primitive, and by which arguments vary.
        lowerings: of its primitives, by name.
    """

    source: str
    codes: Mapping[tuple[str, Moves], int]
    lowerings: Mapping[str, Lowering]

    def do(self, program: Program) -> bool:
        """Whether they do all of a program: it may be of a table of primitives as it was."""
        return all(
            self.lowerings.get(instruction.name) == instruction.lowering
            for instruction in program.instructions
            if isinstance(instruction, Apply)
        )


def operations() -> Operations:
    """Those of the primitives that there are."""
    return _operations(PRIMITIVES.revision)


@lru_cache(maxsize=4)
def _operations(revision: int) -> Operations:
    """As `operations`, for one state of the table of primitives."""
    entries = [entry for entry in PRIMITIVES.values() if entry.lowering.scalar]
    bodies: dict[tuple[str, Moves], list[str]] = {(name, ()): _other(name) for name in OTHERS}
    for entry in entries:
        bodies |= {(entry.name, moves): _elementwise(entry, moves) for moves in variants(entry)}
    head = _HEAD.replace("@CHUNK@", str(CHUNK)).replace("@STRIDE@", str(STRIDE))
    cases = [_case(code, *step) for code, step in enumerate(bodies.items())]
    return Operations(
        PRELUDE + head + "\n".join(cases) + _TAIL,
        {step: code for code, step in enumerate(bodies)},
        {entry.name: entry.lowering for entry in entries},
    )


def variants(entry: Primitive) -> list[Moves]:
    """Which of what a primitive reads can vary along a chunk, of scores that do."""
    can = [_can_vary(entry, place) for place in entry.lowering.reads]
    return [
        moves for moves in product(*([True, False] if c else [False] for c in can)) if any(moves)
    ]


def _can_vary(entry: Primitive, place: int) -> bool:
    if place < entry.arity:
        return "in" in axes_of(entry.arguments[place])
    return entry.lowering.reductions[place - entry.arity].axis == "out"


def _other(name: str) -> list[str]:
    kind, _, of = name.partition(" ")
    if kind == "to":
        return ["stream(r, x, n);"]
    if kind == "from":
        return loop([f"r[i] = from_{of}(reinterpret_cast<const uint16*>(x)[i]);"])
    return loop([EACH[kind].format("d[i]", "x[i]")]) if of == "out" else [f"{kind}(*d, x, n);"]


def _elementwise(entry: Primitive, moves: Moves) -> list[str]:
    values = [
        f"const float {'abc'[place]} = {pointer}[{'i' if moving else 0}];"
        for place, pointer, moving in zip(entry.lowering.reads, "xyz", moves, strict=False)
    ]
    return loop([*values, f"r[i] = {entry.lowering.scalar};"])


def _case(code: int, step: tuple[str, Moves], body: list[str]) -> str:
    return "\n".join([f"case {code}: {{  // {step[0]}", *body, "} break;"])
