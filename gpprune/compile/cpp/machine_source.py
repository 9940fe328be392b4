"""The C++ of the machine, assembled from the table of primitives.

One function, `sweep`, goes over rows of a matrix in chunks that stay in the first-level cache and
does a list of steps on each: an elementwise primitive, a widening of 16-bit numbers, or a
reduction into doubles. What a step does is a number, so a formula is data: nothing is compiled
for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from gpprune.compile.cpp.source import EACH, PRELUDE, loop
from gpprune.primitives import PRIMITIVES

CHUNK = 1024  # floats of a chunk: 4 KB, so that eight temporaries fit a first-level cache
# Slots lie no multiple of 4 KB apart: a store and a load at such a distance wait for each other.
STRIDE = CHUNK + 80

# Which of an elementwise step's arguments vary along a chunk, by the step's variant.
VARIANTS = ((True, True), (True, False), (False, True))

# Reductions and widenings, by code; what the primitives compute comes after them.
OTHERS = (
    *(f"{kind} {axis}" for kind in ("sum", "norm", "min", "max") for axis in ("in", "out", "all")),
    *("moments all", "float16", "bfloat16", "stream"),
)

_HEAD = r"""
struct Place { char* base; int64 row; int32 size; int32 slot; };
struct Step { int32 code; int32 variant; Place result; Place arguments[3]; };

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
        switch (step.code * 4 + step.variant) {
"""

_TAIL = """
        }
      }
    }
}
"""


@lru_cache(maxsize=1)
def source() -> str:
    """The machine's C++."""
    head = _HEAD.replace("@CHUNK@", str(CHUNK)).replace("@STRIDE@", str(STRIDE))
    cases = "\n".join([*_other_cases(), *_primitive_cases()])
    return PRELUDE + head + cases + _TAIL


def code_of(name: str) -> int:
    """The code of a primitive, or of one of `OTHERS`."""
    return _CODES[name]


_MACHINE = [name for name, entry in PRIMITIVES.items() if entry.lowering.scalar]
_CODES = {name: code for code, name in enumerate([*OTHERS, *_MACHINE])}


def _other_cases() -> Iterator[str]:
    for name in OTHERS:
        kind, _, axis = name.partition(" ")
        if kind == "stream":
            body = ["stream(r, x, n);"]
        elif kind in ("float16", "bfloat16"):
            body = loop([f"r[i] = from_{kind}(reinterpret_cast<const uint16*>(x)[i]);"])
        elif axis == "out":
            body = loop([EACH[kind].format("d[i]", "x[i]")])
        else:
            body = [f"{kind}(*d, x, n);"]
        yield _case(name, 0, body)


def _primitive_cases() -> Iterator[str]:
    for name in _MACHINE:
        lowering = PRIMITIVES[name].lowering
        for variant, varies in enumerate(VARIANTS):
            if len(lowering.reads) == 1 and variant:
                break  # one argument, which varies: else there would be no matrix
            if len(lowering.reads) == 3 and variant != 1:
                continue  # a normalisation: a matrix and two numbers
            arguments = zip(lowering.reads, "xyz", (*varies, False), strict=False)
            values = [
                f"const float {'abc'[place]} = {pointer}[{'i' if moves else 0}];"
                for place, pointer, moves in arguments
            ]
            yield _case(name, variant, loop([*values, f"r[i] = {lowering.scalar};"]))


def _case(name: str, variant: int, body: list[str]) -> str:
    return "\n".join([f"case {_CODES[name] * 4 + variant}: {{  // {name}", *body, "} break;"])
