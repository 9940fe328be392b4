"""The published allocations, each a line of formula text with its paper."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

from gpprune.errors import UsageError
from gpprune.primitives.formula import Formula, parse
from gpprune.primitives.language import ALLOCATION
from gpprune.primitives.nodes import FormulaError, number_text
from gpprune.primitives.published.dsa import parse_dsa
from gpprune.tables import Table


@dataclass(frozen=True)
class PublishedAllocation:
    """A published allocation.

    Attributes:
        name: what it is called; it goes before formula text.
        text: formula text, or a DSA graph.
        paper: its source.
        unit: what its code gives a sparsity, "layer" or "block".
        make: formula text of numbers that a user may give, as in `owl(7, 0.05)`; each has a
            default, and with these it is `text`.
    """

    name: str
    text: str
    paper: str
    unit: str = "layer"
    make: Callable[..., str] | None = None

    def __post_init__(self) -> None:
        if self.unit not in ("layer", "block"):
            raise UsageError(
                f"the allocation {self.name!r} has the unit {self.unit!r}: choose layer or block"
            )
        if self.name in ALLOCATION.words:
            raise UsageError(
                f"an allocation cannot be called {self.name!r}, which means something in formula "
                "text"
            )
        formula = self.formula  # which raises where the text is none
        if self.make is not None and self.made("") != formula:
            raise UsageError(
                f"the allocation {self.name!r} is {self.text!r}, but {self.made('')} with the "
                "numbers that it is made of by default"
            )

    @property
    def formula(self) -> Formula:
        """The formula; the same object as long as no primitive is added."""
        return _read(self.text)

    def made(self, numbers: str) -> Formula:
        """The formula with numbers of one's own.

        Args:
            numbers: the numbers as a user writes them, with commas between.

        Raises:
            FormulaError: too many, or not numbers.
        """
        make = self.make or (lambda: self.text)
        try:
            text = make(*(float(number) for number in numbers.split(",") if number.strip()))
        except (TypeError, ValueError):
            most = len(inspect.signature(make).parameters)
            written = f"{self.name}({numbers})"
            raise FormulaError(
                f"{written!r} cannot be read: {self.name} takes up to {most} numbers, as in "
                f"{self.name}(0.1)"
            ) from None
        return parse(text, ALLOCATION)


def owl(m: float = 5, lambda_: float = 0.08) -> str:
    """Yin et al. 2024 (OWL), arXiv 2310.05175: the more scores above m times the mean, the denser.

    Formula text; densities range over 2 lambda.
    """
    return f"spread(outliers(S, {number_text(m)}), {number_text(-2 * lambda_)})"


def alphapruning(epsilon: float = 0.3) -> str:
    """Lu et al. 2024 (AlphaPruning), arXiv 2410.10912: the heavier the tail, the denser.

    Formula text; before they are scaled to the target, sparsities range over 1 -+ epsilon.
    """
    low, width = number_text(1 - epsilon), number_text(2 * epsilon)
    return f"sparse_as(add({low}, mul({width}, minmax(hill_peak(W)))))"


def atp(difference: float = 0.2) -> str:
    """Huang et al. 2025 (ATP), arXiv 2502.14770: sparsity in arithmetic progression over depth.

    Formula text; `difference` is between the last block and the first.
    """
    return f"spread(depth, {number_text(difference)})"


_ER = "div(add(fan_in, fan_out), mul(fan_in, fan_out))"
# A number that is 1 at depth 1 and nothing anywhere else, whatever the number of blocks.
_LAST = "pow(depth, 10000)"


def _is_graph(text: str) -> bool:
    return text.lstrip().startswith("W:")


def _read(text: str) -> Formula:
    return parse_dsa(text) if _is_graph(text) else parse(text, ALLOCATION)


ALLOCATIONS: Table[PublishedAllocation] = Table(
    "published allocation",
    (
        PublishedAllocation("uniform", "0", "every layer the same"),
        PublishedAllocation("global", "threshold(S)", "Han et al. 2015, arXiv 1506.02626"),
        # its gradients are of one batch and signed; G is their norm over calibration sequences
        PublishedAllocation(
            "snip", "threshold(mul(abs(W), G))", "Lee et al. 2019 (SNIP), arXiv 1810.02340"
        ),
        PublishedAllocation("er", f"dense_as({_ER})", "Mocanu et al. 2018 (SET), arXiv 1707.04780"),
        PublishedAllocation(
            "er-plus",
            f"dense_as(add({_ER}, mul(1000, {_LAST})))",
            "Liu et al. 2022, arXiv 2202.02643: ER with the last block dense",
        ),
        PublishedAllocation(
            "owl",
            owl(),
            "Yin et al. 2024 (OWL), arXiv 2310.05175, M = 5, lambda = 0.08",
            "block",
            owl,
        ),
        PublishedAllocation(
            "dsa",
            "W:(ABSLOG)-(VAR)-(ATAN,ASIN)-(7)",
            "Li et al. 2024 (DSA), NeurIPS, the graph its repository ships",
            "block",
        ),
        PublishedAllocation(
            "alphapruning",
            alphapruning(),
            "Lu et al. 2024 (AlphaPruning), arXiv 2410.10912",
            "block",
            alphapruning,
        ),
        PublishedAllocation(
            "atp", atp(), "Huang et al. 2025 (ATP), arXiv 2502.14770", "block", atp
        ),
    ),
)

_NAME = re.compile(r"[a-z][a-z0-9-]*")
_CALL = re.compile(r"\s*([A-Za-z][\w-]*)\s*\(([-+.\d\s,eE]*)\)\s*")


def allocation(text: str) -> Formula:
    """The allocation that a text says.

    Args:
        text: a published name (`owl`), one with its parameters (`owl(7, 0.05)`, `atp(0.3)`,
            `alphapruning(0.2)`), a DSA graph (`W:(ABSLOG)-(VAR)-(ATAN,ASIN)-(7)`), or formula text.

    Raises:
        FormulaError: none of these.
    """
    if text in ALLOCATIONS:
        return ALLOCATIONS[text].formula
    if _NAME.fullmatch(text) and text not in ALLOCATION.words:
        raise FormulaError(
            f"there is no allocation {text!r}: choose from {', '.join(ALLOCATIONS)}, or write a "
            "formula such as spread(depth, 0.2)"
        )
    called = _called(text)
    return _read(text) if called is None else called[0].made(called[1])


def unit_of(text: str) -> str | None:
    """The unit that a published allocation's code works by; None for formula text."""
    if _is_graph(text):
        return ALLOCATIONS["dsa"].unit
    if text in ALLOCATIONS:
        return ALLOCATIONS[text].unit
    called = _called(text)
    return None if called is None else called[0].unit


def _called(text: str) -> tuple[PublishedAllocation, str] | None:
    """The published allocation that is called with parameters, and these."""
    call = _CALL.fullmatch(text)
    if call is None or call[1] not in ALLOCATIONS or ALLOCATIONS[call[1]].make is None:
        return None
    return ALLOCATIONS[call[1]], call[2]
