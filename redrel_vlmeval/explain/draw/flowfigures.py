"""Information flow as figures: shares over the layers beside what a cut changes (Fig. 2b).

Drawn from stored arrays alone, one question's or a benchmark's means with their bootstrap bands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.ask import GROUPS, as_paper
from redrel_vlmeval.explain.draw.lettering import put, wrapped
from redrel_vlmeval.explain.draw.view import asked, said
from redrel_vlmeval.explain.store import Stored

WIDTH, EDGE, LABELS = 3.45, 0.07, 0.5  # inches: one column, the margin beside its title, the y axes' words and ticks
GROUPINGS = ("all", "paper")
WORDS = {
    "bos": "first token (sink)", "sys": "system text", "img": "image", "user": "user text", "out": "answer so far",
}  # fmt: skip
# Okabe and Ito's colours, dashes and markers besides: the image's line is the one to be found first
LOOKS: dict[str, tuple[str, Any, str]] = {
    "bos": ("#777777", (0, (1, 1.2)), "x"), "sys": ("#E69F00", (0, (5, 2)), "s"), "img": ("#0072B2", "-", "o"),
    "user": ("#D55E00", (0, (3, 1, 1, 1)), "^"), "out": ("#CC79A7", (0, (6, 1)), "D"),
}  # fmt: skip
SMALL = 6.5
# Beside the causal curve: the margin with nothing cut, from where on the curve is flat, its interval.
UNCUT: dict[str, Any] = {"color": "#555555", "linestyle": (0, (4, 2)), "linewidth": 0.8}
FLAT: dict[str, Any] = {"color": "#000000", "linestyle": ":", "linewidth": 1}
SPAN: dict[str, Any] = {"color": "#000000", "alpha": 0.12, "linewidth": 0}


@dataclass(frozen=True)
class Line:
    """A curve's heights with the ends of its interval, where there is one; all of one shape."""

    mean: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def lines(stored: Stored, groups: str | None = None) -> dict[str, Line]:
    """``attention`` and ``gradient`` [l, g] and ``causal`` [l + 1] of a file, those that it has.

    Args:
        groups: ``all`` five, or the ``paper``'s three (:func:`spans.as_paper`); None: as the file was made.

    Raises:
        ExplainError: it holds no flow, or a benchmark's means in the other groups: an interval cannot be regrouped.
    """
    found = {}
    made = stored.manifest.get("grouping", "all")
    groups = made if groups is None else groups
    check_groups(groups)
    if "flow/mean/attention" in stored.arrays and made != groups:
        raise ExplainError(
            f"{stored.path or 'explanation'}: means in groups {made!r}; for others call redrel explain flow --groups "
            f"{groups} again, which takes the questions' files that are there"
        )
    for name in ("attention", "gradient", "causal"):
        if f"flow/mean/{name}" in stored.arrays:
            low, high = (stored.arrays.get(f"flow/{part}/{name}") for part in ("low", "high"))
            found[name] = Line(stored.arrays[f"flow/mean/{name}"], low, high)
        elif f"flow/{name}" in stored.arrays:
            values = stored.arrays[f"flow/{name}"]
            values = values.mean((1, 2)) if name == "attention" else values
            found[name] = Line(as_paper(values) if groups == "paper" and name != "causal" else values)
    if "attention" not in found:
        raise ExplainError(
            f"{stored.path or 'explanation'}: no information flow in it; make it with redrel explain flow"
        )
    return found


def check_groups(groups: str) -> None:
    """Refuse an unknown grouping.

    Raises:
        ExplainError: names it and the known ones.
    """
    if groups not in GROUPINGS:
        raise ExplainError(f"--groups {groups!r}: choose one of {', '.join(GROUPINGS)}")


def curves(stored: Stored, width: float = WIDTH, groups: str | None = None) -> Figure:
    """Shares of attention and gradient by group, and the margin after a cut, over the layers (Fig. 2b and beside it).

    Raises:
        ExplainError: see :func:`lines`.
    """
    found = lines(stored, groups)
    groups = groups or stored.manifest.get("grouping", "all")
    shown = shown_groups(stored, found["attention"])
    handles: list[Line2D | Patch] = [_handle(GROUPS[number], groups) for number in shown]
    handles += _marks(flat(stored)) if "causal" in found else []
    foot = 0.1 + 0.12 * -(-len(handles) // 3)
    figure = Figure(figsize=(width, 0.58 + 1.25 * len(found) + foot))
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
    titles = {
        "attention": "attention share",
        "gradient": "gradient share",
        "causal": "margin after cut (logits)",
    }
    for axis, (name, line) in zip(axes, found.items(), strict=True):
        if name == "causal":
            _causal(axis, line, stored)
        else:
            _shares(axis, line, shown)
        _plain(axis, titles[name])
    layers = len(found["attention"].mean)
    axes[-1].set_xlabel(
        "decoder block" if "causal" not in found else "decoder block (cut: no image token after it)",
        fontsize=SMALL,
        labelpad=1,
    )
    axes[-1].set_xlim(-0.3 if "causal" in found else 0.7, layers + 0.3)
    axes[-1].xaxis.set_major_locator(MaxNLocator(9, integer=True, min_n_ticks=4))
    height = figure.get_size_inches()[1]
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=SMALL, columnspacing=1.2)
    top = head(figure, _title(stored))
    low, high = (foot + 0.3) / height, 1 - (0.16 + top) / height
    figure.subplots_adjust(left=LABELS / width, right=1 - EDGE / width, bottom=low, top=high, hspace=0.16)
    for axis in axes:  # at one place whatever the ticks' width, and never past the edge
        axis.yaxis.set_label_coords(-(LABELS - 0.17) / (width - LABELS - EDGE), 0.5)
    return figure


def shown_groups(stored: Stored, attention: Line) -> list[int]:
    """Places in :data:`GROUPS` of those that have tokens and any share of the attention."""
    sizes = stored.manifest["groups"]
    shares = np.nan_to_num(attention.mean)
    return [number for number, name in enumerate(GROUPS) if sizes.get(name) and shares[:, number].any()]


def _handle(name: str, groups: str) -> Line2D:
    color, dash, marker = LOOKS[name]
    word = "system text and first" if groups == "paper" and name == "sys" else WORDS[name]
    look: dict[str, Any] = {"color": color, "linestyle": dash, "marker": marker}
    return Line2D([], [], markersize=3, linewidth=1.1, label=word, **look)


def _marks(found: Flat) -> list[Line2D | Patch]:
    """What the legend says of the causal curve's other lines, those that are drawn."""
    marks: list[Line2D | Patch] = [Line2D([], [], label="not cut", **UNCUT)]
    if found.layer is not None:
        marks.append(Line2D([], [], label="flat from here", **FLAT))
    if found.span is not None:
        marks.append(Patch(label="its 95 % interval", **SPAN))
    return marks


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
    axis.axhline(whole, zorder=1, **UNCUT)
    axis.axhline(0, color="#bbbbbb", linewidth=0.6, zorder=0)
    found = flat(stored)
    if found.span is not None:
        axis.axvspan(*found.span, **SPAN)
    if found.layer is not None:
        axis.axvline(found.layer, **FLAT)
    layer = len(cuts) - 1 if found.layer is None else found.layer
    right = layer < 0.6 * len(cuts)
    axis.annotate(
        found.text, (layer, 0.06), xycoords=("data", "axes fraction"), xytext=(4 if right else -4, 0), fontsize=SMALL,
        textcoords="offset points", ha="left" if right else "right",
    )  # fmt: skip


@dataclass(frozen=True)
class Flat:
    """Where a causal curve goes flat, in words too; ``span``: its interval, where a benchmark's has a width.

    ``layer`` is None where the curve rises up to its end: that its last point equals the uncut margin says nothing.
    """

    layer: int | None
    span: tuple[int, int] | None
    text: str


def flat(stored: Stored) -> Flat:
    """From which layer on a stored flow is flat, and its interval for a benchmark."""
    found = stored.manifest.get("flat_from", stored.manifest.get("cliff"))  # as 0.1.0 called it
    if found is None:
        return Flat(None, None, "")
    layer, *ends = map(int, found if isinstance(found, (list, tuple)) else [found])
    if layer >= len(lines(stored)["attention"].mean):
        return Flat(None, None, "not flat before the last block")
    interval = f" ({ends[0]} to {ends[1]})" if ends else ""
    return Flat(layer, (ends[0], ends[1]) if ends and ends[1] > ends[0] else None, f"flat from {layer}{interval}")


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
        bands = "95 % bands" if "flow/low/attention" in stored.arrays else "too few pictures for bands"
        return f"{name} on {stored.manifest['benchmark']}: mean of {questions} questions, {bands}"
    return f"{name}: {asked(stored)}\nflow to the answer {said(stored)!r}"


def head(figure: Figure, title: str) -> float:
    """The title, wrapped, and how high it stands in inches."""
    width, height = figure.get_size_inches()
    lines = wrapped(title, width - 2 * EDGE, SMALL + 0.5, 3, "bold")
    put(figure, EDGE, height - 0.06, lines, SMALL + 0.5, fontweight="bold")
    return 0.12 * len(lines)
