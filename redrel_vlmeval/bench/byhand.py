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

from redrel_vlmeval.names import VariantSpec, parse
from redrel_vlmeval.truncation import Decoder, find_decoder

ROTARY = "position_embeddings"  # cosine and sine, [..., n, d], of the decoders that can be cut by plain slices


def can_be_cut(decoder: Decoder) -> bool:
    """Whether its blocks are given tables of one row a token, which slices cut."""
    return bool(decoder.rotary == ROTARY)


@contextmanager
def cut_by_hand(model: nn.Module, setting: str, images: int) -> Iterator[None]:
    """Within the context a prefill of one prompt, ``images`` visual tokens long, runs on the rows of ``setting``."""
    decoder, spec = find_decoder(model), parse(setting)
    handles = [
        decoder.blocks[number].register_forward_pre_hook(_cut(dropped), with_kwargs=True)
        for number, dropped in enumerate(_dropped(spec, images, len(decoder.blocks)))
        if dropped
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _dropped(spec: VariantSpec, images: int, blocks: int) -> list[int]:
    """How many tokens are gone before each block."""
    return [
        next((images - stage.count(images) for stage in reversed(spec.stages) if stage.layer <= block), 0)
        for block in range(blocks)
    ]


def _cut(dropped: int) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    def before(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        cosine, sine = kwargs[ROTARY]
        rows, mask = cosine.shape[-2] - dropped, kwargs.get("attention_mask")
        given = dict(kwargs) | {ROTARY: (cosine[..., :rows, :], sine[..., :rows, :])}
        if isinstance(mask, torch.Tensor):
            given["attention_mask"] = mask[..., :rows, :rows]
        if args:
            return (args[0][:, :rows], *args[1:]), given
        return args, given | {"hidden_states": kwargs["hidden_states"][:, :rows]}

    return before
