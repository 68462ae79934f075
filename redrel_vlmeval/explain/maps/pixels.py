"""From image tokens to places on the original picture: grids, padding, and maps carried back through attention.

An image token is no pixel. Where a token stands on the picture is a matter of the family's preprocessing, which is
read from the inputs and the config; what it is *made of* is a matter of the tower. Qwen-VL's 256 resampler queries
have no place at all: their map goes through the resampler's attention to the 32 x 32 patches. The same can be asked
for a LLaVA, through the attention of its tower's blocks. :func:`grid.locality` says what a bare grid would be worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

import numpy as np
import torch

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.ask import Asked
from redrel_vlmeval.explain.maps.grid import Grid
from redrel_vlmeval.models import opened, square_box

TILED = ("llava_next", "llava_onevision")
MERGED = ("qwen2_vl", "qwen2_5_vl")


def grids(asked: Asked, where: str = "decoder") -> list[Grid]:
    """The grid of each picture, for maps of ``where``: ``decoder``, ``projector`` (image tokens), ``vision`` (patches),
    or ``pixels`` (what :func:`grid.through` gives).

    Raises:
        ExplainError: this family's tokens are not laid out on a known grid.
    """
    config: Any = getattr(asked.model, "config", None)
    kind = str(getattr(config, "model_type", ""))
    tokens = len(asked.spans().image)
    if kind in TILED:
        return _tiled(asked, config, tokens, where)
    if kind in MERGED:
        return _merged(asked, config, where, kind)
    if kind == "qwen":
        visual = config.visual
        side = visual["image_size"] // visual["patch_size"] if where in ("vision", "pixels") else 16
        return _squares(asked, side, tokens // 256)
    side = _side(config)
    if kind == "gemma3" and where not in ("vision", "pixels"):
        side = isqrt(config.mm_tokens_per_image)  # its projector pools patches
    if kind == "internvl":
        return _last_tiles(asked, side, tokens, config, where)
    if side is None or tokens % side**2:
        raise ExplainError(
            f"{type(asked.model).__name__}: {tokens} image tokens do not fill squares of {side} x {side}; known grids: "
            "LLaVA, LLaVA-NeXT, LLaVA-OneVision, Qwen-VL, Qwen2-VL, Qwen2.5-VL, Qwen3-VL, InternVL, Gemma 3"
        )
    return _squares(asked, side, tokens // side**2, padded=kind == "llava")


def _side(config: Any) -> int | None:
    """Patches a side of the vision tower."""
    vision = getattr(config, "vision_config", None)
    sizes = [getattr(vision, name, None) for name in ("image_size", "patch_size")]
    image, patch = (size[0] if isinstance(size, (list, tuple)) else size for size in sizes)
    return None if not image or not patch else int(image) // int(patch)


def picture_sizes(asked: Asked, count: int) -> list[tuple[int, int]]:
    """Width and height of the question's pictures; (1, 1), a unit square, where there is no file to look at."""
    if len(asked.pictures) != count:
        return [(1, 1)] * count
    sizes = []
    for path in asked.pictures:
        with opened(path) as picture:
            sizes.append(picture.size)
    return sizes


def _squares(asked: Asked, side: int, count: int, padded: bool = False) -> list[Grid]:
    """``count`` pictures of ``side`` x ``side`` tokens each, stretched to a square or padded to one."""
    found = []
    for number, size in enumerate(picture_sizes(asked, count)):
        box = square_box(*size) if padded else (0, 0, *size)
        found.append(Grid(number * side**2 + np.arange(side**2).reshape(side, side), box, size))
    return found


def _tiled(asked: Asked, config: Any, tokens: int, where: str) -> list[Grid]:
    """The overview tile of a LLaVA-NeXT or -OneVision picture, its first tokens; the finer tiles show the same."""
    side = _side(config)
    sizes = asked.inputs.get("image_sizes")
    if side is None or sizes is None or len(sizes) != 1:
        raise ExplainError(f"{type(asked.model).__name__}: maps are laid on the picture for one picture at a time")
    if tokens < side**2:
        raise ExplainError(f"{type(asked.model).__name__}: {tokens} image tokens hold no tile of {side} x {side}")
    return _squares(asked, side, 1)


def _merged(asked: Asked, config: Any, where: str, kind: str) -> list[Grid]:
    """Qwen2-VL: a picture has ``h x w`` patches of its own shape, merged two by two into tokens."""
    if where == "vision" and kind == "qwen2_5_vl":
        raise ExplainError("Qwen2.5-VL: its tower orders patches by windows, which no map here follows; use 'decoder'")
    merge = int(getattr(config.vision_config, "spatial_merge_size", 2))
    sizes = asked.inputs["image_grid_thw"].tolist()
    found, first = [], 0
    for (_, high, wide), size in zip(sizes, picture_sizes(asked, len(sizes)), strict=True):
        rows, cols = high // merge, wide // merge
        if where == "vision":  # patches of one token stand together
            order = np.arange(high * wide).reshape(rows, cols, merge, merge).transpose(0, 2, 1, 3).reshape(high, wide)
        else:
            order = np.arange(rows * cols).reshape(rows, cols)
        found.append(Grid(first + order, (0, 0, *size), size))
        first += order.size
    return found


def _last_tiles(asked: Asked, side: int | None, tokens: int, config: Any, where: str) -> list[Grid]:
    """InternVL: the last tile of a picture is the whole of it; for one picture, whose tiles follow one another."""
    per_tile = int(getattr(config, "image_seq_length", 256))
    side = side or 0
    small = int(per_tile**0.5)
    if small**2 != per_tile or tokens % per_tile or len(asked.pictures) > 1:
        raise ExplainError("InternVL: maps are laid on the picture for one picture at a time, in square tiles")
    side, last = (side, tokens // per_tile - 1) if where == "vision" else (small, tokens // per_tile - 1)
    (grid,) = _squares(asked, side, 1)
    return [Grid(grid.index + last * side**2, grid.box, grid.size)]


def rollout(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Which patches a tower's tokens are made of: the product of its blocks' attention [p, s, s], rows sum to 1.

    A class token in front is left out.
    """
    whole = blocks[0]
    for block in blocks[1:]:
        whole = block @ whole
    side = int((whole.shape[-1] - 1) ** 0.5)
    if side**2 == whole.shape[-1] - 1 and side > 1:
        whole = whole[:, 1:, 1:]
    return whole / whole.sum(-1, keepdim=True)
