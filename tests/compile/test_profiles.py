"""An allocation's tree as numbers, apart from any model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from gpprune.compile.profiles import profile
from gpprune.errors import Unfit
from gpprune.primitives import (
    ALLOCATION,
    UNIT_PRIMITIVES,
    Formula,
    FormulaError,
    UnitPrimitive,
    allocation,
    parse,
    published,
    word,
)
from gpprune.primitives.units.functions import Layout, OnUnits


@dataclass
class Asked:
    """Three blocks of two layers; every reduction is told and answered by the same numbers."""

    answer: tuple[float, ...] = (3.0, 1.0, 2.0, 5.0, 4.0, 0.0)

    def __post_init__(self) -> None:
        self.questions: list[tuple[str, str, tuple[float, ...]]] = []

    @property
    def layout(self) -> Layout:
        places = torch.arange(6)
        return Layout(torch.full((6,), 8.0).double(), places // 2, places % 2, 0.5)

    @property
    def terminals(self) -> Mapping[str, Tensor]:
        depth = self.layout.blocks.double() / 2
        return {"depth": depth, "fan_in": depth + 1, "fan_out": depth + 2, "size": depth + 3}

    def reduced(
        self, reduction: UnitPrimitive, elements: Formula, numbers: tuple[float, ...]
    ) -> Tensor:
        self.questions.append((word(reduction.name), elements.text, numbers))
        return torch.tensor(self.answer, dtype=torch.float64)

    def dsa(self, chain: Sequence[UnitPrimitive], elements: Formula) -> Tensor:
        self.questions.append(("-".join(entry.name for entry in chain), elements.text, ()))
        return torch.tensor(self.answer, dtype=torch.float64)


def values(text: str, asked: Asked | None = None) -> list[float]:
    return list(profile(allocation(text), published["wanda"], asked or Asked()).numpy())


def test_scores_stand_for_the_metric() -> None:
    asked = Asked()
    values("spread(quantile(mul(S, G), 0.3), 0.2)", asked)
    assert asked.questions == [("quantile", "mul(mul(abs(W), X), G)", (0.3,))]


def test_words_go_to_weights_or_units_by_their_place() -> None:
    asked = Asked()
    found = values("spread(add(log(mean(log(abs(W)))), depth), 1)", asked)
    assert asked.questions == [("mean", "log(abs(W))", ())]
    x = np.log(np.maximum(np.abs(asked.answer), 2.0**-126)) + np.array([0, 0, 0.5, 0.5, 1, 1])
    assert found == pytest.approx((x - x.min()) / (x.max() - x.min()))


def test_a_dsa_graph_is_asked_for_whole() -> None:
    asked = Asked()
    found = values("W:(ABSLOG)-(VAR)-(ATAN,ASIN)-(7)", asked)
    assert asked.questions == [("dsa_abslog-dsa_var-dsa_atan-dsa_asin", "mul(abs(W), X)", ())]
    assert found == pytest.approx([0.16 * x / 5 for x in asked.answer])


def test_a_number_alone_is_uniform() -> None:
    assert values("0.3") == [0.0] * 6


WORDS = [
    word(entry.name)
    for entry in UNIT_PRIMITIVES.values()
    if isinstance(entry.lowering, OnUnits) and entry.arity == 1 and entry.name[0] == "u"
]


@pytest.mark.parametrize("name", [name for name in WORDS if name != "cumsum"])
def test_a_number_is_the_same_for_every_unit(name: str) -> None:
    """Else the canonical form, which drops what is added to all, would change an allocation."""
    assert values(f"spread(add(depth, {name}(0.4)), 0.3)") == pytest.approx(
        values("spread(depth, 0.3)")
    )


def test_what_is_not_finite_is_unfit() -> None:
    with pytest.raises(Unfit, match="finite"):
        values("spread(mean(S), 1)", Asked((np.nan, 1, 2, 3, 4, 5)))


def test_a_constant_under_dsas_operators_is_unfit() -> None:
    with pytest.raises(Unfit, match=r"dsa_scores\(5\) is a constant"):
        values("spread(dsa_importance(dsa_var(dsa_scores(5))), 1)")


def test_text_of_other_languages_is_refused() -> None:
    with pytest.raises(FormulaError, match="joint"):
        parse("joint(W, 0)", ALLOCATION)
