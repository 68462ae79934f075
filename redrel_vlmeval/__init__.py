"""Image-token truncation after chosen decoder blocks, for VLMEvalKit; imports neither torch nor vlmeval."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redrel_vlmeval.host import VariantTable
    from redrel_vlmeval.rules import Merged, rule
    from redrel_vlmeval.truncation import truncated

__version__ = "0.1.0"
__all__ = ["Merged", "__version__", "register", "rule", "truncated"]
_FRONTS = {"rule": "rules", "Merged": "rules", "truncated": "truncation"}


def register(table: Mapping[str, Any]) -> VariantTable:
    """The host's model table -> one that also builds every ``<base>_trunc_...``; ``table`` itself is not changed."""
    from redrel_vlmeval import plugin

    return plugin.register(table)


def __getattr__(name: str) -> Any:
    """What users import from the top, on first use: importing this package imports no torch."""
    if name in _FRONTS:
        return getattr(importlib.import_module(f"{__name__}.{_FRONTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
