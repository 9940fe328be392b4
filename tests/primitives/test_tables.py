"""One entry is enough: what is added to a table is known everywhere at once, and then gone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sympy
import torch
from random_formulas import layer

from gpprune.compile import behaviour, kernel, render
from gpprune.errors import UsageError
from gpprune.primitives import (
    ALLOCATION,
    ALLOCATIONS,
    JOINT,
    LANGUAGES,
    METRIC,
    METRICS,
    PRIMITIVES,
    STATISTICS,
    TERMINALS,
    UNIT_PRIMITIVES,
    UNIT_TERMINALS,
    Elements,
    FormulaError,
    Inputs,
    Language,
    Lowering,
    Outputs,
    Primitive,
    Published,
    PublishedAllocation,
    Reduction,
    Sign,
    Statistic,
    Terminal,
    UnitPrimitive,
    allocation,
    metric,
    parse,
    published,
    seeds,
    terminal_types,
    unit_of,
)
from gpprune.primitives.types import Constant, Units
from gpprune.primitives.units.functions import OnUnits
from gpprune.primitives.weights.lowering import saturate
from gpprune.primitives.weights.reach import Reach
from gpprune.primitives.weights.symbolic import named

CUBE = Primitive(
    "cube",
    "x cubed",
    (Elements,),
    Elements,
    lambda x: x**3,
    Lowering(lambda x: saturate(x * x * x), scalar="saturate(a * a * a)"),
    reach=lambda x: x.to(3),
    odd=True,
    increasing=True,
)
ROWMAX = Primitive(
    "rowmax",
    "greatest value over input features",
    (Elements,),
    Outputs,
    named("rowmax"),
    Lowering(None, (Reduction("max", "in"),)),
)
GATE = Primitive(  # nothing is known of it
    "gate",
    "x where y is above 0",
    (Elements, Elements),
    Elements,
    named("gate"),
    Lowering(lambda x, y: x * (y > 0), scalar="b > 0 ? a : 0"),
)
EITHER = Primitive(
    "either",
    "1 where x or y is not 0",
    (Elements, Elements),
    Elements,
    named("either"),
    Lowering(
        lambda x, y: ((x != 0) | (y != 0)).to(x.dtype), scalar="(a != 0 || b != 0) ? 1.0f : 0.0f"
    ),
    commutative=True,
    nonnegative=True,
)
RUNNING = Statistic(
    "K",
    Inputs,
    "greatest size of each input feature",
    Sign.NONNEGATIVE,
    probe=lambda layer: layer.lognormal(0.5 + layer.uneven, layer.in_features),
)
GRAM = Statistic("H", None, "Gram matrix of the inputs, [in_features, in_features]")


def drawn(language: Language) -> set[str]:
    pset = language.pset
    groups = (*pset.terminals.values(), *pset.primitives.values())
    return {node.name for nodes in groups for node in nodes}


# Primitives


@pytest.mark.parametrize("entry", [CUBE, ROWMAX, GATE, EITHER], ids=lambda entry: entry.name)
def test_a_new_primitive_is_read_printed_brought_to_form_and_computed(entry: Primitive) -> None:
    text = f"{entry.name}({', '.join(['mul(2, W)', 'X'][: entry.arity])})"
    with pytest.raises(FormulaError, match=f"unknown name '{entry.name}'"):
        parse(text)
    with PRIMITIVES.including(entry):
        formula = parse(text)
        assert formula.text == text
        for group in (None, "row", "layer"):
            form = formula.canonical(group)
            assert form.canonical(group) == form
        assert formula.key != parse("abs(W)").key
        assert behaviour(formula, "layer") is not None
        assert all(render(formula, kind) for kind in ("unicode", "line", "latex"))
        assert {symbol.name for symbol in formula.expr.free_symbols} == formula.names
        assert {METRIC, ALLOCATION, JOINT} == {
            language for language in LANGUAGES.values() if entry.name in drawn(language)
        }
        assert parse(f"threshold({text})", ALLOCATION).text == f"threshold({text})"
        scores = kernel(formula, "reference")(**layer(1))
        assert scores.isfinite().all()
    assert entry.name not in drawn(METRIC)
    with pytest.raises(FormulaError, match=f"unknown name '{entry.name}'"):
        parse(text)


def test_the_values_of_a_new_primitive_are_its_own() -> None:
    given = layer(3)
    with PRIMITIVES.including(CUBE, ROWMAX):
        for backend in ("reference", "blocked"):
            found = kernel(parse("add(cube(W), rowmax(G))"), backend)(**given)
            wanted = given["W"] ** 3 + given["G"].amax(1, keepdim=True)
            torch.testing.assert_close(found.float(), wanted)


def test_the_facts_of_a_new_primitive_merge_formulas() -> None:
    with PRIMITIVES.including(CUBE, EITHER):
        assert parse("cube(mul(2, W))").key == parse("W").key  # increasing
        assert parse("cube(neg(W))").canonical(None) == parse("neg(cube(W))")  # odd
        assert parse("either(X, W)").canonical(None) == parse("either(W, X)").canonical(None)


def test_the_facts_of_a_new_primitive_of_two_merge_formulas() -> None:
    middle = Primitive(
        "middle",
        "the mean of x and y",
        (Elements, Elements),
        Elements,
        lambda x, y: (x + y) / 2,
        Lowering(lambda x, y: x / 2 + y / 2, scalar="a / 2 + b / 2"),
        reach=PRIMITIVES["add"].reach,
        commutative=True,
        idempotent=True,
    )
    product = Primitive(
        "half_product",
        "half of x times y",
        (Elements, Elements),
        Elements,
        lambda x, y: x * y / 2,
        Lowering(lambda x, y: saturate(x * y / 2), scalar="saturate(a * b / 2)"),
        reach=lambda x, y: PRIMITIVES["mul"].reach(x, y).widened(Reach(-0.7, 0)),
        commutative=True,
        odd=True,
    )
    with PRIMITIVES.including(middle, product):
        assert parse("middle(X, W)").canonical(None) == parse("middle(W, X)").canonical(None)
        assert parse("middle(mul(X, W), mul(W, X))").canonical(None) == parse("mul(W, X)")
        form = parse("half_product(W, X)").canonical(None)
        assert parse("half_product(X, neg(W))").canonical(None) == parse(f"neg({form})")
        assert parse("half_product(neg(W), X)").canonical(None) == parse(f"neg({form})")


def test_no_algebra_looks_into_a_primitive_of_which_nothing_is_known() -> None:
    with PRIMITIVES.including(GATE):
        assert parse("gate(X, W)").key != parse("gate(W, X)").key
        assert parse("gate(mul(2, W), X)").key != parse("gate(W, X)").key
        assert parse("div(mul(X, gate(W, X)), gate(W, X))").key != parse("X").key
        assert parse("mul(gate(0, W), gate(W, 0))").canonical() is not None


def test_a_reduction_with_declared_facts_moves_what_is_fixed_out() -> None:
    total = Primitive(
        "total",
        "sum over the layer",
        (Elements,),
        Elements,
        named("total"),
        Lowering(None, (Reduction("sum", "all"),)),
        lambda x: PRIMITIVES["colsum"].reach(PRIMITIVES["rowsum"].reach(x)),
        linear=True,
    )
    with PRIMITIVES.including(total):
        form = parse("total(mul(3, W))").canonical(None)
        assert form == parse("mul(3, total(W))")
        assert parse("total(zscore(W))").canonical(None) == parse("0")
        assert parse("mul(W, abs(total(G)))").key == parse("W").key  # one number for the layer


def test_a_new_unit_primitive_is_read_in_allocations_alone() -> None:
    entry = UnitPrimitive(
        "units.halves",
        "x rounded to halves",
        (Units,),
        Units,
        named("halves"),
        OnUnits(lambda x: (2 * x).round() / 2),
    )
    with UNIT_PRIMITIVES.including(entry):
        formula = parse("spread(halves(depth), 0.2)", ALLOCATION)
        assert formula.canonical() == formula
        assert "units.halves" in drawn(ALLOCATION) and "halves" not in METRIC.words
    assert "halves" not in ALLOCATION.words


def test_a_new_terminal_of_units_is_read_in_allocations_alone() -> None:
    entry = Terminal("heads", Units, "attention heads of a unit's block", Sign.POSITIVE)
    with UNIT_TERMINALS.including(entry):
        assert parse("spread(log(heads), 0.2)", ALLOCATION).names == {"heads"}
        assert "heads" in drawn(JOINT) and "heads" not in METRIC.words


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"arguments": ()}, "takes no arguments"),
        ({"result": Constant}, "gives Constant"),
        ({"result": Units}, "gives Units"),
        ({"lowering": Lowering(torch.abs)}, "a scalar expression"),
        ({"lowering": Lowering(None, scalar="fabs(a)")}, "a function of tensors"),
        ({"lowering": Lowering(None)}, "0 reductions"),
        ({"lowering": Lowering(torch.abs, scalar="fabs(b)")}, "reads what it is not given"),
        ({"lowering": Lowering(None, (Reduction("sum", "in", 1),))}, "reads what it is not"),
        ({"commutative": True}, "is said of 2"),
        ({"arguments": (Elements, Elements), "increasing": True}, "is said of 1"),
    ],
)
def test_a_primitive_that_cannot_work_is_refused_when_it_is_made(
    changes: dict[str, object], says: str
) -> None:
    fields: dict[str, object] = {
        "arguments": (Elements,),
        "result": Elements,
        "lowering": Lowering(torch.abs, scalar="fabs(a)"),
    }
    with pytest.raises(UsageError, match=f"'size' .*{says}"):
        Primitive("size", "|x|", symbolic=sympy.Abs, **(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "2x", "a b", "é", "x{}", "lambda", "units.", "W", "X", "log"])
def test_a_name_that_formula_text_cannot_tell_is_refused(name: str) -> None:
    before = list(STATISTICS)
    with pytest.raises(UsageError, match=r"cannot be called|already"):
        STATISTICS.add(Statistic(name, None, "of no name"))
    assert list(STATISTICS) == before


# Statistics


def test_a_new_statistic_is_read_printed_told_apart_and_computed() -> None:
    given = layer(1) | {"K": torch.linspace(0.5, 2, 9)}
    with STATISTICS.including(RUNNING):
        formula = parse("mul(abs(W), K)")
        assert formula.names == {"K", "W"}
        assert formula.canonical("row") == parse("mul(K, abs(W))")
        assert parse("abs(K)").canonical(None) == parse("K")
        assert terminal_types()["K"] is Inputs
        assert "K" in drawn(METRIC) and "K" in drawn(ALLOCATION)
        assert render(formula, "line") == "|W|·K"
        (symbol,) = parse("K").expr.free_symbols
        assert symbol.is_nonnegative and not symbol.is_positive
        found = kernel(formula, "reference")(**given)
        torch.testing.assert_close(found.float(), given["W"].abs() * given["K"])
        told = {behaviour(parse(f"mul(abs(W), {name})"), "row") for name in "KXD"}
        assert None not in told and len(told) == 3
    assert "K" not in terminal_types() and "K" not in drawn(METRIC)
    with pytest.raises(FormulaError, match="unknown name 'K'"):
        parse("mul(abs(W), K)")


def test_nothing_is_assumed_of_the_size_of_a_statistic_without_a_reach() -> None:
    with STATISTICS.including(RUNNING):
        assert parse("sqrt(sqr(K))").canonical(None) != parse("K")
        assert parse("sqrt(sqr(X))").canonical(None) == parse("X")


def test_a_new_statistic_changes_no_others_probe() -> None:
    other = Statistic(
        "B", Elements, "signed", probe=lambda layer: layer.normal(*layer.weight.shape)
    )
    before = [behaviour(formula, "layer") for formula in published.values()]
    with STATISTICS.including(RUNNING):
        alone = behaviour(parse("mul(abs(W), K)"), "row")
        assert [behaviour(formula, "layer") for formula in published.values()] == before
    with STATISTICS.including(other, RUNNING):
        assert behaviour(parse("mul(abs(W), K)"), "row") == alone
        assert behaviour(parse("B"), "row") != behaviour(parse("abs(B)"), "row")


@pytest.mark.parametrize(
    ("sign", "apart"), [(Sign.ANY, True), (Sign.NONNEGATIVE, True), (Sign.POSITIVE, False)]
)
def test_the_probe_holds_zeros_of_what_may_be_zero(sign: Sign, apart: bool) -> None:
    entry = Statistic(
        "K", Inputs, "sizes", sign, probe=lambda layer: layer.lognormal(1.0, layer.in_features)
    )
    with STATISTICS.including(entry):
        formulas = [parse(text) for text in ("mul(G, div(K, K))", "G")]
        assert (behaviour(formulas[0], "layer") != behaviour(formulas[1], "layer")) is apart


def test_what_only_weight_updates_read_is_in_no_formula() -> None:
    with STATISTICS.including(GRAM):
        assert "H" in STATISTICS and "H" not in METRIC.terminals and "H" not in terminal_types()
        assert "H" not in drawn(METRIC)
        assert behaviour(parse("abs(W)"), "row") is not None
        for text, language in (("mul(abs(W), H)", METRIC), ("threshold(H)", ALLOCATION)):
            with pytest.raises(FormulaError, match="unknown name 'H'"):
                parse(text, language)


def test_what_is_not_searched_may_be_written() -> None:
    entry = Statistic("K", Inputs, "costly", probe=lambda layer: layer.inputs, searched=False)
    with STATISTICS.including(entry):
        assert parse("K").names == {"K"} and "K" not in drawn(METRIC)
        with METRICS.including(Published("costly", "mul(abs(W), K)", "nobody")):
            assert "costly" in published and "costly" not in seeds


@pytest.mark.parametrize(
    ("type_", "sign", "probe", "says"),
    [
        (Inputs, Sign.ANY, None, "needs a probe"),
        (None, Sign.ANY, lambda layer: layer.inputs, "which only a formula reads"),
        (Inputs, Sign.ANY, lambda layer: layer.outputs, r"gives the shape \(3,\).* needs \(5,\)"),
        (Outputs, Sign.ANY, lambda layer: layer.inputs, r"gives the shape \(5,\).* needs \(3,\)"),
        (Elements, Sign.ANY, lambda layer: layer.inputs, r"gives the shape \(5,\).*\(3, 5\)"),
        (Elements, Sign.ANY, lambda layer: layer.weight.T, r"shape \(5, 3\)"),
        (Units, Sign.ANY, lambda layer: layer.inputs, "choose Inputs, Outputs"),
        (Inputs, Sign.ANY, lambda layer: layer.inputs.float(), "float32 values"),
        (Inputs, Sign.ANY, lambda layer: layer.inputs / 0, "finite"),
        (Inputs, Sign.ANY, lambda layer: torch.rand(5).double(), "asked again"),
        (Inputs, Sign.NONNEGATIVE, lambda layer: -layer.inputs, "not nonnegative"),
        (Inputs, Sign.POSITIVE, lambda layer: 0 * layer.inputs, "not positive"),
    ],
)
def test_a_statistic_that_the_probe_lacks_is_refused_when_it_is_made(
    type_: type, sign: Sign, probe: Callable[..., object], says: str
) -> None:
    with pytest.raises(UsageError, match=f"'K' .*{says}"):
        Statistic("K", type_, "of no use", sign, probe=probe)  # type: ignore[arg-type]


# Metrics and allocations


def test_a_new_metric_is_published_and_a_seed() -> None:
    entry = Published("roots", "mul(sqrt(W), X)", "nobody 2026")
    with METRICS.including(entry):
        assert metric("roots") == published["roots"] == seeds["roots"] == parse("mul(sqrt(W), X)")
        assert entry.formula is entry.formula
        assert entry.pattern == "row"
    assert "roots" not in published and "roots" not in seeds
    with pytest.raises(FormulaError, match="there is no metric 'roots'"):
        metric("roots")


def test_a_metric_is_read_by_name_or_as_formula_text() -> None:
    assert metric("wanda") == metric("mul(abs(W), X)") == published["wanda"]
    with pytest.raises(FormulaError, match="there is no metric 'wanda2'"):
        metric("wanda2")


def test_a_new_allocation_is_read_by_name_and_with_its_parameters() -> None:
    def steps(width: float = 0.1, power: float = 2) -> str:
        return f"spread(pow(depth, {power:g}), {width:g})"

    entry = PublishedAllocation("steep-2", steps(), "nobody 2026", "block", steps)
    with ALLOCATIONS.including(entry):
        assert allocation("steep-2").text == "spread(pow(depth, 2), 0.1)"
        assert allocation("steep-2(0.3)").text == "spread(pow(depth, 2), 0.3)"
        assert allocation("steep-2(0.3, 3)").text == "spread(pow(depth, 3), 0.3)"
        assert unit_of("steep-2(0.3)") == unit_of("steep-2") == "block"
        with pytest.raises(FormulaError, match="takes up to 2 numbers"):
            allocation("steep-2(1, 2, 3)")
    with pytest.raises(FormulaError):
        allocation("steep-2")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Published("bad", "mul(abs(W)", "nobody"),
        lambda: Published("W", "abs(W)", "nobody"),
        lambda: PublishedAllocation("bad", "S", "nobody"),
        lambda: PublishedAllocation("depth", "0", "nobody"),
        lambda: PublishedAllocation("bad", "0", "nobody", "row"),
        lambda: PublishedAllocation("bad", "0", "nobody", "layer", lambda: "threshold(S)"),
    ],
)
def test_what_cannot_be_published_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(UsageError):
        make()


# What is derived


def test_a_text_is_read_once_as_long_as_the_tables_stay() -> None:
    first = parse("mul(abs(W), sqrt(X))")
    assert parse("mul(abs(W), sqrt(X))") is first
    assert first.canonical("row") is first.canonical("row")
    with PRIMITIVES.including(CUBE):
        assert parse("mul(abs(W), sqrt(X))") == first


def test_deaps_set_is_made_once_as_long_as_the_tables_stay() -> None:
    before = METRIC.pset
    assert METRIC.pset is before
    with TERMINALS.including(Terminal("V", Elements, "another matrix")):
        assert METRIC.pset is not before
    assert drawn(METRIC) == {node.name for g in before.terminals.values() for node in g} | {
        node.name for g in before.primitives.values() for node in g
    }
