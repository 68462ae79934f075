"""Which adapter fits a model: decoders are recognised by their module tree, never by class or release number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.truncation.decoders.base import Decoder
from redrel_vlmeval.truncation.decoders.entrance import Entrance
from redrel_vlmeval.truncation.decoders.internlm2 import InternLM2Decoder
from redrel_vlmeval.truncation.decoders.llama_like import NativeDecoder
from redrel_vlmeval.truncation.decoders.qwen_vl import FusedDecoder

ADAPTERS = (NativeDecoder, FusedDecoder, InternLM2Decoder)


def find_decoder(model: nn.Module) -> Decoder:
    """The adapter for a model, found by its module tree and config.

    Raises:
        TruncationError: no decoder, or more than one, is laid out as expected; or its config names no image token.
    """
    if not isinstance(model, nn.Module):
        raise TruncationError(f"truncated() takes a torch model, got {type(model).__name__}")
    parts = list(model.modules())
    compiled = next(filter(_compiled, parts), None)
    if compiled is not None:
        where = "" if compiled is model else f" (its {type(compiled).__name__})"
        raise TruncationError(
            f"{type(model).__name__}: compiled by torch.compile{where}, whose code would go on as it was traced; give "
            "the model as it was before (model._orig_mod, or without a compiled forward)"
        )
    found = [(adapter, module) for module in parts for adapter in ADAPTERS if adapter.owns_blocks(module)]
    if len(found) != 1:
        raise TruncationError(
            f"{type(model).__name__}: unknown decoder ({len(found)} modules are laid out as known, expected one). "
            f"Known: {'; '.join(adapter.layout for adapter in ADAPTERS)}"
        )
    adapter, text = found[0]
    around = _around(model, text)
    _check_generates(around)
    root = _called(model, around)
    entrance = Entrance(around[0], root) if around and (root is not around[0] or _generates_itself(root)) else None
    return adapter.of(root, text, entrance)


def _compiled(part: nn.Module) -> bool:
    """Whether torch.compile made this module, its call, or its ``forward``."""
    by_itself = hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None
    return by_itself or hasattr(part.forward, "_torchdynamo_orig_callable")


def _check_generates(around: Sequence[Any]) -> None:
    """Refuse a model whose ``generate`` hands on to one that has none: it would fail at the first question."""
    if around and _generates_itself(around[0]) and not any(part.can_generate() for part in around):
        raise TruncationError(
            f"{type(around[0]).__name__}: its {type(around[-1]).__name__} has no generate(), which transformers gives "
            "to no remote code since 4.50; transformers 4.49 does"
        )


def _called(model: nn.Module, around: Sequence[Any]) -> nn.Module:
    """The model that is really called: the outermost of transformers' own in ``around``; wrappers (PEFT) call it.

    Where that does not generate, or in a way of its own, and holds a language model that does: that language model.
    """
    able = (part for part in around if part.can_generate() and not _generates_itself(part))
    return next(able, around[0] if around else model)


def _around(model: nn.Module, text: nn.Module) -> list[Any]:
    """Transformers' models around ``text``, from the outermost inwards."""
    from transformers import PreTrainedModel

    parts = (part for part in model.modules() if isinstance(part, PreTrainedModel) and part is not text)
    return [part for part in parts if any(inner is text for inner in part.modules())]


def _generates_itself(model: nn.Module) -> bool:
    """Whether its class has a ``generate`` of its own, in place of transformers'."""
    owner = next((kind for kind in type(model).__mro__ if "generate" in vars(kind)), None)
    return owner is not None and owner.__name__ not in ("GenerationMixin", "PreTrainedModel")
