"""KV caches of transformers, in the newer and the older layout: what a block holds, and what it is made to say.

Remote code of the time before them has tuples, one (keys, values) per block, which every call makes anew.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from redrel_vlmeval.errors import TruncationError


class Tuples:
    """What a decoder says of caches that are tuples; tokens lie along ``axis`` of their keys and values."""

    axis: ClassVar[int]

    def past(self, cache: Any) -> int:
        return self.held_length(cache, 0)

    def cache_after(self, output: Any, cache: Any) -> Any:
        """The tuple of (keys, values) per block that a forward call returned, or None."""
        parts = [output.past_key_values] if hasattr(output, "past_key_values") else list(output)
        return next((part for part in parts if is_tuples(part)), None)

    def continues(self, cache: Any, earlier: Any, generating: bool) -> bool:
        """Itself, or within ``generate`` one of the same lengths: beam search reorders a cache into new tensors."""
        if not generating or not is_tuples(cache) or not is_tuples(earlier):
            return cache is earlier
        return [(len(keys), keys.shape[self.axis]) for keys, _ in cache] == [
            (len(keys), keys.shape[self.axis]) for keys, _ in earlier
        ]

    def prefilled(self, cache: Any) -> Callable[[Any], bool]:
        keys = weakref.ref(cache[0][0]) if is_tuples(cache) else None
        return lambda other: keys is not None and is_tuples(other) and other[0][0] is keys()

    def held_length(self, cache: Any, block: int) -> int:
        self.check_cache(cache, 0)
        return 0 if cache is None else int(cache[block][0].shape[self.axis])

    def held_bytes(self, cache: Any) -> int:
        self.check_cache(cache, 0)
        return sum(tensor.nbytes for pair in cache or () for tensor in pair)

    def check_cache(self, cache: Any, longest: int) -> None:
        """Raise TruncationError for anything but a tuple."""
        if cache is not None and not is_tuples(cache):
            raise TruncationError(f"KV cache of type {type(cache).__name__}: this decoder keeps tuples of keys, values")


def is_tuples(part: Any) -> bool:
    """True for a tuple of (keys, values), one pair per block."""
    return isinstance(part, tuple) and bool(part) and isinstance(part[0], tuple) and len(part[0]) == 2


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
