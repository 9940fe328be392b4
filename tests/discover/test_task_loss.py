"""A loss of tasks: what it measures, what a search goes by, and what it may not see."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import task_rows
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpprune import cli
from gpprune.discover import MetricGoal, Texts, Workbench, carry_over, compare, discover, resume
from gpprune.errors import UsageError
from gpprune.evals import LOSSES, evaluate
from gpprune.evals.tasks import named_tasks, quizzes
from gpprune.evals.tasks.margin import CasesOfDocuments, Choice, Document, packed, unpacked
from gpprune.gp import PRESETS
from gpprune.prune import load_model

numbers = st.integers(0, 50_000)
choices = st.lists(numbers, min_size=2, max_size=6).flatmap(
    lambda tokens: st.builds(
        Choice, st.just(tokens), st.integers(1, len(tokens) - 1), st.integers(1, 99)
    )
)
documents = st.builds(
    Document, st.lists(choices, min_size=1, max_size=4), st.integers(0, 3), st.booleans()
)


@given(st.lists(st.lists(st.lists(documents, max_size=3), max_size=3), min_size=1, max_size=3))
def test_cases_say_what_they_were_made_of(cases: list[list[list[Document]]]) -> None:
    def plain(case: list[list[Document]]) -> Any:
        return [
            [
                (
                    d.right,
                    d.by_characters,
                    [(list(c.tokens), c.answer, c.characters) for c in d.choices],
                )
                for d in part
            ]
            for part in case
        ]

    rows = packed(cases)
    assert rows.dtype == torch.int64
    assert [plain(unpacked(row)) for row in rows] == [plain(case) for case in cases]


@pytest.mark.parametrize("name", ["task:", "task:pica", "task:piqa+", "tasks", "task:text"])
def test_a_loss_of_no_task_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"no task|no loss"):
        LOSSES.find(name)


def test_written_answers_have_no_margin() -> None:
    with pytest.raises(UsageError, match="answers of 'gsm8k' are written"):
        LOSSES.find("task:piqa+gsm8k")


def test_likelihoods_do_not_depend_on_their_company(tiny_model_dir: Path) -> None:
    """One by one in float64, against many at once, of other lengths, padded."""
    model: Any = load_model(str(tiny_model_dir)).model
    draw = torch.Generator().manual_seed(3)
    asked = []
    for length in (2, 3, 9, 30, 30, 7, 300):
        tokens = torch.randint(0, 200, (length,), generator=draw).tolist()
        asked.append(Choice(tokens, 1 + length // 3, 5))
    found = CasesOfDocuments(model).likelihoods(asked)
    exact = model.double().requires_grad_(False)
    for choice, value in zip(asked, found, strict=True):
        with torch.no_grad():
            logs = exact(torch.tensor([choice.tokens])).logits[0].log_softmax(-1)
        end = len(choice.tokens)
        wanted = sum(
            float(logs[at - 1, choice.tokens[at]]) for at in range(end - choice.answer, end)
        )
        assert value == pytest.approx(wanted, rel=1e-5)


class TestThroughLmEval:
    """What reads rows."""

    @pytest.fixture(autouse=True)
    def _needs(self) -> None:
        pytest.importorskip("lm_eval", reason="pip install 'gpprune[tasks]'")

    @pytest.fixture
    def rows(self, tmp_path: Path) -> Path:
        """Rows to judge on, and others to search on."""
        return task_rows.write_rows(tmp_path / "rows")

    @pytest.fixture
    def texts(self, text_file: Path, rows: Path) -> Texts:
        return Texts(str(text_file), str(text_file), 2, 32, 4, task_data=str(rows))

    @torch.no_grad()
    def wanted(self, model: Any, tokenizer: Any, before: str, solutions: list[str]) -> list[float]:
        """Log-likelihoods in float64, of a prompt written out here."""
        found = []
        for solution in solutions:
            whole = tokenizer(before + " " + solution, add_special_tokens=False)["input_ids"]
            start = len(tokenizer(before, add_special_tokens=False)["input_ids"])
            logs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            found.append(sum(float(logs[at - 1, whole[at]]) for at in range(start, len(whole))))
        return found

    def test_it_is_the_likelihood_of_the_right_answer(
        self, tiny_model_dir: Path, texts: Texts
    ) -> None:
        bench = Workbench(str(tiny_model_dir), texts, dtype="float32", loss="task:piqa+text")
        found = evaluate(bench.judged, bench.windows("test"), bench.loss)
        exact: Any = load_model(str(tiny_model_dir))
        model = exact.model.double()
        losses = []
        for row in task_rows.ROWS["piqa"][:4]:
            answers = [row["sol1"], row["sol2"]]
            before = f"Question: {row['goal']}\nAnswer:"
            logs = torch.tensor(self.wanted(model, exact.tokenizer, before, answers))
            sizes = torch.tensor([float(len(answer)) for answer in answers])
            tokens = [len(exact.tokenizer(" " + a)["input_ids"]) for a in answers]
            scores = logs / sizes * sizes.mean() / (sum(tokens) / 2)
            losses.append(1 - float(scores.softmax(0)[row["label"]]))
        plain = Workbench(str(tiny_model_dir), texts, dtype="float32")
        text = evaluate(plain.judged, plain.windows("test")).losses
        for case in range(2):  # documents are dealt out in turn
            tasks = (losses[case] + losses[case + 2]) / 2
            assert float(found.losses[case]) == pytest.approx(
                (tasks + float(text[case])) / 2, rel=1e-5
            )

    def test_a_search_goes_by_other_documents_than_it_is_judged_on(
        self, tiny_model_dir: Path, texts: Texts, tmp_path: Path
    ) -> None:
        goal = MetricGoal(
            texts=texts,
            model=str(tiny_model_dir),
            dtype="float32",
            sparsity=0.6,
            loss="task:piqa+winogrande",
        )
        settings = PRESETS["quick"].replaced(population=6, generations=2)
        found = discover(goal, settings=settings, out=tmp_path / "run", rivals="best", winners=1)
        report = json.loads((tmp_path / "run" / "report.json").read_text())
        searched, judged = report["documents"]["validation"], report["documents"]["test"]
        assert {task: len(own) for task, own in searched.items()} == {"piqa": 4, "winogrande": 2}
        assert all(not set(searched[task]) & set(judged[task]) for task in searched)
        assert report["formulas"][0]["validation_answer_error"] == found.findings[0].validation.mean
        again = resume(tmp_path / "run", generations=3, rivals="best", winners=1)
        assert again.result.generations == 3
        (Path(str(texts.task_data)) / "piqa.search.jsonl").write_text(
            "".join(
                json.dumps({**row, "goal": "So, " + row["goal"]}) + "\n"
                for row in task_rows.ROWS["piqa"]
            )
        )
        with pytest.raises(UsageError, match="another documents of the tasks"):
            resume(tmp_path / "run", generations=4)

    def test_documents_may_not_overlap(
        self, tiny_model_dir: Path, texts: Texts, rows: Path
    ) -> None:
        (rows / "piqa.search.jsonl").write_text((rows / "piqa.jsonl").read_text())
        bench = Workbench(str(tiny_model_dir), texts, dtype="float32", loss="task:piqa")
        bench.windows("validation")
        with pytest.raises(UsageError, match="4 documents of 'piqa' are searched on and judged on"):
            bench.windows("test")

    def test_what_is_too_long_is_cut_as_lm_eval_cuts_it(
        self, tiny_model_dir: Path, texts: Texts
    ) -> None:
        from lm_eval.models.huggingface import HFLM

        loaded: Any = load_model(str(tiny_model_dir))
        loaded.model.config.max_position_embeddings = 12
        bench = Workbench(loaded, texts, dtype="float32", loss="task:piqa")
        cases = bench.windows("test")
        documents = [d for case in cases for part in unpacked(case) for d in part]
        assert any(len(choice.tokens) == 13 for d in documents for choice in d.choices)
        asking = HFLM(
            pretrained=loaded.model, tokenizer=loaded.tokenizer, add_bos_token=False, batch_size=1
        )
        (quiz,) = quizzes(named_tasks(["piqa"]), data=texts.task_data)
        questions = [q for at in range(2) for q in quiz.questions[at:4:2]]  # as they are dealt
        requests = [one for q in questions for one in q.instances]
        wanted = [found for found, _ in asking.loglikelihood(requests, disable_tqdm=True)]
        own = CasesOfDocuments(bench.judged).likelihoods([c for d in documents for c in d.choices])
        assert own == pytest.approx(wanted, rel=1e-4)

    def test_what_cannot_be_gone_by_is_said(self, tiny_model_dir: Path, texts: Texts) -> None:
        def windows(split: str, loss: str, texts: Texts) -> None:
            Workbench(str(tiny_model_dir), texts, loss=loss).windows(split)

        with pytest.raises(UsageError, match=r"no rows of 'boolq'.*boolq.search.jsonl"):
            windows("validation", "task:boolq", texts)
        with pytest.raises(UsageError, match="'winogrande' has 3 documents for 4 cases"):
            windows("validation", "task:winogrande", replace(texts, windows=4))
        with pytest.raises(UsageError, match="no split 'calibration'"):
            windows("calibration", "task:piqa", texts)

    def test_the_hub_gives_its_training_part(
        self, tiny_model_dir: Path, texts: Texts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The hub stands here as a few rows of two parts."""
        import datasets
        from lm_eval.api import task as lm_eval_task

        def fetched(path: str, kind: str | None = None, **_: object) -> datasets.DatasetDict:
            own = task_rows.ROWS["piqa"]
            parts = {"train": [{**row, "goal": "Now: " + row["goal"]} for row in own]}
            parts |= {"validation": own, "test": own}
            return datasets.DatasetDict(
                {n: datasets.Dataset.from_list(r) for n, r in parts.items()}
            )

        monkeypatch.setattr(lm_eval_task.datasets, "load_dataset", fetched)
        hub = replace(texts, task_data=None)
        bench = Workbench(str(tiny_model_dir), hub, dtype="float32", loss="task:piqa")
        local = Workbench(str(tiny_model_dir), texts, dtype="float32", loss="task:piqa")
        for split in ("validation", "test"):
            assert torch.equal(bench.windows(split), local.windows(split))

    def test_metrics_are_compared_and_carried_over_by_tasks(
        self, tiny_model_dir: Path, tiny_gpt2_dir: Path, texts: Texts
    ) -> None:
        how: dict[str, Any] = {"dtype": "float32", "sparsity": [0.5]}
        found = compare(["wanda"], model=str(tiny_model_dir), texts=texts, loss="task:piqa", **how)
        assert found.dense.evaluation.loss.name == "task:piqa"
        assert "task:piqa test" in found.of_metrics()[0]
        places = carry_over(
            ["mul(abs(W), Y)"],
            models=[str(tiny_model_dir), str(tiny_gpt2_dir)],
            texts=[texts.text],
            tasks=["piqa"],
            against=["wanda"],
            on=texts,
            **how,
        )
        assert [s.text for s in places.settings] == [texts.text, "task:piqa"] * 2
        wanda = places.lines[1].cells[1]
        assert wanda is not None
        assert wanda.evaluation.mean == found.row("wanda", 0.5).evaluation.mean

    def test_the_command_searches_by_tasks(
        self, tiny_model_dir: Path, text_file: Path, rows: Path, tmp_path: Path, capsys: Any
    ) -> None:
        given = ["evolve", "metric", "--model", str(tiny_model_dir), "--text", str(text_file)]
        given += ["--calibration-text", str(text_file), "--windows", "2", "--window-length", "32"]
        given += ["--loss", "task:piqa+text", "--task-data", str(rows), "--population", "6"]
        given += [
            "--generations",
            "1",
            "--rivals",
            "best",
            "--out",
            str(tmp_path / "run"),
            "--json",
        ]
        assert cli.run(given) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["loss"] == "task:piqa+text"
        assert len(document["documents"]["validation"]["piqa"]) == 4  # two in each of two cases
        assert cli.run(["simplify", str(tmp_path / "run")]) == 0
        assert "answer_error" in capsys.readouterr().out
        evaluated = ["eval", "--model", str(tiny_model_dir), "--text", str(text_file), "--windows"]
        evaluated += ["2", "--window-length", "32", "--loss", "task:piqa", "--task-data", str(rows)]
        assert cli.run([*evaluated, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["answer_error"] > 0
