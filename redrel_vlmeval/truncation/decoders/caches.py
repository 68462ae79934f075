"""KV caches of transformers, in the newer and the older layout: what a block holds, and what it is made to say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def longer(counted: Callable[..., int], holder: Any, more: int) -> Callable[..., int]:
    """``get_seq_length`` of a cache, or of a layer of one, that counts ``more`` tokens once it holds any."""

    def length(*args: Any, **kwargs: Any) -> int:
        found = counted(holder, *args, **kwargs)
        return found + more if found else 0

    return length


def wider(sizes: Callable[..., tuple[int, int]], holder: Any, more: int) -> Callable[..., tuple[int, int]]:
    """``get_mask_sizes`` of a sliding layer, likewise."""

    def sized(*args: Any, **kwargs: Any) -> tuple[int, int]:
        width, offset = sizes(holder, *args, **kwargs)
        return width + more, offset

    return sized


def tensor(cache: Any, kind: str, block: int) -> torch.Tensor | None:
    """The block's ``key`` or ``value`` tensor, in the newer and the older layout of transformers' caches."""
    if cache is None:
        return None
    if hasattr(cache, "layers"):
        found = getattr(cache.layers[block], f"{kind}s", None) if block < len(cache.layers) else None
    else:
        every = getattr(cache, f"{kind}_cache")
        found = every[block] if block < len(every) else None
    return found if isinstance(found, torch.Tensor) and found.numel() else None
