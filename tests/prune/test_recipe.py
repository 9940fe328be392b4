from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpprune.errors import UsageError
from gpprune.primitives import Formula, parse, published
from gpprune.prune import SCHEDULES, UPDATES, Damping, Recipe, Schedule, Update
from gpprune.prune import recipe as recipe_module

METRICS = [*published, "mul(abs(W), sqrt(X))", "abs(W)"]


@given(
    st.sampled_from(METRICS),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["row", "layer"]),
)
def test_a_recipe_survives_json(metric: str, sparsity: float, pattern: str) -> None:
    recipe = Recipe(metric=metric, sparsity=sparsity, pattern=pattern)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_a_recipe_survives_a_file(tmp_path: Path) -> None:
    recipe = Recipe(metric="mul(abs(W), X)", pattern="1:4")
    recipe.write(tmp_path / "recipe.json")
    assert Recipe.read(tmp_path / "recipe.json") == recipe


def test_a_metric_is_a_name_or_a_text() -> None:
    assert Recipe(metric="wanda", sparsity=0.5).formula == published["wanda"]
    assert Recipe(metric="abs(W)", sparsity=0.5).formula == parse("abs(W)")


def test_a_pattern_implies_its_sparsity() -> None:
    assert Recipe.make(pattern="2:4").sparsity == 0.5
    assert Recipe.make(pattern="1:4", sparsity=None).sparsity == 0.75


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda done: done / 2, "ends at a share of 0.5"),
        (lambda done: math.nan, "ends at a share of nan"),
        (lambda done: float(done == 1), "from a share of 0 of the zeros to 0 "),
        (lambda done: 1.5 - done / 2, "to 1.33333 in 3 shots"),
        (lambda done: [0.5, 0.4, 1.0][round(3 * done) - 1], "from a share of 0.5 .* to 0.4 in 3"),
        (lambda done: done if done in (0, 1) else math.nan, "to nan"),
    ],
)
def test_a_schedule_is_checked(part: Callable[[float], float], message: str) -> None:
    with (
        SCHEDULES.including(Schedule("odd", "", part)),
        pytest.raises(UsageError, match=f"the schedule 'odd' .*{message}"),
    ):
        Recipe(sparsity=0.5, shots=3, schedule="odd")


def test_a_number_for_an_allocation_lets_no_layer_of_a_fixed_pattern_differ() -> None:
    assert not Recipe(allocation="0", pattern="2:4", sparsity=0.5).varies
    assert Recipe(allocation="atp(0.1)", pattern="N:4", sparsity=0.5).varies


def test_a_recipe_is_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe(sparsity=0.5).sparsity = 0.6  # type: ignore[misc]


def test_a_recipe_says_what_it_reads() -> None:
    assert Recipe(metric="abs(W)", sparsity=0.5).reads == frozenset()
    assert Recipe(metric="gblm", sparsity=0.5).reads == {"X", "G"}
    assert Recipe(metric="sparsegpt", sparsity=0.5, allocation="snip").reads == {"D", "G"}
    assert Recipe(metric="wanda", sparsity=0.5, allocation="besa").reads == {"X"}
    allocation = "spread(l2(mul(W, Y)), 0.2)"
    assert Recipe(metric="magnitude", sparsity=0.5, allocation=allocation).reads == {"Y"}
    update = Update("none of it", "", lambda w, m, s, d: w, frozenset({"D"}))
    with UPDATES.including(update):
        assert Recipe(metric="wanda", sparsity=0.5, update="none of it").reads == {"X", "D"}


def test_a_formula_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(name: str) -> None:
        before: Callable[[str], Formula] = getattr(recipe_module, name)
        monkeypatch.setattr(recipe_module, name, lambda text: (read.append(text), before(text))[1])

    counted("read_metric")
    counted("read_allocation")
    recipe = Recipe(metric="mul(abs(W), X)", sparsity=0.5, allocation="spread(depth, 0.2)")
    _ = recipe.formula, recipe.allocator, recipe.reads, recipe.formula
    assert read == ["mul(abs(W), X)", "spread(depth, 0.2)"]


def test_a_copy_with_other_values_is_checked_and_reads_them() -> None:
    recipe = Recipe(metric="wanda", sparsity=0.5)
    _ = recipe.formula
    other = recipe.model_copy(update={"metric": "gblm", "sparsity": 0.6})
    assert other == Recipe(metric="gblm", sparsity=0.6) and other.reads == {"X", "G"}
    with pytest.raises(UsageError, match="wandaa"):
        recipe.model_copy(update={"metric": "wandaa"})


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"sparsity": 1.0}, "1.0"),
    ({"sparsity": -0.5}, "-0.5"),
    ({"sparsity": math.nan}, "nan"),
    ({"sparsity": "much"}, "'much'"),
    ({}, "needs a sparsity"),
    ({"sparsity": 0.5, "pattern": "column"}, "'column'"),
    ({"sparsity": 0.5, "pattern": 7}, "pattern is 7"),
    ({"sparsity": 0.4, "pattern": "2:4"}, "not 0.4"),
    ({"sparsity": 0.5, "metric": "wandaa"}, "wandaa"),
    ({"sparsity": 0.5, "metric": "mul(abs(W)"}, "."),
    ({"sparsity": 0.5, "allocation": "owel"}, "'owel'"),
    ({"sparsity": 0.5, "update": "surgery"}, "'surgery'.*none"),
    ({"sparsity": 0.5, "order": "backwards"}, "no order 'backwards'"),
    ({"sparsity": 0.5, "order": "corrected"}, "'corrected' makes up for"),
    ({"sparsity": 0.5, "damp_inputs": -0.1}, "damp_inputs is -0.1"),
    ({"sparsity": 0.5, "colour": "red"}, "'colour'"),
]


@pytest.mark.parametrize(("values", "named"), WRONG)
def test_a_wrong_value_is_one_sentence_that_names_it(values: dict[str, Any], named: str) -> None:
    for make in (Recipe, Recipe.make):
        with pytest.raises(UsageError, match=named) as caught:
            make(**values)
        assert "\n" not in str(caught.value)
        assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '{"recipe": 5}', "[" * 100_000, '{"sparsity": 2}']
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"broken\.json"):
        Recipe.read(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.json"):
        Recipe.read(tmp_path / "absent.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"binary\.json"):
        Recipe.read(tmp_path / "binary.json")
    with pytest.raises(UsageError, match="cannot write"):
        Recipe(sparsity=0.5).write(tmp_path / "no" / "such" / "folder.json")


def test_the_damping_is_recorded_where_the_update_reads_curvature(tmp_path: Path) -> None:
    plain = Recipe(sparsity=0.5)
    assert plain.damping == Damping(inputs=0.01, outputs=0.1)
    assert "damp_inputs" not in plain.model_dump()
    fitted = plain.model_copy(update={"update": "refit"})
    assert {**fitted.model_dump(), "damp_inputs": 0.01, "damp_outputs": 0.1} == fitted.model_dump()
    path = tmp_path / "recipe.json"
    for recipe in (plain, fitted, Recipe(sparsity=0.5, damp_outputs=1)):
        recipe.write(path)
        assert Recipe.read(path) == recipe
    path.write_text('{"metric": "wanda", "sparsity": 0.5}', encoding="utf-8")
    assert Recipe.read(path) == plain
