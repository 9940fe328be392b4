"""The published allocations, each a line of formula text with its paper."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gpprune.primitives.formula import Formula, parse
from gpprune.primitives.language import ALLOCATION
from gpprune.primitives.nodes import FormulaError, number_text
from gpprune.primitives.published.dsa import parse_dsa


@dataclass(frozen=True)
class PublishedAllocation:
    """A published allocation: its formula, its source, and the unit that its code gives sparsity.

    `unit` is "layer" or "block".
    """

    formula: Formula
    paper: str
    unit: str


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


def _line(text: str, paper: str, unit: str) -> PublishedAllocation:
    return PublishedAllocation(parse(text, ALLOCATION), paper, unit)


ALLOCATIONS: Mapping[str, PublishedAllocation] = MappingProxyType(
    {
        "uniform": _line("0", "every layer the same", "layer"),
        "global": _line("threshold(S)", "Han et al. 2015, arXiv 1506.02626", "layer"),
        # its gradients are of one batch and signed; G is their norm over calibration sequences
        "snip": _line(
            "threshold(mul(abs(W), G))", "Lee et al. 2019 (SNIP), arXiv 1810.02340", "layer"
        ),
        "er": _line(f"dense_as({_ER})", "Mocanu et al. 2018 (SET), arXiv 1707.04780", "layer"),
        "er-plus": _line(
            f"dense_as(add({_ER}, mul(1000, {_LAST})))",
            "Liu et al. 2022, arXiv 2202.02643: ER with the last block dense",
            "layer",
        ),
        "owl": _line(
            owl(), "Yin et al. 2024 (OWL), arXiv 2310.05175, M = 5, lambda = 0.08", "block"
        ),
        "dsa": PublishedAllocation(
            parse_dsa("W:(ABSLOG)-(VAR)-(ATAN,ASIN)-(7)"),
            "Li et al. 2024 (DSA), NeurIPS, the graph its repository ships",
            "block",
        ),
        "alphapruning": _line(
            alphapruning(), "Lu et al. 2024 (AlphaPruning), arXiv 2410.10912", "block"
        ),
        "atp": _line(atp(), "Huang et al. 2025 (ATP), arXiv 2502.14770", "block"),
    }
)

# Those with parameters, as a call: `owl(7, 0.05)`.
_MADE: Mapping[str, Callable[..., str]] = {"owl": owl, "atp": atp, "alphapruning": alphapruning}
_CALL = re.compile(r"\s*([a-z]+)\s*\(([-+.\d\s,eE]*)\)\s*")


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
    if text.lstrip().startswith("W:"):
        return parse_dsa(text)
    call = _CALL.fullmatch(text)
    if call is not None and call[1] in _MADE:
        return parse(_called(text, call[1], call[2]), ALLOCATION)
    return parse(text, ALLOCATION)


def unit_of(text: str) -> str | None:
    """The unit that a published allocation's code works by; None for formula text."""
    if text.lstrip().startswith("W:"):
        return ALLOCATIONS["dsa"].unit
    call = _CALL.fullmatch(text)
    name = call[1] if call is not None and call[1] in _MADE else text
    return ALLOCATIONS[name].unit if name in ALLOCATIONS else None


def _called(text: str, name: str, parameters: str) -> str:
    try:
        return _MADE[name](*(float(part) for part in parameters.split(",") if part.strip()))
    except (TypeError, ValueError):
        most = _MADE[name].__code__.co_argcount
        raise FormulaError(
            f"{text!r} cannot be read: {name} takes up to {most} numbers, as in {name}(0.1)"
        ) from None
