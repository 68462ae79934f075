"""Prompts for a Qwen-VL checkpoint of :mod:`qwen_checkpoint`, as token ids, and the oracle of its decoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from oracle import Oracle
from PIL import Image
from qwen_checkpoint import ENDOFTEXT, IMAGE_START

IMAGE_END, PAD = IMAGE_START + 1, IMAGE_START + 2
PER_IMAGE = 256


def picture(folder: Path, number: int) -> Path:
    """A picture of noise, one file per number."""
    path = folder / f"{number}.png"
    if not path.exists():
        noise = np.random.default_rng(number).integers(0, 255, (60, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return path


def image_ids(path: Path) -> list[int]:
    """What the tokenizer makes of ``<img>path</img>``: the bytes of the path as ids, filled up to 256."""
    name = list(str(path).encode())
    return [IMAGE_START, *name, *[PAD] * (PER_IMAGE - len(name)), IMAGE_END]


def batch(folder: Path, layouts: list[str], seed: int = 0) -> dict[str, torch.Tensor]:
    """Left-padded prompts: ``t`` is a text token, ``I`` the next picture."""
    generator = torch.Generator().manual_seed(seed)
    rows, number = [], 10 * seed
    for layout in layouts:
        row: list[int] = []
        for part in layout:
            row += image_ids(picture(folder, number)) if part == "I" else _text(generator)
            number += part == "I"
        rows.append(row)
    longest = max(map(len, rows))
    ids = [[ENDOFTEXT] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def _text(generator: torch.Generator) -> list[int]:
    return torch.randint(0, ENDOFTEXT, (1,), generator=generator).tolist()


def between_tags(ids: torch.Tensor) -> torch.Tensor:
    """Image positions of a batch, found one token at a time, bool [b, s]."""
    found = torch.zeros(ids.shape, dtype=torch.bool)
    for row, tokens in enumerate(ids.tolist()):
        inside = False
        for place, token in enumerate(tokens):
            inside = inside and token != IMAGE_END
            found[row, place] = inside
            inside = inside or token == IMAGE_START
    return found


class QwenOracle(Oracle):
    """The oracle over blocks under ``transformer.h``, whose ``_attn`` gives the attention matrix."""

    @contextmanager
    def applied(self) -> Iterator[Oracle]:
        model = self.tiny.model
        handles = [model.register_forward_pre_hook(self._begin, with_kwargs=True)]
        attentions = [block.attn for block in model.transformer.h]
        own = [attention.__dict__.pop("_attn", None) for attention in attentions]  # the code's own eager one
        for number, block in enumerate(model.transformer.h):
            handles.append(block.register_forward_pre_hook(self._hide(number), with_kwargs=True))
            block.attn._attn = self._watched(block.attn._attn, self._rank(number + 1))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
            for attention, before in zip(attentions, own, strict=True):
                del attention._attn
                if before is not None:
                    attention._attn = before

    @staticmethod
    def _watched(attend: Any, rank: Any) -> Any:
        def watched(*args: Any, **kwargs: Any) -> Any:
            output = attend(*args, **kwargs)
            rank(None, None, output)
            return output

        return watched

    def _begin(self, _module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        self.prefill = kwargs.get("past_key_values") is None
        if self.prefill:
            ids = kwargs["input_ids"]
            mask = kwargs.get("attention_mask")
            self.mask = torch.ones_like(ids).bool() if mask is None else mask.bool()
            self.image = between_tags(ids) & self.mask
            self.kept = {0: [[] for _ in self.image]} if 0 in self.stages else {}
