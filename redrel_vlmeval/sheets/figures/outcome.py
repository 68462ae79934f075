"""What comes out of a grid: Fig. 6, heat map, frontier and accuracy against K as figures and csv; of a sweep also cliff
layers and the best setting."""

from __future__ import annotations

import re
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from tabulate import tabulate

from redrel_vlmeval import results
from redrel_vlmeval.console import ending
from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.files import usable
from redrel_vlmeval.names import VariantSpec, parse
from redrel_vlmeval.results import choosing, grid as grids, published
from redrel_vlmeval.sheets.figures import accuracy, grid as gridfigures
from redrel_vlmeval.sheets.figures.curves import Curves, curves_of
from redrel_vlmeval.sheets.plain_csv import write_csv
from redrel_vlmeval.sheets.tables import measured
from redrel_vlmeval.sheets.terminal import terminal_width, to_text


def show(found: results.Results, base: str, benchmark: str, folder: Path, console: Console, margin: float,
         budget: choosing.Budget | None) -> int:  # fmt: skip
    """Print and write everything about one base on one benchmark; 1 if a cell of it failed or there is no grid."""
    failed = _say_failed(found, base, benchmark, console)
    grid = next((one for one in grids.grids_of(found) if (one.base, one.benchmark) == (base, benchmark)), None)
    if grid is None:
        console.print(f"no variant on {benchmark} can be compared with {base}: redrel sheet says why", style="red")
        return 1
    layers = grids.cliff_layers(grid, margin)
    _print_cliffs(layers, margin, console)
    if budget is not None:
        _print_best(grid, budget, console)
    own = [one for one in curves_of(found, margin) if (one.base, one.benchmark) == (base, benchmark)]
    written = [path for one in own[:1] for path in draw(one, folder, margin)]
    written += [write_csv(layers, folder / "cliffs.csv", "%.6g")]
    for line in ending(written):
        console.print(line, soft_wrap=True, highlight=False)
    return int(failed > 0)


def listed(found: results.Results, base: str, benchmark: str, folder: Path, console: Console, margin: float,
           budget: choosing.Budget | None) -> int:  # fmt: skip
    """Print the settings of one base beside it; 1 if a cell of it on ``benchmark`` failed."""
    failed = _say_failed(found, base, benchmark, console)
    table = measured(found)
    rows = table.frame[table.frame["base"] == base].reset_index(drop=True)
    console.print()
    print(to_text(replace(table, frame=rows), terminal_width()))
    scores = next((one for one in grids.scores_of(found) if (one.base, one.benchmark) == (base, benchmark)), None)
    if budget is not None and scores is not None:
        _print_best(scores, budget, console)
    return int(failed > 0)


def _say_failed(found: results.Results, base: str, benchmark: str, console: Console) -> int:
    """Name each failed cell of one base on one benchmark; how many there are."""
    rows = found.scores[(found.scores["base"] == base) & (found.scores["benchmark"] == benchmark)]
    failed = rows.loc[rows["status"] == "failed", ["model", "reason"]].drop_duplicates()
    for model, reason in failed.itertuples(index=False, name=None):
        console.print(f"failed: {model}: {reason}", style="red", soft_wrap=True, highlight=False)
    return len(failed)


def draw_all(found: results.Results, folder: Path, margin: float) -> list[Path]:
    """:func:`draw` of every base and benchmark, into ``<folder>/<base>/<benchmark>/``.

    Raises:
        InvalidValue: no variant has a place in a grid of L and K. WriteError: a file cannot be written.
    """
    every = curves_of(found, margin)
    if not every:
        raise InvalidValue(
            f"{found.folder}: nothing to draw: no variant with one stage l<L>_k<K> has a score; redrel sheet says why"
        )
    written = []
    for one in every:
        own = folder.joinpath(*map(_folder, [one.base, one.benchmark, *([] if one.first else [one.metric])]))
        usable(own, "--output")
        written += draw(one, own, margin)
    return written


def _folder(name: str) -> str:
    """A name as that of a folder anywhere; two names never share one."""
    return re.sub(r'^\.|[/\\:*?"<>|%\x00-\x1f]', lambda sign: f"%{ord(sign[0]):02X}", name)


def draw(curves: Curves, folder: Path, margin: float) -> list[Path]:
    """Fig. 6, heat map, frontier and accuracy against K, each as PNG and SVG, and their numbers as csv.

    There is no heat map without a base to differ from, and no frontier without records of the cost.
    """
    frame = curves.frame
    title = f"{curves.title} (n = {frame['n'].max():.0f})" if frame["n"].notna().any() else curves.title
    written = [write_csv(frame, folder / "curves.csv", "%.6g")]
    reference = published_points(curves.base, curves.benchmark) if curves.first else None
    written += gridfigures.accuracy_over_layers(frame, folder / "fig6", title, reference)
    written += [
        accuracy.accuracy_against_keep(
            curves.over_keep, curves.baselines, folder / f"accuracy_against_keep.{kind}", curves.title
        )
        for kind in ("png", "svg")
    ]
    if frame["delta"].notna().any():
        written += gridfigures.heat_map(frame, folder / "heatmap", title, margin)
    if frame["average tokens"].notna().any():
        best = grids.frontier(frame)
        written += [write_csv(best, folder / "frontier.csv", "%.6g")]
        written += gridfigures.frontier_figure(frame, best, folder / "frontier", title)
    return written


def published_points(base: str, benchmark: str) -> pd.DataFrame | None:
    """Columns L, K, value of the reference numbers for single-stage variants of this base; None without any."""
    titles = {published.facts(base).title}
    rows = published.published()
    rows = rows[rows["model"].isin(titles) & (rows["benchmark"] == benchmark) & (rows["metric"] == "accuracy")]
    found = [(spec.stages[0], row.value) for row in rows.itertuples() if (spec := _grid_spec(str(row.setting)))]
    points = [{"L": stage.layer, "K": stage.keep, "value": value} for stage, value in found]
    return pd.DataFrame(points, columns=["L", "K", "value"]) if points else None


def _grid_spec(setting: str) -> VariantSpec | None:
    """The spec of ``l5_k128``; None for 'best', schedules and other methods' words."""
    try:
        spec = parse(setting)
    except KeyError:
        return None
    plain = len(spec.stages) == 1 and spec.stages[0].keep is not None and spec.setting == str(spec.stages[0])
    return spec if plain else None


def _print_cliffs(layers: pd.DataFrame, margin: float, console: Console) -> None:
    console.print(
        f"\nCliff layer: the smallest L from which on K image tokens lose less than {margin:g} points to the baseline. "
        "Each end is a one-sided 95 % bound of its own rule and K; no correction is made for how many are listed:",
        soft_wrap=not console.is_terminal,
        highlight=False,
    )
    lines = []
    for row in layers.to_dict("records"):
        lines.append([row["rule"], row["K"], _cliff(row), row["layers"], row["n"]])
    heads = ["rule", "K", "cliff layer", "layers tested", "n"]
    print(tabulate(lines, headers=heads, disable_numparse=True))


def _cliff(row: dict[Any, Any]) -> str:
    """``at least 5, at most 6``, as far as either end was shown."""
    ends = [f"at least {row['at least']:.0f}"] if row["at least"] else []
    ends += [f"at most {row['at most']:.0f}"] if row["at most"] < inf else []
    if row["at most"] == inf and row["units"] < row["needed"]:
        what = "questions" if row["units"] == row["n"] else "pictures"
        ends += [f"too few {what} to say at most ({row['units']} of {row['needed']})"]
    return ", ".join(ends) or "no end shown"


def _print_best(grid: grids.Scores, budget: choosing.Budget, console: Console) -> None:
    found = choosing.best(grid, budget)
    if found is None:
        console.print(f"\nBudget of {budget}: no setting of this sweep is that cheap", highlight=False)
        return
    test = found.comparison
    span = f"95 % CI {test.low:+.1f}..{test.high:+.1f}" if test.low == test.low else "too few questions for a CI"
    console.print(
        f"\nBest within {budget}, of {found.candidates} settings: {found.model} ({found.cost:.4g}). Chosen on one half "
        f"of the questions ({found.chosen_on:.1f} there); on the other half, n = {test.n}: {found.score:.1f}, baseline "
        f"{found.baseline:.1f}, difference {test.difference:+.1f} ({span})",
        soft_wrap=not console.is_terminal,
        highlight=False,
    )
