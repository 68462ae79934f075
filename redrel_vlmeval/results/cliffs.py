"""What a grid of variants says: curves over L, the cliff layer of each K, and the best setting within a budget.

Works on any :class:`Results`, of a sweep or of single runs. Only single-stage variants with whole K that were run like
their base take part; scores are means over the questions' verdicts, in points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.names import VariantSpec, parse
from redrel_vlmeval.results import noninferiority, paired_tests
from redrel_vlmeval.results.reading import Results

SEED = 20240617
CURVES = [
    "base", "benchmark", "rule", "L", "K", "n", "value", "low", "high", "delta", "delta low", "delta high", "baseline",
    "average tokens", "FLOPs ratio", "p not worse",
]  # fmt: skip
CLIFFS = ["base", "benchmark", "rule", "K", "margin", "cliff", "low", "high", "layers", "n", "units", "needed"]


@dataclass(frozen=True, eq=False)
class GridScores:
    """One base on one benchmark: ``cells`` (model, rule, L, K, tokens, flops), their scores cells x questions."""

    base: str
    benchmark: str
    cells: pd.DataFrame
    before: np.ndarray
    after: np.ndarray
    pictures: list[object]

    @property
    def baseline(self) -> float:
        return 100 * float(self.before.mean())

    def paired(self, rows: pd.Index | None = None) -> noninferiority.Paired:
        """The base beside the cells of these rows, all if None."""
        chosen = self.after if rows is None else self.after[rows]
        return noninferiority.Paired.of(self.before, chosen, self.pictures)


@dataclass(frozen=True)
class Budget:
    """A limit: image tokens averaged over blocks, or percent of the untouched prefill's FLOPs."""

    limit: float
    flops: bool = False

    @classmethod
    def read(cls, text: str) -> Budget:
        """``128`` -> tokens, ``60%`` -> FLOPs.

        Raises:
            ValueError: anything else.
        """
        word = text.strip().removesuffix("%")
        try:
            limit = float(word)
        except ValueError:
            limit = -1.0
        if not 0 <= limit < float("inf"):
            raise InvalidValue(f"--budget {text}: give image tokens (128) or percent of the prefill's FLOPs (60%)")
        return cls(limit, text.strip().endswith("%"))

    def __str__(self) -> str:
        return f"{self.limit:g} % of the prefill FLOPs" if self.flops else f"{self.limit:g} average image tokens"


@dataclass(frozen=True)
class Best:
    """The setting chosen on one half of the questions, and what it scores on the other, beside the base."""

    model: str
    cost: float
    chosen_on: float
    score: float
    baseline: float
    comparison: paired_tests.Comparison
    candidates: int


def grids_of(results: Results) -> list[GridScores]:
    """Every base and benchmark with variants that can be compared with it, in the order of the results."""
    rows = results.scores[results.scores["headline"] & (results.scores["status"] == "ok")]
    found = []
    for (base, benchmark), family in rows.groupby(["base", "benchmark"], sort=False):
        grid = _grid(results, str(base), str(benchmark), family[family["model"] != base])
        if grid is not None:
            found.append(grid)
    return found


def _grid(results: Results, base: str, benchmark: str, variants: pd.DataFrame) -> GridScores | None:
    theirs = results.judged.get((base, benchmark))
    if theirs is None or theirs["hit"].isna().any() or theirs["index"].duplicated().any():
        return None
    before = theirs.set_index("index")["hit"].astype(float)
    cells, scores = [], []
    cost = results.efficiency[results.efficiency["benchmark"] == benchmark].set_index("model")
    for model in variants.loc[variants["delta"].notna(), "model"].unique():
        spec = parse(model)
        ours = results.judged.get((model, benchmark))
        if not _in_grid(spec) or ours is None or set(ours["index"]) != set(before.index):
            continue
        hits = ours.set_index("index")["hit"].astype(float).reindex(before.index)
        if hits.isna().any():
            continue
        measured = cost.loc[model] if model in cost.index else {}
        row = {"model": model, "rule": spec.ruling, "L": spec.stages[0].layer, "K": spec.stages[0].keep}
        tokens, flops = (measured.get(name) for name in ("average_image_tokens", "flops_ratio"))
        cells.append(row | {"tokens": tokens, "flops": flops})
        scores.append(hits.to_numpy())
    if not cells:
        return None
    frame = pd.DataFrame(cells).astype({"tokens": float, "flops": float})
    order = frame.sort_values(["rule", "K", "L"]).index
    shown = zip(theirs["index"], theirs["picture"].astype(object), strict=True)
    # A question whose picture is not named stands for itself.
    named: list[object] = [(True, picture) if picture is not None else (False, index) for index, picture in shown]
    ordered = frame.loc[order].reset_index(drop=True)
    return GridScores(base, benchmark, ordered, before.to_numpy(), np.stack(scores)[order], named)


def _in_grid(spec: VariantSpec) -> bool:
    return len(spec.stages) == 1 and spec.stages[0].keep is not None and spec.row == "last" and not spec.words


def curves(grid: GridScores, margin: float) -> pd.DataFrame:
    """``CURVES``: accuracy of each cell, and its delta, each with its 95 % interval, the same as in the sheets.

    ``p not worse`` is the one-sided p of being worse by ``margin`` points or more, of this cell alone.
    """
    z = grid.paired().z(margin / 100)[0]
    low, high = zip(*(paired_tests.interval(after, grid.pictures) for after in grid.after), strict=True)
    deltas = [paired_tests.compare(grid.before, after, grid.pictures) for after in grid.after]
    value = 100 * grid.after.mean(axis=1)
    frame = grid.cells.rename(columns={"tokens": "average tokens", "flops": "FLOPs ratio"}).assign(
        base=grid.base, benchmark=grid.benchmark, n=len(grid.before), value=value, low=low, high=high,
        delta=value - grid.baseline, baseline=grid.baseline,
    )  # fmt: skip
    frame["delta low"], frame["delta high"] = [one.low for one in deltas], [one.high for one in deltas]
    frame["p not worse"] = [noninferiority.p_not_worse(float(one)) for one in z]
    return frame[CURVES]


def cliff_layers(grid: GridScores, margin: float) -> pd.DataFrame:
    """``CLIFFS``: for each rule and K the smallest L from which it is not worse than the base by ``margin`` points.

    With fewer ``units`` (pictures; questions where each has its own) than ``needed`` no layer can be shown to be one.
    """
    lines = []
    needed = noninferiority.fewest(margin)
    for (rule, keep), rows in grid.cells.groupby(["rule", "K"], sort=True):
        layers = [int(layer) for layer in rows["L"]]
        found = noninferiority.cliff(grid.paired(rows.index), layers, margin)
        lines.append(
            {"base": grid.base, "benchmark": grid.benchmark, "rule": rule, "K": keep, "margin": margin}
            | {"cliff": found.layer, "low": found.low, "high": found.high}
            | {"layers": f"{layers[0]} to {layers[-1]}", "n": len(grid.before)}
            | {"units": len(set(grid.pictures)), "needed": needed}
        )
    return pd.DataFrame(lines, columns=CLIFFS)


def best(grid: GridScores, budget: Budget) -> Best | None:
    """The most accurate setting within the budget, chosen on half of the pictures and reported on the other half.

    The best of many on the same questions looks better than it is (the winner's curse); on the other half it cannot.
    Equal scores go to the cheaper setting. None: nothing is that cheap, or there are fewer than two pictures.
    """
    cost = 100 * grid.cells["flops"] if budget.flops else grid.cells["tokens"]
    within = grid.cells.index[cost <= budget.limit + 1e-9]
    units = list(dict.fromkeys(grid.pictures))
    if within.empty or len(units) < 2:
        return None
    mixed = np.random.default_rng(SEED).permutation(len(units))
    half = {units[number] for number in mixed[: len(units) // 2]}
    first = np.array([picture in half for picture in grid.pictures])
    scores = 100 * grid.after[:, first].mean(axis=1)
    winner = min(within, key=lambda row: (-round(scores[row], 9), cost[row], row))
    pictures = [picture for picture, chosen in zip(grid.pictures, first, strict=True) if not chosen]
    after, before = grid.after[winner, ~first], grid.before[~first]
    return Best(
        str(grid.cells.loc[winner, "model"]), float(cost[winner]), float(scores[winner]), 100 * float(after.mean()),
        100 * float(before.mean()), paired_tests.compare(before, after, pictures), len(within),
    )  # fmt: skip


def frontier(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`curves` that no other beats in both average tokens and accuracy, cheapest first."""
    rows = frame.dropna(subset=["average tokens"]).sort_values(["average tokens", "value"], ascending=[True, False])
    return rows[rows["value"] > rows["value"].cummax().shift(fill_value=-1.0)]
