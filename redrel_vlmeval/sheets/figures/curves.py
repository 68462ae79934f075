"""What the figures draw and the page shows: scores of a base's variants over L and K, with intervals and costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from redrel_vlmeval.results import Results, category_curves, choosing, comparisons, grid, grids, paired_tests

CELL = ["rule", "L", "K"]
SAME = 0.011  # points: hosts round scores to two digits


@dataclass(frozen=True, eq=False)
class Curves:
    """One base on one benchmark, by one of its headline scores.

    Attributes:
        frame: ``grid.CURVES``, a row per single-stage variant with a whole K. ``low`` and ``high`` are the 95 %
            interval of the score, ``delta low`` and ``delta high`` that of the difference; nan where it is not known.
        categories: category, L, K, rule, value, n, low, high: the scores of the parts, none of several headlines but
            the first.
        baselines: the base's score by category, '' for all questions; without those that it has none of.
    """

    base: str
    benchmark: str
    metric: str
    frame: pd.DataFrame
    categories: pd.DataFrame
    baselines: Mapping[str, float]
    first: bool = True

    @property
    def title(self) -> str:
        """``base on benchmark, metric``; the metric where a benchmark has several."""
        return f"{self.base} on {self.benchmark}" + ("" if self.first else f", {self.metric}")

    @property
    def over_keep(self) -> pd.DataFrame:
        """All questions and then each category, as :func:`accuracy.accuracy_against_keep` draws them.

        A category that all questions are of says nothing more.
        """
        whole, parts = self.frame.assign(category=""), self.categories
        if parts["category"].nunique() == 1 and parts["n"].max() == whole["n"].max():
            return whole
        return pd.concat([whole, parts], ignore_index=True)


def curves_of(results: Results, margin: float = choosing.MARGIN) -> list[Curves]:
    """Every base, benchmark and headline with a variant that has a place in a grid of L and K.

    ``margin``: points, of the one-sided test ``p not worse`` of each cell.
    """
    tested = {(one.base, one.benchmark): grid.curves(one, margin) for one in grid.grids_of(results)}
    rows = results.scores.join(comparisons.compare(results).drop(columns="verdict"))
    costs = {(row["model"], row["benchmark"]): row for row in results.efficiency.to_dict("records")}
    found: dict[tuple[str, str], list[Curves]] = {}
    for base, benchmark, metric in dict.fromkeys((one.base, one.benchmark, one.metric) for one in grids(results)):
        own = rows[(rows["base"] == base) & (rows["benchmark"] == benchmark) & (rows["metric"] == metric)]
        beside = found.setdefault((base, benchmark), [])
        frame, baseline = _frame(own, costs, tested.get((base, benchmark)))
        parts, baselines = _categories(results, base, benchmark) if not beside else (frame.iloc[:0], {})
        known = baselines | ({"": baseline} if baseline is not None else {})
        beside.append(Curves(base, benchmark, metric, frame, parts, known, not beside))
    return [curves for beside in found.values() for curves in beside]


def _frame(
    own: pd.DataFrame, costs: Mapping[Any, Any], tested: pd.DataFrame | None
) -> tuple[pd.DataFrame, float | None]:
    """``grid.CURVES`` of the scores of one headline, and the base's score."""
    own = own[own["headline"] & (own["status"] == "ok") & ~own["model"].str.endswith("]")]
    plain = own.loc[own["model"] == own["base"], "value"]
    baseline = float(plain.iloc[0]) if len(plain) else None
    known = {} if tested is None else {tuple(row[n] for n in CELL): row for row in tested.to_dict("records")}
    lines = []
    for row in own.to_dict("records"):
        if not (isinstance(row["L"], int) and isinstance(row["K"], int)):
            continue
        cell = known.get(tuple(row[name] for name in CELL), {})
        if abs(cell.get("value", row["value"]) - row["value"]) > SAME:  # tests are of the mean score, this is F1
            cell = {}
        cost = costs.get((row["model"], row["benchmark"]), {})
        lines.append(
            {name: row[name] for name in ("base", "benchmark", *CELL, "n", "value", "delta")}
            | {"delta low": row["CI low"], "delta high": row["CI high"], "baseline": baseline}
            | {name: cell.get(name) for name in ("low", "high", "p not worse")}
            | {"average tokens": cost.get("average_image_tokens"), "FLOPs ratio": cost.get("flops_ratio")}
        )
    numbers = dict.fromkeys(grid.CURVES[5:], float)
    frame = pd.DataFrame(lines, columns=grid.CURVES).astype(numbers).sort_values(["rule", "K", "L"])
    return frame.drop_duplicates(CELL).astype({"L": int, "K": int}).reset_index(drop=True), baseline


def _categories(results: Results, base: str, benchmark: str) -> tuple[pd.DataFrame, dict[str, float]]:
    """Scores of the categories with 95 % intervals, and the base's."""
    frame, baselines = category_curves(results, base, benchmark)
    frame = frame[frame["category"] != ""]
    if frame.empty:
        return frame, {}
    groups = results.groups(base, benchmark)
    by = groups["category"].astype(str) if "category" in groups else pd.Series(dtype=object)
    models = results.scores[(results.scores["base"] == base) & (results.scores["benchmark"] == benchmark)]
    named = {tuple(row[name] for name in CELL): row["model"] for row in models.to_dict("records")}
    spans = [
        _span(results, named[row["rule"], row["L"], row["K"]], benchmark, by, row) for row in frame.to_dict("records")
    ]
    frame = frame.assign(low=[low for low, _ in spans], high=[high for _, high in spans])
    return frame, {name: value for name, value in baselines.items() if name}


def _span(results: Results, model: str, benchmark: str, by: pd.Series, row: Mapping[Any, Any]) -> tuple[float, float]:
    """Interval of a category's score; none where the questions' mean is not that score."""
    judged = results.judged.get((model, benchmark))
    if judged is None or by.empty:
        return float("nan"), float("nan")
    own = judged[judged["index"].isin(set(by.index[by == row["category"]])) & judged["hit"].notna()]
    if own.empty or abs(100 * own["hit"].mean() - row["value"]) > SAME:
        return float("nan"), float("nan")
    pictures = [(True, p) if p is not None else (False, i) for p, i in zip(own["picture"], own["index"], strict=True)]
    return paired_tests.interval(own["hit"].to_numpy(dtype=float), pictures)
