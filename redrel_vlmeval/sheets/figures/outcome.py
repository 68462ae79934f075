"""What comes out of a sweep: Fig. 6, heat map, frontier, margins as figures and csv, cliff layers, best setting."""

from __future__ import annotations

import string
from math import inf
from pathlib import Path

import pandas as pd
from rich.console import Console
from tabulate import tabulate

from redrel_vlmeval import results
from redrel_vlmeval.host import Cell, read_columns
from redrel_vlmeval.names import VariantSpec, parse
from redrel_vlmeval.results import cliffs, published, records
from redrel_vlmeval.sheets.figures import grid as gridfigures
from redrel_vlmeval.sheets.plain_csv import write_csv

MARGINS = ["rule", "L", "K", "margin", "baseline", "n"]


def show(found: results.Results, base: str, benchmark: str, folder: Path, console: Console, margin: float,
         budget: cliffs.Budget | None) -> int:  # fmt: skip
    """Print and write everything about one base on one benchmark; 1 if a cell of it failed or there is no grid."""
    rows = found.scores[(found.scores["base"] == base) & (found.scores["benchmark"] == benchmark)]
    failed = rows.loc[rows["status"] == "failed", ["model", "reason"]].drop_duplicates()
    for model, reason in failed.itertuples(index=False, name=None):
        console.print(f"failed: {model}: {reason}", style="red", soft_wrap=True, highlight=False)
    grid = next((one for one in cliffs.grids_of(found) if (one.base, one.benchmark) == (base, benchmark)), None)
    if grid is None:
        console.print(f"no variant on {benchmark} can be compared with {base}: redrel sheet says why", style="red")
        return 1
    frame = cliffs.curves(grid, margin)
    layers = cliffs.cliff_layers(grid, margin)
    _print_cliffs(layers, margin, console)
    if budget is not None:
        _print_best(grid, budget, console)
    written = draw(frame, folder, base, benchmark, margin)
    written += [write_csv(layers, folder / "cliffs.csv", "%.6g")]
    inside = margins(found, grid)
    if not inside.empty:
        written += [write_csv(inside, folder / "margins.csv", "%.6g")]
        written += gridfigures.margin_figure(frame, inside, folder / "margins", _title(base, benchmark, frame))
    for path in written:
        console.print(f"written: {path}", soft_wrap=True, highlight=False)
    return int(len(failed) > 0)


def draw(frame: pd.DataFrame, folder: Path, base: str, benchmark: str, margin: float) -> list[Path]:
    """Fig. 6, heat map and frontier of :func:`cliffs.curves`, each as PNG and SVG, and their numbers as csv."""
    title = _title(base, benchmark, frame)
    written = [write_csv(frame, folder / "curves.csv", "%.6g")]
    written += gridfigures.accuracy_over_layers(frame, folder / "fig6", title, published_points(base, benchmark))
    written += gridfigures.heat_map(frame, folder / "heatmap", title, margin)
    if frame["average tokens"].notna().any():
        best = cliffs.frontier(frame)
        written += [write_csv(best, folder / "frontier.csv", "%.6g")]
        written += gridfigures.frontier_figure(frame, best, folder / "frontier", title)
    return written


def _title(base: str, benchmark: str, frame: pd.DataFrame) -> str:
    return f"{base} on {benchmark} (n = {int(frame['n'].iloc[0])})"


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
        f"\nCliff layer: the smallest L from which K image tokens are not worse than the baseline by {margin:g} points "
        "or more (one-sided 5 %, tested from the deepest layer up), and its 95 % bootstrap interval:",
        soft_wrap=not console.is_terminal,
        highlight=False,
    )
    lines = []
    for row in layers.to_dict("records"):
        layer, span = _layer(row["cliff"]), f"{_layer(row['low'])} to {_layer(row['high'])}"
        if row["cliff"] == inf and row["units"] < row["needed"]:
            what = "questions" if row["units"] == row["n"] else "pictures"
            layer, span = f"too few {what} ({row['units']}; at least {row['needed']})", ""
        lines.append([row["rule"], row["K"], layer, span, row["layers"], row["n"]])
    heads = ["rule", "K", "cliff layer", "95 % interval", "layers tested", "n"]
    print(tabulate(lines, headers=heads, disable_numparse=True))


def _layer(value: float) -> str:
    if value != value:
        return "?"
    return "none" if value == inf else f"{value:.0f}"


def _print_best(grid: cliffs.GridScores, budget: cliffs.Budget, console: Console) -> None:
    found = cliffs.best(grid, budget)
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


def margins(found: results.Results, grid: cliffs.GridScores) -> pd.DataFrame:
    """``MARGINS``: mean logit of the right letter above the best wrong one, by cell; empty where no record has logits.

    A sweep's records hold the first answer token's logit of every option letter; ``baseline`` is the untouched base's
    mean over the same questions.
    """
    cells = {cell.model: cell for cell in found.cells if cell.benchmark == grid.benchmark}
    right = _right_letters(cells[grid.base])
    base = _margins_of(cells[grid.base], right)
    rows = []
    for cell in grid.cells.to_dict("records"):
        own = _margins_of(cells[cell["model"]], right)
        both = own.index.intersection(base.index)
        if len(both):
            row = {name: cell[name] for name in ("rule", "L", "K")}
            rows.append(row | {"margin": own[both].mean(), "baseline": base[both].mean(), "n": len(both)})
    return pd.DataFrame(rows, columns=MARGINS)


def _right_letters(cell: Cell) -> dict[str, str]:
    table = read_columns(cell.predictions) if cell.predictions else {}
    if not {"index", "answer"} <= table.keys():
        return {}
    pairs = zip(map(str, table["index"]), map(str, table["answer"]), strict=True)
    return {index: answer for index, answer in pairs if answer in string.ascii_uppercase and len(answer) == 1}


def _margins_of(cell: Cell, right: dict[str, str]) -> pd.Series:
    values = {}
    for index, record in records.records_of(cell).items():
        logits = record.get("letter_logits")
        answer = right.get(index)
        if isinstance(logits, dict) and answer in logits and len(logits) > 1:
            values[index] = logits[answer] - max(value for letter, value in logits.items() if letter != answer)
    return pd.Series(values, dtype=float)
