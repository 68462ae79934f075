"""Image-token truncation of transformers' decoders from outside: ``with truncated(model, "l5_k128") as trace:``."""

from __future__ import annotations

from typing import Any

from redrel_vlmeval.truncation.errors import TruncationError

__all__ = ["PromptTrace", "Trace", "TruncationError", "truncated"]


def __getattr__(name: str) -> Any:
    """``truncated`` and the trace classes on first use, so that importing names or errors does not import torch."""
    if name == "truncated":
        from redrel_vlmeval.truncation.engine import truncated

        return truncated
    if name in ("Trace", "PromptTrace"):
        from redrel_vlmeval.truncation import trace

        return getattr(trace, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
