"""The (L, K) grid of a base's variants: tables of scores, curves with intervals, and the cliff layer of each K.

Works on any :class:`Results`, of a sweep or of single runs. A variant is in the grid with one stage and a whole K
(``l5_k128``), under the label of its rule; percentages and schedules have no place in a table of L and K.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from redrel_vlmeval.results import noninferiority, paired_tests
from redrel_vlmeval.results.reading import Results
from redrel_vlmeval.rules import DEFAULT

CURVES = [
    "base", "benchmark", "rule", "L", "K", "n", "value", "low", "high", "delta", "delta low", "delta high", "baseline",
    "average tokens", "FLOPs ratio", "p not worse",
]  # fmt: skip
CLIFFS = ["base", "benchmark", "rule", "K", "margin", "at least", "at most", "layers", "n", "units", "needed"]


@dataclass(frozen=True, eq=False)
class Grid:
    """Scores (points) of a grid's variants: ``values`` has a row per layer L and a column per K, nan if not run.

    ``rule`` is 'attention', a control ('random', ...) or either with its row. ``baseline`` is the base's score on the
    same benchmark, None where it has none.
    """

    base: str
    benchmark: str
    metric: str
    rule: str
    values: pd.DataFrame
    baseline: float | None = None

    @property
    def layers(self) -> list[int]:
        """L, rising: decoder blocks that see every token."""
        return [int(layer) for layer in self.values.index]

    @property
    def keeps(self) -> list[int]:
        """K, rising: image tokens kept after block L."""
        return [int(keep) for keep in self.values.columns]


@dataclass(frozen=True, eq=False)
class Scores:
    """One base on one benchmark: ``cells`` (model, rule, L, K, tokens, flops), their scores cells x questions.

    Scores are the questions' verdicts, in 0..1, of variants that were run like their base.
    """

    base: str
    benchmark: str
    cells: pd.DataFrame
    before: np.ndarray
    after: np.ndarray
    pictures: list[object]

    @property
    def baseline(self) -> float:
        return 100 * float(self.before.mean())

    @property
    def units(self) -> int:
        """Pictures; questions where each has its own."""
        return len(set(self.pictures))

    def paired(self, rows: pd.Index | None = None) -> noninferiority.Paired:
        """The base beside the cells of these rows, all if None."""
        chosen = self.after if rows is None else self.after[rows]
        return noninferiority.Paired.of(self.before, chosen, self.pictures)

    def only(self, rows: np.ndarray) -> Scores:
        """The same with some of the cells, by mask or position."""
        return Scores(self.base, self.benchmark, self.cells.iloc[rows].reset_index(drop=True), self.before,
                      self.after[rows], self.pictures)  # fmt: skip


def _headlines(results: Results) -> pd.DataFrame:
    """Headline rows with a score, of the newest runs."""
    rows = results.scores[results.scores["headline"] & (results.scores["status"] == "ok")]
    return rows[~rows["model"].isin({cell.label for cell in results.cells if cell.replaced})]


def _in_grid(rows: pd.DataFrame) -> np.ndarray:
    """Which rows have one whole L and K; the only place that says what a grid is made of."""
    return (rows["L"].notna() & rows["K"].notna()).to_numpy(dtype=bool)


def grids(results: Results) -> list[Grid]:
    """Every grid in the results, by base, benchmark and metric, attention ranking before the controls.

    A cell that failed leaves its place empty.
    """
    rows, columns = _headlines(results), ["base", "benchmark", "metric"]
    plain = rows[rows["model"] == rows["base"]]
    bases = {tuple(row[name] for name in columns): float(row["value"]) for row in plain.to_dict("records")}
    found = []
    for key, family in rows[_in_grid(rows)].groupby([*columns, "rule"], sort=True):
        base, benchmark, metric, rule = map(str, key)
        values = family.astype({"L": int, "K": int}).pivot(index="L", columns="K", values="value").astype(float)
        values = values.sort_index(axis=0).sort_index(axis=1)
        found.append(Grid(base, benchmark, metric, rule, values, bases.get((base, benchmark, metric))))
    return sorted(found, key=lambda grid: (grid.base, grid.benchmark, grid.metric, grid.rule != DEFAULT, grid.rule))


def grids_of(results: Results) -> list[Scores]:
    """Scores per question of every grid, its cells by rule, K and L; a base and benchmark without one is left out."""
    found = []
    for scores in scores_of(results):
        inside = scores.only(_in_grid(scores.cells))
        if len(inside.cells):
            order = inside.cells.sort_values(["rule", "K", "L"]).index.to_numpy()
            found.append(inside.only(order))
    return found


@lru_cache(maxsize=1)
def scores_of(results: Results) -> tuple[Scores, ...]:
    """Every base and benchmark with the variants that can be compared with it, in the order of the results.

    Kept for the last results.
    """
    rows, every = _headlines(results), []
    for (base, benchmark), family in rows.groupby(["base", "benchmark"], sort=False):
        variants = family[(family["model"] != base) & family["delta"].notna()].drop_duplicates("model")
        found = _scores(results, str(base), str(benchmark), variants)
        if found is not None:
            every.append(found)
    return tuple(every)


def _scores(results: Results, base: str, benchmark: str, variants: pd.DataFrame) -> Scores | None:
    theirs = results.judged.get((base, benchmark))
    if theirs is None or theirs["hit"].isna().any() or theirs["index"].duplicated().any():
        return None
    before = theirs.set_index("index")["hit"].astype(float)
    cells, scores = [], []
    cost = results.efficiency[results.efficiency["benchmark"] == benchmark].set_index("model")
    for row in variants.to_dict("records"):
        ours = results.judged.get((row["model"], benchmark))
        if ours is None or set(ours["index"]) != set(before.index):
            continue
        hits = ours.set_index("index")["hit"].astype(float).reindex(before.index)
        if hits.isna().any():
            continue
        measured = cost.loc[row["model"]] if row["model"] in cost.index else {}
        tokens, flops = (measured.get(name) for name in ("average_image_tokens", "flops_ratio"))
        cells.append({name: row[name] for name in ("model", "rule", "L", "K")} | {"tokens": tokens, "flops": flops})
        scores.append(hits.to_numpy())
    if not cells:
        return None
    frame = pd.DataFrame(cells).astype({"L": "Int64", "K": "Int64", "tokens": float, "flops": float})
    shown = zip(theirs["index"], theirs["picture"].astype(object), strict=True)
    # A question whose picture is not named stands for itself.
    named: list[object] = [(True, picture) if picture is not None else (False, index) for index, picture in shown]
    return Scores(base, benchmark, frame, before.to_numpy(), np.stack(scores), named)


def curves(grid: Scores, margin: float) -> pd.DataFrame:
    """``CURVES``: accuracy of each cell, and its delta, each with its 95 % interval, the same as in the sheets.

    ``p not worse`` is the one-sided p of being worse by ``margin`` points or more, of this cell alone.
    """
    z = grid.paired().z(margin / 100)
    low, high = zip(*(paired_tests.interval(after, grid.pictures) for after in grid.after), strict=True)
    deltas = [paired_tests.compare(grid.before, after, grid.pictures) for after in grid.after]
    value = 100 * grid.after.mean(axis=1)
    frame = grid.cells.rename(columns={"tokens": "average tokens", "flops": "FLOPs ratio"}).assign(
        base=grid.base, benchmark=grid.benchmark, n=len(grid.before), value=value, low=low, high=high,
        delta=value - grid.baseline, baseline=grid.baseline,
    )  # fmt: skip
    frame["delta low"], frame["delta high"] = [one.low for one in deltas], [one.high for one in deltas]
    frame["p not worse"] = [noninferiority.p_not_worse(float(one)) for one in z]
    return frame[CURVES].astype({"L": int, "K": int})


def cliff_layers(grid: Scores, margin: float) -> pd.DataFrame:
    """``CLIFFS``: for each rule and K where its cliff layer lies, each end at one-sided 95 %; see :class:`Cliff`.

    The level is that of one rule and K; nothing is corrected for how many of them stand in the table. With fewer
    ``units`` (pictures; questions where each has its own) than ``needed`` no layer can be shown to be one.
    """
    needed, lines = noninferiority.fewest(margin), []
    for (rule, keep), cells in grid.cells.groupby(["rule", "K"], sort=False):
        layers = [int(layer) for layer in cells["L"]]
        found = noninferiority.cliff(grid.paired(cells.index), layers, margin)
        span = f"{layers[0]} to {layers[-1]}" if len(layers) > 1 else str(layers[0])
        lines.append(
            [grid.base, grid.benchmark, rule, keep, margin, found.at_least, found.at_most, span, len(grid.before),
             grid.units, needed]
        )  # fmt: skip
    return pd.DataFrame(lines, columns=CLIFFS)


def frontier(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`curves` that no other beats in both average tokens and accuracy, cheapest first."""
    rows = frame.dropna(subset=["average tokens"]).sort_values(["average tokens", "value"], ascending=[True, False])
    return rows[rows["value"] > rows["value"].cummax().shift(fill_value=-1.0)]
