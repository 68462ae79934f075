"""A base's own ``generate`` with other settings for one answer: more beams, or room for reasoning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from redrel_vlmeval.truncation import replaced_generate


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
