"""Section by section what truncation means, once more: nothing is dropped, keys are hidden, attention is plain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from redrel_vlmeval.truncation import Attention, Decoder


@dataclass
class Restated:
    """``l<layer>_k<keep>`` of one prompt, by attention of its last row.

    kept: visual tokens kept, numbered among themselves. The whole prompt goes through every block.
    """

    decoder: Decoder
    layer: int
    keep: int
    kept: list[int] = field(default_factory=list)
    image: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))  # places of visual tokens

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within the context the answers of ``model`` (see :meth:`Decoder.heard`) are such."""
        handle = model.register_forward_pre_hook(self._begin, with_kwargs=True)
        try:
            with self.decoder.entered(), self.decoder.attending(range(len(self.decoder.blocks)), self._attend):
                yield
        finally:
            handle.remove()

    def _begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = self.decoder.read_call(args, kwargs)
        if not call.past and call.input_ids is not None:
            self.image = self.decoder.image_mask(call.input_ids)[0].nonzero()[:, 0]
            self.kept = list(range(len(self.image))) if self.layer else []

    def _attend(self, seen: Attention) -> Any:
        """Softmax over the keys that a row may see: causal, by the model's own mask, and not hidden."""
        groups = seen.query.shape[1] // seen.key.shape[1]
        key, value = (part.repeat_interleave(groups, 1) for part in (seen.key, seen.value))
        scores = seen.query @ key.transpose(2, 3) * seen.scaling
        if seen.softcap is not None:
            scores = (scores / seen.softcap).tanh() * seen.softcap
        queries, keys = scores.shape[-2:]
        rows = torch.arange(keys - queries, keys)[:, None]
        if seen.mask is None:
            allowed = (torch.arange(keys) <= rows)[None, None]
        else:
            allowed = seen.mask if seen.mask.dtype == torch.bool else seen.mask > torch.finfo(seen.mask.dtype).min / 2
        scores = scores.masked_fill(~allowed, -torch.inf)
        if seen.block >= self.layer:
            gone = torch.ones(keys, dtype=torch.bool)
            gone[: len(gone)] = False
            gone[self.image] = True
            gone[self.image[self.kept]] = False
            scores = scores.masked_fill(gone[None] & (torch.arange(keys)[None] != rows), -torch.inf)
        weights = scores.float().softmax(-1)
        if seen.block == self.layer - 1 and queries > 1:
            row = weights[0, :, -1].mean(0)[self.image]
            order = sorted(range(len(row)), key=lambda number: (-row[number].item(), number))
            self.kept = sorted(order[: self.keep])
        return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), None
