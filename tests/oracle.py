"""Section 2 of the design once more: short, slow, eager and mask-based, nothing dropped.

The engine is compared with it. It takes the attention matrices that eager attention returns and hides columns in later
blocks' masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from redrel_vlmeval.bench.subjects import set_kernel

Stages = dict[int, int]  # layer -> image tokens kept


class Oracle:
    """Rows are ranked one by one with plain Python; ``kept`` maps layer -> list of kept positions per row."""

    def __init__(self, tiny: Any, stages: Stages, rule: str = "attention", row: str = "last", official: bool = False,
                 forced: dict[int, list[list[int]]] | None = None) -> None:  # fmt: skip
        self.tiny, self.stages, self.rule, self.row, self.official = tiny, stages, rule, row, official
        self.forced = forced
        self.kept: dict[int, list[list[int]]] = {}
        self.image: torch.Tensor = torch.zeros(0)
        self.mask: torch.Tensor = torch.zeros(0)

    @contextmanager
    def applied(self) -> Iterator[Oracle]:
        model = self.tiny.model
        decoder = next(m for m in model.modules() if hasattr(m, "embed_tokens") and hasattr(m, "layers"))
        before = model.config._attn_implementation
        set_kernel(model, "eager")
        handles = [model.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for number, block in enumerate(decoder.layers):
            handles.append(block.register_forward_pre_hook(self._hide(number), with_kwargs=True))
            handles.append(block.self_attn.register_forward_hook(self._rank(number + 1)))
        try:
            yield self
        finally:
            set_kernel(model, before)
            for handle in handles:
                handle.remove()

    def _begin(self, _module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        self.prefill = cache is None or cache.get_seq_length() == 0
        if self.prefill:
            self.mask = kwargs.get("attention_mask", torch.ones_like(kwargs["input_ids"])).bool()
            self.image = (kwargs["input_ids"] == 99) & self.mask
            self.kept = {0: [[] for _ in self.image]} if 0 in self.stages else {}

    def _hide(self, number: int) -> Any:
        def hide(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            layers = [layer for layer in self.stages if layer <= number]
            if not layers:
                return None
            keep = self.kept[max(layers)]
            mask = kwargs["attention_mask"].clone().expand(len(self.image), -1, -1, -1).clone()
            for row, image in enumerate(self.image):
                gone = [p for p in image.nonzero()[:, 0].tolist() if p not in keep[row]]
                for column in gone:
                    own = mask[row, :, column, column].clone() if mask.shape[2] == mask.shape[3] else None
                    mask[row, :, :, column] = torch.finfo(mask.dtype).min
                    if own is not None:  # its own row matters to nobody, but must not be NaN
                        mask[row, :, column, column] = own
            return args, kwargs | {"attention_mask": mask}

        return hide

    def _rank(self, layer: int) -> Any:
        def rank(_module: Any, _args: Any, output: Any) -> None:
            if layer not in self.stages or not (self.prefill or self.official):
                return
            if self.forced is not None:
                self.kept[layer] = self.forced[layer]
                return
            attention = output[1].float().mean(1)  # [b, q, k]
            earlier = [s for s in self.stages if s < layer and s > 0]
            self.kept[layer] = []
            for row, image in enumerate(self.image):
                candidates = image.nonzero()[:, 0].tolist()
                if earlier:
                    candidates = [p for p in candidates if p in self.kept[max(earlier)][row]]
                scores = self._row(attention[row], row, candidates, image)
                sign = 1 if self.rule == "lowest" else -1
                best = sorted(candidates, key=lambda p: (sign * scores[p].item(), p))
                self.kept[layer].append(sorted(best[: self.stages[layer]]))

        return rank

    def _row(self, attention: torch.Tensor, row: int, candidates: list[int], image: torch.Tensor) -> torch.Tensor:
        if not self.prefill:
            return attention[-1]
        gone = [] if self.official else [p for p in image.nonzero()[:, 0].tolist() if p not in candidates]
        last = max(p for p in self.mask[row].nonzero()[:, 0].tolist() if p not in gone)
        first = candidates[-1] if candidates else last
        if self.row == "last":
            return attention[last]
        if self.row == "rowimg":
            return attention[first]
        if self.row == "rowtext":
            end = max(image.nonzero()[:, 0].tolist(), default=last)
            return attention[list(range(end + 1, last + 1)) or [last]].mean(0)
        return attention[[p for p in range(first, last + 1) if p not in gone]].mean(0)
