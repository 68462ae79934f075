"""Which visual tokens rules keep of one picture: a panel each, kept cells in their own colours, the rest grey."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch

from redrel_vlmeval.explain.draw.lettering import put, wrapped
from redrel_vlmeval.explain.draw.panels import (
    EDGE,
    GAP,
    LINE,
    PLAIN,
    SMALL,
    axes,
    cells,
    check_ending,
    new_figure,
    save,
)  # fmt: skip
from redrel_vlmeval.explain.draw.view import greyed
from redrel_vlmeval.explain.maps import Grid

__all__ = ["Panel", "check", "panels", "save"]
WIDTH, ACROSS = 7.1, 8  # inches: both columns; panels in a line


@dataclass(frozen=True)
class Panel:
    """The cells that a rule keeps, bool [rows, columns] of the grid; None where it was refused."""

    rule: str
    kept: np.ndarray | None
    control: bool = False


def check(path: Path) -> None:
    """Refuse a file that no figure can be written to.

    Raises:
        ExplainError: names the endings that can be.
    """
    check_ending(path)


def panels(
    picture: np.ndarray, grid: Grid, found: Sequence[Panel], head: Sequence[str], width: float = WIDTH
) -> Figure:
    """The picture (uint8 [h, w, 3]) by itself, then a panel per rule; ``head`` are lines above them."""
    across = min(ACROSS, len(found) + 1)
    wide = (width - 2 * EDGE - (across - 1) * GAP) / across
    high = wide * float(np.clip(grid.size[1] / grid.size[0], 0.4, 2.0))
    lines = [line for text in head for line in wrapped(text, width - 2 * EDGE, PLAIN, 2)]
    step = high + LINE + 3 * GAP
    top = 2 * EDGE + len(lines) * 1.25 * LINE
    figure = new_figure(width, top + ceil((len(found) + 1) / across) * step + EDGE)
    height = figure.get_size_inches()[1]
    put(figure, EDGE, height - EDGE, lines, PLAIN)
    plain = Panel("the picture", np.ones(grid.shape, bool))
    for number, one in enumerate([plain, *found]):
        row, column = divmod(number, across)
        left, bottom = EDGE + column * (wide + GAP), height - top - row * step - high - LINE
        axis = axes(figure, (left, bottom, wide, high))
        axis.set(xlim=(0, grid.size[0]), ylim=(grid.size[1], 0), xticks=[], yticks=[], aspect="auto")
        extent = (0, grid.size[0], grid.size[1], 0)
        if number:
            axis.imshow(greyed(picture).astype(np.uint8), extent=extent, aspect="auto", zorder=1)
        if one.kept is None:
            axis.text(0.5, 0.5, "refused", ha="center", va="center", fontsize=SMALL, transform=axis.transAxes, zorder=3)
        else:
            own = axis.imshow(picture, extent=extent, aspect="auto", zorder=2)
            if number:
                around = PathPatch(cells(one.kept, grid.box), facecolor="none", edgecolor="#00000055", linewidth=0.3)
                axis.add_patch(around).set_zorder(3)
                own.set_clip_path(around)
        axis.set_title(one.rule, fontsize=SMALL, pad=2, style="italic" if one.control else "normal")
    return figure
