"""The examples of docs/pruning.md run, and each prunes a model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "pruning.md"


def test_each_example_prunes_a_model(tiny_model_dir: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    prune = (
        f"model = gpprune.load_model({str(tiny_model_dir)!r}).model\n"
        "print(gpprune.prune_model(model, recipe, torch.arange(40).view(2, 20)).sparsity)\n"
    )
    code = "import gpprune, torch\n" + "".join(example + prune for example in examples)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pattern, statistic, update = map(float, done.stdout.split())
    assert 0.19 < pattern <= 0.21 and statistic == update == 0.5
