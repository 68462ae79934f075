"""Stored maps as they lie on the pictures: grids of cells in the original picture's pixels, for figures and pages.

numpy only; what is read is :mod:`store`'s format and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from redrel_vlmeval.explain.errors import ExplainError
from redrel_vlmeval.explain.store import Stored

STATES = {"no_gradient": "no gradient", "blank": "nothing positive", "pruned": "no image token"}


@dataclass(frozen=True)
class Sheet:
    """One method's maps at one place over one picture.

    Attributes:
        layers: l layer numbers, from 1. status: their states, see :data:`gradcam.STATUS`.
        values: float32 [l, r, c] on r x c cells; NaN where a token was dropped or the cell is padding.
        box: left, top, right, bottom of all cells, in pixels of the original picture; padding lies outside of it.
        size: width and height of the original picture. picture: uint8 [h, w, 3], perhaps smaller than that.
        inside: bool [r, c], cells that show some of the picture.
    """

    where: str
    method: str
    layers: tuple[int, ...]
    status: tuple[str, ...]
    values: np.ndarray
    box: tuple[float, float, float, float]
    size: tuple[int, int]
    picture: np.ndarray
    inside: np.ndarray

    @property
    def dropped(self) -> np.ndarray:
        """bool [l, r, c]: cells of the picture that a layer which has a map holds no token for."""
        mapped = np.array([state in ("ok", "blank") for state in self.status])
        return np.isnan(self.values) & self.inside & mapped[:, None, None]

    @property
    def peak(self) -> float:
        """The highest value of any layer; 0 without one."""
        return float(np.nanmax(self.values, initial=0.0))

    def mass(self, cells: np.ndarray) -> np.ndarray:
        """[l] share of each map's sum that lies on ``cells`` (bool [r, c]); NaN where a layer has no map."""
        total = np.nansum(self.values, axis=(1, 2))
        inside = np.nansum(np.where(cells, self.values, 0), axis=(1, 2))
        return np.divide(inside, total, out=np.full(len(total), np.nan), where=total > 0)

    def middle(self, cell: int) -> tuple[float, float]:
        """Where in the original picture a cell, numbered along the rows, has its middle: x, y in pixels."""
        left, top, right, bottom = self.box
        rows, columns = self.inside.shape
        row, column = divmod(cell, columns)
        return left + (column + 0.5) * (right - left) / columns, top + (row + 0.5) * (bottom - top) / rows

    def at(self, layers: Sequence[int]) -> Sheet:
        """Only these layers.

        Raises:
            ExplainError: one is not there.
        """
        if missing := [layer for layer in layers if layer not in self.layers]:
            raise ExplainError(f"layer {missing[0]} of {self.where}/{self.method}: there are {_several(self.layers)}")
        keep = [self.layers.index(layer) for layer in layers]
        status = tuple(self.status[place] for place in keep)
        return replace(self, layers=tuple(layers), status=status, values=self.values[keep])


def pairs(stored: Stored) -> list[tuple[str, str]]:
    """(where, method) of all maps of a file, in the order they were made."""
    return [(name.partition("/")[0], name.partition("/")[2]) for name in stored.manifest.get("maps", {})]


def sheet(stored: Stored, where: str, method: str, token: int | None = None, picture: int = 0) -> Sheet:
    """The maps of one answer token (from 0; None: mean over all of them) on one of the question's pictures.

    Raises:
        ExplainError: no such maps, token or picture in the file, or maps that no grid is known for.
    """
    values = stored.maps(where, method)
    carried = stored.arrays.get(f"pixels/{where}/{method}")  # tokens that are no places: on the patches they attended to
    values, grids = (values, where) if carried is None else (carried, "pixels")
    status = stored.status(where, method)
    if token is not None and not 0 <= token < len(values):
        raise ExplainError(f"answer token {token + 1}: the file has maps of {len(values)}; choose from 1")
    grid = _grid(stored, grids, picture)
    size = (int(grid["size"][0]), int(grid["size"][1]))
    index = np.array(grid["index"])
    one = values[..., index]
    inside = _inside(grid["box"], *index.shape, size)
    chosen = _mean(one) if token is None else one[token]
    states = _together(status) if token is None else status[token]
    mapped = np.array([state in ("ok", "blank") for state in states])
    chosen = np.where(inside & mapped[:, None, None], chosen, np.nan).astype(np.float32)
    shown = stored.arrays.get(f"picture/{picture}", np.full((1, 1, 3), 255, np.uint8))
    layers = tuple(stored.layers(where, method))
    return Sheet(where, method, layers, tuple(states), chosen, tuple(grid["box"]), size, shown, inside)


def _grid(stored: Stored, where: str, picture: int) -> dict[str, Any]:
    """A picture's grid as the manifest has it, see :class:`pixels.Grid`.

    Raises:
        ExplainError: there is none, or no such picture.
    """
    known = stored.manifest.get("grids", {}).get(where, [])
    if not 0 <= picture < len(known):
        raise ExplainError(f"picture {picture + 1}: the maps of {where} lie on {len(known)}; choose from 1")
    return dict(known[picture])


def _inside(box: Sequence[float], rows: int, columns: int, size: tuple[int, int]) -> np.ndarray:
    """bool [rows, columns]: which cells of ``box`` overlap a picture of ``size`` by more than rounding."""
    left, top, right, bottom = box
    x, y = np.linspace(left, right, columns + 1), np.linspace(top, bottom, rows + 1)
    slack = 1e-3 * max(size)
    across = (x[1:] > slack) & (x[:-1] < size[0] - slack)
    down = (y[1:] > slack) & (y[:-1] < size[1] - slack)
    return np.logical_and.outer(down, across)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is there; NaN where nothing is."""
    known = np.isfinite(values)
    count = known.sum(0)
    total = np.where(known, values, 0).sum(0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _together(status: list[list[str]]) -> list[str]:
    """Each layer's state over all answer tokens: ``ok`` if it is so for one."""
    return ["ok" if "ok" in states else states[0] for states in zip(*status, strict=True)]


def shared_peak(sheets: Sequence[Sheet]) -> float:
    """The highest value of all of them, at least a number that can be divided by."""
    return max([one.peak for one in sheets] + [np.finfo(np.float32).tiny])


def spread(layers: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of the layers, the first and the last among them, evenly spread."""
    if len(layers) <= most:
        return list(layers)
    return [layers[round(place * (len(layers) - 1) / (most - 1))] for place in range(most)]


def _several(numbers: Sequence[int]) -> str:
    whole = list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]} to {numbers[-1]}" if whole and len(numbers) > 2 else ", ".join(map(str, numbers))


def said(stored: Stored) -> str:
    """The answer explained, as one text."""
    return "".join(stored.tokens).strip() or stored.manifest.get("reply", "")
