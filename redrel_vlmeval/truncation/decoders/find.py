"""Which adapter fits a model: decoders are recognised by their module tree, never by class or release number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

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
    found = [(adapter, module) for module in model.modules() for adapter in ADAPTERS if adapter.owns_blocks(module)]
    if len(found) != 1:
        raise TruncationError(
            f"{type(model).__name__}: unknown decoder ({len(found)} modules are laid out as known, expected one). "
            f"Known: {'; '.join(adapter.layout for adapter in ADAPTERS)}"
        )
    adapter, text = found[0]
    return adapter.of(model, text)


@contextmanager
def replaced(module: nn.Module, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Within the context method ``name`` is ``make(what it was)``; afterwards exactly what it was. Contexts nest."""
    own = {name: module.__dict__[name]} if name in module.__dict__ else {}
    setattr(module, name, make(getattr(module, name)))
    try:
        yield
    finally:
        delattr(module, name)
        module.__dict__.update(own)


def replaced_generate(
    model: nn.Module, make: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> AbstractContextManager[None]:
    """Within the context ``model.generate`` is ``make(what it was)``."""
    return replaced(model, "generate", make)
