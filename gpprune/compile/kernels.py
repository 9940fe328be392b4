"""Compiled formulas: named tensors in, a tensor of scores out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from gpprune.compile.backends import Blocked, Runner, inductor, reference
from gpprune.compile.cpp import native
from gpprune.compile.cpp.generated import Generated, is_generated
from gpprune.compile.cpp.machine import Machine, built
from gpprune.compile.memory import overlaps_itself, share_memory
from gpprune.compile.program import MATRIX, Apply, Load, Program, Reduce, lower
from gpprune.errors import UsageError
from gpprune.primitives import METRIC, Formula

BACKENDS: dict[str, Callable[[Program], Runner]] = {
    "reference": reference,
    "blocked": Blocked,
    "machine": Machine,
    "generated": Generated,
    "inductor": inductor,
}

# Measured on 2 cores: compiling takes so long, and saves so much of the time without it.
GENERATE_SECONDS = 0.3  # of C++, against the machine
GENERATE_SAVES = 8e-11  # seconds an element and instruction
# Of inductor, against the blocked backend, for weights that are not on a CPU: on an H200 between
# 1e-11 (Wanda) and 5e-11 (RIA).
COMPILE_SECONDS = 4.0
COMPILE_SAVES = 2e-11  # seconds an element


@dataclass(frozen=True)
class Kernel:
    """A formula compiled for one backend.

    Call it with the terminals that it names, floating point of any width: `W` and what else is a
    value a weight of shape `[out_features, in_features]`, a value an input feature (as `X` is)
    `[in_features]`, and a value an output neuron (as `Y` is) `[out_features]`.
    """

    formula: Formula
    backend: str
    terminals: frozenset[str]
    _axes: Mapping[str, frozenset[str]] = field(compare=False)
    _run: Runner

    def __call__(self, *, out: Tensor | None = None, **terminals: Tensor) -> Tensor:
        """Scores, `[out_features, in_features]`, float32 (float64 from the reference backend).

        They are computed where `out` lies, else where `W` or `G` does; what lies elsewhere is
        copied there.

        Args:
            out: a prepared buffer for the scores; returned.
            **terminals: tensors by name; those the formula does not use are ignored. A formula
                that uses neither `W` nor `G` needs one of them, or `out`, to know the shape.

        Raises:
            UsageError: a terminal is missing, its shape does not fit the others, or `out` has
                another shape or dtype than the scores, shares memory with a terminal that the
                formula reads, or holds several scores in one place.
        """
        shape, device = self._shape(terminals, out)
        dtype = torch.float64 if self.backend == "reference" else torch.float32
        scores = torch.empty(shape, dtype=dtype, device=device) if out is None else out
        # statistics may have been measured elsewhere, and the machine reads addresses
        placed = {name: terminals[name].to(scores.device).resolve_neg() for name in self.terminals}
        if out is not None:
            self._check(out, dtype, placed)
        with torch.no_grad():
            if scores.numel():
                self._run(placed, shape, scores)
        return scores

    def _check(self, out: Tensor, dtype: torch.dtype, placed: Mapping[str, Tensor]) -> None:
        """See that a buffer has the scores' dtype, and none of the memory they are made of."""
        if out.dtype != dtype:
            raise UsageError(f"out has dtype {out.dtype}; the {self.backend} backend gives {dtype}")
        for name, value in placed.items():
            if share_memory(out, value):
                raise UsageError(
                    f"out shares memory with {name}, which is still read when scores are written: "
                    "give a buffer of its own"
                )

    def _shape(
        self, terminals: dict[str, Tensor], out: Tensor | None
    ) -> tuple[tuple[int, int], torch.device]:
        missing = sorted(self.terminals - terminals.keys())
        if missing:
            raise UsageError(f"{self.formula.text} needs {', '.join(missing)}: pass it by name")
        whole = [t for n, t in terminals.items() if n in ("W", "G")] + (
            [] if out is None else [out]
        )
        if not whole or whole[0].dim() != 2:
            raise UsageError("pass W or G of shape [out_features, in_features]")
        shape = (whole[0].shape[0], whole[0].shape[1])
        if out is not None and (tuple(out.shape) != shape or overlaps_itself(out)):
            raise UsageError(
                f"out has shape {tuple(out.shape)} and strides {out.stride()}; the scores need "
                f"{shape}, each in a place of its own"
            )
        for name, axes in self._axes.items():
            wanted = shape if axes == MATRIX else shape[:1] if axes == {"out"} else shape[1:]
            if tuple(terminals[name].shape) != wanted:
                raise UsageError(
                    f"{name} has shape {tuple(terminals[name].shape)}; the weight matrix "
                    f"{shape} needs {wanted}"
                )
        return shape, whole[0].device


@lru_cache(maxsize=256)
def _compiled(formula: Formula, backend: str, revision: object) -> Kernel:
    """A kernel for one state of the table of primitives."""
    program = lower(formula)
    axes = {i.name: i.axes for i in program.instructions if isinstance(i, Load)}
    return Kernel(formula, backend, program.terminals, axes, BACKENDS[backend](program))


def kernel(
    formula: Formula,
    backend: str = "auto",
    *,
    elements: int = 0,
    device: torch.device | str = "cpu",
) -> Kernel:
    """Compile a formula.

    Args:
        formula: computed exactly as written; pass `formula.canonical("row")` where only the
            order of scores matters.
        backend: "reference", "blocked", "machine", "generated", "inductor", or "auto" for the one
            with the least total time, compilation included.
        elements: about how many weights it will score in all its calls.
        device: where these weights are; only "auto" asks.

    Raises:
        UsageError: unknown backend, or no metric.
    """
    if formula.language is not METRIC:
        raise UsageError(
            f"a kernel computes a metric's scores, and {formula.text!r} is a formula of the "
            f"{formula.language.name} language"
        )
    if backend == "auto":
        backend = choose(formula, elements, device)
    if backend not in BACKENDS:
        raise UsageError(f"unknown backend {backend!r}; there are auto, {', '.join(BACKENDS)}")
    return _compiled(formula, backend, METRIC.revision)


def choose(formula: Formula, elements: int, device: torch.device | str = "cpu") -> str:
    """The backend whose compile and run times for this many elements add up to least.

    On a CPU that is the machine, which has nothing to compile, or C++ generated for the formula,
    if that is in the cache folder or so many elements pay for it, and blocks where neither can be
    built; on other devices blocks, or what `torch.compile` makes of the formula.

    Args:
        formula: a metric.
        elements: about how many weights it will score in all its calls.
        device: where these weights are.
    """
    if torch.device(device).type == "cpu":
        if built() is None:
            return "blocked"
        program = lower(formula)
        steps = sum(isinstance(i, Apply | Reduce) for i in program.instructions)
        saved = elements * steps * GENERATE_SAVES
        pays = saved > GENERATE_SECONDS or (saved > 0 and is_generated(program))
        return "generated" if pays else "machine"
    pays = elements * COMPILE_SAVES > COMPILE_SECONDS
    return "inductor" if pays and native.compiler() else "blocked"
