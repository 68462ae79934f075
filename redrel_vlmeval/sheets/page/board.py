"""The leaderboard as plain rows: one per model and headline score, with the paired test and the cost beside it."""

from __future__ import annotations

from typing import Any

import pandas as pd

from redrel_vlmeval.results import NO_RULE, Results
from redrel_vlmeval.sheets.tables import COSTS, place, stages

# What a test says -> its kind, by which rows are coloured and filtered.
KINDS = {"better": "better", "worse": "worse", "not separable": "same", "base": "base"}
SHOWN = ("model", "setting", "value", "delta", "low", "high", "flops_ratio")
SAME = ("model", "base", "setting", "rule", "benchmark", "metric", "status")


def rows(results: Results, compared: pd.DataFrame) -> list[dict[str, Any]]:
    """Every headline of every cell, also of those that failed, bases before their variants, L and K as numbers.

    ``compared`` is :func:`comparisons.compare` of the same results. A cell without a score carries its
    status and the reason; ``kind`` is better, worse, same, base, or none (not tested). ``raw`` are the numbers, as
    they stand, of a benchmark that no rule knows.
    """
    found = results.scores[results.scores["headline"]].join(compared)
    costs = {(row["model"], row["benchmark"]): row for row in results.efficiency.to_dict("records")}
    loose = results.scores[(results.scores["status"] == NO_RULE) & ~results.scores["headline"]]
    raw = {key: own[["metric", "value"]].to_numpy().tolist() for key, own in loose.groupby(["model", "benchmark"])}
    several = found[found["metric"] != ""].groupby("benchmark")["metric"].nunique()
    board = []
    for row in found.to_dict("records"):
        cost = costs.get((row["model"], row["benchmark"]), {})
        many = several.get(row["benchmark"], 0) > 1
        verdict = row["verdict"] if isinstance(row["verdict"], str) else ""
        board.append(
            {name: row[name] for name in SAME}
            | stages(row["setting"])
            | {"title": " ".join(filter(None, [row["benchmark"], row["metric"] if many else ""])) or "(no benchmark)"}
            | {"value": row["value"], "delta": row["delta"], "low": row["CI low"], "high": row["CI high"]}
            | {"up": row["up"], "down": row["down"], "p": row["p"], "holm": row["p (Holm)"], "n": row["n"]}
            | {"verdict": verdict, "kind": KINDS.get(row["outcome"], "none")}
            | {"raw": raw.get((row["model"], row["benchmark"]), [])}
            | {"note": "; ".join(filter(None, [row["reason"], row["note"]]))}
            | {"backend": cost.get("backend"), **{name: cost.get(name) for name in COSTS}}
        )
    return sorted(board, key=lambda row: (*place(row), row["title"]))


def glance(board: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry per base and benchmark: its score, how its variants fare, and the cheapest not shown to be worse.

    'Cheapest' is by prefill FLOPs ratio, among attention-ranked or not, of variants tested as better or not separable;
    its difference and interval say how much worse it may be. Non-inferiority by a margin is :mod:`cliffs`' question.
    """
    found = []
    for row in board:
        if row["model"] != row["base"] or row["status"] != "ok":
            continue
        own = [r for r in board if r["base"] == row["base"] and r["title"] == row["title"] and r["model"] != r["base"]]
        if not own:
            continue
        fine = [r for r in own if r["kind"] in ("better", "same") and _known(r["flops_ratio"])]
        best = min(fine, key=lambda r: r["flops_ratio"], default=None)
        counts = {kind: sum(r["kind"] == kind for r in own) for kind in ("better", "same", "worse", "none")}
        found.append({"base": row["base"], "title": row["title"], "value": row["value"], "n": row["n"]} | counts)
        found[-1]["best"] = best and {name: best[name] for name in SHOWN}
    return found


def _known(value: Any) -> bool:
    return value is not None and value == value
