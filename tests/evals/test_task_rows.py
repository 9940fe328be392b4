"""Rows of tasks from files, and what marks say; lm-eval is not needed."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import task_rows
from hypothesis import given
from hypothesis import strategies as st

from gpprune.errors import UsageError
from gpprune.evals.tasks import (
    GROUPS,
    TASKS,
    Marks,
    Mean,
    above_chance,
    accuracy,
    difference,
    named_tasks,
    quizzes,
)
from gpprune.evals.tasks.rows import local_rows

scores = st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=40)


def marks(values: list[float], chance: float = 0.25) -> Marks:
    questions = tuple(map(str, range(len(values))))
    return Marks("piqa", questions, {"acc": tuple(values)}, chance)


def test_a_group_stands_for_its_tasks_and_none_comes_twice() -> None:
    names = [task.name for task in named_tasks(["piqa", "seven", "boolq"])]
    assert names == ["piqa", *GROUPS["seven"]]
    with pytest.raises(UsageError, match=r"no task 'sevem': choose from seven, boolq"):
        named_tasks(["sevem"])


@pytest.mark.parametrize("name", TASKS)
def test_rows_are_read_by_name(name: str, tmp_path: Path) -> None:
    folder = task_rows.write_rows(tmp_path / "rows")
    found = local_rows(TASKS[name], folder)
    if name == "mmlu":
        assert list(found) == ["mmlu_anatomy", "mmlu_astronomy"]
        for subject, parts in found.items():
            rows = task_rows.MMLU[subject.removeprefix("mmlu_")]
            assert dict(parts) == {"test": rows[:3], "dev": rows[3:]}
    else:
        assert found == {TASKS[name].stock: {TASKS[name].split: task_rows.ROWS[name]}}


def test_rows_to_judge_come_before_others_and_examples_beside_them(tmp_path: Path) -> None:
    for part in ("judge", "train", "search"):
        row = {"question": part, "answer": "#### 1"}
        (tmp_path / f"gsm8k.{part}.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "gsm8k.jsonl").write_text("not read")
    (found,) = local_rows(TASKS["gsm8k"], tmp_path).values()
    assert {part: [row["question"] for row in rows] for part, rows in found.items()} == {
        "test": ["judge"],
        "train": ["train"],
    }


def test_a_line_ends_where_json_ends_it(tmp_path: Path) -> None:
    rows = [{**row, "goal": "a\u2028b\u0085c"} for row in task_rows.ROWS["piqa"]]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "piqa.jsonl").write_text(text, encoding="utf-8")
    (found,) = local_rows(TASKS["piqa"], tmp_path).values()
    assert found["validation"] == rows


def test_parquet_is_read_too(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list(task_rows.ROWS["piqa"]).to_parquet(tmp_path / "piqa.parquet")
    (found,) = local_rows(TASKS["piqa"], tmp_path).values()
    assert found["validation"] == task_rows.ROWS["piqa"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"goal": "a", "sol1": "b", "label": 0}\n', r"row 1 of .* no field 'sol2'.*goal, sol1"),
        ("", "has no rows"),
        ("[1]\n", "line 1 is no JSON object"),
        ("{\n", "cannot be read"),
        ("\xff", "cannot be read"),
    ],
)
def test_bad_rows_are_refused(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "piqa.jsonl").write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError, match=said):
        local_rows(TASKS["piqa"], tmp_path)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no directory .*nowhere"):
        local_rows(TASKS["piqa"], tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"no rows of 'piqa'.*piqa\.judge\.jsonl or piqa\.jsonl"):
        local_rows(TASKS["piqa"], tmp_path)
    with pytest.raises(UsageError, match=r"no rows of 'mmlu'.*mmlu/SUBJECT\.test\.jsonl"):
        local_rows(TASKS["mmlu"], tmp_path)


def test_without_lm_eval_a_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(UsageError, match=r"pip install 'gpprune\[tasks\]'"):
        quizzes(named_tasks(["piqa"]))


@given(scores)
def test_an_accuracy_has_the_error_of_a_mean(values: list[float]) -> None:
    found, count = accuracy(marks(values)), len(values)
    assert found.mean == pytest.approx(sum(values) / count)
    spread = found.mean * (1 - found.mean) * count / (count - 1)  # of zeros and ones
    assert found.error == pytest.approx(math.sqrt(spread / count))


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 1.0])] * 2), min_size=2, max_size=40))
def test_a_difference_is_paired(pairs: list[tuple[float, float]]) -> None:
    own, dense = marks([a for a, _ in pairs]), marks([b for _, b in pairs])
    found, count = difference(own, dense), len(pairs)
    won = sum(a > b for a, b in pairs)
    lost = sum(a < b for a, b in pairs)
    assert found.mean == pytest.approx((won - lost) / count)
    variance = ((won + lost) - (won - lost) ** 2 / count) / (count - 1)  # McNemar's
    assert found.error == pytest.approx(math.sqrt(variance / count))
    assert difference(own, own) == Mean(0.0, 0.0)


def test_other_documents_are_not_compared() -> None:
    with pytest.raises(UsageError, match="different documents of 'piqa'"):
        difference(marks([0.0, 1.0]), marks([0.0, 1.0, 1.0]))


def test_chance_is_told_from_a_signal() -> None:
    """Of 100 documents with four choices guessing has 25 and an error of 4.33."""
    assert not above_chance(marks([1.0] * 33 + [0.0] * 67))
    assert above_chance(marks([1.0] * 34 + [0.0] * 66))
    assert not above_chance(marks([0.0] * 20, chance=0.0))
    assert above_chance(marks([1.0] + [0.0] * 19, chance=0.0))  # a written answer


def test_a_mean_of_tasks_weighs_them_alike() -> None:
    found = Mean.unweighted([Mean(0.5, 0.03), Mean(0.1, 0.04)])
    assert found.mean == pytest.approx(0.3)
    assert found.error == pytest.approx(0.025)
