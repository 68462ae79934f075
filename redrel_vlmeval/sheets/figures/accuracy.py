"""Figures from data frames, matplotlib only; reads no result file, needs no display."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import IO, Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.files import atomically
from redrel_vlmeval.sheets.figures import looks

RING = "ring"
# Points that lines stand apart sideways, all of them together at most the second number: equal scores stay visible.
STEP, SPREAD = 2.4, 12.0
NEEDED = ("L", "K", "value")


def accuracy_against_keep(
    frame: pd.DataFrame, baseline: float | Mapping[str, float] | None, path: str | Path, title: str
) -> Path:
    """Draws accuracy (points) against image tokens kept K, one line per layer L (the paper's Fig. 6); returns ``path``.

    Args:
        frame: columns L, K, value; optional rule (line style), n, and category ('' or missing: all questions). Each
            category gets a panel of its own after the one of all questions. Optional low and high (points): the ends
            of each score's 95 % interval, drawn as whiskers.
        baseline: score without truncation, dashed; by category where a mapping is given ('' for all questions).
        path: PNG or SVG file; it appears whole or not at all.
        title: heading above all panels.

    Raises:
        ValueError: a column is missing, there is nothing to draw, or ``path`` is neither .png nor .svg.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".svg"):
        raise InvalidValue(f"{str(path)!r}: figures are written as .png or .svg, got the ending {path.suffix!r}")
    if missing := [name for name in NEEDED if name not in frame]:
        got = ", ".join(map(str, frame.columns))
        raise InvalidValue(f"column {', '.join(missing)} missing: need {', '.join(NEEDED)}, got {got}")
    frame = _complete(frame)
    if frame.empty:
        raise InvalidValue("nothing to draw: no row with L, K and value")
    bases = dict(baseline) if isinstance(baseline, Mapping) else {} if baseline is None else {"": float(baseline)}
    figure = _draw(frame, bases, title)
    return save(figure, path)


def save(figure: Figure, path: str | Path) -> Path:
    """Writes what the ending says, whole or not at all; the same numbers give the same file, without a date in it."""
    kind = Path(path).suffix.lower().removeprefix(".")
    meta = {"Date": None} if kind == "svg" else None

    def write(stream: IO[bytes]) -> None:
        with rc_context({"svg.hashsalt": "redrel"}):  # or names of parts would be drawn by chance
            figure.savefig(stream, dpi=150, format=kind, metadata=meta)

    return atomically(path, write)


def _complete(frame: pd.DataFrame) -> pd.DataFrame:
    found = frame.dropna(subset=list(NEEDED))
    category = found["category"].fillna("").astype(str) if "category" in found else ""
    rule = found["rule"].fillna(looks.DEFAULT).astype(str) if "rule" in found else looks.DEFAULT
    return found.assign(category=category, rule=rule).astype({"L": int, "K": int, "value": float})


def _draw(frame: pd.DataFrame, baselines: Mapping[str, float], title: str) -> Figure:
    panels = sorted(frame["category"].unique(), key=lambda name: name != "")
    across = 2 if len(panels) == 4 else min(len(panels), 3)
    down = ceil(len(panels) / across)
    # A fixed strip below the panels holds the legend, one above them the title.
    height = 3.2 * down + 1.15
    width = max(3.9 * across, 6.0)
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    layers = sorted(frame["L"].unique())
    styles = {layer: _of_layer(layer, i) for i, layer in enumerate(layers)}
    rules = looks.numbers(frame["rule"])
    axes = list(grid.flat)
    for axis, panel in zip(axes, panels, strict=False):
        _panel(axis, frame[frame["category"] == panel], baselines.get(panel), styles, rules)
        axis.set_title(_heading(frame[frame["category"] == panel], panel, len(panels) == 1), fontsize=10, loc="left")
    for axis in axes[len(panels) :]:
        axis.remove()
    _scales(axes[: len(panels)], across, frame)
    heading = figure.suptitle(title, fontsize=12, fontweight="bold", y=1 - 0.12 / height, va="top")
    heading.set_in_layout(False)  # its strip is left free below, and would be counted twice
    handles = _legend(styles, rules, bool(baselines), bool(_known(frame)))
    columns = min(len(handles), int(width / 1.45))
    figure.legend(handles=handles, loc="lower center", ncols=columns, frameon=False)
    rows = ceil(len(handles) / columns)
    figure.tight_layout(rect=(0, (0.12 + 0.24 * rows) / height, 1, 1 - 0.42 / height))
    return figure


def _panel(axis: Axes, rows: pd.DataFrame, baseline: float | None, styles: Mapping, rules: Mapping[str, int]) -> None:
    lines = sorted(set(zip(rows["L"], rows["rule"], strict=True)))
    for place, (layer, rule) in enumerate(lines):
        line = rows[(rows["L"] == layer) & (rows["rule"] == rule)].sort_values("K")
        color, marker = styles[layer]
        aside = (place - (len(lines) - 1) / 2) * min(STEP, SPREAD / len(lines)) / 72
        beside = axis.transData + ScaledTranslation(aside, 0, axis.figure.dpi_scale_trans)
        look = {"color": color, "linewidth": 1.6, "linestyle": looks.dashes(rules[rule])}
        look |= _marker(rules[rule], marker, color)
        drawn: list[Artist] = [*axis.plot(line["K"], line["value"], **look)]
        if known := _known(line):
            ends = line.loc[:, list(known)]
            drawn.append(axis.vlines(line["K"], ends["low"], ends["high"], color=color, linewidth=0.8, alpha=0.8))
        for artist in drawn:  # moved only now: an axis takes its limits from what is drawn on its own scale
            artist.set_transform(beside)
    if baseline is not None:
        axis.axhline(baseline, color="#555555", linestyle=(0, (6, 3)), linewidth=1.2, zorder=1)
    axis.grid(True, color="#e5e5e5", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _of_layer(layer: int, place: int) -> tuple[str, str]:
    """Colour and marker of a layer; a hollow ring for L = 0, before the first block, which shows what lies beneath."""
    color, marker = looks.look(place)
    return color, RING if layer == 0 else marker


def _known(rows: pd.DataFrame) -> tuple[str, ...]:
    """The columns of the interval, where there are any."""
    names = ("low", "high")
    return names if set(names) <= set(rows.columns) and bool(rows[list(names)].notna().all(axis=1).any()) else ()


def _marker(rule: int, of_layer: str, color: str) -> dict[str, Any]:
    """How a point looks: the layer's filled marker for the default rule, a hollow one of its own for another's."""
    own = looks.marker(rule)
    if not own and of_layer == RING:
        return {"marker": "o", "markersize": 8, "markerfacecolor": "none", "markeredgewidth": 1.6}
    if not own:
        return {"marker": of_layer, "markersize": 5, "markerfacecolor": color}
    return {"marker": own, "markersize": 8, "markerfacecolor": "white", "markeredgewidth": 1.4}


def _heading(rows: pd.DataFrame, panel: str, alone: bool) -> str:
    """Which questions, and how many: a score without its n says little."""
    sizes = sorted({int(size) for size in rows["n"].dropna()}) if "n" in rows else []
    asked = f"n = {sizes[0]}" if len(sizes) == 1 else f"n = {sizes[0]} to {sizes[-1]}" if sizes else ""
    name = panel or ("" if alone else "all questions")
    return f"{name} ({asked})" if name and asked else name or asked


def _scales(axes: list[Axes], across: int, frame: pd.DataFrame) -> None:
    """K doubles from tick to tick where it spans more than a factor 8, with a linear foot so that 0 has a place."""
    kept = sorted(int(value) for value in frame["K"].unique())
    positive = [value for value in kept if value > 0]
    doubling = len(positive) > 1 and positive[-1] / positive[0] > 8
    for number, axis in enumerate(axes):
        if doubling:
            axis.set_xscale("symlog", base=2, linthresh=positive[0], linscale=0.8 if kept[0] == 0 else 0.1)
            axis.set_xlim(kept[0] - positive[0] * 0.15 if kept[0] == 0 else kept[0] * 0.85, kept[-1] * 1.18)
        axis.set_xticks(kept if len(kept) <= 10 else kept[:: ceil(len(kept) / 10)], minor=False)
        axis.set_xticks([], minor=True)
        axis.set_xticklabels([str(value) for value in (kept if len(kept) <= 10 else kept[:: ceil(len(kept) / 10)])])
        # Panels above a gap in the last row carry their own labels, shared axes would hide them.
        if number + across >= len(axes):
            axis.tick_params(labelbottom=True)
            axis.set_xlabel("image tokens kept, K" + (" (log scale)" if doubling else ""))
        if number % across == 0:
            axis.set_ylabel("accuracy (points)")


def _legend(styles: Mapping, rules: Mapping[str, int], with_baseline: bool, with_interval: bool) -> list[Line2D]:
    dash = looks.dashes(next(iter(rules.values())) if len(rules) == 1 else 0)
    handles = [
        Line2D([], [], color=color, linestyle=dash, label=f"L = {layer}", **_marker(0, marker, color))
        for layer, (color, marker) in styles.items()
    ]
    if list(rules.values()) != [0]:
        grey = "#777777"
        for name, number in rules.items():
            look = _marker(number, "", grey) if number else {}
            handles.append(Line2D([], [], color=grey, linestyle=looks.dashes(number), label=name, **look))
    if with_interval:
        whisker = {"marker": "|", "markersize": 12, "markeredgewidth": 0.8, "linestyle": ""}
        handles.append(Line2D([], [], color="#777777", label="95 % interval", **whisker))  # type: ignore[arg-type]
    if with_baseline:
        handles.append(Line2D([], [], color="#555555", linestyle=(0, (6, 3)), label="not truncated"))
    return handles
