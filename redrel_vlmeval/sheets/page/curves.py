"""Grids and the paper's Fig. 6 as plain values, of what the figures draw: scores over L and K, with intervals."""

from __future__ import annotations

from typing import Any

from redrel_vlmeval.sheets.figures import Curves, looks


def heat_maps(found: list[Curves]) -> list[dict[str, Any]]:
    """A table of L and K for every rule of every headline, its values as lists by layer."""
    maps: list[dict[str, Any]] = []
    for curves in found:
        for rule in looks.in_order(curves.frame["rule"]):
            rows = curves.frame[curves.frame["rule"] == rule]
            table = rows.pivot(index="L", columns="K", values="value")
            entry = {name: getattr(curves, name) for name in ("base", "benchmark", "metric")}
            entry |= {"rule": rule, "layers": table.index.tolist(), "keeps": table.columns.tolist()}
            maps.append(entry | {"baseline": curves.baselines.get(""), "values": table.to_numpy().tolist()})
    return maps


def lines(found: list[Curves]) -> list[dict[str, Any]]:
    """Per base, benchmark and category ('' for all questions): baseline, n and points [L, K, rule, value, low, high].

    The interval is that of the difference to the baseline, set around the baseline's own score: it misses the
    baseline's line where this one comparison does. Categories have none, they are not tested.
    """
    drawn = []
    for curves in (one for one in found if one.first):
        frame = curves.frame
        around = [curves.baselines.get("", float("nan")) + frame[end] for end in ("delta low", "delta high")]
        whole = frame.assign(category="", low=around[0], high=around[1])
        for part in (whole, curves.categories.assign(low=None, high=None)):
            for category, own in part.groupby("category", sort=False):
                sizes = own["n"].dropna()
                points = own[["L", "K", "rule", "value", "low", "high"]].to_numpy(dtype=object).tolist()
                drawn.append(
                    {"base": curves.base, "benchmark": curves.benchmark, "category": category, "points": points}
                    | {"baseline": curves.baselines.get(str(category))}
                    | {"n": int(sizes.max()) if len(sizes) else None}
                )
    return drawn
