"""What a host's model holds (torch model, tokenizer, recorder), and its ``generate`` changed for one answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.truncation import find_decoder, replaced_generate


@contextmanager
def beams(model: Any, count: int) -> Iterator[None]:
    """Within the context every ``model.generate`` is a beam search with ``count`` beams; 1 leaves it as it is."""
    if count == 1:
        yield
        return

    def search(generate: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: generate(*args, **(kwargs | {"num_beams": count, "do_sample": False}))

    with replaced_generate(model, search):
        yield


@contextmanager
def answer_room(model: Any, tokens: int) -> Iterator[None]:
    """Within the context every ``model.generate`` may make at least ``tokens`` new ones; 0 leaves it as it is."""
    if tokens == 0:
        yield
        return

    def longer(generate: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: generate(*args, **with_room(kwargs, model, tokens))

    with replaced_generate(model, longer):
        yield


def with_room(settings: dict[str, Any], model: Any, tokens: int) -> dict[str, Any]:
    """Keywords of ``generate`` with a limit raised to ``tokens`` new ones; a higher one is never lowered."""
    config = settings.get("generation_config") or getattr(model, "generation_config", None)
    limit = settings.get("max_new_tokens") or getattr(config, "max_new_tokens", None)
    if limit is None:  # a limit for prompt and answer together
        limit = settings.get("max_length") or getattr(config, "max_length", None) or 0
    elif limit >= tokens:
        return settings
    rest = {name: value for name, value in settings.items() if name != "max_length"}
    return rest | {"max_new_tokens": max(limit, tokens)}


@contextmanager
def unswallowed(model: Any) -> Iterator[None]:
    """Raise at the end what ``model.generate`` raised in the context and the code around it caught.

    Some of the host's classes catch every exception and answer "Failed ..."; that would be scored. Where a later call
    of the same answer went well, the answer stands.
    """
    failed: list[Exception] = []

    def noting(generate: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                output = generate(*args, **kwargs)
            except Exception as error:
                failed[:] = [error]
                raise
            failed.clear()
            return output

        return call

    with replaced_generate(model, noting):
        yield
    if failed:
        raise failed[0]


@contextmanager
def unrecorded(base: Any) -> Iterator[None]:
    """Within the context ``base`` writes no records of its own: the variant around it does."""
    own = getattr(base, "recorder", None)
    if own is None:
        yield
        return
    base.recorder = None
    try:
        yield
    finally:
        base.recorder = own


def find_torch_model(holder: Any, variant: str) -> nn.Module:
    """The one torch model with a known decoder among the attributes of a host model.

    Raises:
        TruncationError: there is none (an API model, an unknown decoder); the reason of each candidate is given.
    """
    reasons = []
    for name, value in vars(holder).items():
        if isinstance(value, nn.Module):
            try:
                find_decoder(value)
                return value
            except TruncationError as error:
                reasons.append(f"{name}: {error}")
    what = "; ".join(reasons) or "it holds no torch model (is it an API?)"
    raise TruncationError(f"{variant}: {type(holder).__name__} cannot be truncated: {what}")


def tokenizer_of(holder: Any) -> Any:
    """The tokenizer among the attributes of a host model, where its class, or ours, keeps it; None without one."""
    for owner in (holder, getattr(holder, "core", None)):
        for name in ("tokenizer", "text_tokenizer", "processor"):
            value = getattr(owner, name, None)
            for candidate in (value, getattr(value, "tokenizer", None)):  # a processor has one, and cannot encode
                if callable(candidate) and hasattr(candidate, "encode"):
                    return candidate
    return None
