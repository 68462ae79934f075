"""What the decoder blocks alone cost on as few rows as a setting leaves them: the floor of that setting's prefill.

Matrices of fewer rows cost more per FLOP, and how much more is the machine's affair (two threads above all). So a
variant is timed beside the same model with its rows cut by plain slices: nothing is ranked, gathered or put back.

```
block <= L   [b, n, D]
block  > L   [b, n', D]   the first n' rows; their answer means nothing
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from redrel_vlmeval.names import VariantSpec, parse, stage_before
from redrel_vlmeval.truncation import Decoder, find_decoder


def can_be_cut(decoder: Decoder, setting: str) -> bool:
    """Whether ``setting`` drops rows, and the blocks are given tables of one row a token, which slices cut."""
    return decoder.given_tables and not parse(setting).official


@contextmanager
def cut_by_hand(model: nn.Module, setting: str, images: int) -> Iterator[None]:
    """Within the context a prefill of one prompt, ``images`` visual tokens long, runs on the rows of ``setting``."""
    decoder, spec = find_decoder(model), parse(setting)
    handles = [
        block.register_forward_pre_hook(_cut(decoder.rotary, dropped), with_kwargs=True)
        for block, dropped in zip(decoder.blocks, _dropped(spec, images, len(decoder.blocks)), strict=True)
        if dropped
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _dropped(spec: VariantSpec, images: int, blocks: int) -> list[int]:
    """How many tokens are gone before each block."""
    before = (stage_before(spec.stages, block) for block in range(blocks))
    return [0 if stage is None else images - stage.count(images, blocks) for stage in before]


def _cut(rotary: str, dropped: int) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    def before(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        cosine, sine = kwargs[rotary]
        rows, mask = cosine.shape[-2] - dropped, kwargs.get("attention_mask")
        given = dict(kwargs) | {rotary: (cosine[..., :rows, :], sine[..., :rows, :])}
        if isinstance(mask, torch.Tensor):
            given["attention_mask"] = mask[..., :rows, :rows]
        if args:
            return (args[0][:, :rows], *args[1:]), given
        return args, given | {"hidden_states": kwargs["hidden_states"][:, :rows]}

    return before
