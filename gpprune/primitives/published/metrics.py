"""The published metrics, each a line of formula text with its paper."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from gpprune.errors import UsageError
from gpprune.primitives.formula import Formula, parse
from gpprune.primitives.language import METRIC
from gpprune.primitives.nodes import FormulaError
from gpprune.tables import Table

_NAME = re.compile(r"[a-z][a-z0-9-]*")


@dataclass(frozen=True)
class Published:
    """A published metric.

    Attributes:
        name: what it is called; it goes before formula text.
        text: formula text.
        paper: its source.
        pattern: the comparison group that its code prunes in.
    """

    name: str
    text: str
    paper: str
    pattern: str = "row"

    def __post_init__(self) -> None:
        if self.name in METRIC.words:
            raise UsageError(
                f"a metric cannot be called {self.name!r}, which means something in formula text"
            )
        parse(self.text)

    @property
    def formula(self) -> Formula:
        """The formula; the same object as long as no primitive is added."""
        return parse(self.text)


_RELATIVE = "add(div(abs(W), colsum(abs(W))), div(abs(W), rowsum(abs(W))))"

_SURGEON = "van der Ouderaa et al. 2024 (LLM Surgeon), arXiv 2312.17244"

METRICS: Table[Published] = Table(
    "published metric",
    (
        Published("magnitude", "abs(W)", "Han et al. 2015, arXiv 1506.02626", "layer"),
        Published("wanda", "mul(abs(W), X)", "Sun et al. 2024, arXiv 2306.11695, eq. 1", "row"),
        Published("ri", _RELATIVE, "Zhang et al. 2024 (RIA), ICLR, eq. 3", "layer"),
        Published(
            "ria",
            f"mul({_RELATIVE}, sqrt(X))",
            "Zhang et al. 2024 (RIA), ICLR, eq. 4, a = 0.5",
            "layer",
        ),
        Published(
            "pruner-zero",
            "mul(abs(mul(abs(W), abs(W))), minmax(pz_half(G)))",
            "Dong et al. 2024, arXiv 2406.02924, the tree its repository ships",
            "row",
        ),
        Published(
            "gblm",
            "mul(abs(W), add(X, mul(100, G)))",
            "Das et al. 2024 (GBLM-Pruner), arXiv 2311.04902, L2, alpha = 100",
            "row",
        ),
        # Its code compares within every 128 columns of a layer, on weights already updated.
        Published(
            "sparsegpt",
            "div(sqr(W), sqr(D))",
            "Frantar and Alistarh 2023, arXiv 2301.00774, eq. 3, its score alone",
            "layer",
        ),
        # Optimal brain damage and surgeon, by what each takes for the curvature. LLM Surgeon's code
        # puts one threshold over all layers.
        Published(
            "l-obd",
            "mul(sqr(W), sqr(X))",
            f"{_SURGEON}: its L-OBD, which takes activations alone",
            "model",
        ),
        Published(
            "kron-obd",
            "mul(mul(sqr(W), Gk), sqr(X))",
            f"{_SURGEON}: its K-OBD, which zeroes without an update",
            "model",
        ),
        Published("fisher", "mul(sqr(W), F)", f"{_SURGEON}: its diagonal Fisher", "model"),
        Published(
            "sequence-fisher",
            "mul(sqr(W), sqr(G))",
            "LeCun et al. 1989 (OBD), with the Fisher diagonal of whole sequences",
            "model",
        ),
        Published(
            "surgeon",
            "div(sqr(W), mul(Gi, Ai))",
            f"{_SURGEON}: its cost of a weight, after an update",
            "model",
        ),
        Published("obs", "div(sqr(W), Ai)", f"{_SURGEON}: its cost without gradients", "model"),
    ),
)


# A unit costs the sum of these over the weights that read it, or what they say of it as an input.
UNIT_METRICS: Table[Published] = Table(
    "published cost of a unit",
    (
        Published(
            "surgeon-columns",
            "div(Gx, Ai)",
            f"{_SURGEON}: its cost of a column, after an update",
            "mlp",
        ),
        Published(
            "kron-obd-columns",
            "mul(Gx, A)",
            f"{_SURGEON}: its K-OBD of a column, which zeroes without an update",
            "mlp",
        ),
        Published(
            "flap",
            "zscore(mul(sub(A, sqr(Am)), colsum(sqr(W))))",
            "An et al. 2024 (FLAP), arXiv 2312.11983, its WIFV, without what it adds to biases",
            "mlp",
        ),
        Published(
            "llm-pruner",
            "abs(mul(W, Gm))",
            "Ma et al. 2023 (LLM-Pruner), arXiv 2305.11627, first order by weights, of the columns",
            "mlp",
        ),
    ),
)
# What is summed over a unit as it is over single weights: FASP (Hu et al. 2025, arXiv 2501.09412)
# takes Wanda's, and obs is LLM Surgeon's cost of a column where gradients are not measured.
_SUMMED = ("magnitude", "wanda", "l-obd", "kron-obd", "obs")


def unit_costs() -> dict[str, Published]:
    """The published costs of units by name."""
    return {**{name: METRICS[name] for name in _SUMMED}, **UNIT_METRICS}


class _Formulas(Mapping[str, Formula]):
    """The formulas of the table's entries, as it is when it is asked."""

    def __init__(self, keep: Callable[[Formula], bool]) -> None:
        self._keep = keep

    def __getitem__(self, name: str) -> Formula:
        formula = METRICS[name].formula
        if not self._keep(formula):
            raise KeyError(name)
        return formula

    def __iter__(self) -> Iterator[str]:
        return (name for name, entry in METRICS.items() if self._keep(entry.formula))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _drawn(formula: Formula) -> bool:
    """Whether it reads only what a search draws."""
    return all(METRIC.terminals[name].searched for name in formula.names)


published: Mapping[str, Formula] = _Formulas(lambda _: True)
"""The formulas of the published metrics by name."""

seeds: Mapping[str, Formula] = _Formulas(_drawn)
"""The published metrics that a search starts from: those that read what a search measures."""


def named(text: str) -> Published | None:
    """The published metric, or cost of a unit, of a name; None: there is none."""
    return METRICS.get(text) or UNIT_METRICS.get(text)


def metric(text: str) -> Formula:
    """The metric that a text says: a published name (`wanda`, `flap`), or formula text.

    Raises:
        FormulaError: neither of these.
    """
    known = named(text)
    if known is not None:
        return known.formula
    if _NAME.fullmatch(text) and text not in METRIC.words:
        raise FormulaError(
            f"there is no metric {text!r}: choose from {', '.join([*METRICS, *UNIT_METRICS])}, or "
            "write a formula such as mul(abs(W), X)"
        )
    return parse(text)
