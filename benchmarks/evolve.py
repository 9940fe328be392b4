"""How fast a search is in this checkout against another one, pair by pair.

    python -m benchmarks.evolve OTHER_CHECKOUT [--pairs 3] [--generations 1] [--model smollm2]

A pair is the same search by each of the two, one after the other, each in a process of its own;
the order changes from pair to pair. What a machine does beside falls on both alike that way, and
a ratio is of two runs that were neighbours. Before the first pair each checkout prunes once,
so that nobody builds in a pair what the next run finds in a cache.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.evolve_parts import PARTS, Timed, timed
from benchmarks.flags import add_model, parser_of, positive
from gpprune.errors import UsageError

ROOT = Path(__file__).parents[1]
# Flags of `gpprune evolve metric` that make a search smaller, given on as they are.
SIZES = ("population", "windows", "window-length", "calibration-samples")


def main(arguments: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(arguments)
    here, other = ROOT, _checkout(given.other)
    if given.warm_up:
        for checkout in (here, other):
            _warm_up(checkout, given.model, given.text)
    pairs = []
    for number in range(given.pairs):
        order = (here, other) if number % 2 == 0 else (other, here)
        found = {}
        for place, checkout in enumerate(order):  # a checkout may be held against itself
            ours = (place == 0) == (number % 2 == 0)
            found["this" if ours else "other"] = _run(checkout, given)
        pairs.append((found["this"], found["other"]))
        print(f"pair {number + 1} of {given.pairs} done", file=sys.stderr, flush=True)
    _show(pairs)


def _parser() -> ArgumentParser:
    parser = parser_of("evolve", __doc__)
    parser.add_argument("other", type=Path, metavar="OTHER_CHECKOUT")
    parser.add_argument("--pairs", type=positive, default=3)
    parser.add_argument("--generations", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    add_model(parser)
    parser.add_argument("--text", default="wikitext2", help="judged and calibrated on")
    for name in SIZES:
        parser.add_argument(f"--{name}", type=positive, help="as for `gpprune evolve metric`")
    parser.add_argument(
        "--no-warm-up", dest="warm_up", action="store_false", help="caches are filled already"
    )
    return parser


def _checkout(path: Path) -> Path:
    folder = path.expanduser().resolve()
    if not (folder / "gpprune" / "__main__.py").is_file():
        raise UsageError(f"{path} is no checkout: there is no gpprune/__main__.py in it")
    return folder


def _show(pairs: Sequence[tuple[Timed, Timed]]) -> None:
    """Print seconds and ratios."""
    for number, (ours, theirs) in enumerate(pairs, start=1):
        parts = (f"{part} {ours.seconds[part]:.1f} / {theirs.seconds[part]:.1f}" for part in PARTS)
        print(f"pair {number}, seconds of this / other: {', '.join(parts)}")
        print(f"pair {number}, candidates: {len(ours.judged)} / {len(theirs.judged)}")
    for part in PARTS:
        ratios = [ours.seconds[part] / theirs.seconds[part] for ours, theirs in pairs]
        each = " ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"{part:<9} ratio, this to other: {each}  median {statistics.median(ratios):.3f}")
    if any(ours.judged != theirs.judged for ours, theirs in pairs):
        print("the two did not judge the same candidates alike: the ratios are of different work")


def _run(checkout: Path, given: Namespace) -> Timed:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        chosen = {name: getattr(given, name.replace("-", "_")) for name in SIZES}
        sizes = {name: size for name, size in chosen.items() if size is not None}
        flags = {
            "out": run,
            "generations": given.generations,
            "rivals": "best",
            "seed": given.seed,
            "model": _settled(given.model),
            **_texts(given.text),
            **sizes,
        }
        return timed(_command("evolve", "metric", **flags), _environment(checkout), checkout, run)


def _warm_up(checkout: Path, model: str, text: str) -> None:
    """Fill the caches: unpack the model, build what scores weights.

    Raises:
        CalledProcessError: the checkout cannot prune the model.
    """
    small = {"windows": 1, "window-length": 32, "calibration-samples": 1}
    subprocess.run(
        _command("score", "metrics", "wanda", model=_settled(model), **_texts(text), **small),
        env=_environment(checkout),
        cwd=checkout,
        stdout=subprocess.DEVNULL,
        check=True,
    )


def _command(*words: str, **flags: object) -> list[str]:
    given = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "gpprune", *words, *given]


def _texts(text: str) -> dict[str, str]:
    settled = _settled(text)
    return {"text": settled, "calibration-text": settled}


def _settled(spec: str) -> str:
    """A name as it is, a path so that it means the same in every checkout."""
    return os.path.abspath(spec) if os.path.exists(spec) else spec


def _environment(checkout: Path) -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout)}


if __name__ == "__main__":
    main()
