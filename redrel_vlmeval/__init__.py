"""Image-token truncation after chosen decoder blocks, for VLMEvalKit; imports neither torch nor vlmeval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redrel_vlmeval.host import VariantTable

__version__ = "0.1.0"
__all__ = ["__version__", "register"]


def register(table: Mapping[str, Any]) -> VariantTable:
    """The host's model table -> one that also builds every ``<base>_trunc_...``; ``table`` itself is not changed."""
    from redrel_vlmeval import plugin

    return plugin.register(table)
