"""Maps as figures: a panel for each layer on one colour scale (Figs. 3 and 4), rows to compare (Figs. 8 and 9).

Made for one column of a paper: text is as large there as it is said to be here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.draw.lettering import put, wrapped
from redrel_vlmeval.explain.draw.panels import (
    EDGE,
    EMBER,
    GAP,
    LINE,
    PLAIN,
    SMALL,
    WIDTH,
    asked_for,
    axes,
    draw_map,
    draw_picture,
    new_figure,
    shape,
    targets,
)  # fmt: skip
from redrel_vlmeval.explain.draw.view import STATES, Sheet, greyed, ground, quantity, said, shared_peak, sheet, spread
from redrel_vlmeval.explain.store import Stored

SCALES = ("shared", "layer")
NAMES = {"decoder": "decoder block", "vision": "vision block", "projector": "projector"}


def grid(
    stored: Stored, where: str, method: str, *, token: int | None = None, picture: int = 0,
    layers: Sequence[int] | None = None, scale: str = "shared", width: float = WIDTH,
) -> Figure:  # fmt: skip
    """A panel for each layer of one method, under the picture with its question and answer (Figs. 3 and 4).

    Args:
        token: answer token from 0; None for the whole answer. scale: ``shared`` by all panels, or each ``layer``'s own.
        width: of the figure, in inches.

    Raises:
        ExplainError: nothing such in the file, or an unknown scale.
    """
    _check(scale)
    one = sheet(stored, where, method, token, picture)
    one = one if layers is None else one.at(layers)
    across = min(len(one.layers), 4 if len(one.layers) <= 8 else 6 if len(one.layers) <= 12 else 8)
    side = (width - 2 * EDGE + GAP) / max(across, 4)
    title = LINE * (2.2 if scale == "layer" else 1.15)
    tall = (side - GAP) * shape(one) + GAP + title
    texts = _head_lines(stored, width)
    words = "one scale for all panels" if scale == "shared" else "each panel from 0 to its own highest"
    remarks = _remarks([one], width, bool(asked_for(stored, picture)), quantity(stored, where, method), words)
    head = max(0.28 * width * shape(one), 0.2 + LINE * len(texts)) + 0.12
    height = head + ceil(len(one.layers) / across) * tall + _foot(remarks, scale)
    figure = new_figure(width, height)
    _head(figure, one, f"{method}, {NAMES[where]}s", texts)
    targets(figure.axes[0], stored, picture)
    for number, layer in enumerate(one.layers):
        row, column = divmod(number, across)
        bottom = height - head - (row + 1) * tall + GAP
        axis = axes(figure, (EDGE + column * side, bottom, side - GAP, tall - GAP - title))
        peak = shared_peak([one]) if scale == "shared" else shared_peak([one.at([layer])])
        draw_map(axis, one, number, peak)
        targets(axis, stored, picture)
        axis.set_title(_heading(one, number, scale, peak), fontsize=SMALL, pad=1.5, linespacing=1.0)
    _key(figure, [one], remarks, scale)
    return figure


def rows(
    many: Sequence[Stored], labels: Sequence[str], where: str, method: str, *, token: int | None = None,
    picture: int = 0, layers: Sequence[int] | None = None, scale: str = "shared", width: float = WIDTH, most: int = 8,
    notes: Sequence[Mapping[int, str]] | None = None,
) -> Figure:  # fmt: skip
    """A row of panels for each explanation, all on one colour scale: prompts (Fig. 8), before and after (Fig. 9).

    Args:
        labels: what each row is, its text above the row. layers: columns; ``most`` evenly spread ones if not given.
        scale: ``shared`` by all panels of all rows, or by each ``layer`` (one column).
        notes: for each row, layer -> words under its panel: the share on kept tokens.

    Raises:
        ExplainError: nothing such in a file, or an unknown scale.
    """
    _check(scale)
    sheets = [sheet(stored, where, method, token, picture) for stored in many]
    chosen = list(layers) if layers is not None else spread(sheets[0].layers, most)
    sheets = [one.at(chosen) for one in sheets]
    side = (width - 2 * EDGE + GAP) / max(len(chosen), 4)
    texts = [wrapped(label, width - 2 * EDGE, SMALL, 4) for label in labels]
    panel = (side - GAP) * max(map(shape, sheets))
    tall = panel + GAP + (LINE if notes else 0)
    words = "one scale for all panels" if scale == "shared" else "each column from 0 to its own highest"
    words += "; %: share on the kept tokens" if notes else ""
    outlined = any(asked_for(one, picture) for one in many)
    remarks = _remarks(sheets, width, outlined, f"{quantity(many[0], where, method)}; {NAMES[where]}s", words)
    height = 0.06 + sum(tall + LINE * (len(text) + 1.2) for text in texts) + _foot(remarks, scale)
    figure = new_figure(width, height)
    top = height - 0.06
    for row, (one, text) in enumerate(zip(sheets, texts, strict=True)):
        put(figure, EDGE, top, text, SMALL)
        top -= LINE * (len(text) + 1.2)
        for number, layer in enumerate(chosen):
            axis = axes(figure, (EDGE + number * side, top - panel, side - GAP, panel))
            peak = shared_peak(sheets if scale == "shared" else [other.at([layer]) for other in sheets])
            draw_map(axis, one, number, peak)
            targets(axis, many[row], picture)
            axis.set_title(f"{layer}", fontsize=SMALL, pad=1.5)
            if notes:
                axis.set_xlabel(notes[row].get(layer, ""), fontsize=SMALL - 0.5, labelpad=1.5)
        top -= tall
    _key(figure, sheets, remarks, scale)
    return figure


def _beside(width: float) -> float:
    """Inches from the left edge at which the text beside the picture begins."""
    return EDGE + 0.28 * width + 0.1


def _head_lines(stored: Stored, width: float) -> list[str]:
    """Model, answer and question, wrapped to stand beside the picture."""
    model, question = (str(stored.manifest.get(name) or "") for name in ("model", "question"))
    right = stored.manifest.get("right")
    answer = f"answer: {said(stored)!r}" + (f"; right: {right!r}" if right else "")
    parts = ((model, 2), (answer, 2), (question, 6))
    return [line for text, most in parts for line in wrapped(text, width - EDGE - _beside(width), SMALL, most)]


def _head(figure: Figure, one: Sheet, title: str, texts: list[str]) -> None:
    """The picture itself and, beside it, what is drawn and of what."""
    width, height = figure.get_size_inches()
    wide = 0.28 * width
    axis = axes(figure, (EDGE, height - EDGE - wide * shape(one), wide, wide * shape(one)))
    draw_picture(axis, one, grey=False)
    axis.set(xticks=[], yticks=[])
    bold = wrapped(title, width - EDGE - _beside(width), PLAIN, 1, "bold")
    put(figure, _beside(width), height - EDGE, bold, PLAIN, fontweight="bold")
    put(figure, _beside(width), height - EDGE - 0.16, texts, SMALL)


def _remarks(sheets: Sequence[Sheet], width: float, marked: bool, *parts: str) -> list[str]:
    """The lines at the foot: what is drawn, its scale, and what hatching and outlines stand for where there are any."""
    states = {state for one in sheets for state in one.status}
    present = ["token dropped"] if any(one.dropped.any() for one in sheets) else []
    present += [STATES[state] for state in ("no_gradient", "pruned") if state in states]
    hatched = [f"hatched: {' or '.join(present)}"] if present else []
    outlined = ["outlined: what the question asks for"] if marked else []
    return wrapped("; ".join([*parts, *hatched, *outlined]), width - 2 * EDGE, SMALL - 0.5, 4)


def _foot(remarks: Sequence[str], scale: str) -> float:
    """Inches that remarks take, and the colour scale above them where one is shared."""
    return LINE * len(remarks) + (0.28 if scale == "shared" else 0.08)


def _key(figure: Figure, sheets: Sequence[Sheet], remarks: list[str], scale: str) -> None:
    """The remarks at the foot and, where the panels share one, the colour scale above them."""
    width, _ = figure.get_size_inches()
    above = LINE * len(remarks)
    put(figure, EDGE, above, remarks, SMALL - 0.5, color="#444444")
    if scale != "shared":
        return
    axis = axes(figure, (EDGE, above + 0.14, width - 2 * EDGE - 0.12, 0.07))
    peak = shared_peak(sheets)
    shades = ScalarMappable(Normalize(0, peak), _over(np.mean([greyed(ground(one.picture)) for one in sheets], axis=0)))
    bar = figure.colorbar(shades, cax=axis, orientation="horizontal")
    axis.tick_params(labelsize=SMALL - 0.5, length=1.5, pad=1, width=0.4)
    ticks = [
        tick for tick in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(0, peak) if 0 <= tick <= peak * (1 + 1e-6)
    ]
    bar.set_ticks(ticks, labels=[f"{tick:.3g}" for tick in ticks])
    bar.outline.set_linewidth(0.4)  # type: ignore[operator]


def _over(under: np.ndarray) -> ListedColormap:
    """The map's colours as they look over a panel's grey [3], 0 to 255: they let it through."""
    colors = EMBER(np.arange(EMBER.N))
    return ListedColormap(colors[:, :3] * colors[:, 3:] + under / 255 * (1 - colors[:, 3:]), "ember over grey")


def _heading(one: Sheet, number: int, scale: str, peak: float) -> str:
    own = f"\nto {peak:.2g}" if scale == "layer" and one.status[number] == "ok" else ""
    blank = " (blank)" if one.status[number] == "blank" else ""
    return f"{one.layers[number]}{blank}{own}"


def _check(scale: str) -> None:
    if scale not in SCALES:
        raise ExplainError(f"scale {scale!r}: choose one of {', '.join(SCALES)}")
