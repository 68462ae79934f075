"""Which adapter fits a model: decoders are recognised by their module tree, never by class or release number."""

from __future__ import annotations

from torch import nn

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.truncation.decoders.base import Decoder
from redrel_vlmeval.truncation.decoders.llama_like import NativeDecoder
from redrel_vlmeval.truncation.decoders.qwen_vl import FusedDecoder

ADAPTERS = (NativeDecoder, FusedDecoder)


def find_decoder(model: nn.Module) -> Decoder:
    """The adapter for a model, found by its module tree and config.

    Raises:
        TruncationError: no decoder, or more than one, is laid out as expected; or its config names no image token.
    """
    if not isinstance(model, nn.Module):
        raise TruncationError(f"truncated() takes a torch model, got {type(model).__name__}")
    parts = list(model.modules())
    if any(hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) for part in parts):
        raise TruncationError(
            f"{type(model).__name__}: compiled by torch.compile, whose code would go on as it was traced; give the "
            "model that was compiled (model._orig_mod)"
        )
    found = [(adapter, module) for module in parts for adapter in ADAPTERS if adapter.owns_blocks(module)]
    if len(found) != 1:
        raise TruncationError(
            f"{type(model).__name__}: unknown decoder ({len(found)} modules are laid out as known, expected one). "
            f"Known: {'; '.join(adapter.layout for adapter in ADAPTERS)}"
        )
    adapter, text = found[0]
    return adapter.of(called(model, text), text)


def called(model: nn.Module, text: nn.Module) -> nn.Module:
    """The model that is really called: the outermost of transformers' own around ``text``; wrappers (PEFT) call it."""
    from transformers import PreTrainedModel

    around = (part for part in model.modules() if isinstance(part, PreTrainedModel) and text in part.modules())
    return next((part for part in around if part is not text), model)
