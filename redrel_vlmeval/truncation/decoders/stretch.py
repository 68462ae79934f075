"""Decoders whose rotary angles change where a call becomes longer than what they were trained on."""

from __future__ import annotations

from typing import Any

KINDS = ("dynamic", "longrope", "su")  # of rotary tables, as configs name them
ORIGINAL = "original_max_position_embeddings"


def trained(text: Any) -> int | None:
    """Tokens up to which angles do not depend on the longest prompt of a call; None where they never do."""
    config: Any = getattr(text, "config", None)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for one in (rope, *rope.values()):  # some name each kind of block apart
        if isinstance(one, dict) and (one.get("rope_type") or one.get("type")) in KINDS:
            own = one.get(ORIGINAL) or getattr(config, ORIGINAL, None)
            return int(own or config.max_position_embeddings)
    return None
