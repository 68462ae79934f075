"""From image tokens to places on the original picture: grids, padding, and maps carried back through attention.

An image token is no pixel. Where a token stands on the picture is a matter of the family's preprocessing, which is
read from the inputs and the config; what it is *made of* is a matter of the tower. Qwen-VL's 256 resampler queries have
no place at all: their map goes through the resampler's attention to the 32 x 32 patches. The same can be asked for a
LLaVA, through the attention of its tower's blocks. The number :func:`locality` says how much a bare grid would be worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from redrel_vlmeval.explain.asking import Asked
from redrel_vlmeval.explain.errors import ExplainError
from redrel_vlmeval.models.llava_input import square_box
from redrel_vlmeval.models.pictures import opened

TILED = ("llava_next", "llava_onevision")
MERGED = ("qwen2_vl", "qwen2_5_vl")


@dataclass(frozen=True)
class Grid:
    """Where one picture's cells lie.

    Attributes:
        index: int [rows, cols], number of the token (or patch) of each cell among all of the question's.
        box: left, top, right, bottom of the whole grid, in pixels of the original picture; beyond it where padded.
        size: width and height of the original picture.
    """

    index: np.ndarray
    box: tuple[float, float, float, float]
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.index.shape[0]), int(self.index.shape[1])

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixel edges of the columns [cols + 1] and rows [rows + 1]."""
        left, top, right, bottom = self.box
        rows, cols = self.shape
        return np.linspace(left, right, cols + 1), np.linspace(top, bottom, rows + 1)

    def inside(self) -> np.ndarray:
        """Which cells show some of the picture and not padding alone: bool [rows, cols]."""
        across, down = self.edges()
        columns = (across[1:] > 0) & (across[:-1] < self.size[0])
        lines = (down[1:] > 0) & (down[:-1] < self.size[1])
        return lines[:, None] & columns[None]

    def cells(self, values: np.ndarray) -> np.ndarray:
        """Values of tokens [..., n] on the grid, [..., rows, cols]; padding cells are NaN."""
        laid = np.asarray(values, np.float32)[..., self.index]
        return np.where(self.inside(), laid, np.float32(np.nan))

    def picture(self, values: np.ndarray, width: int | None = None) -> np.ndarray:
        """Values of tokens [n] on the original picture, float32 [h, w], each pixel that of its cell.

        ``width``: of the result, its height in proportion; the original's own unless given.
        """
        wide = width or self.size[0]
        high = max(1, round(wide * self.size[1] / self.size[0]))
        scale = self.size[0] / wide
        left, top, right, bottom = self.box
        rows, cols = self.shape
        column = ((np.arange(wide) + 0.5) * scale - left) / (right - left) * cols
        line = ((np.arange(high) + 0.5) * scale - top) / (bottom - top) * rows
        cells = self.cells(values)
        found = cells[np.clip(line.astype(int), 0, rows - 1)][:, np.clip(column.astype(int), 0, cols - 1)]
        return np.asarray(found, np.float32)

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {"index": self.index.tolist(), "box": list(self.box), "size": list(self.size)}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Grid:
        """From the manifest."""
        return cls(np.array(found["index"]), tuple(found["box"]), tuple(found["size"]))


def grids(asked: Asked, where: str = "decoder") -> list[Grid]:
    """The grid of each picture, for maps of ``where``: ``decoder`` or ``projector`` (image tokens), ``vision`` (patches),
    or ``pixels`` (what :func:`through` gives).

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
    if kind == "internvl":
        return _last_tiles(asked, side, tokens, config, where)
    if side is None or tokens % side**2:
        raise ExplainError(
            f"{type(asked.model).__name__}: {tokens} image tokens do not fill squares of {side} x {side}; known grids: "
            "LLaVA, LLaVA-NeXT, LLaVA-OneVision, Qwen-VL, Qwen2-VL, Qwen2.5-VL, InternVL"
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
    """The overview tile of a LLaVA-NeXT or -OneVision picture, its first tokens; the finer tiles repeat what it shows."""
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


def through(values: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """Maps of tokens carried to the patches these attended to: [..., p * q] and [p, q, patches] -> [..., p * patches].

    Dropped tokens carry nothing; where all were dropped, or nothing is defined, the result is NaN.
    """
    pictures, queries, patches = attention.shape
    split = np.asarray(values, np.float32).reshape(*np.shape(values)[:-1], pictures, queries)
    moved = np.einsum("...pq,pqr->...pr", np.nan_to_num(split), attention)
    moved[np.isnan(split).all(-1)] = np.nan
    return np.asarray(moved.reshape(*moved.shape[:-2], pictures * patches), np.float32)


def locality(attention: np.ndarray) -> float:
    """The share of their attention that tokens pay to the patches of their own cell, mean over tokens, 0 to 1.

    ``attention`` is [p, q, patches], both grids square. 1: the bare grid is right; 1 / q: it says nothing.
    """
    _, queries, patches = attention.shape
    side, fine = int(queries**0.5), int(patches**0.5)
    if side**2 != queries or fine**2 != patches or fine % side:
        raise ExplainError(f"locality of {queries} tokens on {patches} patches: both must be squares, one in the other")
    step = fine // side
    own = np.arange(patches).reshape(side, step, side, step).transpose(0, 2, 1, 3).reshape(queries, step * step)
    return float(np.take_along_axis(attention, np.broadcast_to(own, (len(attention), *own.shape)), 2).sum(-1).mean())


def rollout(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Which patches a tower's tokens are made of: the product of its blocks' attention [p, s, s], rows made to sum to 1.

    A class token in front is left out.
    """
    whole = blocks[0]
    for block in blocks[1:]:
        whole = block @ whole
    side = int((whole.shape[-1] - 1) ** 0.5)
    if side**2 == whole.shape[-1] - 1 and side > 1:
        whole = whole[:, 1:, 1:]
    return whole / whole.sum(-1, keepdim=True)


def shown(path: str, longest: int) -> np.ndarray:
    """A picture's file as uint8 [h, w, 3], at most ``longest`` pixels a side."""
    with opened(path) as picture:
        small = picture.convert("RGB")
        small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        return np.asarray(small, np.uint8)
