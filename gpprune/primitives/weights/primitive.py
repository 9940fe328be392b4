"""What is declared of a primitive of metrics: types, meaning, lowering, and facts for algebra."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sympy

from gpprune.errors import UsageError
from gpprune.primitives.types import Constant, Elements, Sign, ValueType
from gpprune.primitives.weights.lowering import Lowering
from gpprune.primitives.weights.reach import Reach, unknown

UNARY: tuple[ValueType, ...] = (Elements,)
BINARY: tuple[ValueType, ...] = (Elements, Elements)

# The facts that are said of primitives of one argument, and of two.
_OF_ONE = ("increasing", "scale_free", "centred", "homogeneous", "linear")
_OF_TWO = ("commutative", "associative", "idempotent", "over_norm")


@dataclass(frozen=True)
class Primitive:
    """One operator of the formula language.

    The facts are what the canonical form may use; one that is left out costs a merge of two
    formulas, nothing else.

    Attributes:
        name: its word in formula text.
        about: what it computes, for `gpprune primitives`.
        arguments: the types that it takes.
        result: the type that it gives; never `Constant`, which stands for a written number.
        symbolic: the same function of sympy expressions.
        lowering: how torch and C++ compute it.
        reach: how large and small its results get, of its arguments' reaches, before they
            saturate. Where it is left out, no algebra looks into the primitive.
        nonnegative: no result is below 0.
        positive: every result is above 0.
        commutative: f(x, y) = f(y, x).
        associative: f(x, f(y, z)) = f(f(x, y), z).
        idempotent: f(x, x) = x.
        sign_of: the sign of the result, of those of the arguments.
        increasing: strictly, as a function of its one argument; saturation aside.
        even: f(x) = f(|x|), of the first argument; `increasing` is then meant in |x|.
        odd: f(-x) = -f(x), in each argument.
        scale_free: f(a x + b) = f(x) for a > 0.
        centred: its results have the mean 0 over the layer.
        homogeneous: f(a x) = |a| f(x).
        linear: f(a x) = a f(x).
        over_norm: f(x, y) is x over a norm of y over the layer.
        searched: whether a search draws it; formula text may use every one.
    """

    name: str
    about: str
    arguments: tuple[ValueType, ...]
    result: ValueType
    symbolic: Callable[..., sympy.Expr]
    lowering: Lowering
    reach: Callable[..., Reach] = unknown
    nonnegative: bool = False
    positive: bool = False
    commutative: bool = False
    associative: bool = False
    idempotent: bool = False
    sign_of: Callable[[Sequence[Sign]], Sign] | None = None
    increasing: bool = False
    even: bool = False
    odd: bool = False
    scale_free: bool = False
    centred: bool = False
    homogeneous: bool = False
    linear: bool = False
    over_norm: bool = False
    searched: bool = True

    def __post_init__(self) -> None:
        if not self.arguments:
            raise UsageError(f"the primitive {self.name!r} takes no arguments: make it a terminal")
        if self.result is Constant or not issubclass(self.result, Elements):
            raise UsageError(
                f"the primitive {self.name!r} gives {self.result.__name__}: choose Elements, "
                "Inputs or Outputs"
            )
        for fact, arity in (*((f, 1) for f in _OF_ONE), *((f, 2) for f in _OF_TWO)):
            if getattr(self, fact) and self.arity != arity:
                raise UsageError(
                    f"the primitive {self.name!r} takes {self.arity} arguments, and "
                    f"{fact!r} is said of {arity}: leave it out"
                )
        self._check_lowering()

    def _check_lowering(self) -> None:
        apply, reductions, reads = (
            self.lowering.apply,
            self.lowering.reductions,
            self.lowering.reads,
        )
        if (apply is None) == bool(reads):
            raise UsageError(
                f"the primitive {self.name!r} needs both a function of tensors and a scalar "
                "expression of C++ in a, b, c, or neither where its one reduction is the result"
            )
        if apply is None and len(reductions) != 1:
            raise UsageError(
                f"the primitive {self.name!r} has {len(reductions)} reductions and nothing that "
                "makes a result of them: give a function of tensors"
            )
        given = self.arity + len(reductions)
        if any(at >= given for at in reads) or any(r.argument >= self.arity for r in reductions):
            raise UsageError(
                f"the primitive {self.name!r} reads what it is not given: there are {given} of its "
                "arguments and reductions, named a, b, c in this order"
            )

    @property
    def sign(self) -> Sign:
        """What its facts tell of the sign of every result."""
        if self.positive:
            return Sign.POSITIVE
        return Sign.NONNEGATIVE if self.nonnegative else Sign.ANY

    @property
    def arity(self) -> int:
        """How many arguments it takes."""
        return len(self.arguments)

    @property
    def semilattice(self) -> bool:
        """Whether it is commutative, associative and idempotent, as a maximum is."""
        return self.commutative and self.associative and self.idempotent
