"""The examples of docs/pruning.md run, one after another, and prune a model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "pruning.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=["pattern", "statistic", "update"])
def test_an_example_prunes_a_model(example: str, tiny_model_dir: Path) -> None:
    code = "\n".join(
        [
            "import gpprune, torch",
            example,
            f"model = gpprune.load_model({str(tiny_model_dir)!r}).model",
            "report = gpprune.prune_model(model, recipe, torch.arange(40).view(2, 20))",
            "print(report.sparsity)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0.19 < float(done.stdout) <= 0.5
