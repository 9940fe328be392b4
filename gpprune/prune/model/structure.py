"""Decoder blocks and their linear layers, found by structure and not by a model's name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from gpprune.errors import GppruneError
from gpprune.prune.model.experts.stacks import Expert, experts_in, open_experts, routers
from gpprune.prune.model.streamed.pages import Pages, pages_of


@cache
def _transposed_class() -> type[nn.Module]:
    """GPT-2's ``Conv1D``: a linear layer whose weight lies ``[in, out]``."""
    # Imported late: transformers takes a second to load, and most of gpprune does not need it.
    from transformers.pytorch_utils import Conv1D

    return Conv1D  # type: ignore[no-any-return, unused-ignore]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Expert | _transposed_class())


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """One linear layer of a decoder block, read the same way whatever its storage.

    Attributes:
        name: the module's name in the model, as in ``model.get_submodule(name)``.
        block: the index of the decoder block it belongs to.
        module: the ``nn.Linear``, the ``Conv1D`` or the `Expert`.
        experts: the name of the list of experts that it belongs to; empty: it is of none.
        pages: of a streamed model, whose weights come when they are asked for.
    """

    name: str
    block: int
    module: nn.Module
    experts: str = ""
    pages: Pages | None = None

    @property
    def parameter(self) -> nn.Parameter:
        """The stored parameter: ``[out, in]``, or ``[in, out]`` of a ``Conv1D``.

        Of an expert the whole stack, which it shares with the others.
        """
        if self.pages is not None:
            self.pages.enter(self.block)
        return self.slot

    @property
    def slot(self) -> nn.Parameter:
        """The parameter, of a streamed model perhaps without its weights."""
        parameter = self.module.parameter if isinstance(self.module, Expert) else self.module.weight
        if not isinstance(parameter, nn.Parameter):
            raise GppruneError(
                f"the layer {self.name!r} keeps its weight in a form gpprune cannot prune"
            )
        return parameter

    @property
    def stacked(self) -> bool:
        """Whether it is an expert's, whose weight is a part of a parameter."""
        return isinstance(self.module, Expert)

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored ``[in, out]``."""
        if isinstance(self.module, Expert):
            return self.module.transposed
        return isinstance(self.module, _transposed_class())

    @property
    def plain(self) -> bool:
        """Whether calling the module multiplies by the weight and does no more, as a router may."""
        forward = type(self.module).forward
        return forward in (nn.Linear.forward, Expert.forward, _transposed_class().forward)

    @property
    def role(self) -> str:
        """Its name inside its block, as ``self_attn.q_proj``: what follows the block's number.

        All experts have the same, as ``mlp.experts.*.down_proj``.
        """
        name = self.name
        if self.experts:
            name = f"{self.experts}.*.{name.removeprefix(self.experts + '.').partition('.')[2]}"
        return name.partition(f".{self.block}.")[2] or name

    @property
    def parameter_name(self) -> str:
        """The stored parameter's name in the model, as in ``model.get_parameter(name)``."""
        if isinstance(self.module, Expert):
            return f"{self.experts}.{self.module.stack}"
        return f"{self.name}.weight"

    @property
    def input_dim(self) -> int:
        """Along which dimension of the stored parameter the input features lie."""
        return (0 if self.transposed else 1) + (1 if self.stacked else 0)

    def part(self, stored: Tensor) -> Tensor:
        """What is this layer's of a tensor laid out like the stored parameter, as a view."""
        return stored[self.module.place] if isinstance(self.module, Expert) else stored

    def oriented(self, part: Tensor) -> Tensor:
        """A tensor laid out like the layer's part of what is stored, as a view ``[out, in]``."""
        return part.t() if self.transposed else part

    @property
    def stored(self) -> Tensor:
        """The weight as it is stored, detached: ``[out, in]``, or ``[in, out]``."""
        return self.part(self.parameter.detach())

    @property
    def weight(self) -> Tensor:
        """The weight as a detached view of shape ``[out, in]``: writing to it writes the model."""
        return self.oriented(self.stored)

    def write(self, weight: Tensor) -> None:
        """Copy ``weight``, ``[out, in]``, into the model in the model's own dtype."""
        self.weight.copy_(weight)

    @property
    def shape(self) -> torch.Size:
        """The weight's shape, ``[out, in]``."""
        return self.oriented(self.part(self.slot.detach())).shape

    @property
    def size(self) -> int:
        """How many weights the layer has."""
        return self.shape.numel()

    @property
    def in_features(self) -> int:
        """How many input features the layer reads."""
        return self.shape[1]

    @property
    def out_features(self) -> int:
        """How many output neurons the layer has."""
        return self.shape[0]


def _has_linear(module: nn.Module) -> bool:
    return any(_is_linear(part) for part in module.modules())


def _is_block_list(module: nn.Module) -> bool:
    """Whether a module is a list of modules that each have linear layers."""
    return isinstance(module, nn.ModuleList) and len(module) > 0 and all(map(_has_linear, module))


def _reads_text(module: nn.Module) -> bool:
    """Whether a part of a model may read text; a tower for images or sound says that it does not.

    transformers' models declare what they read as ``"audio"`` or ``("image", "text")``.
    """
    declared = getattr(module, "input_modalities", "text")
    return "text" in ((declared,) if isinstance(declared, str) else declared)


def _outer_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    """The lists of blocks that lie in no other such list: a block's experts are not blocks."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and _is_block_list(child):
            yield child
        elif _reads_text(child):
            yield from _outer_lists(child)


def _decoder(model: nn.Module) -> nn.Module:
    """What the model itself calls its decoder, else the model."""
    find = getattr(model, "get_decoder", None)
    found = find() if callable(find) else None
    return found if isinstance(found, nn.Module) else model


def block_lists(model: nn.Module) -> list[nn.ModuleList]:
    """The lists of blocks of a language model, in its order; most models have one.

    They are looked for in ``model.get_decoder()``, where the model has it and it holds any, and
    never in towers for images or sound. A list inside another list (a block's experts) does not
    count.
    """
    # ModernBERT's decoder is a linear layer: it calls its head so.
    return list(_outer_lists(_decoder(model))) or list(_outer_lists(model))


def blocks(model: nn.Module) -> nn.ModuleList:
    """The model's decoder blocks: the longest of its :func:`block_lists`.

    Raises:
        GppruneError: the model has no such list, or its blocks are of several classes.
    """
    lists = block_lists(model)
    if not lists:
        raise GppruneError(
            f"{type(model).__name__} has no decoder blocks with linear layers, so there is "
            "nothing to prune: give a decoder language model"
        )
    longest = max(lists, key=len)
    classes = sorted({type(item).__name__ for item in longest})
    if len({type(item) for item in longest}) > 1:
        name = next(name for name, module in model.named_modules() if module is longest)
        raise GppruneError(
            f"the decoder blocks {name!r} of {type(model).__name__} are of several classes "
            f"({', '.join(classes)}), which gpprune cannot prune: give a model whose blocks are "
            "of one class"
        )
    return longest


def linear_layers(model: nn.Module) -> dict[str, LinearLayer]:
    """The linear layers inside the decoder blocks, by name, in the model's order.

    Each expert's matrices are layers, also where they are stored as one parameter, see
    `open_experts`. Embeddings and the output head lie outside the blocks and are left alone, and
    so are the routers of experts, see `routers`.

    Raises:
        GppruneError: the model has no decoder blocks with linear layers.
    """
    open_experts(model)
    names = {id(module): name for name, module in model.named_modules()}
    chosen = blocks(model)
    aside = {id(module) for module in routers(chosen)}
    experts = {
        id(part): names[id(module)]
        for block in chosen
        for module in block.modules()
        if experts_in(module)
        for part in module.modules()
    }
    pages = pages_of(model)
    return {
        names[id(module)]: LinearLayer(
            names[id(module)], index, module, experts.get(id(module), ""), pages
        )
        for index, block in enumerate(chosen)
        for module in block.modules()
        if _is_linear(module) and id(module) not in aside
    }


def check_weights(layers: dict[str, LinearLayer]) -> None:
    """See that every weight is a matrix of finite real numbers.

    Of a streamed model a block is read at a time.

    Raises:
        GppruneError: naming the first layer that is quantised or holds NaN or infinity.
    """
    pages = {layer.pages for layer in layers.values() if layer.pages is not None}
    if any(each.sound for each in pages):
        return
    for layer in layers.values():
        weight = layer.stored
        if weight.ndim != 2 or not weight.is_floating_point():
            raise GppruneError(
                f"the weight of {layer.name!r} is a {weight.dtype} tensor of shape "
                f"{list(weight.shape)}: give an unquantised checkpoint"
            )
        # The extremes of a matrix are finite exactly when all of it is; NaN passes through both.
        if not all(torch.isfinite(extreme) for extreme in torch.aminmax(weight)):
            raise GppruneError(
                f"the weight of {layer.name!r} holds NaN or infinity: the checkpoint is damaged"
            )
    for each in pages:
        each.sound = True
