"""What a host's model holds: its torch model, its tokenizer, and the recorder of ours; needs no host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.truncation import find_decoder


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
        for name in ("tokenizer", "processor"):
            value = getattr(owner, name, None)
            for candidate in (value, getattr(value, "tokenizer", None)):  # a processor has one, and cannot encode
                if callable(candidate) and hasattr(candidate, "encode"):
                    return candidate
    return None
