"""Rules side by side at one budget: what each scores where it keeps the same number of tokens after the same block."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.sheets.figures import looks
from redrel_vlmeval.sheets.figures.accuracy import save

_COLUMNS = ("panel", "series", "row", "value", "low", "high")


def rules_at_one_budget(frame: pd.DataFrame, path: str | Path, title: str) -> Path:
    """Draws scores (points) with 95 % whiskers: a panel for each benchmark, a row for each rule; returns ``path``.

    Args:
        frame: columns panel, series (such as a category: a colour and marker each), row (what stands at the left; the
            order of their first occurrence is kept, from the top), value, low and high (ends of the interval).
        path: PNG or SVG file; it appears whole or not at all. title: heading above all panels.

    Raises:
        InvalidValue: a column is missing, or there is nothing to draw. OSError: the file cannot be written.
    """
    if missing := [name for name in _COLUMNS if name not in frame]:
        raise InvalidValue(f"column {', '.join(missing)} missing: need {', '.join(_COLUMNS)}")
    if frame.empty:
        raise InvalidValue("nothing to draw: no row")
    panels, series, rows = (list(dict.fromkeys(frame[name])) for name in _COLUMNS[:3])
    height = 1.5 + 0.42 * len(rows)
    figure = Figure(figsize=(2.2 + 3.4 * len(panels), height))
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        for number, name in enumerate(series):
            own = frame[(frame["panel"] == panel) & (frame["series"] == name)]
            color, marker = looks.look(number)
            aside = 0.26 * (number - (len(series) - 1) / 2)
            places = [rows.index(row) + aside for row in own["row"]]
            axis.hlines(places, own["low"], own["high"], color=color, linewidth=1.2)
            axis.plot(own["value"], places, linestyle="", marker=marker, markersize=6, color=color, label=name)
        axis.set_title(panel, fontsize=10, loc="left")
        axis.set_xlabel("accuracy (points)")
        axis.set_xlim(0, 103)
        axis.grid(True, axis="x", color="#e5e5e5", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(rows)), rows)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    heading = figure.suptitle(title, fontsize=12, fontweight="bold", y=1 - 0.12 / height, va="top")
    heading.set_in_layout(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(series), frameon=False)
    figure.tight_layout(rect=(0, 0.3 / height, 1, 1 - 0.4 / height))
    return save(figure, path)
