"""Statistics: what calibration measures of each linear layer, one entry each.

The parser, DEAP's set, the canonical form, sympy's symbols and the fixed probe are derived from
the entries; `gpprune.prune` holds a measurer for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import sympy
import torch
from torch import Tensor

from gpprune.errors import UsageError
from gpprune.primitives.types import Elements, Inputs, Outputs, Sign, ValueType, axes_of
from gpprune.primitives.vocabulary import Vocabulary
from gpprune.primitives.weights.probe import ProbeLayer, small_layer
from gpprune.primitives.weights.reach import UNKNOWN, Reach, between
from gpprune.primitives.weights.terminals import symbol

Probe = Callable[[ProbeLayer], Tensor]


@dataclass(frozen=True)
class Statistic:
    """One thing that calibration measures of each linear layer.

    Attributes:
        name: its word in formula text.
        type: `Inputs`, `Outputs` or `Elements`; None for what no formula reads and weight updates
            do, such as an `[in, in]` Gram matrix.
        about: what it is, for `gpprune primitives`.
        sign: what is known of the sign of every value; a value that is not positive may be 0.
        reach: how large and small its values get on any model that can be used.
        probe: its values on a layer of the fixed probe, float64, shaped as `type` says.
        searched: whether a search draws it, which then pays for measuring it.
    """

    name: str
    type: ValueType | None
    about: str
    sign: Sign = Sign.ANY
    reach: Reach = UNKNOWN
    probe: Probe | None = None
    searched: bool = True

    def __post_init__(self) -> None:
        if self.type is None:
            if self.probe is not None:
                raise UsageError(
                    f"the statistic {self.name!r} has a probe, which only a formula reads: give it "
                    "a type, or no probe"
                )
            return
        if self.type not in (Inputs, Outputs, Elements):
            raise UsageError(
                f"the statistic {self.name!r} has the type {self.type!r}: choose Inputs, Outputs, "
                "Elements, or None for what only weight updates read"
            )
        self._check(self.type, self.on_probe(small_layer()))

    def on_probe(self, layer: ProbeLayer) -> Tensor:
        """Its values on a layer of the fixed probe.

        Raises:
            UsageError: it has no probe.
        """
        if self.probe is None:
            raise UsageError(
                f"the statistic {self.name!r} needs a probe, by which formulas that read it are "
                "told apart: give one, or the type None"
            )
        return self.probe(layer.draws_for(self.name))

    def _check(self, type_: ValueType, found: Tensor) -> None:
        rows, columns = small_layer().weight.shape
        sizes = {"out": rows, "in": columns}
        wanted = tuple(size for axis, size in sizes.items() if axis in axes_of(type_))
        if tuple(found.shape) != wanted:
            raise UsageError(
                f"the probe of the statistic {self.name!r} gives the shape {tuple(found.shape)} "
                f"for a layer of {rows} outputs and {columns} inputs: its type needs {wanted}"
            )
        if found.dtype != torch.float64 or not bool(found.isfinite().all()):
            raise UsageError(
                f"the probe of the statistic {self.name!r} gives {found.dtype} values, or some "
                "that are not finite: give finite float64"
            )
        if not torch.equal(found, self.on_probe(small_layer())):
            raise UsageError(
                f"the probe of the statistic {self.name!r} gives other values when it is asked "
                "again: draw them with the layer's normal and lognormal"
            )
        least = float(found.min())
        if self.sign is not Sign.ANY and (least < 0 or (least == 0 and self.sign is Sign.POSITIVE)):
            raise UsageError(
                f"the probe of the statistic {self.name!r} gives {least:g}, which is not "
                f"{self.sign.name.lower()}"
            )

    @property
    def symbol(self) -> sympy.Symbol:
        """What sympy calls it."""
        return symbol(self.name, self.sign)


# The reaches are wider than any model that can be used has them.
STATISTICS: Vocabulary[Statistic] = Vocabulary(
    "statistic",
    Statistic(
        "X",
        Inputs,
        "L2 norm of each input feature over calibration tokens / sqrt(samples)",
        Sign.NONNEGATIVE,
        between(1e-6, 1e5),
        lambda layer: layer.inputs,
    ),
    Statistic(
        "Y",
        Outputs,
        "L2 norm of each output neuron over calibration tokens / sqrt(samples)",
        Sign.NONNEGATIVE,
        between(1e-6, 1e6),
        lambda layer: layer.outputs,
    ),
    Statistic(
        "G",
        Elements,
        "L2 norm over calibration samples of each weight's loss gradient",
        Sign.NONNEGATIVE,
        between(1e-15, 64),
        lambda layer: layer.gradients,
    ),
    Statistic(
        "D",
        Inputs,
        "diagonal of the Cholesky factor of the inverse damped Hessian, as SparseGPT's",
        Sign.POSITIVE,
        between(1e-6, 1e4),
        lambda layer: layer.factor,
        searched=False,
    ),
    # Curvature. a is a layer's input at a token, g the gradient of the sequence's summed next-token
    # loss at the layer's output at that token, E the mean over all calibration tokens.
    Statistic(
        "A",
        Inputs,
        "mean square of each input feature, E[a^2]: X squared times samples / tokens",
        Sign.NONNEGATIVE,
        between(1e-18, 1e10),
        lambda layer: layer.inputs.square(),
        searched=False,
    ),
    Statistic(
        "Ai",
        Inputs,
        "diagonal of the damped inverse of the inputs' Gram matrix E[a a']",
        Sign.POSITIVE,
        between(1e-12, 1e20),
        lambda layer: (
            layer.lognormal(0.5 + layer.uneven / 2, layer.in_features) / layer.inputs.square()
        ),
    ),
    Statistic(
        "Gk",
        Outputs,
        "mean square of the loss gradient at each output neuron over tokens, E[g^2]",
        Sign.NONNEGATIVE,
        between(1e-30, 1e10),
        lambda layer: 1e-5 * layer.lognormal(1.0 + layer.uneven, layer.out_features),
    ),
    Statistic(
        "Gi",
        Outputs,
        "diagonal of the damped inverse of the gradients' Gram matrix E[g g']",
        Sign.POSITIVE,
        between(1e-12, 1e32),
        lambda layer: 1e5 * layer.lognormal(1.0 + layer.uneven, layer.out_features),
    ),
    Statistic(
        "Ay",
        Outputs,
        "mean square of each output neuron without its bias, w' E[a a'] w: as Y squared",
        Sign.NONNEGATIVE,
        between(1e-18, 1e12),
        lambda layer: layer.outputs.square(),
        searched=False,
    ),
    Statistic(
        "Gx",
        Inputs,
        "mean square of the loss gradient handed back to each input feature, w' E[g g'] w",
        Sign.NONNEGATIVE,
        between(1e-34, 1e14),
        lambda layer: (
            1e-5
            * layer.lognormal(0.5 + layer.uneven, layer.in_features)
            * layer.weight.square().sum(0)
        ),
    ),
    Statistic(
        "F",
        Elements,
        "token-level Fisher diagonal of each weight, E[g^2 a^2]",
        Sign.NONNEGATIVE,
        between(1e-36, 1e20),
        lambda layer: (
            layer.gradients.square()
            * layer.lognormal(1.0, layer.out_features, 1)
            * layer.lognormal(1.0, 1, layer.in_features)
        ),
    ),
    # What structured pruning's papers score their units by.
    Statistic(
        "Am",
        Inputs,
        "mean of each input feature, E[a]",
        Sign.ANY,
        between(1e-18, 1e5)._replace(nonnegative=False),
        lambda layer: layer.inputs * layer.normal(layer.in_features) / 4,
        searched=False,
    ),
    Statistic(
        "Gm",
        Elements,
        "mean over calibration samples of each weight's loss gradient, signed",
        Sign.ANY,
        between(1e-24, 64)._replace(nonnegative=False),
        lambda layer: layer.gradients * layer.normal(layer.out_features, layer.in_features) / 4,
        searched=False,
    ),
    Statistic("aaT", None, "Gram matrix of the inputs, E[a a'], [in, in], for weight updates"),
    Statistic("ggT", None, "Gram matrix of the gradients, E[g g'], [out, out], for weight updates"),
)
