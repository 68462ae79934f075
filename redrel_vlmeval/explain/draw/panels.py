"""What figures of explanations are drawn with: panels, a map over its picture, colours, and the file."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import IO, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.draw.lettering import DOTS
from redrel_vlmeval.explain.draw.view import STATES, Sheet, greyed
from redrel_vlmeval.explain.store import Stored
from redrel_vlmeval.files import atomically

WIDTH = 3.45  # inches: one column
EDGE, GAP, LINE = 0.06, 0.04, 0.115  # inches: margin, between panels, one line of text
SMALL, PLAIN = 6.5, 7.5  # points


def _ember() -> ListedColormap:
    """Nothing, through orange and red, to near black: darker means more, for every kind of colour vision and in grey.

    A low value is transparent, so that the picture shows where a map says nothing.
    """
    share = np.linspace(0, 1, 256)
    colors = matplotlib.colormaps["magma_r"](0.12 + 0.83 * share)
    colors[:, 3] = np.minimum(0.95, 1.5 * share**0.7)
    return ListedColormap(colors, "ember")


EMBER = _ember()


def draw_map(axis: Axes, one: Sheet, number: int, peak: float) -> None:
    """One layer over its greyed picture; dropped tokens hatched, a layer without a map hatched whole and named."""
    width, height = one.size
    draw_picture(axis, one, grey=True)
    state = one.status[number]
    axis.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    if state in ("no_gradient", "pruned"):
        axis.add_patch(_hatched(Rectangle((0, 0), width, height)))
        words = {"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.9}
        place: dict[str, Any] = {
            "ha": "center",
            "va": "center",
            "bbox": words,
            "fontsize": SMALL - 1,
            "linespacing": 1.0,
            "zorder": 5,
        }
        axis.text(width / 2, height / 2, STATES[state].replace(" ", "\n"), **place)
        return
    left, top, right, bottom = one.box
    axis.imshow(
        np.ma.masked_invalid(one.values[number]), extent=(left, right, bottom, top), cmap=EMBER, vmin=0, vmax=peak,
        interpolation="nearest", zorder=2,
    )  # fmt: skip
    axis.set(xlim=(0, width), ylim=(height, 0))
    if one.dropped[number].any():
        axis.add_patch(_hatched(PathPatch(cells(one.dropped[number], one.box))))


def targets(axis: Axes, stored: Stored, picture: int) -> None:
    """Outline what the question asks for, where its benchmark knows that."""
    for left, top, right, bottom in asked_for(stored, picture):
        for color, wide in (("#ffffff", 1.4), ("#000000", 0.6)):
            box = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=wide)
            axis.add_patch(box).set_zorder(4)


def asked_for(stored: Stored, picture: int) -> list[list[float]]:
    """Boxes (left, top, right, bottom in pixels) of what the question asks for: known of one picture's benchmarks."""
    return stored.manifest.get("targets", []) if picture == 0 else []


def cells(mask: np.ndarray, box: tuple[float, float, float, float]) -> Path:
    """One path around every true cell: a patch per cell would be thousands."""
    x = np.linspace(box[0], box[2], mask.shape[1] + 1)
    y = np.linspace(box[1], box[3], mask.shape[0] + 1)
    corners: list[tuple[float, float]] = []
    codes: list[Any] = []
    for row, column in zip(*np.nonzero(mask), strict=True):
        a, b, c, d = x[column], y[row], x[column + 1], y[row + 1]
        corners += [(a, b), (c, b), (c, d), (a, d), (a, b)]
        codes += [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    return Path(corners, codes)


def _hatched(patch: Any) -> Any:
    """Dark lines, the picture seen between them."""
    patch.set(facecolor="#0c0d1226", edgecolor="#3c3c42", hatch="/////////", linewidth=0, zorder=3)
    patch.set_hatch_linewidth(0.5)
    return patch


def draw_picture(axis: Axes, one: Sheet, grey: bool) -> None:
    """The picture; in light grey where a map is to be read over it."""
    shown = greyed(one.picture) if grey else one.picture
    smooth = "nearest" if max(one.size) < 200 else "antialiased"
    axis.imshow(shown.astype(np.uint8), extent=(0, one.size[0], one.size[1], 0), interpolation=smooth, zorder=1)


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def axes(figure: Figure, box: tuple[float, float, float, float]) -> Axes:
    """Axes at left, bottom, width, height in inches."""
    width, height = figure.get_size_inches()
    axis = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
    axis.spines[:].set(linewidth=0.4, color="#999999")
    return axis


def shape(one: Sheet) -> float:
    """Height over width of the picture, within what a panel can show."""
    return float(np.clip(one.size[1] / one.size[0], 0.4, 2.0))


def check_ending(path: FilePath) -> str:
    """``png`` or ``pdf``.

    Raises:
        ExplainError: another ending.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "pdf"):
        raise ExplainError(f"{str(path)!r}: figures are written as .png or .pdf, got the ending {path.suffix!r}")
    return kind


def save(figure: Figure, path: FilePath) -> FilePath:
    """Write a figure as .png or .pdf, whole or not at all.

    Raises:
        ExplainError: another ending. WriteError: a place that cannot be written.
    """
    kind = check_ending(path)
    facts: Any = {"CreationDate": None} if kind == "pdf" else None  # the same explanation makes the same file

    def write(stream: IO[bytes]) -> None:
        # Type 42: text stays text, and journals refuse the default, Type 3.
        with matplotlib.rc_context({"pdf.fonttype": 42}):
            figure.savefig(stream, format=kind, dpi=DOTS, metadata=facts)

    return atomically(path, write)
