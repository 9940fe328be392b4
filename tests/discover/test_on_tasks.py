"""Models judged on tasks through lm-eval: its figures, kept answers, tables and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import task_rows
import torch
import transformers
from short_texts import short_texts
from torch import nn
from transformers import PreTrainedTokenizerFast

from gpprune import cli
from gpprune.discover import Texts, judge_on_tasks
from gpprune.discover.checkpoints.tasked import TaskTable, answers_beside, contenders_beside
from gpprune.errors import GppruneError, UsageError
from gpprune.evals.tasks import named_tasks, quizzes
from gpprune.prune import Recipe, load_model

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'gpprune[tasks]'")

SEVEN = ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
TEXTS = short_texts(calibration_samples=2, window_length=32)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return task_rows.write_rows(tmp_path_factory.mktemp("tasks") / "rows")


@pytest.fixture(scope="module")
def model_dir(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A random model that takes long enough texts."""
    folder = tmp_path_factory.mktemp("model")
    config = transformers.LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


def judged(model: str, rows: Path, *tasks: str, **how: Any) -> TaskTable:
    how = {"texts": TEXTS, "dtype": "float32", "documents": None} | how
    return judge_on_tasks(model, tasks=tasks, data=rows, **how)


@torch.no_grad()
def likelihood(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """Of an answer after a prompt, token by token in float64, as lm-eval's documentation has it."""
    whole = tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
    start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    logits = model.double()(torch.tensor([whole])).logits[0]
    logs = torch.log_softmax(logits, -1)
    return sum(float(logs[at - 1, whole[at]]) for at in range(start, len(whole)))


def test_accuracies_are_of_the_likeliest_answer(model_dir: str, rows: Path) -> None:
    """Against prompts written out here: PIQA's two solutions and ARC's choices."""
    loaded = load_model(model_dir)
    found = judged(model_dir, rows, "piqa", "arc_easy").models[0]
    piqa = [
        (f"Question: {row['goal']}\nAnswer:", [f" {row['sol1']}", f" {row['sol2']}"], row["label"])
        for row in task_rows.ROWS["piqa"]
    ]
    arc = [
        (
            f"Question: {row['question']}\nAnswer:",
            [f" {text}" for text in row["choices"]["text"]],
            "ABC".index(row["answerKey"]),
        )
        for row in task_rows.ROWS["arc_easy"]
    ]
    for marks, asked in zip(found.marks, (piqa, arc), strict=True):
        for at, (prompt, answers, right) in enumerate(asked):
            logs = [likelihood(loaded.model, loaded.tokenizer, prompt, a) for a in answers]
            shares = [log / (len(a) - 1) for log, a in zip(logs, answers, strict=True)]
            assert marks.scores["acc"][at] == (max(logs) == logs[right])
            assert marks.scores["acc_norm"][at] == (max(shares) == shares[right])
    assert [marks.chance for marks in found.marks] == [0.5, pytest.approx(1 / 3)]


@pytest.mark.parametrize("task", ["mmlu", "gsm8k", *SEVEN])
def test_every_task_is_asked(task: str, model_dir: str, rows: Path) -> None:
    found = judged(model_dir, rows, task)
    (marks,) = found.models[0].marks
    count = 6 if task == "mmlu" else len(task_rows.ROWS[task])
    assert len(marks.questions) == len(marks.scores["acc"]) == count
    assert set(marks.scores["acc"]) <= {0.0, 1.0}
    assert found.quizzes[0].shots == (2 if task == "mmlu" else 0)
    if task == "gsm8k":
        assert marks.chance == 0
        assert any("no rows of 'train'" in sentence for sentence in found.sentences)


def test_models_are_compared_document_by_document(
    model_dir: str, rows: Path, text_file: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.json"
    Recipe(metric="magnitude", sparsity=0.3).write(recipe)
    texts = Texts(calibration_text=str(text_file), calibration_samples=2, window_length=32)
    found = judged(
        model_dir,
        rows,
        "seven",
        beside=["wanda", str(recipe), model_dir],
        sparsity=[0.5, 0.9],
        texts=texts,
    )
    names = [model.name for model in found.models]
    same = Path(model_dir).name
    assert names == ["dense", "wanda 0.5", "wanda 0.9", "mine 0.5", "mine 0.9", same]
    assert [model.recipe.sparsity for model in found.models if model.recipe] == [0.5, 0.9] * 2
    assert found.models[-1].marks == found.models[0].marks
    columns, table = found.differences()
    assert columns[1:] == names[1:]
    assert all(row[-1] == "+0.0 ± 0.0" for row in table)
    assert table[-1][0] == "mean of seven"
    stated = found.as_dict()
    assert json.loads(json.dumps(stated)) == stated
    for model in stated["models"]:
        mean = sum(own["acc"]["mean"] for own in model["tasks"].values()) / 7
        assert model["means"]["seven"]["mean"] == pytest.approx(mean)
        dense = stated["models"][0]
        gained = model["means"]["seven"]["difference"]["mean"]
        assert gained == pytest.approx(mean - dense["means"]["seven"]["mean"])
    assert any(model["tasks"] != stated["models"][0]["tasks"] for model in stated["models"][1:-1])


def test_a_few_documents_are_a_seeded_draw(model_dir: str, rows: Path) -> None:
    def drawn(**how: Any) -> tuple[str, ...]:
        return judged(model_dir, rows, "piqa", **how).models[0].marks[0].questions

    whole, few = drawn(), drawn(documents=2)
    assert len(few) == 2
    assert set(few) < set(whole)
    assert drawn(documents=2) == few
    others = {drawn(documents=2, texts=Texts(seed=seed, window_length=32)) for seed in range(6)}
    assert len(others) > 1


def test_an_interrupted_run_goes_on(
    model_dir: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = judged(model_dir, rows, "boolq", "piqa", "rte")
    out, asked = tmp_path / "out.json", []
    forward = transformers.LlamaForCausalLM.forward

    def counted(self: nn.Module, *args: Any, **how: Any) -> Any:
        asked.append(1)
        return forward(self, *args, **how)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", counted)

    def stopping(label: str, done: int, total: int) -> None:
        if label == "dense: piqa" and done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judged(model_dir, rows, "boolq", "piqa", "rte", out=out, progress=stopping)
    kept = answers_beside(out)
    assert len(list(kept.iterdir())) == 2
    with next(kept.iterdir()).open("a") as file:
        file.write('{"question": "cut o')  # as a kill may leave it
    first, asked[:] = len(asked), []
    found = judged(model_dir, rows, "boolq", "piqa", "rte", out=out)
    assert found.models[0].marks == wanted.models[0].marks
    assert 0 < len(asked) < first  # rte alone
    assert json.loads(out.read_text())["models"][0]["name"] == "dense"
    assert not kept.exists()
    with pytest.raises(UsageError, match="exists: choose another --out"):
        judged(model_dir, rows, "rte", out=out)


def test_kept_answers_are_of_the_same_model_alone(
    model_dir: str, rows: Path, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    def stopping(label: str, done: int, total: int) -> None:
        if label == "dense: rte":
            raise KeyboardInterrupt

    out = tmp_path / "out.json"
    with pytest.raises(KeyboardInterrupt):
        judged(model_dir, rows, "piqa", "rte", out=out, progress=stopping)
    other: Any = transformers.AutoModelForCausalLM.from_pretrained(model_dir)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.neg_()
    other.save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    wanted = judged(str(tmp_path / "other"), rows, "piqa", "rte")
    found = judged(str(tmp_path / "other"), rows, "piqa", "rte", out=out)
    assert found.models[0].marks == wanted.models[0].marks


def test_what_cannot_be_asked_is_said(rows: Path, model_dir: str, tmp_path: Path) -> None:
    short: Any = transformers.AutoModelForCausalLM.from_pretrained(model_dir)
    config = short.config
    config.max_position_embeddings = 8
    short.save_pretrained(tmp_path / "short")
    load_model(model_dir).tokenizer.save_pretrained(tmp_path / "short")
    with pytest.raises(GppruneError, match="lm-eval fails on the model on 'gsm8k'"):
        judged(str(tmp_path / "short"), rows, "gsm8k", texts=Texts(window_length=4))


def test_from_the_hub_all_subjects_are_asked(
    model_dir: str, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub stands here as rows of two subjects for all of them."""
    import datasets
    from lm_eval.api import task as lm_eval_task

    def fetched(path: str, name: str, **_: object) -> datasets.DatasetDict:
        assert path == "cais/mmlu"
        own = task_rows.MMLU["anatomy" if name < "b" else "astronomy"]
        parts = {"test": own[:1], "dev": own, "validation": own}
        return datasets.DatasetDict({n: datasets.Dataset.from_list(r) for n, r in parts.items()})

    monkeypatch.setattr(lm_eval_task.datasets, "load_dataset", fetched)
    (quiz,) = quizzes(named_tasks(["mmlu"]), documents=None)
    assert (quiz.whole, len(quiz.questions), quiz.shots) == (57, 57, 5)


@pytest.mark.parametrize("label", ["1", -1, 2, None, 0.5])
def test_rows_that_name_no_answer_are_refused(
    label: object, model_dir: str, tmp_path: Path
) -> None:
    row = {**task_rows.ROWS["piqa"][0], "label": label}
    (tmp_path / "piqa.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(GppruneError, match=r"piqa"):
        judged(model_dir, tmp_path, "piqa")


def test_a_model_without_finite_likelihoods_is_refused(
    model_dir: str, rows: Path, tmp_path: Path
) -> None:
    broken: Any = transformers.AutoModelForCausalLM.from_pretrained(model_dir)
    with torch.no_grad():
        broken.model.norm.weight.fill_(1e38)
    broken.save_pretrained(tmp_path / "broken")
    load_model(model_dir).tokenizer.save_pretrained(tmp_path / "broken")
    with pytest.raises(GppruneError, match=r"no finite likelihood"):
        judged(str(tmp_path / "broken"), rows, "piqa")


def test_one_document_has_no_error_and_plain_json(
    model_dir: str, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    judged(model_dir, rows, "piqa", documents=1, out=out)
    assert "NaN" not in out.read_text()
    assert json.loads(out.read_text())["models"][0]["tasks"]["piqa"]["acc"]["error"] is None


@pytest.mark.parametrize("task", ["piqa", "gsm8k"])
def test_documents_that_are_cut_are_counted(
    task: str, model_dir: str, rows: Path, tmp_path: Path
) -> None:
    """Of PIQA the longest text, of sums the longest question and what is to be written."""
    loaded = load_model(model_dir)
    whole = judged(model_dir, rows, task)
    assert whole.models[0].marks[0].cut == 0
    quiz = whole.quizzes[0]
    texts = ["".join(map(str, q.instances[0].arguments[:2])) for q in quiz.questions]
    if task == "gsm8k":
        texts = [q.instances[0].arguments[0] for q in quiz.questions]
    lengths = [len(loaded.tokenizer(text)["input_ids"]) for text in texts]
    short: Any = transformers.AutoModelForCausalLM.from_pretrained(model_dir)
    room = 256 if task == "gsm8k" else -1
    short.config.max_position_embeddings = max(lengths) - 1 + room
    short.save_pretrained(tmp_path / "short")
    loaded.tokenizer.save_pretrained(tmp_path / "short")
    found = judged(str(tmp_path / "short"), rows, task)
    wanted = sum(length == max(lengths) for length in lengths)
    assert found.models[0].marks[0].cut >= wanted > 0
    assert any("lose their beginning" in sentence for sentence in found.sentences)


def test_contenders_are_told_apart(tmp_path: Path) -> None:
    Recipe(metric="magnitude", pattern="2:4").write(tmp_path / "recipe.json")
    found = contenders_beside([str(tmp_path / "recipe.json"), "ria"], [0.6])
    assert [each.name for each in found] == [f"{tmp_path.name} 0.5", "ria 0.6"]
    with pytest.raises(UsageError, match=r"two models are called 'ria 0\.6'"):
        contenders_beside(["ria", "ria"], [0.6])
    for missing in ("no/such", "such.json"):
        with pytest.raises(UsageError, match=f"no checkpoint or recipe '{missing}'"):
            contenders_beside([missing], None)
    with pytest.raises(UsageError, match=r"nothing takes the sparsity 0\.5"):
        contenders_beside([str(tmp_path)], [0.5])
    (tmp_path / "dense").mkdir()
    with pytest.raises(UsageError, match="two models are called 'dense'"):
        contenders_beside([str(tmp_path / "dense")], None)


def test_the_command_prints_tables(
    model_dir: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    words = ["eval", "--model", model_dir, "--tasks", "piqa,rte", "--task-data", str(rows)]
    words += ["--beside", "magnitude", "--window-length", "32", "--out", str(out)]
    assert cli.run(words) == 0
    printed = capsys.readouterr()
    assert "magnitude" in printed.out
    assert "in brackets" in printed.out
    assert "piqa: 5, all documents" in printed.err
    found = json.loads(out.read_text())
    assert [model["name"] for model in found["models"]] == ["dense", "magnitude 0.5"]
    assert found["stated"]["versions"]["lm_eval"]
    assert not any(math.isnan(own["acc"]["error"]) for own in found["models"][0]["tasks"].values())


@pytest.mark.parametrize("flag", ["--loss=task:piqa", "--text=words.txt", "--split=validation"])
def test_flags_of_text_are_not_of_tasks(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["eval", "--tasks", "piqa", flag]) == 2
    assert f"{flag.partition('=')[0]} is not of --tasks" in " ".join(
        capsys.readouterr().err.split()
    )
