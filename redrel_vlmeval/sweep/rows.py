"""One prompt of a padded batch, as if it had been alone.

```
row 0, start 2   . . p I I t      of(hidden [2, 6, D], 0, 1) -> [1, 4, D]
row 1, start 0   p p I I I t                                    [1, 6, D]
```
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from redrel_vlmeval.truncation import Attention, Evidence, Watch


@dataclass
class Row:
    """Prompt ``number`` of a batch, whose padding ends at ``start``; ``counts``: visual tokens of every prompt."""

    number: int = 0
    start: int = 0
    counts: Sequence[int] = (0,)
    _known: dict[int, tuple[Any, Any]] = field(default_factory=dict)  # what the blocks share is cut once

    @property
    def alone(self) -> bool:
        return len(self.counts) == 1

    def of(self, tensor: torch.Tensor, batch: int, *tokens: int) -> torch.Tensor:
        """This prompt's part of a tensor with prompts along ``batch`` (or one for all) and ``tokens`` along others."""
        if self.alone:
            return tensor
        if tensor.shape[batch] > 1:
            tensor = tensor.narrow(batch, self.number, 1)
        for dim in tokens:
            tensor = tensor.narrow(dim, self.start, tensor.shape[dim] - self.start)
        return tensor

    def attention(self, seen: Attention) -> Attention:
        """What a block's kernel would have been given of this prompt alone."""
        if self.alone:
            return seen
        own = {name: self.of(getattr(seen, name), 0, 2) for name in ("query", "key", "value")}
        return replace(seen, **own, mask=self._once(seen.mask, partial(self._mask, seen.mask)))

    def arguments(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """A block's arguments besides its hidden states."""
        if self.alone:
            return dict(kwargs)
        return {name: self._once(value, partial(self._cut, name, value)) for name, value in kwargs.items()}

    def _cut(self, name: str, value: Any) -> Any:
        if name == "position_embeddings":
            return tuple(self.of(table, -3, -2) for table in value)
        if not isinstance(value, torch.Tensor):
            return value
        if name == "attention_mask":
            return self._mask(value)
        if name == "position_ids":
            return self.of(value, -2, -1)
        if name == "cache_position":
            return value[self.start :]
        return self.of(value, 0, 1) if value.ndim > 2 and len(value) == len(self.counts) else value

    def _mask(self, mask: Any) -> Any:
        """A mask [b, 1, q, k], or one of padding, [b, s]."""
        if not isinstance(mask, torch.Tensor):
            return mask
        return self.of(mask, 0, 1) if mask.ndim == 2 else self.of(mask, 0, 2, 3)

    def _once(self, source: Any, make: Callable[[], Any]) -> Any:
        if id(source) not in self._known:
            self._known[id(source)] = (make(), source)
        return self._known[id(source)][0]

    def forget(self) -> None:
        """Let go of the call's arguments."""
        self._known.clear()

    def features(self, added: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Of features [n, width] of all prompts' visual tokens, block by block."""
        if self.alone:
            return list(added)
        first = sum(self.counts[: self.number])
        return [features[first : first + self.counts[self.number]] for features in added]

    def tell(self, watch: Watch, evidence: Evidence, needs: Collection[str], counts: Sequence[int]) -> None:
        """:meth:`Watch.tell` of a prompt of ``counts`` visual tokens."""
        if self.alone:
            watch.tell(evidence, needs, counts)
            return
        watch.tell(evidence, needs, self.counts)
        here = slice(self.number, self.number + 1)
        evidence.towers, evidence.smaller = evidence.towers[here], evidence.smaller[here]
