"""Results in the layout of the OpenVLM leaderboard's ``OpenVLM.json``, so that its viewers can read ours.

``{"time": "yymmddHHMMSS", "results": {model: {"META": {...}, benchmark: {"Overall": points, category: points}}}}``.
What that layout has no place for stands under ``META.redrel``; printed numbers stand apart under ``published``.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pandas as pd

from redrel_vlmeval.results import Results, comparisons, published
from redrel_vlmeval.sheets.tables import COSTS, printed, stages


def openvlm(results: Results) -> str:
    """The JSON text. A cell without a score has no benchmark entry, but its state and reason under ``META.redrel``."""
    compared = comparisons.compare(results)
    scores = results.scores.join(compared)
    costs = {(row["model"], row["benchmark"]): row for row in results.efficiency.to_dict("records")}
    sources = {(row["model"], row["benchmark"]): row for row in results.provenance.to_dict("records")}
    found: dict[str, Any] = {}
    for model, rows in scores.groupby("model", sort=False):
        first = rows.iloc[0]
        meta = _meta(str(model), str(first["base"]))
        own: dict[str, Any] = {name: _plain(first[name]) for name in ("base", "setting", "rule")}
        own |= stages(first["setting"])
        own["cells"] = cells = {}
        entry: dict[str, Any] = {"META": meta | {"redrel": own}}
        for benchmark, cell in rows.groupby("benchmark", sort=False):
            key = (model, benchmark)
            if (cell["status"] == "ok").any():
                entry[str(benchmark)] = _scores(cell)
            cells[str(benchmark)] = _cell(cell) | {
                "efficiency": {name: _plain(costs[key][name]) for name in COSTS} if key in costs else None,
                "provenance": {name: _plain(value) for name, value in sources.get(key, {}).items()
                               if name not in ("model", "base", "setting", "benchmark")},
            }  # fmt: skip
        found[str(model)] = entry
    beside = [{name: _plain(value) for name, value in row.items()} for row in printed(results).to_dict("records")]
    board = {"time": datetime.now().strftime("%y%m%d%H%M%S"), "results": found, "published": beside}
    return json.dumps(board, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _meta(model: str, base: str) -> dict[str, Any]:
    """The fields that viewers of that file ask of every model; empty where nothing is known."""
    known = published.facts(base)
    return {
        "Method": [model, ""], "Parameters": "", "Language Model": known.backbone, "Vision Model": "", "Org": "",
        "Time": "", "Verified": "No", "OpenSource": "Yes" if known.names else "", "key": model, "dir_name": model,
    }  # fmt: skip


def _scores(cell: pd.DataFrame) -> dict[str, Any]:
    """``Overall`` is the benchmark's first headline; OCRBench has its ``Final Score`` (of 1000), as in that file."""
    values = {str(row.metric): _plain(row.value) for row in cell.itertuples() if row.metric}
    headline = cell.loc[cell["headline"], "value"]
    found = {"Overall": _plain(headline.iloc[0])} if len(headline) else {}
    if "Final Score / 10" in values:
        found["Final Score"] = round(10 * values.pop("Final Score / 10"), 6)
    return found | {name: value for name, value in values.items() if name != "Overall"}


def _cell(cell: pd.DataFrame) -> dict[str, Any]:
    head = cell[cell["headline"]].iloc[0] if cell["headline"].any() else cell.iloc[0]
    told = {name: _plain(head[name]) for name in ("metric", "status", "reason", "note", "n", *comparisons.MEANINGS)}
    return {"headline": told.pop("metric"), **told}


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's own, nothing for what is no number, anything else as text."""
    value = value.item() if hasattr(value, "item") else value
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return None
    return value if isinstance(value, (bool, int, float)) else str(value)
