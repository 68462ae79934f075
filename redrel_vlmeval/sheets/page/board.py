"""The leaderboard as plain rows: one per model and headline score, with the paired test and the cost beside it."""

from __future__ import annotations

from typing import Any

import pandas as pd

from redrel_vlmeval.results import NO_RULE, Results, choosing, comparisons, grid
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


def glance(results: Results, board: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry per base and benchmark: its score, how its variants fare, and the cheapest shown to be not worse.

    ``best`` is that variant, by prefill FLOPs ratio and with its difference and interval; without one ``why`` says
    what it would take. See :func:`choosing.cheapest`; the test is of the questions' verdicts.
    """
    picks = {(one.base, one.benchmark): choosing.cheapest(one) for one in grid.scores_of(results)}
    found = []
    for row in board:
        if row["model"] != row["base"] or row["status"] != "ok":
            continue
        own = [r for r in board if r["base"] == row["base"] and r["title"] == row["title"] and r["model"] != r["base"]]
        if not own:
            continue
        counts = {kind: sum(r["kind"] == kind for r in own) for kind in ("better", "same", "worse", "none")}
        pick = picks.get((row["base"], row["benchmark"])) if comparisons.is_mean(results, row) else None
        best = next((r for r in own if pick and r["model"] == pick.model), None)
        why = (
            str(pick)
            if pick
            else "A margin in points is tested only where the score is the mean of the questions' verdicts."
        )
        found.append({"base": row["base"], "title": row["title"], "value": row["value"], "n": row["n"]} | counts)
        found[-1] |= {"best": best and {name: best[name] for name in SHOWN}, "margin": choosing.MARGIN, "why": why}
    return found
