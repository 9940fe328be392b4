"""A few rows of tasks, in the field names of the hub, made up for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROWS: dict[str, list[dict[str, Any]]] = {
    "boolq": [
        {"question": f"is {a} more than {b}", "passage": f"There are {a}.", "label": int(a > b)}
        for a, b in ((3, 1), (2, 5), (9, 4), (1, 7), (6, 2))
    ],
    "rte": [
        {"sentence1": f"The {a} is red.", "sentence2": f"The {b} is red.", "label": int(a != b)}
        for a, b in (("hat", "hat"), ("cup", "door"), ("car", "car"), ("sun", "tree"))
    ],
    "hellaswag": [
        {
            "activity_label": "Cooking",
            "ctx_a": f"A man takes {what}.",
            "ctx_b": "he",
            "endings": ["sings", f"cooks the {what}", "runs off to sea", "is blue"],
            "label": str(at % 4),
        }
        for at, what in enumerate(("eggs", "a large fish", "rice", "some soup"))
    ],
    "winogrande": [
        {"sentence": f"The {a} beat the {b} as the _ was old.", "option1": a, "option2": b}
        | {"answer": str(1 + at % 2)}
        for at, (a, b) in enumerate((("cat", "dog"), ("king", "thief"), ("boy", "man")))
    ],
    "arc_easy": [
        {
            "id": str(at),
            "question": f"What is {a} and {b}?",
            "choices": {"text": [str(a), str(a + b), "a house"], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[at % 3],
        }
        for at, (a, b) in enumerate(((1, 2), (4, 4), (7, 1), (2, 9)))
    ],
    "openbookqa": [
        {
            "id": str(at),
            "question_stem": f"{what} is",
            "choices": {"text": ["hot", "wet", "old", "tall as a tree"], "label": list("ABCD")},
            "answerKey": "ABCD"[at % 4],
        }
        for at, what in enumerate(("The sun", "Rain", "A stone", "A tower"))
    ],
    "piqa": [
        {"goal": f"To open a {a},", "sol1": f"turn the {b}.", "sol2": "wait.", "label": at % 2}
        for at, (a, b) in enumerate(
            (("door", "key"), ("jar", "lid"), ("tap", "handle"), ("box", "latch"), ("safe", "dial"))
        )
    ],
    "gsm8k": [
        {"question": f"A boy has {a} coins and finds {b}. How many?", "answer": f"So\n#### {a + b}"}
        for a, b in ((1, 2), (5, 3), (10, 20))
    ],
}
ROWS["arc_challenge"] = list(reversed(ROWS["arc_easy"]))
MMLU = {
    subject: [
        {
            "subject": subject,
            "question": f"Which of these is {what}?",
            "choices": ["one", "two", "three", "four"],
            "answer": at % 4,
        }
        for at, what in enumerate(("first", "even", "odd", "last", "least"))
    ]
    for subject in ("anatomy", "astronomy")
}


_ASKED = {"piqa": "goal", "winogrande": "sentence", "hellaswag": "ctx_a", "arc_easy": "question"}


def write_rows(folder: Path) -> Path:
    """A folder of all of them, and of some others to search on."""
    (folder / "mmlu").mkdir(parents=True)
    for name, rows in ROWS.items():
        _write(folder / f"{name}.jsonl", rows)
        if name in _ASKED:
            others = [{**row, _ASKED[name]: f"Now: {row[_ASKED[name]]}"} for row in rows]
            _write(folder / f"{name}.search.jsonl", others)
    for subject, rows in MMLU.items():
        _write(folder / "mmlu" / f"{subject}.test.jsonl", rows[:3])
        _write(folder / "mmlu" / f"{subject}.dev.jsonl", rows[3:])
    return folder


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
