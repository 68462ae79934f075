"""Where an answer token looks as arcs from every position, layer by layer (Fig. 1); drawn from stored rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.ask import GROUPS
from redrel_vlmeval.explain.draw.flowfigures import EDGE, LOOKS, SMALL, WIDTH, WORDS, head
from redrel_vlmeval.explain.draw.lettering import put, wrapped
from redrel_vlmeval.explain.draw.view import asked, spread
from redrel_vlmeval.explain.store import Stored

MANY = 200  # positions above which the lines lie so close that all of them make one solid fan: squares tell them apart


def arcs(stored: Stored, token: int = 0, layers: Sequence[int] | None = None, width: float = WIDTH) -> Figure:
    """Where the row that predicts an answer token looks, position by position, in a few layers (Fig. 1).

    A line joins each position (neighbours are put together where there are many) with the answer; the more attention,
    the wider and darker, on one scale for all panels. The first token's line is drawn dotted, on a scale of its own:
    as the attention sink it would else outshine all others.

    Raises:
        ExplainError: no rows in the file (a benchmark's means have none), no such token or layer.
    """
    if "flow/rows" not in stored.arrays:
        raise ExplainError(f"{stored.path or 'explanation'}: no attention rows in it; Fig. 1 is drawn of one question")
    rows = stored.arrays["flow/rows"]
    if not 0 <= token < rows.shape[1]:
        raise ExplainError(f"answer token {token + 1}: the file has {rows.shape[1]}; choose from 1")
    chosen = list(layers) if layers is not None else spread(list(range(1, len(rows) + 1)), 6)
    if wrong := [layer for layer in chosen if not 1 <= layer <= len(rows)]:
        raise ExplainError(f"layer {wrong[0]}: there are {len(rows)} blocks, choose from 1 to {len(rows)}")
    groups = _position_groups(stored)
    bins = [_binned(rows[layer - 1, token], groups) for layer in chosen]
    top = max(float(weights[names != "bos"].max(initial=0)) for weights, _, names in bins) or 1.0
    power = 2.0 if len(groups) > MANY else 1.0
    across = min(3, len(chosen))
    down = -(-len(chosen) // across)
    remarks = wrapped(_remark(top, power, "bos" in groups), width - 2 * EDGE, SMALL - 0.5, 3)
    foot = 0.36 + 0.115 * len(remarks)
    height = 0.22 + foot + down * 0.98
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False)
    for axis, layer, (weights, places, names) in zip(grid.flat, chosen, bins, strict=False):
        _arc_panel(axis, weights, places, names, top, power)
        axis.set_title(f"block {layer}", fontsize=SMALL, pad=1)
    for axis in list(grid.flat)[len(chosen) :]:
        axis.remove()
    figure.legend(
        handles=_handles(groups), loc="lower center", ncols=3, frameon=False, fontsize=SMALL, columnspacing=1.2,
        handlelength=1.4, bbox_to_anchor=(0.5, (foot - 0.36) / height),
    )  # fmt: skip
    put(figure, EDGE, foot - 0.33, remarks, SMALL - 0.5, color="#444444")
    name = stored.manifest.get("model") or ""
    title = f"{name}: {asked(stored)}\nattention of the row that predicts {stored.tokens[token]!r}"
    top = 1 - (0.21 + head(figure, title)) / height
    figure.subplots_adjust(left=0.02, right=0.98, top=top, bottom=foot / height, wspace=0.06, hspace=0.28)
    return figure


def _remark(top: float, power: float, sink: bool) -> str:
    own = "; the first token's dotted line on a scale of its own, to 1" if sink else ""
    how = ", as its square" if power != 1 else ""
    return f"the wider and darker, the more attention{how} (the widest: {top:.2g}){own}"


def _handles(groups: np.ndarray) -> list[Line2D]:
    return [
        Line2D([], [], color=LOOKS[name][0], linewidth=2, linestyle=":" if name == "bos" else "-", label=WORDS[name])
        for name in GROUPS
        if (groups == name).any()
    ]


def _position_groups(stored: Stored) -> np.ndarray:
    """The name of every position's group, from the tokens' texts and the groups' sizes."""
    tokens = stored.manifest["tokens"]
    sizes: Mapping[str, int] = stored.manifest["groups"]
    first = next(place for place, token in enumerate(tokens) if token is None)
    names = np.array(["user"] * len(tokens), dtype=object)
    names[:first] = "sys"
    if sizes.get("bos"):
        names[0] = "bos"
    names[[place for place, token in enumerate(tokens) if token is None]] = "img"
    names[len(tokens) - sizes["out"] :] = "out"
    return names


def _binned(row: np.ndarray, groups: np.ndarray, most: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(weight, place, group) of each bin of neighbouring positions of one group; at most about ``most`` bins."""
    size = max(1, -(-len(row) // most))
    weights, places, names = [], [], []
    start = 0
    while start < len(row):
        stop = start + 1
        while stop < len(row) and stop - start < size and groups[stop] == groups[start]:
            stop += 1
        weights.append(float(row[start:stop].sum()))
        places.append((start + stop - 1) / 2)
        names.append(groups[start])
        start = stop
    return np.array(weights), np.array(places), np.array(names, dtype=object)


def _arc_panel(
    axis: Axes, weights: np.ndarray, places: np.ndarray, names: np.ndarray, top: float, power: float
) -> None:
    last = float(places.max()) or 1.0
    curve = np.linspace(0, 1, 24)
    ease = curve**2 * (3 - 2 * curve)
    order = np.argsort(weights)
    shapes, colors, widths = [], [], []
    for number in order:
        share = min(1.0, weights[number] / top) ** power
        if names[number] == "bos" or share < 0.004:
            continue
        shapes.append(np.column_stack([places[number] + (last * 0.5 - places[number]) * ease, curve]))
        colors.append(to_rgba(LOOKS[names[number]][0], 0.12 + 0.83 * share))
        widths.append(0.25 + 2.6 * share)
    axis.add_collection(LineCollection(shapes, colors=colors, linewidths=widths, capstyle="round"))
    if names[0] == "bos":
        sink = np.column_stack([places[0] + (last * 0.5 - places[0]) * ease, curve])
        axis.add_collection(
            LineCollection([sink], colors=LOOKS["bos"][0], linewidths=0.3 + 2.6 * min(1.0, weights[0]), linestyles=":")
        )
    for name in dict.fromkeys(names):
        own = places[names == name]
        axis.plot(
            [own.min() - 0.5, own.max() + 0.5], [-0.045] * 2, color=LOOKS[name][0], linewidth=3, solid_capstyle="butt"
        )
    axis.plot([last * 0.5], [1.03], marker="o", color="#000000", markersize=3.5, clip_on=False)
    axis.set(xlim=(-1, last + 1), ylim=(-0.09, 1.08), xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
