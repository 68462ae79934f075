"""Information flow as figures: shares over the layers beside what a cut changes (Fig. 2b), arcs to the answer (Fig. 1).

Drawn from stored arrays alone, one question's or a benchmark's means with their bootstrap bands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from redrel_vlmeval.explain.errors import ExplainError
from redrel_vlmeval.explain.lettering import put, wrapped
from redrel_vlmeval.explain.store import Stored
from redrel_vlmeval.explain.view import said, spread

WIDTH, EDGE = 3.45, 0.07  # inches: one column, and the margin beside its title
GROUPS = ("bos", "sys", "img", "user", "out")  # spans.GROUPS; a test holds them equal
WORDS = {
    "bos": "first token (sink)", "sys": "system text", "img": "image", "user": "user text", "out": "answer so far",
}  # fmt: skip
# Okabe and Ito's colours, dashes and markers besides: the image's line is the one to be found first
LOOKS: dict[str, tuple[str, Any, str]] = {
    "bos": ("#777777", (0, (1, 1.2)), "x"), "sys": ("#E69F00", (0, (5, 2)), "s"), "img": ("#0072B2", "-", "o"),
    "user": ("#D55E00", (0, (3, 1, 1, 1)), "^"), "out": ("#CC79A7", (0, (6, 1)), "D"),
}  # fmt: skip
SMALL = 6.5


@dataclass(frozen=True)
class Line:
    """A curve's heights with the ends of its interval, where there is one; all of one shape."""

    mean: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def lines(stored: Stored) -> dict[str, Line]:
    """``attention`` and ``gradient`` [l, g] and ``causal`` [l + 1] of a file, those that it has.

    Raises:
        ExplainError: it holds no flow.
    """
    found = {}
    for name in ("attention", "gradient", "causal"):
        if f"flow/mean/{name}" in stored.arrays:
            found[name] = Line(*(stored.arrays[f"flow/{part}/{name}"] for part in ("mean", "low", "high")))
        elif f"flow/{name}" in stored.arrays:
            values = stored.arrays[f"flow/{name}"]
            found[name] = Line(values.mean((1, 2)) if name == "attention" else values)
    if "attention" not in found:
        raise ExplainError(
            f"{stored.path or 'explanation'}: no information flow in it; make it with redrel explain flow"
        )
    return found


def curves(stored: Stored, width: float = WIDTH) -> Figure:
    """Shares of attention and gradient by group, and the margin after a cut, over the layers (Fig. 2b and beside it).

    Raises:
        ExplainError: the file holds no flow.
    """
    found = lines(stored)
    sizes, shares = stored.manifest["groups"], found["attention"].mean
    groups = [number for number, name in enumerate(GROUPS) if sizes.get(name) and shares[:, number].any()]
    figure = Figure(figsize=(width, 0.62 + 1.25 * len(found) + 0.3))
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
    titles = {
        "attention": "share of attention",
        "gradient": "share of gradient",
        "causal": "margin after a cut (logits)",
    }
    for axis, (name, line) in zip(axes, found.items(), strict=True):
        if name == "causal":
            _causal(axis, line, stored)
        else:
            _shares(axis, line, groups)
        _plain(axis, titles[name])
    layers = len(found["attention"].mean)
    axes[-1].set_xlabel(
        "decoder block" if "causal" not in found else "decoder block (cut: no image token after it)",
        fontsize=SMALL,
        labelpad=1,
    )
    axes[-1].set_xlim(-0.3 if "causal" in found else 0.7, layers + 0.3)
    axes[-1].xaxis.set_major_locator(MaxNLocator(9, integer=True, min_n_ticks=4))
    handles = [Line2D([], [], color=LOOKS[GROUPS[n]][0], linestyle=LOOKS[GROUPS[n]][1], marker=LOOKS[GROUPS[n]][2],
                      markersize=3, linewidth=1.1, label=WORDS[GROUPS[n]]) for n in groups]  # fmt: skip
    height = figure.get_size_inches()[1]
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=SMALL, columnspacing=1.2)
    top = _head(figure, _title(stored))
    figure.tight_layout(rect=(0, 0.34 / height, 1, 1 - (0.08 + top) / height), h_pad=0.5, pad=0.3)
    figure.align_ylabels(list(axes))
    return figure


def _shares(axis: Axes, line: Line, groups: Sequence[int]) -> None:
    layers = np.arange(1, len(line.mean) + 1)
    every = max(1, len(layers) // 8)
    for number in groups:
        color, dash, marker = LOOKS[GROUPS[number]]
        if line.low is not None and line.high is not None:
            axis.fill_between(layers, line.low[:, number], line.high[:, number], color=color, alpha=0.22, linewidth=0)
        axis.plot(
            layers,
            line.mean[:, number],
            color=color,
            linestyle=dash,
            marker=marker,
            markersize=3,
            markevery=every,
            linewidth=1.1,
        )
    axis.set_ylim(-0.02, 1.02)
    axis.set_yticks([0, 0.5, 1])


def _causal(axis: Axes, line: Line, stored: Stored) -> None:
    """The margin when no block after L sees the picture, the untouched margin, and from where on both are alike."""
    cuts, whole = np.arange(len(line.mean)), float(line.mean[-1])
    if line.low is not None and line.high is not None:
        axis.fill_between(cuts, line.low, line.high, color="#009E73", alpha=0.22, linewidth=0)
    axis.plot(
        cuts, line.mean, color="#009E73", marker="o", markersize=3, markevery=max(1, len(cuts) // 8), linewidth=1.2
    )
    axis.axhline(whole, color="#555555", linestyle=(0, (4, 2)), linewidth=0.8, zorder=1)
    axis.axhline(0, color="#bbbbbb", linewidth=0.6, zorder=0)
    layer, low, high = _cliff(stored)
    if layer is None:
        return
    if low is not None and high is not None and high > low:
        axis.axvspan(low, high, color="#000000", alpha=0.07, linewidth=0)
    axis.axvline(layer, color="#000000", linestyle=":", linewidth=1)
    right = layer < 0.6 * len(cuts)
    text = f"cliff: {layer}" + ("" if low is None else f" ({low} to {high})")
    axis.annotate(
        text, (layer, 0.06), xycoords=("data", "axes fraction"), xytext=(4 if right else -4, 0), fontsize=SMALL,
        textcoords="offset points", ha="left" if right else "right",
    )  # fmt: skip


def _cliff(stored: Stored) -> tuple[int | None, int | None, int | None]:
    """The cliff layer, and its interval for a benchmark."""
    cliff = stored.manifest.get("cliff")
    if isinstance(cliff, (list, tuple)):
        return int(cliff[0]), int(cliff[1]), int(cliff[2])
    return (None if cliff is None else int(cliff)), None, None


def arcs(stored: Stored, token: int = 0, layers: Sequence[int] | None = None, width: float = WIDTH) -> Figure:
    """Where the row that predicts an answer token looks, position by position, in a few layers (Fig. 1).

    A line joins each position (neighbours are put together where there are many) with the answer; the more attention,
    the wider and darker, on one scale for all panels. The first token's line is drawn dashed: as the attention sink it
    would else outshine all others.

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
    across = min(3, len(chosen))
    down = -(-len(chosen) // across)
    height = 0.58 + down * 0.98
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False)
    for axis, layer, (weights, places, names) in zip(grid.flat, chosen, bins, strict=False):
        _arc_panel(axis, weights, places, names, top)
        axis.set_title(f"block {layer}", fontsize=SMALL, pad=1)
    for axis in list(grid.flat)[len(chosen) :]:
        axis.remove()
    present = [name for name in GROUPS if (groups == name).any()]
    handles = [
        Line2D([], [], color=LOOKS[n][0], linewidth=2, linestyle=":" if n == "bos" else "-", label=WORDS[n])
        for n in present
    ]
    figure.legend(
        handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=SMALL, columnspacing=1.2, handlelength=1.4
    )
    name = stored.manifest.get("model") or ""
    top = 1 - (0.21 + _head(figure, f"{name}: attention of the row that predicts {stored.tokens[token]!r}")) / height
    figure.subplots_adjust(left=0.02, right=0.98, top=top, bottom=0.36 / height, wspace=0.06, hspace=0.28)
    return figure


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


def _binned(row: np.ndarray, groups: np.ndarray, most: int = 90) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


def _arc_panel(axis: Axes, weights: np.ndarray, places: np.ndarray, names: np.ndarray, top: float) -> None:
    last = float(places.max()) or 1.0
    curve = np.linspace(0, 1, 24)
    ease = curve**2 * (3 - 2 * curve)
    order = np.argsort(weights)
    shapes, colors, widths = [], [], []
    for number in order:
        share = min(1.0, weights[number] / top)
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


def _plain(axis: Axes, title: str) -> None:
    axis.set_ylabel(title, fontsize=SMALL, labelpad=2)
    axis.tick_params(labelsize=SMALL, length=2, pad=1.5)
    axis.grid(True, color="#e8e8e8", linewidth=0.5)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _title(stored: Stored) -> str:
    name = stored.manifest.get("model") or ""
    questions = stored.manifest.get("questions")
    if questions:
        return f"{name} on {stored.manifest['benchmark']}: mean of {questions} questions, 95 % bands"
    return f"{name}: flow to the answer {said(stored)!r}"


def _head(figure: Figure, title: str) -> float:
    """The title, wrapped, and how high it stands in inches."""
    width, height = figure.get_size_inches()
    lines = wrapped(title, width - 2 * EDGE, SMALL + 0.5, 3, "bold")
    put(figure, EDGE, height - 0.06, lines, SMALL + 0.5, fontweight="bold")
    return 0.12 * len(lines)
