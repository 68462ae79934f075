"""Stored maps as they lie on the pictures: grids of cells in the original picture's pixels, for figures and pages.

numpy only; what is read is :mod:`store`'s format and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.maps import Grid
from redrel_vlmeval.explain.store import ROW, Stored

STATES = {"no_gradient": "no gradient", "blank": "nothing positive", "pruned": "no image token"}
QUANTITIES = {
    "elementwise": "gradient × activation", "gradcam": "Grad-CAM", "attn": "attention, mean over heads",
    "attn_grad": "attention × gradient", "gradcam_official": "published code's Grad-CAM",
    "attn_row": "attention, mean over heads",
}  # fmt: skip
VEIL = 0.65  # share of white over a picture that a map is to be read over


@dataclass(frozen=True)
class Sheet:
    """One method's maps at one place over one picture.

    Attributes:
        layers: l layer numbers, from 1. status: their states, see :data:`gradcam.STATUS`.
        values: float32 [l, r, c] on the grid's cells; NaN where a token was dropped or the cell is padding.
        grid: where the cells lie. picture: uint8 [h, w, 3], perhaps smaller than the original.
    """

    where: str
    method: str
    layers: tuple[int, ...]
    status: tuple[str, ...]
    values: np.ndarray
    grid: Grid
    picture: np.ndarray

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of all cells, in pixels of the original picture; padding lies outside of it."""
        return self.grid.box

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the original picture."""
        return self.grid.size

    @property
    def dropped(self) -> np.ndarray:
        """bool [l, r, c]: cells of the picture that a layer which has a map holds no token for."""
        mapped = np.array([state in ("ok", "blank") for state in self.status])
        return np.asarray(np.isnan(self.values) & self.grid.inside() & mapped[:, None, None])

    @property
    def peak(self) -> float:
        """The highest value of any layer; 0 without one."""
        return float(np.nanmax(self.values, initial=0.0))

    def middle(self, cell: int) -> tuple[float, float]:
        """Where in the original picture a cell, numbered along the rows, has its middle: x, y in pixels."""
        x, y = self.grid.edges()
        row, column = divmod(cell, self.grid.shape[1])
        return float(x[column] + x[column + 1]) / 2, float(y[row] + y[row + 1]) / 2

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
    carried = stored.arrays.get(f"pixels/{where}/{method}")  # tokens that have no place of their own
    values, grids = (values, where) if carried is None else (carried, "pixels")
    status = stored.status(where, method)
    if token is not None and not 0 <= token < len(values):
        raise ExplainError(f"answer token {token + 1}: the file has maps of {len(values)}; choose from 1")
    grid = _grid(stored, grids, picture)
    one = grid.cells(values)
    chosen = mean_known(one) if token is None else one[token]
    states = _together(status) if token is None else status[token]
    mapped = np.array([state in ("ok", "blank") for state in states])
    chosen = np.where(mapped[:, None, None], chosen, np.nan).astype(np.float32)
    shown = stored.arrays.get(f"picture/{picture}", np.full((1, 1, 3), 255, np.uint8))
    return Sheet(where, method, tuple(stored.layers(where, method)), tuple(states), chosen, grid, shown)


def _grid(stored: Stored, where: str, picture: int) -> Grid:
    """A picture's grid, from the manifest.

    Raises:
        ExplainError: there is none, or no such picture.
    """
    known = stored.manifest.get("grids", {}).get(where, [])
    if not 0 <= picture < len(known):
        raise ExplainError(f"picture {picture + 1}: the maps of {where} lie on {len(known)}; choose from 1")
    return Grid.from_json(known[picture])


def mean_known(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is there; NaN where nothing is."""
    known = np.isfinite(values)
    count = known.sum(0)
    total = np.where(known, values, 0).sum(0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _together(status: list[list[str]]) -> list[str]:
    """Each layer's state over all answer tokens: ``ok`` if it is so for one."""
    return ["ok" if "ok" in states else states[0] for states in zip(*status, strict=True)]


def quantity(stored: Stored, where: str, method: str) -> str:
    """What a map's numbers are: ``gradient × activation; logit; SmoothGrad 16; carried to patches``."""
    request = (stored.manifest.get("provenance") or {}).get("request") or {}
    parts = [QUANTITIES.get(method, method)]
    if method == ROW and stored.manifest.get("row"):
        parts[0] = f"attention of the row {stored.manifest['row']['tokens'].strip()!r}, mean over heads"
    if method not in ("attn", ROW) and stored.manifest.get("objective"):
        parts.append(str(stored.manifest["objective"]))
    if request.get("smooth") and method != ROW:
        parts.append(f"SmoothGrad {request['smooth']}")
    if f"pixels/{where}/{method}" in stored.arrays:
        parts.append("carried to patches")
    return "; ".join(parts)


def greyed(picture: np.ndarray) -> np.ndarray:
    """A picture [..., 3] in light grey, as it stands under a map; weights and veil are those of the page."""
    light = picture.astype(float) @ np.array([[0.2126], [0.7152], [0.0722]])
    return np.repeat(255 * VEIL + (1 - VEIL) * light, 3, axis=-1)


def ground(picture: np.ndarray) -> np.ndarray:
    """[3] the mean colour of a picture, from 0 to 255: what a colour scale stands on."""
    return np.asarray(picture.reshape(-1, 3).mean(0, dtype=float))


def shared_peak(sheets: Sequence[Sheet]) -> float:
    """The highest value of all of them, at least a number that can be divided by."""
    return max([one.peak for one in sheets] + [float(np.finfo(np.float32).tiny)])


def spread(layers: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of the layers, the first and the last among them, evenly spread."""
    if len(layers) <= most:
        return list(layers)
    return [layers[round(place * (len(layers) - 1) / (most - 1))] for place in range(most)]


def _several(numbers: Sequence[int]) -> str:
    whole = list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]} to {numbers[-1]}" if whole and len(numbers) > 2 else ", ".join(map(str, numbers))


def asked(stored: Stored, most: int = 90) -> str:
    """The question in one line: its first, with the benchmark's name for it; of a benchmark's means nothing."""
    lines = str(stored.manifest.get("question") or "").strip().splitlines()
    line = lines[0] if lines else ""
    line = line if len(line) <= most else f"{line[: most - 1].rstrip()}…"
    index = stored.manifest.get("index")
    return f"{line} ({stored.manifest.get('benchmark')} {index})" if line and index else line


def said(stored: Stored) -> str:
    """The answer explained, as one text."""
    return "".join(stored.tokens).strip() or stored.manifest.get("reply", "")
