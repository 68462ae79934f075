"""Figures of a grid as PNG and SVG: accuracy over L (the paper's Fig. 6), heat map, frontier."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.rules import suffix
from redrel_vlmeval.sheets.figures import looks
from redrel_vlmeval.sheets.figures.accuracy import save
from redrel_vlmeval.sheets.figures.palette import DIVERGING

BASELINE: dict[str, Any] = {"color": "#444444", "linestyle": (0, (6, 3)), "linewidth": 1.2}
DIFFERENCES = LinearSegmentedColormap.from_list("differences", [f"#{stop}" for stop in DIVERGING])
ACROSS = 3  # panels beside one another


def accuracy_over_layers(
    frame: pd.DataFrame, stem: str | Path, title: str, published: pd.DataFrame | None = None
) -> list[Path]:
    """Accuracy against L, one line per K, one panel per rule, with bands and the base; PNG and SVG.

    Args:
        frame: as :func:`results.grid.curves`; a band is the 95 % interval of the difference to the base.
        stem: path without ending.
        published: columns L, K, value: reference numbers of the same base and benchmark, drawn hollow.

    Raises:
        ValueError: nothing to draw. OSError: a file cannot be written.
    """
    _check(frame)
    rules = looks.in_order(frame["rule"])
    keeps = sorted(frame["K"].unique())
    across = min(len(rules), ACROSS)
    figure, axes = _panels(len(rules), across, 7.2 if across == 1 else 4.6 * across, 4.6)
    for axis, rule in zip(axes, rules, strict=True):
        rows = _of_rule(frame, rule)
        for place, keep in enumerate(keeps):
            _line(axis, rows[rows["K"] == keep].sort_values("L"), *looks.look(place))
        if published is not None and rule == looks.DEFAULT:
            _reference(axis, published, keeps)
        axis.axhline(float(frame["baseline"].iloc[0]), zorder=1, **BASELINE)
        axis.set_title(rule, fontsize=10, loc="left")
        _layer_axis(axis, frame)
    for axis in axes[:-across]:
        axis.set_xlabel("")
    for axis in axes[::across]:
        axis.set_ylabel("accuracy (points)")
    handles = [
        Line2D([], [], color=looks.look(place)[0], marker=looks.look(place)[1], markersize=5, label=f"K = {keep}")
        for place, keep in enumerate(keeps)
    ]
    handles.append(Line2D([], [], label="not truncated", **BASELINE))
    if published is not None and not published.empty:
        hollow = {"marker": "o", "markerfacecolor": "white", "linestyle": ""}
        handles.append(Line2D([], [], color="#444444", label="published", **hollow))  # type: ignore[arg-type]
    note = "bands: 95 % interval of the difference to the base" if frame["delta low"].notna().any() else ""
    return _finish(figure, title, handles, note, stem)


def _of_rule(frame: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Rows of a rule; K = 0, where nothing is chosen, is run under one rule only and is the same under all."""
    return frame[(frame["rule"] == rule) | (frame["K"] == 0)].drop_duplicates(["L", "K"])


def _line(axis: Axes, rows: pd.DataFrame, color: str, marker: str) -> None:
    shown = {"marker": marker, "markersize": 4.5} if len(rows) <= 20 else {"marker": marker, "markersize": 3}
    axis.plot(rows["L"], rows["value"], color=color, linewidth=1.6, **shown)  # type: ignore[arg-type]
    low, high = (rows["baseline"] + rows[name] for name in ("delta low", "delta high"))
    most = 100 if rows["value"].max() <= 100 else None  # sums, as MME's, go beyond
    low, high = low.clip(0, most), high.clip(0, most)
    axis.fill_between(rows["L"].astype(float), low.astype(float), high.astype(float), color=color, alpha=0.13, lw=0)


def _reference(axis: Axes, published: pd.DataFrame, keeps: Sequence[int]) -> None:
    for place, keep in enumerate(keeps):
        rows = published[published["K"] == keep]
        color, marker = looks.look(place)
        axis.plot(rows["L"], rows["value"], linestyle="", color=color, marker=marker, markerfacecolor="white", ms=8)


def _layer_axis(axis: Axes, frame: pd.DataFrame) -> None:
    axis.set_xlabel("decoder block L after which image tokens are dropped")
    layers = sorted({int(layer) for layer in frame["L"]})
    axis.set_xticks(layers[:: ceil(len(layers) / 12)])
    axis.set_xlim(frame["L"].min() - 0.4, frame["L"].max() + 0.4)
    axis.grid(True, color="#e8e8e8", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def heat_map(frame: pd.DataFrame, stem: str | Path, title: str, margin: float) -> list[Path]:
    """Points to the base in every cell of the grid, L across, K up; a dot where not worse by ``margin`` points.

    Raises:
        ValueError: nothing to draw, no difference known. OSError: a file cannot be written.
    """
    frame = frame.dropna(subset=["delta"])
    _check(frame)
    rules = looks.in_order(frame["rule"])
    layers, keeps = sorted(frame["L"].unique()), sorted(frame["K"].unique())
    cell = 0.62 if len(layers) <= 16 else 0.42
    wide = max(cell * len(layers) + 1.9, 5.5)
    figure, axes = _panels(len(rules), 1, wide, 0.42 * len(keeps) + 0.95, note=0.9)
    reach = max(float(frame["delta"].abs().max()), 1.0)
    scale = TwoSlopeNorm(0.0, -reach, reach)
    for axis, rule in zip(axes, rules, strict=True):
        rows = _of_rule(frame, rule)
        table = rows.pivot(index="K", columns="L", values="delta").reindex(index=keeps, columns=layers)
        picture = axis.imshow(table, cmap=DIFFERENCES, norm=scale, origin="lower", aspect="auto")
        for row in rows.to_dict("records"):
            _cell(axis, layers.index(row["L"]), keeps.index(row["K"]), float(row["delta"]), reach, len(layers) <= 16)
        for number in rows.index[rows["p not worse"] < 0.05]:
            place = layers.index(rows.loc[number, "L"]), keeps.index(rows.loc[number, "K"])
            axis.plot(place[0] + 0.36, place[1] + 0.32, marker="o", color="black", markersize=2.6)
        axis.set_xticks(range(len(layers)), [str(layer) for layer in layers], fontsize=8)
        axis.set_yticks(range(len(keeps)), [str(keep) for keep in keeps], fontsize=8)
        axis.set_ylabel("image tokens kept, K")
        axis.set_title(rule, fontsize=10, loc="left")
        axis.spines[:].set_visible(False)
    figure.colorbar(picture, ax=axes, label="points to the base", pad=0.02, aspect=12 * len(axes))
    axes[-1].set_xlabel("decoder block L after which image tokens are dropped")
    note = f"base: {frame['baseline'].iloc[0]:.1f} points"
    if frame["p not worse"].notna().any():
        note += f"; dot: loses less than {margin:g} points (one-sided 5 %, each cell alone)"
    return _finish(figure, title, [], note, stem)


def _cell(axis: Axes, x: int, y: int, delta: float, reach: float, with_text: bool) -> None:
    if with_text:
        color = "white" if abs(delta) > 0.6 * reach else "black"
        axis.text(
            x, y, f"{delta:+.1f}" if abs(delta) >= 0.05 else "0.0", ha="center", va="center", fontsize=7.5, color=color
        )


def frontier_figure(frame: pd.DataFrame, best: pd.DataFrame, stem: str | Path, title: str) -> list[Path]:
    """Accuracy against image tokens averaged over blocks, colour by K; the frontier as steps, named by L and K.

    Raises:
        ValueError: nothing to draw, no average tokens known. OSError: a file cannot be written.
    """
    _check(frame.dropna(subset=["average tokens"]))
    figure, (axis,) = _panels(1, 1, 7.2, 4.6)
    rules = looks.numbers(frame["rule"])
    keeps = sorted(frame["K"].unique())
    for number, keep in enumerate(keeps):
        color, marker = looks.look(number)
        for rule, place in rules.items():
            rows = frame[(frame["K"] == keep) & (frame["rule"] == rule)]
            look = looks.marker(place) or marker
            axis.plot(rows["average tokens"], rows["value"], linestyle="", color=color, marker=look, ms=5, alpha=0.85)
    axis.step(best["average tokens"], best["value"], where="post", color="black", linewidth=1, zorder=1)
    last = -np.inf
    spread = max(float(frame["value"].max() - frame["value"].min()), 1e-9)
    for row in best.to_dict("records"):
        if row["value"] - last < 0.05 * spread:  # names of neighbours would lie on each other
            continue
        last = row["value"]
        name = f"l{row['L']}_k{row['K']}{suffix(row['rule'])}"
        at = row["average tokens"], row["value"]
        axis.annotate(name, at, xytext=(-5, 5), textcoords="offset points", fontsize=7.5, ha="right")
    axis.axhline(float(frame["baseline"].iloc[0]), zorder=1, **BASELINE)
    axis.set_xlabel("image tokens, averaged over blocks")
    axis.set_ylabel("accuracy (points)")
    axis.margins(x=0.12, y=0.08)
    axis.grid(True, color="#e8e8e8", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    handles = [
        Line2D([], [], color=looks.look(place)[0], marker=looks.look(place)[1], ms=5, linestyle="", label=f"K = {keep}")
        for place, keep in enumerate(keeps)
    ]
    handles += [
        Line2D([], [], color="#444444", marker=looks.marker(place), linestyle="", label=rule)
        for rule, place in rules.items()
        if rule != looks.DEFAULT
    ]
    handles.append(Line2D([], [], label="not truncated", **BASELINE))
    note = "steps: settings that no other beats in both; the best of many is flattered by chance (see --budget)"
    return _finish(figure, title, handles, note, stem)


def _check(frame: pd.DataFrame) -> None:
    if frame.empty:
        raise InvalidValue("nothing to draw: no variant of the grid that can be compared with its base")


def _panels(count: int, across: int, width: float, height: float, note: float = 0) -> tuple[Figure, list[Axes]]:
    """A figure of ``width`` inches with ``count`` panels, each ``height`` inches with its labels, and a note below."""
    down = ceil(count / across)
    figure = Figure(figsize=(width, height * down + note), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    for number, axis in enumerate(axes[:count]):
        axis.tick_params(labelbottom=number + across >= count)  # above a gap, too, which shared axes would leave bare
    return figure, axes[:count]


def _finish(figure: Figure, title: str, handles: list[Line2D], note: str, stem: str | Path) -> list[Path]:
    """Heading, legend and note around the panels; both files appear whole or not at all."""
    figure.suptitle(title, fontsize=12, fontweight="bold")
    if handles:
        most = max(int(figure.get_figwidth() / 1.2), 3)
        columns = ceil(len(handles) / ceil(len(handles) / most))
        legend = figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9,
            title=note, title_fontsize=7.5,
        )  # fmt: skip
        legend.get_title().set_color("#555555")
    else:
        figure.supxlabel(note, fontsize=7.5, color="#555555")
    return [save(figure, f"{stem}.{kind}") for kind in ("png", "svg")]
