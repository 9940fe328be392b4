"""The model that a benchmark measures on, with its text and statistics."""

from __future__ import annotations

from itertools import islice

from gpprune.discover import MetricGoal, Texts, Workbench
from gpprune.prune import LinearLayer, load_model

SAMPLES = 2  # calibration sequences: what a statistic is costs a kernel no time


def workbench(model: str, length: int, windows: int = 1) -> Workbench:
    """A model with the packaged text, and the statistics that a search of metrics reads.

    Args:
        model: what `gpprune.load_model` takes.
        length: tokens a window and a calibration sequence.
        windows: how many windows are judged.
    """
    texts = Texts(windows=windows, window_length=length, calibration_samples=SAMPLES)
    loaded = load_model(model, device="cpu")  # it is the CPU's backends that are measured
    return Workbench(loaded, texts, names=MetricGoal().statistics)


def first_layers(layers: dict[str, LinearLayer], count: int | None) -> dict[str, LinearLayer]:
    """The first layers of a model by name; None for all."""
    return dict(islice(layers.items(), count))
