"""Grids and the paper's Fig. 6 as plain values: scores over L and K, with intervals around the headline."""

from __future__ import annotations

from typing import Any

import pandas as pd

from redrel_vlmeval.results import Grid, Results, category_curves


def heat_maps(grids: list[Grid]) -> list[dict[str, Any]]:
    """Every grid, its values as lists by layer."""
    return [
        {"base": grid.base, "benchmark": grid.benchmark, "metric": grid.metric, "rule": grid.rule}
        | {"layers": grid.layers, "keeps": grid.keeps, "baseline": grid.baseline}
        | {"values": grid.values.to_numpy().tolist()}
        for grid in grids
    ]


def curves(results: Results, grids: list[Grid], board: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per base, benchmark and category ('' for all questions): baseline, n and points [L, K, rule, value, low, high].

    The interval is that of the difference to the baseline, set around the baseline's own score: it misses the
    baseline's line where this one comparison does. Categories have none, they are not tested.
    """
    found = []
    spans = {(row["base"], row["benchmark"], row["L"], row["K"], row["rule"], row["value"]): row for row in board}
    for base, benchmark in sorted({(grid.base, grid.benchmark) for grid in grids}):
        frame, baselines = category_curves(results, base, benchmark)
        for category, own in frame.groupby("category", sort=False):
            points = []
            for point in own.sort_values(["rule", "L", "K"]).to_dict("records"):
                place = base, benchmark, point["L"], point["K"], point["rule"], point["value"]
                row = {} if category else spans.get(place, {})
                low, high = (_around(point["value"], row.get("delta"), row.get(end)) for end in ("low", "high"))
                points.append([point["L"], point["K"], point["rule"], point["value"], low, high])
            sizes = own["n"].dropna()
            found.append(
                {"base": base, "benchmark": benchmark, "category": category, "baseline": baselines.get(str(category))}
                | {"n": int(sizes.max()) if len(sizes) else None, "points": points}
            )
    return sorted(found, key=lambda curve: (curve["base"], curve["benchmark"], curve["category"] != ""))


def _around(value: float, delta: Any, end: Any) -> float | None:
    return None if pd.isna(delta) or pd.isna(end) else value - delta + end
