"""From image tokens to places on the original picture: grids, padding, and maps carried back through attention.

An image token is no pixel. Where a token stands on the picture is a matter of the family's preprocessing, which is
read from the inputs and the config; what it is *made of* is a matter of the tower. Qwen-VL's 256 resampler queries
have no place at all: their map goes through the resampler's attention to the 32 x 32 patches. The same can be asked
for a LLaVA, through the attention of its tower's blocks. :func:`grid.locality` says what a bare grid would be worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.ask import Asked
from redrel_vlmeval.explain.maps.grid import Grid
from redrel_vlmeval.models import View, opened, patches, told, views


def grids(asked: Asked, where: str = "decoder") -> list[Grid]:
    """The grid of each picture, for maps of ``where``: ``decoder``, ``projector`` (image tokens), ``vision`` (patches),
    or ``pixels`` (what :func:`grid.through` gives). Of a picture that is also seen in tiles it is the whole.

    Raises:
        ExplainError: this family's tokens are not laid out on a known grid.
    """
    config: Any = getattr(asked.model, "config", None)
    kind = str(getattr(config, "model_type", ""))
    tokens = len(asked.spans().image)
    if kind == "qwen":
        visual = config.visual
        side = visual["image_size"] // visual["patch_size"] if where in ("vision", "pixels") else 16
        sizes = picture_sizes(asked, tokens // 256)
        return [_laid(size, number * side**2, side, side) for number, size in enumerate(sizes)]
    sizes = picture_sizes(asked, _runs(asked))
    given = told(asked.decoder, asked.inputs, asked.inputs["input_ids"][0])
    laid = [view for view in views(asked.decoder, given, tokens, sizes) if view.kind == "whole"]
    if where not in ("vision", "pixels"):
        return [_laid(sizes[view.picture], view.first, view.rows, view.cols, view.stride, view.box) for view in laid]
    return _patches(asked, config, kind, where, [(sizes[view.picture], view) for view in laid])


def _laid(
    size: tuple[int, int], first: int, rows: int, cols: int, stride: int | None = None,
    box: tuple[float, float, float, float] = (0, 0, 1, 1),
) -> Grid:  # fmt: skip
    """A grid over ``box``, in parts of a picture of ``size``."""
    index = first + (stride or cols) * np.arange(rows)[:, None] + np.arange(cols)
    left, top, right, bottom = (edge * size[axis % 2] for axis, edge in enumerate(box))
    return Grid(index, (left, top, right, bottom), size)


def _patches(
    asked: Asked, config: Any, kind: str, where: str, laid: Sequence[tuple[tuple[int, int], View]]
) -> list[Grid]:
    """Patches of the tower in place of tokens: as many a side as it has, or ``merge`` times as many."""
    if kind.startswith("qwen"):
        return _merged(asked, config, where, kind, laid)
    if len(laid) > 1 and "image_sizes" in asked.inputs:
        raise ExplainError(f"{type(asked.model).__name__}: {where} is laid on the picture for one picture at a time")
    side = patches(config)
    return [
        _laid(size, view.first // (view.rows * view.cols) * side**2, side, side, None, view.box) for size, view in laid
    ]


def _runs(asked: Asked) -> int:
    """Stretches of image tokens in the prompt."""
    return int((np.diff(asked.spans().image) > 1).sum()) + 1


def picture_sizes(asked: Asked, count: int) -> list[tuple[int, int]]:
    """Width and height of the question's pictures; without files ``count`` times (1, 1), a unit square."""
    sizes = []
    for path in asked.pictures:
        with opened(path) as picture:
            sizes.append(picture.size)
    return sizes or [(1, 1)] * count


def _merged(
    asked: Asked, config: Any, where: str, kind: str, laid: Sequence[tuple[tuple[int, int], View]]
) -> list[Grid]:
    """Qwen2-VL: a picture has ``h x w`` patches of its own shape, merged two by two into tokens."""
    if kind == "qwen2_5_vl":
        raise ExplainError("Qwen2.5-VL: its tower orders patches by windows, which no map here follows; use 'decoder'")
    merge = int(getattr(config.vision_config, "spatial_merge_size", 2))
    found = []
    for size, view in laid:  # patches of one token stand together
        together = np.arange(view.rows * view.cols * merge**2).reshape(view.rows, view.cols, merge, merge)
        order = together.transpose(0, 2, 1, 3).reshape(view.rows * merge, view.cols * merge)
        found.append(Grid(view.first * merge**2 + order, (0, 0, *size), size))
    return found


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
