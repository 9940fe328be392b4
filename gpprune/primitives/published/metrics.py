"""The published metrics, each a line of formula text with its paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gpprune.primitives.formula import Formula, parse
from gpprune.primitives.weights.table import UNSEARCHED


@dataclass(frozen=True)
class Published:
    """A published formula: its text, its source, and the comparison group its code uses."""

    text: str
    paper: str
    pattern: str


_RELATIVE = "add(div(abs(W), colsum(abs(W))), div(abs(W), rowsum(abs(W))))"

METRICS: Mapping[str, Published] = MappingProxyType(
    {
        "magnitude": Published("abs(W)", "Han et al. 2015, arXiv 1506.02626", "layer"),
        "wanda": Published("mul(abs(W), X)", "Sun et al. 2024, arXiv 2306.11695, eq. 1", "row"),
        "ri": Published(_RELATIVE, "Zhang et al. 2024 (RIA), ICLR, eq. 3", "layer"),
        "ria": Published(
            f"mul({_RELATIVE}, sqrt(X))", "Zhang et al. 2024 (RIA), ICLR, eq. 4, a = 0.5", "layer"
        ),
        "pruner-zero": Published(
            "mul(abs(mul(abs(W), abs(W))), minmax(pz_half(G)))",
            "Dong et al. 2024, arXiv 2406.02924, the tree its repository ships",
            "row",
        ),
        "gblm": Published(
            "mul(abs(W), add(X, mul(100, G)))",
            "Das et al. 2024 (GBLM-Pruner), arXiv 2311.04902, L2, alpha = 100",
            "row",
        ),
        # Its code compares within every 128 columns of a layer, on weights already updated.
        "sparsegpt": Published(
            "div(sqr(W), sqr(D))",
            "Frantar and Alistarh 2023, arXiv 2301.00774, eq. 3, its score alone",
            "layer",
        ),
    }
)

published: Mapping[str, Formula] = MappingProxyType(
    {name: parse(entry.text) for name, entry in METRICS.items()}
)

seeds: Mapping[str, Formula] = MappingProxyType(
    {name: formula for name, formula in published.items() if not formula.names & UNSEARCHED}
)
"""The published metrics that a search starts from: those that read what a search measures."""
