"""The whole (L, K) grid in one pass: what the settings of one base share is computed once for each question."""

from __future__ import annotations

from typing import Any

__all__ = ["Answer", "Sweeper"]


def __getattr__(name: str) -> Any:
    """The classes on first use, so that importing a light module of this package imports neither torch nor the host."""
    if name in __all__:
        from redrel_vlmeval.sweep import sweeper

        return getattr(sweeper, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
