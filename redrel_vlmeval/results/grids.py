"""The (L, K) grid of a base's variants as tables of scores, one for each rule of ranking."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from redrel_vlmeval.results.reading import Results

COLUMNS = ["base", "benchmark", "metric", "rule"]


@dataclass(frozen=True, eq=False)
class Grid:
    """Scores (points) of single-stage variants: ``values`` has a row per layer L and a column per K, nan if not run.

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


def grids(results: Results) -> list[Grid]:
    """Every grid in the results, by base, benchmark and metric, attention ranking before the controls.

    A variant counts with one stage and a whole K (``l5_k128``); percentages and schedules have no place in a table of
    L and K. A cell that failed leaves its place empty.
    """
    rows = results.scores
    rows = rows[rows["headline"] & (rows["status"] == "ok")]
    # With --all-runs a replaced run stands beside the newest one under '<model> [<run>]'; the newest fills the grid.
    rows = rows[~rows["model"].str.endswith("]")]
    plain = rows[rows["model"] == rows["base"]]
    bases = {tuple(row[name] for name in COLUMNS[:3]): float(row["value"]) for row in plain.to_dict("records")}
    single = rows["L"].notna() & rows["K"].notna()
    found = []
    for key, family in rows[single].groupby(COLUMNS, sort=True):
        base, benchmark, metric, rule = map(str, key)
        values = family.astype({"L": int, "K": int}).pivot(index="L", columns="K", values="value").astype(float)
        values = values.sort_index(axis=0).sort_index(axis=1)
        found.append(Grid(base, benchmark, metric, rule, values, bases.get((base, benchmark, metric))))
    return sorted(found, key=lambda grid: (grid.base, grid.benchmark, grid.metric, grid.rule != "attention", grid.rule))
