"""Models that generate from ``inputs_embeds``: where the prompt's ids are noted, and which rows are visual tokens.

```
outer.generate   ids    a b P c d           noted
                              |             a row that is not its id's embedding: P is the placeholder
root.generate    rows   a b 1 2 3 c d       inputs_embeds, as many rows a picture as its features
placed           ids    a b . . . c d       "." is VISUAL
```
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from redrel_vlmeval.errors import TruncationError
from redrel_vlmeval.truncation.hooks import replaced

VISUAL = -1  # the id of a visual token whose place was found
ENTRANCES = ("generate", "prepare_inputs_embeds")  # methods of outer models that are given ids and pixels
PIXELS = ("pixel_values", "pixel_values_videos", "images", "image", "videos")


@dataclass
class Entrance:
    """The prompt's ids, noted where ``outer`` is given them; ``root`` is what generates from embeddings."""

    outer: nn.Module
    root: Any
    ids: torch.Tensor | None = field(default=None, init=False)  # long [b, n], of the latest prompt
    pixels: bool = field(default=False, init=False)  # whether it came with some
    began: float = field(default=0.0, init=False)  # when
    clock: Callable[[], float] = field(default=time.perf_counter, init=False)

    @contextmanager
    def watched(self, clock: Callable[[], float]) -> Iterator[None]:
        """Within the context ids are noted, and when they came, by ``clock``."""
        self.clock = clock
        with ExitStack() as undo:
            for name in ENTRANCES:
                if hasattr(self.outer, name):
                    undo.enter_context(replaced(self.outer, name, self._noting))
            undo.callback(self._forget)
            yield

    def _forget(self) -> None:
        self.ids, self.pixels = None, False

    def _noting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(original).bind_partial(*args, **kwargs).arguments
            given = {**given, **given.get("kwargs", {}), **kwargs}
            ids = given.get("input_ids")
            ids = given.get("inputs") if ids is None else ids
            self.began = self.clock()
            if isinstance(ids, torch.Tensor) and ids.ndim == 2:
                self.ids = ids
                self.pixels = any(_filled(given.get(name)) for name in PIXELS)
            return original(*args, **kwargs)

        return noted

    def placed(self, rows: torch.Tensor) -> torch.Tensor:
        """``inputs_embeds`` [b, n, D] -> ids [b, n], VISUAL where a row stands for no text.

        Raises:
            TruncationError: the ids were not seen, or the rows are not theirs in order.
        """
        name, ids = type(self.outer).__name__, self.ids
        if ids is None or len(rows) % len(ids):
            raise TruncationError(
                f"{name}: its decoder was given embeddings, and no ids of the prompt were seen before, so its image "
                f"tokens cannot be found (looked at: {', '.join(ENTRANCES)})"
            )
        own, holders = self._own(ids)
        own, ids, holders = own.to(rows.device, rows.dtype), ids.to(rows.device), holders.to(rows.device)
        firsts = rows[:: len(rows) // len(ids)]
        found = [_aligned(*one) for one in zip(own, ids, holders, firsts, strict=True)]
        if any(one is None for one in found):
            raise TruncationError(
                f"{name}: the embeddings that its decoder was given are not those of the prompt's ids with one kind of "
                "placeholder for pictures, so its image tokens cannot be found"
            )
        return torch.stack([one for one in found if one is not None]).repeat_interleave(len(rows) // len(ids), 0)

    def _own(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [b, n, D] of ids [b, n], and which of these are placeholders, bool [b, n].

        An id below 0 is one, but for Ovis' marks around pictures and tiles: those are the last words of its second
        table of embeddings, the same for every picture.
        """
        embed = self.root.get_input_embeddings()
        words = self.outer.get_vte().weight if hasattr(self.outer, "get_vte") else ()
        marks = getattr(sys.modules[type(self.outer).__module__], "IMAGE_INDICATOR_IDS", ()) if len(words) else ()
        with torch.no_grad():
            own, holders = embed(ids.clamp(min=0).to(embed.weight.device)), ids < 0
            for mark, place in zip(marks, range(-len(marks), 0), strict=True):
                own[(ids == mark).to(own.device)] = words[place].to(own)
                holders &= ids != mark
        return own, holders


def _filled(value: Any) -> bool:
    """Whether there is a tensor in it that is not empty."""
    if isinstance(value, (list, tuple)):
        return any(map(_filled, value))
    return isinstance(value, torch.Tensor) and value.numel() > 0


def _aligned(own: torch.Tensor, ids: torch.Tensor, holders: torch.Tensor, rows: torch.Tensor) -> torch.Tensor | None:
    """Ids of ``rows`` [m, D], given the prompt's ``ids`` (long [n]), their embeddings ``own`` [n, D] and ``holders``.

    ``holders``, bool [n], are those that stand for any number of rows. None where they cannot be told: text between
    them must stand in ``rows`` unchanged and in order.
    """
    if not bool(holders.any()):  # as many rows as ids, and one kind of id has other rows than its own
        if len(own) != len(rows):
            return None
        other = (own != rows).any(-1)
        holders = ids == ids[int(other.int().argmax())]
        if not bool(other.any()):
            return ids
        return ids.masked_fill(other, VISUAL) if torch.equal(holders, other) else None
    found, place = torch.full((len(rows),), VISUAL, dtype=ids.dtype, device=ids.device), 0
    for first, end in _runs(~holders):
        length = end - first
        if end == len(ids):  # nothing behind it
            starts = [len(rows) - length]
        elif first == 0:
            starts = [0]
        else:
            starts = ((rows == own[first]).all(-1).nonzero()[:, 0]).tolist()
        fits = (s for s in starts if s >= place + bool(first) and torch.equal(rows[s : s + length], own[first:end]))
        start = next(fits, None)
        if start is None:
            return None
        found[start : start + length] = ids[first:end]
        place = start + length
    # the rest is behind the last text: a picture's, if the prompt ends with one
    return found if bool(holders[-1]) == (place < len(rows)) else None


def _runs(flags: torch.Tensor) -> list[tuple[int, int]]:
    """Where runs of True begin and end, bool [n]."""
    edges = torch.nn.functional.pad(flags.int(), (1, 1)).diff().nonzero()[:, 0].tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
