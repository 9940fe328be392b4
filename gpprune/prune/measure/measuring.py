"""Statistics of some layers while they are being measured, and what is refused of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from gpprune.errors import GppruneError, UsageError
from gpprune.primitives import STATISTICS, Sign, Statistic, axes_of
from gpprune.prune.measure.accumulator import Accumulator, Extent, MakeAccumulator
from gpprune.prune.measure.table import MEASURERS, Measurer
from gpprune.prune.model.experts.traffic import Traffic
from gpprune.prune.model.structure import LinearLayer


def measurers(names: Iterable[str]) -> list[Measurer]:
    """The measurers of statistics, each once.

    Raises:
        UsageError: there is no such statistic, or it has no measurer.
    """
    found = []
    for name in dict.fromkeys(names):
        STATISTICS.find(name)
        if name not in MEASURERS:
            raise UsageError(
                f"the statistic {name!r} has no measurer, so no model has it: add one to "
                f"gpprune.prune.MEASURERS, which has {', '.join(MEASURERS)}"
            )
        found.append(MEASURERS[name])
    return found


class Measuring:
    """Statistics of some layers while they are being measured.

    Of an expert that hardly any token reached they are the mean of the others', see `Traffic`.

    Args:
        layers: by name.
        names: of the statistics.

    Raises:
        UsageError: an unknown statistic, or one without a measurer.
    """

    def __init__(self, layers: Mapping[str, LinearLayer], names: Iterable[str]) -> None:
        self._layers = layers
        self._measurers = measurers(names)
        self._accumulators: dict[MakeAccumulator, Accumulator] = {}
        for measurer in self._measurers:
            if measurer.accumulator not in self._accumulators:
                self._accumulators[measurer.accumulator] = measurer.accumulator(layers)
        self._made: dict[tuple[MakeAccumulator, Hashable], dict[str, Tensor]] = {}
        self._traffic = Traffic(layers)
        self._lent: dict[str, dict[str, Tensor]] = {}  # of experts that stand for others

    @property
    def idle(self) -> bool:
        """Whether there is nothing to measure."""
        return not self._measurers

    @property
    def backward(self) -> bool:
        """Whether a backward pass is needed."""
        return any(accumulator.backward for accumulator in self._accumulators.values())

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Measure whatever flows through the layers inside this context."""
        with ExitStack() as stack:
            stack.enter_context(self._traffic.watching())
            for accumulator in self._accumulators.values():
                stack.enter_context(accumulator.watching(model))
            yield

    def check_reached(self, cut_off: bool = False) -> None:
        """See that every layer was reached, once the text has flowed through.

        Args:
            cut_off: whether layers may be cut off, of which then zeros are held.

        Raises:
            GppruneError: naming the first layer of which nothing could be gathered.
        """
        for make, accumulator in self._accumulators.items():
            if cut_off and getattr(accumulator, "zero_unreached", False):
                continue
            for name in self._layers:
                if not accumulator.reached(name) and not self._traffic.lenders(name):
                    raise GppruneError(_unreached(name, self._fed_by(make)))

    def _fed_by(self, make: MakeAccumulator) -> list[Measurer]:
        """The measurers that one accumulator feeds."""
        return [measurer for measurer in self._measurers if measurer.accumulator is make]

    def statistics(self, name: str, extent: Extent) -> dict[str, Tensor]:
        """What was measured of a layer over so much text; to be asked once for each layer.

        Raises:
            UsageError: a measurer gives it another shape than the statistic's type has.
            GppruneError: a statistic of it is not finite.
        """
        lenders = self._traffic.lenders(name)
        if not lenders:
            return self._lent[name] if name in self._lent else self._own(name, extent)
        for lender in lenders:
            if lender not in self._lent:
                self._lent[lender] = self._own(lender, extent)
        every = [self._lent[lender] for lender in lenders]
        return {
            statistic: torch.stack([one[statistic] for one in every]).mean(0)
            for statistic in every[0]
        }

    def _own(self, name: str, extent: Extent) -> dict[str, Tensor]:
        """What was measured of a layer itself."""
        return {
            statistic: value
            for make in self._accumulators
            for statistic, value in self._made_of(make, name, extent).items()
        }

    def _made_of(self, make: MakeAccumulator, name: str, extent: Extent) -> dict[str, Tensor]:
        """A layer's statistics of what one accumulator holds."""
        accumulator, fed = self._accumulators[make], self._fed_by(make)
        key = (make, accumulator.key(name))
        alike = [measurer for measurer in fed if not measurer.of_weight]
        own = [measurer for measurer in fed if measurer.of_weight]
        if key in self._made and not own:
            return self._made[key]
        held, layer = accumulator.held(name), self._layers[name]
        if key not in self._made:
            self._made[key] = {m.name: _measured(m, held, layer, extent) for m in alike}
        return self._made[key] | {m.name: _measured(m, held, layer, extent) for m in own}


def _measured(measurer: Measurer, held: Tensor, layer: LinearLayer, extent: Extent) -> Tensor:
    return _checked(STATISTICS[measurer.name], measurer.of(held, layer, extent), layer)


def _checked(statistic: Statistic, value: Tensor, layer: LinearLayer) -> Tensor:
    """A statistic of a layer in float32, as its entry of `STATISTICS` says it is.

    Raises:
        UsageError: it has another shape or sign than the entry says: the measurer is wrong.
        GppruneError: it holds NaN or infinity: the model or the text is.
    """
    value = value.to(layer.weight.device, torch.float32)
    if statistic.type is not None:
        sizes = {"out": layer.out_features, "in": layer.in_features}
        wanted = [size for axis, size in sizes.items() if axis in axes_of(statistic.type)]
        if list(value.shape) != wanted:
            raise UsageError(
                f"the measurer of {statistic.name!r} gives {layer.name!r} a tensor of shape "
                f"{list(value.shape)}: {statistic.type.__name__} of that layer have {wanted}"
            )
    least, most = torch.aminmax(value)
    if not (torch.isfinite(least) and torch.isfinite(most)):
        raise GppruneError(
            f"the statistic {statistic.name} of {layer.name!r} holds NaN or infinity, so nothing "
            "can be scored by it: the model is damaged, or its numbers overflow on this text; "
            "load it in float32, or calibrate on other text"
        )
    if statistic.sign is not Sign.ANY and least < 0:
        raise UsageError(
            f"the measurer of {statistic.name!r} gives {layer.name!r} a value of {least:g}, and "
            f"the statistic is declared {statistic.sign.name}: correct one of the two"
        )
    return value


def _unreached(name: str, fed: list[Measurer]) -> str:
    what = " and ".join(measurer.name for measurer in fed)
    return (
        f"no token reached {name!r}, so its {what} cannot be measured: it is an expert that the "
        "text leaves idle, its weight is used without calling it as a module (Mamba's dt_proj), or "
        f"all that it reads has been pruned away; calibrate on more text, or use formulas without "
        f"{what}"
    )
