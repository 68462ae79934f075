"""Cells on the original picture, and maps carried to them through attention; numpy only: figures need no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.models import opened


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

    Raises:
        ExplainError: a grid that is no square.
    """
    _, queries, patches = attention.shape
    side, fine = int(queries**0.5), int(patches**0.5)
    if side**2 != queries or fine**2 != patches:
        raise ExplainError(f"locality of {queries} tokens on {patches} patches: both must be squares")
    cell, patch = np.arange(side) / side, np.arange(fine) / fine
    meet = np.minimum(cell[:, None] + 1 / side, patch + 1 / fine) - np.maximum(cell[:, None], patch) > 1e-9
    return float((attention * np.kron(meet, meet)).sum(-1).mean())


def shown(path: str, longest: int) -> np.ndarray:
    """A picture's file as uint8 [h, w, 3], at most ``longest`` pixels a side."""
    with opened(path) as picture:
        small = picture.convert("RGB")
        small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        return np.asarray(small, np.uint8)
