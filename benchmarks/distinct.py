"""How many evaluations a search is spared: random trees, told apart at four levels.

    python -m benchmarks.distinct [--count 10000] [--group row] [--layer NAME] [--seed 1]
        [--model smollm2] [--length 512]

Of each tree the text, the key (of the canonical form) and the key's fingerprint (the order of a
fixed probe; where it has none, the key) are held against the true mask: half of each row, or of
the layer, of a layer of a model, by scores of the tree as it stands in float64.

Of the trees of one key or one fingerprint a search judges the first, in its canonical form. A
merge is false where the mask of that form is not one of the tree's own: where it differs from the
tree's in a weight that the tree's scores put off its group's threshold by more than rounding.
Those on the threshold are equal to the tree, so that their order is not the formula's. Trees that
have no true mask, because what cancels in them leaves only rounding, are counted apart.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.flags import add_length, add_model, parser_of, positive
from benchmarks.shown import progress
from benchmarks.subject import workbench
from gpprune.compile import behaviour, kernel
from gpprune.compile.behaviour import steady_scores
from gpprune.errors import UsageError
from gpprune.gp.variation import Tree, half_and_half, reproducible
from gpprune.primitives import METRIC, Formula, parse
from gpprune.prune import prune_mask

LAYER = "model.layers.10.self_attn.q_proj"
ROUNDING = 1e-9  # relative, of float64 arithmetic in two orders


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("distinct", __doc__)
    parser.add_argument("--count", type=positive, default=10_000)
    parser.add_argument("--group", choices=["row", "layer"], default="row")
    parser.add_argument("--layer", default=LAYER)
    parser.add_argument("--seed", type=int, default=1)
    add_model(parser)
    add_length(parser)
    given = parser.parse_args(arguments)
    truth = Truth(given.model, given.length, given.layer, given.group)
    trees = list(random_trees(given.count, given.seed))
    told = []
    with progress() as report:
        for at, tree in enumerate(trees):
            told.append(_told(tree, truth))
            report("masks", at + 1, len(trees))
    found = [one for one in told if one is not None]
    print(f"{given.count} random trees of depth 3 to 5, masks of half of each {given.group} of")
    print(f"{given.layer}, {list(truth.weight.shape)}; {len(told) - len(found)} trees whose order")
    print("rounding decides are left out")
    if found:
        _show(found, truth)


def _show(found: list[Told], truth: Truth) -> None:
    for level in ("text", "key", "fingerprint", "mask"):
        names = {getattr(one, level) for one in found}
        saved = 1 - len(names) / len(found)
        print(f"distinct by {level:12}{len(names):>7}   evaluations saved {saved:6.1%}")
    for level in ("key", "fingerprint"):
        differ, false = _merges(found, level, truth)
        print(
            f"by {level}: of {differ} trees the judged form's mask is not the same, "
            f"{len(false)} of them false"
        )
        for one, other in false[:10]:
            print(f"    {one}\n    {other}")
    for level in ("key", "fingerprint"):
        times = sorted(getattr(one, f"{level}_seconds") * 1e3 for one in found)
        print(
            f"milliseconds to a {level}: median {statistics.median(times):.2f}, "
            f"99 % {times[len(times) * 99 // 100]:.2f}, most {times[-1]:.2f}"
        )


@dataclass(frozen=True)
class Told:
    """What tells a tree from others, and how long that took."""

    text: str
    form: str
    key: str
    fingerprint: str
    mask: str
    key_seconds: float
    fingerprint_seconds: float


class Truth:
    """A real layer, and the masks of formulas on it."""

    def __init__(self, model: str, length: int, name: str, group: str) -> None:
        """Load the model and measure its statistics.

        Args:
            model: what `gpprune.load_model` takes.
            length: tokens a calibration sequence.
            name: of the layer.
            group: "row" or "layer".

        Raises:
            UsageError: the model has no such layer.
        """
        bench = workbench(model, length)
        if name not in bench.layers:
            raise UsageError(
                f"{model} has no layer {name!r} in its blocks: name one, such as "
                f"{next(iter(bench.layers))!r}"
            )
        self.group = group
        self.weight = bench.layers[name].weight.detach()
        self.terminals = {**bench.statistics()[name], "W": self.weight}

    def scores(self, formula: Formula) -> Tensor | None:
        """float64 ``[out, in]``; None where rounding decides them."""
        return steady_scores(formula, self.terminals)

    def mask(self, scores: Tensor) -> Tensor:
        """Half of each group."""
        return prune_mask(scores, 0.5, self.group)

    def allows(self, tree: Formula, mask: Tensor) -> bool:
        """Whether a mask is a tree's own but for the order of scores that are equal to the tree."""
        scores = kernel(tree, "reference")(**self.terminals)
        own = self.mask(scores)
        return bool(self._near(scores, own)[own != mask].all())

    def _near(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Which scores are their group's threshold but for rounding."""
        flat = scores if self.group == "row" else scores.reshape(1, -1)
        pruned = flat.masked_fill(~mask.view(flat.shape), -torch.inf)
        threshold = pruned.amax(dim=1, keepdim=True)
        near = (flat - threshold).abs() <= ROUNDING * threshold.abs()
        return near.view(scores.shape)


def random_trees(count: int, seed: int) -> Iterator[Formula]:
    """Trees as a search's first generation draws them, the same for a seed."""
    for number in range(count):
        with reproducible(seed, number):
            yield Formula(Tree(half_and_half(METRIC, 3, 5)), METRIC)


def _told(tree: Formula, truth: Truth) -> Told | None:
    start = time.perf_counter()
    form = tree.canonical(truth.group)
    key = form.digest
    keyed = time.perf_counter()
    fingerprint = behaviour(form, truth.group) or key
    done = time.perf_counter()
    scores = truth.scores(tree)
    if scores is None:
        return None
    digest = _digest(truth.mask(scores))
    return Told(tree.text, form.text, key, fingerprint, digest, keyed - start, done - keyed)


def _merges(found: list[Told], level: str, truth: Truth) -> tuple[int, list[tuple[str, str]]]:
    """How many trees have another mask than the judged form, and the false of them, with it."""
    groups: dict[str, list[Told]] = defaultdict(list)
    for one in found:
        groups[getattr(one, level)].append(one)
    differ = 0
    false = []
    for trees in groups.values():
        form = parse(trees[0].form)
        mask = truth.mask(kernel(form, "reference")(**truth.terminals))
        others = [tree for tree in trees if tree.mask != _digest(mask)]
        differ += len(others)
        false += [(form.text, t.text) for t in others if not truth.allows(parse(t.text), mask)]
    return differ, false


def _digest(mask: Tensor) -> str:
    return hashlib.sha256(mask.numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    main()
