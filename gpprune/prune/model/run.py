"""Run a model on text: without its head, quietly, and with the loss of its predictions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gpprune.errors import GppruneError, UsageError
from gpprune.prune.model.streamed.pages import pages_of

_QUIET = ("use_cache", "output_router_logits")  # what is asked for beside the next tokens


@contextmanager
def quiet_model(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, and let it compute nothing beside; back afterwards.

    Neither a key-value cache nor the loss by which mixtures balance their experts, which fails
    where blocks stand still.
    """
    training = {module: module.training for module in model.modules()}
    asked = _asked(model)
    try:
        model.eval()
        for config, name, _ in asked:
            setattr(config, name, False)
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for config, name, value in asked:
            setattr(config, name, value)


def _asked(model: nn.Module) -> list[tuple[Any, str, bool]]:
    """The configurations that ask for more, what for, and what they say.

    A language model beside other towers goes by one of its own.
    """
    configs = {id(c): c for module in model.modules() if (c := getattr(module, "config", None))}
    found = ((c, name, getattr(c, name, None)) for c in configs.values() for name in _QUIET)
    return [(config, name, value) for config, name, value in found if value is not None]


def body(model: nn.Module) -> nn.Module:
    """The model without its output head, where it can be told apart."""
    inner = getattr(model, "base_model", model)
    return inner if isinstance(inner, nn.Module) else model


@contextmanager
def listening(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Let hooks listen inside this context.

    Args:
        hooks: as they are registered: where one cannot be, those before it are removed.
    """
    with ExitStack() as stack:
        for hook in hooks:
            stack.callback(hook.remove)
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter take a gradient inside this context."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, needed in before:
            parameter.requires_grad_(needed)


NO_IMAGE = -100  # as cross-entropy calls what it leaves out


def next_token_loss(logits: Tensor, tokens: Tensor, ignored: int = NO_IMAGE) -> Tensor:
    """Mean next-token loss in nats of ``logits`` ``[1, length, vocabulary]`` on ``[1, length]``.

    Args:
        logits: of the tokens.
        tokens: that are to be foretold.
        ignored: a token that need not be, see `image_token`.
    """
    return nn.functional.cross_entropy(logits[0, :-1].float(), tokens[0, 1:], ignore_index=ignored)


def image_token(model: nn.Module) -> int:
    """The token that stands where an image is; `NO_IMAGE`: there is none."""
    config = getattr(model, "config", None)
    names = ("image_token_id", "image_token_index")
    found = (getattr(config, name, None) for name in names)
    return next((token for token in found if isinstance(token, int)), NO_IMAGE)


def show_images(model: nn.Module, tokens: Tensor, shown: Sequence[Mapping[str, Tensor]]) -> None:
    """Let a model see images whenever it is run on certain sequences.

    What calibrates and judges goes by tokens alone. With this, images stand beside them wherever
    the model is run on just these, or a copy of it that was made after the first call.

    Args:
        model: that reads images.
        tokens: ``[sequences, length]``, int64, with the model's tokens where images are.
        shown: a sequence each, what the model takes beside tokens, such as ``pixel_values``, with
            all images of the sequence along the first dimension.

    Raises:
        UsageError: sequences of the same tokens come with other images.
    """
    inner = body(model)
    hooks = [hook for hook in inner._forward_pre_hooks.values() if isinstance(hook, _Shown)]
    if not hooks:
        hooks = [_Shown()]
        inner.register_forward_pre_hook(hooks[0], with_kwargs=True)
    for sequence, seen in zip(tokens.tolist(), shown, strict=True):
        known = hooks[0].shown.setdefault(tuple(sequence), seen)
        if known.keys() != seen.keys() or not all(torch.equal(known[n], seen[n]) for n in seen):
            raise UsageError(
                "two sequences have the same words and other images, which could not be told "
                "apart: give rows whose texts differ, as by their answers, or longer sequences"
            )


class _Shown:
    """Adds what is to be seen to a call on known tokens; copies of a model share it."""

    def __init__(self) -> None:
        self.shown: dict[tuple[int, ...], Mapping[str, Tensor]] = {}

    def __deepcopy__(self, memo: object) -> _Shown:
        return self

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        tokens = given.get("input_ids", args[0] if args else None)
        if not isinstance(tokens, Tensor):
            return None
        found = [self.shown.get(tuple(sequence)) for sequence in tokens.tolist()]
        known = [each for each in found if each is not None]
        if not known or any(given.get(name) is not None for name in known[0]):
            return None
        like = next(module.parameters())
        seen = {name: torch.cat([each[name] for each in known]) for name in known[0]}
        dtypes = {name: like.dtype for name, value in seen.items() if value.is_floating_point()}
        moved = {n: value.to(like.device, dtypes.get(n, value.dtype)) for n, value in seen.items()}
        return args, {**given, **moved}


@torch.no_grad()
def sampled_tokens(logits: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """The tokens with each next one drawn from the model's own prediction.

    Args:
        logits: ``[1, length, vocabulary]`` of the true tokens.
        tokens: ``[1, length]``.
        generator: what is drawn from, on the CPU.

    Returns:
        ``[1, length]``, int64: labels for :func:`next_token_loss`.
    """
    shares = logits[0, :-1].float().softmax(dim=1).cpu()
    drawn = torch.multinomial(shares, 1, generator=generator)[:, 0]
    return torch.cat([tokens[:, :1], drawn[None].to(tokens.device)], dim=1)


def _total(parameter: Tensor) -> float | None:
    """The sum of its weights, where it has any."""
    return None if parameter.is_meta else float(parameter.sum())


@torch.no_grad()
def check_causal(model: nn.Module, name: str) -> None:
    """See that a model runs on tokens alone, and foretells each from those before it.

    Models that read images need not: some want an image, and some see all of the text at once.

    Args:
        model: in evaluation mode.
        name: of it, for a message.

    Raises:
        GppruneError: it does not.
    """
    device = next(model.parameters()).device
    tokens = torch.tensor([[3, 4, 5, 6, 7, 8], [3, 4, 5, 6, 7, 9]], device=device)
    try:
        first, other = (model(input_ids=one[None], use_cache=False).logits[0] for one in tokens)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise GppruneError(
            f"the model {name!r} does not run on text alone ({' '.join(str(error).split())[:200]})"
            ": give one whose language model does"
        ) from error
    if not torch.equal(first[:-1], other[:-1]):
        raise GppruneError(
            f"the model {name!r} foretells a token from those after it, too, as PaliGemma does in "
            "a text without a mark for where the answer begins: its losses would mean nothing"
        )


@torch.no_grad()
def check_still(model: nn.Module, tokens: Tensor) -> None:
    """See that a model leaves its own weights alone as it runs: what is saved would be others.

    Args:
        model: that has not run yet.
        tokens: ``[samples, length]``, int64: it runs on a few of them.

    Raises:
        GppruneError: it does not, as RWKV that rescales its layers.
    """
    if (pages := pages_of(model)) is not None:
        pages.leave()
    before = {name: (one._version, _total(one)) for name, one in model.named_parameters()}
    with quiet_model(model):
        body(model)(tokens[:1, :8].to(next(model.parameters()).device))
    if pages is not None:
        pages.leave()
    for name, one in model.named_parameters():
        version, total = before[name]
        if one._version != version and (total is None or _total(one) != total):
            raise GppruneError(
                f"{type(model).__name__} changes {name!r} as it runs, so that what is saved would "
                "be changed again as it is loaded: of RWKV set rescale_every to 0 in config.json"
            )
