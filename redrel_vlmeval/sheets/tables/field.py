"""The field's table: methods at budgets, and what each keeps of the base on every benchmark, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from redrel_vlmeval.results import (
    FEWEST,
    Asked,
    Kept,
    Line,
    Results,
    asked as asking,
    kept,
    paired_tests,
    published,
)
from redrel_vlmeval.sheets.tables.columns import Column
from redrel_vlmeval.sheets.tables.table import Table

KEPT = "kept: 100 x score / score of the base"
INTERVAL = (
    "95 % interval by a paired bootstrap: the same questions, whole pictures at a time, drawn again for the base and "
    "all its variants; empty with fewer than ten pictures"
)
COSTS = {"average_image_tokens": "average tokens", "flops_ratio": "FLOPs ratio", "kv_ratio": "KV ratio"}
MEANINGS = {
    "method": "a published method, or a control; the base first",
    "budget": "visual tokens as papers count them; 'average tokens' are those that enter a block",
    "mean": f"mean over the benchmarks of {KEPT}",
    "draws": "draws of a control that draws, and the lowest and highest mean among them; the row is their mean",
    "agreement": "questions with the base's own answer, in per cent, mean over benchmarks; right or wrong",
}


@lru_cache(maxsize=1)
def field(results: Results) -> tuple[Table, ...]:
    """Methods and the downsampling control of the table that this folder is for; none where it is for none.

    Kept for the last results.
    """
    asked = asking.read(results.folder)
    if asked is None:
        return ()
    models = [asked.model(setting) for setting in asked.settings]
    found = {data: kept.kept(results, asked.base, data, models) for data in asked.data}
    return tuple(filter(None, (_methods(results, asked, found), _downsampling(results, asked))))


# -- methods ----------------------------------------------------------------------------------------------------------


def _methods(results: Results, asked: Asked, found: dict[str, dict[str, Kept]]) -> Table:
    base = Line(published.facts(asked.base).title, "all", ("",))
    lines = [base, *asked.lines]
    rows = [_row(results, asked, line, found) for line in lines]
    frame = pd.DataFrame(rows)
    columns = {name: Column(name, meaning) for name, meaning in MEANINGS.items()}
    for data, models in found.items():
        metric = next(iter(models.values())).metric
        what = f"{KEPT}{f', by {metric}' if metric in kept.PREFERRED else ''}"
        columns |= {data: Column(data, what), f"{data} score": Column(f"{data} score", "in points")}
    spans = [str(name) for name in frame if str(name).endswith((" low", " high"))]
    columns |= {name: Column(name, INTERVAL) for name in spans}
    remarks = tuple(_remarks(asked, found))
    caption = f"what methods keep of {asked.base}, in per cent of its score"
    printed = Table("Methods", _printed(frame, asked), caption, remarks, columns)
    return Table("Methods", frame, caption, remarks, columns, printed=printed)


def _row(results: Results, asked: Asked, line: Line, found: dict[str, dict[str, Kept]]) -> dict[str, Any]:
    models = [asked.model(setting) for setting in line.settings]
    row: dict[str, Any] = {"method": line.method, "budget": line.budget, "setting": ", ".join(line.settings) or None}
    columns: list[list[Kept]] = []  # of each benchmark, one for each draw
    for data in asked.data:
        own = [found[data][model] for model in models]
        columns.append(own)
        value, draws = kept.mean(own)
        low, high = kept.interval(draws) if models != [asked.base] else (np.nan, np.nan)
        score = float(np.mean([one.score for one in own]))
        row |= {f"{data} score": score, data: value, f"{data} low": low, f"{data} high": high}
        row |= {f"{data} verdict": _verdict(results, models, data)}
    value, draws = kept.mean([one for own in columns for one in own])
    low, high = kept.interval(draws) if models != [asked.base] else (np.nan, np.nan)
    row |= {"mean": value, "mean low": low, "mean high": high, "draws": _band(columns, len(models))}
    agreeing = [kept.agreement(results, asked.base, model, data) for model in models for data in asked.data]
    row |= {"agreement": float(np.mean(agreeing))} | _costs(results, asked, models)
    why = [f"{one.benchmark}: {one.why}" for own in columns for one in own if one.why]
    return row | {"note": "; ".join(dict.fromkeys(why)) or None}


def _band(columns: Sequence[Sequence[Kept]], draws: int) -> str | None:
    """``5: 61.2..64.0``: of the draws of a control the lowest and highest mean over benchmarks."""
    if draws < 2:
        return None
    means = [kept.mean([own[number] for own in columns])[0] for number in range(draws)]
    return None if np.isnan(means).any() else f"{draws}: {min(means):.1f}..{max(means):.1f}"


def _verdict(results: Results, models: Sequence[str], benchmark: str) -> str | None:
    """What the paired test says of a setting, in two words; nothing of several draws together."""
    rows = results.comparisons
    own = rows[(rows["model"] == models[0]) & (rows["benchmark"] == benchmark)]
    return str(own["outcome"].iloc[0]) if len(models) == 1 and len(own) and own["outcome"].notna().iloc[0] else None


def _costs(results: Results, asked: Asked, models: Sequence[str]) -> dict[str, float]:
    rows = results.efficiency
    own = rows[rows["model"].isin(models) & rows["benchmark"].isin(asked.data)]
    return {title: float(own[name].astype(float).mean()) if len(own) else np.nan for name, title in COSTS.items()}


def _printed(frame: pd.DataFrame, asked: Asked) -> pd.DataFrame:
    """The same as papers print it: value and interval in one field, the base by its scores."""
    shown = frame[["method", "budget"]].copy()
    for name in (*asked.data, "mean"):
        ends = zip(frame[name], frame[f"{name} low"], frame[f"{name} high"], strict=True)
        shown[name] = [_spanned(*one) for one in ends]
        if name != "mean":
            shown.loc[0, name] = _points(frame[f"{name} score"].iloc[0])
    names = ["draws", "agreement", *COSTS.values()]
    return shown.join(frame[[name for name in names if frame[name].notna().any()]])


def _spanned(value: float, low: float, high: float) -> str | None:
    return None if np.isnan(value) else f"{value:.1f}" if np.isnan(low) else f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _points(value: float) -> str | None:
    return None if np.isnan(value) else f"{value:.1f} points"


def _remarks(asked: Asked, found: dict[str, dict[str, Kept]]) -> list[str]:
    """How many cells are missing, and what a reader must know of budgets."""
    gone = [one for models in found.values() for one in models.values() if np.isnan(one.value)]
    lines = [f"{len(gone)} of {sum(map(len, found.values()))} cells have no number: the sheet's notes say why"]
    lines = lines * bool(gone) + [f"{KEPT}; in brackets its 95 % interval, paired with the base; first row: its score"]
    return [*lines, "budgets are as papers count them, some by tokens that leave; average tokens are those that enter"]


# -- the downsampling control -----------------------------------------------------------------------------------------


def _downsampling(results: Results, asked: Asked) -> Table | None:
    """Every method on the questions that the base gets right and the smaller picture of its budget wrong."""
    controls = {line.budget: line.settings[0] for line in asked.lines if line.method == "downsample"}
    rows = []
    for line in asked.lines:
        if line.budget not in controls or line.method == "downsample":
            continue
        for data in asked.data:
            small = asked.model(controls[line.budget])
            hard = _hard(results, asked.base, small, data)
            if hard is None:
                continue
            rows.append({"method": line.method, "budget": line.budget, "benchmark": data, "questions": len(hard)}
                        | _on(results, [asked.model(setting) for setting in line.settings], data, hard))  # fmt: skip
    if not controls:
        return None
    columns = {
        "questions": Column("questions", "those that the base gets right and the smaller picture wrong", "d"),
        "right": Column("right", "mean score of the method on these, in points"),
        "right low": Column("right low", "95 % interval of that score, pictures drawn together"),
        "right high": Column("right high", "95 % interval of that score, pictures drawn together"),
    }
    frame = pd.DataFrame(
        rows, columns=["method", "budget", "benchmark", "questions", "right", "right low", "right high", "note"]
    )
    remarks = ("no rows: the base or the smaller picture has no verdicts yet",) if frame.empty else ()
    caption = f"on questions that {asked.base} gets right and the picture made smaller to the budget wrong"
    return Table("Downsampling", frame, caption, remarks, columns)


def _hits(results: Results, model: str, benchmark: str) -> pd.DataFrame | None:
    frame = results.judged.get((model, benchmark))
    if frame is None or frame.empty or frame["hit"].isna().any() or frame["index"].duplicated().any():
        return None
    return frame.set_index("index")


def _hard(results: Results, base: str, small: str, benchmark: str) -> list[str] | None:
    """Questions that the base gets right (with its full score) and the smaller picture does not."""
    theirs, ours = _hits(results, base, benchmark), _hits(results, small, benchmark)
    if theirs is None or ours is None or set(theirs.index) != set(ours.index):
        return None
    right = (theirs["hit"] >= 1 - 1e-9) & (ours["hit"].reindex(theirs.index) < 1 - 1e-9)
    return list(theirs.index[right])


def _on(results: Results, models: Sequence[str], benchmark: str, hard: list[str]) -> dict[str, Any]:
    """Score of a method on some questions, of several draws their mean; with fewer than ten pictures no interval."""
    own = [_hits(results, model, benchmark) for model in models]
    if any(one is None or not set(hard) <= set(one.index) for one in own):
        return {"note": "no verdict on these questions"}
    if not hard:
        return {"note": "too few: none"}
    frames = [one.loc[hard] for one in own if one is not None]
    scores = np.mean([frame["hit"].to_numpy(dtype=float) for frame in frames], 0)
    pictures = [(True, p) if p is not None else (False, i) for i, p in frames[0]["picture"].items()]
    found: dict[str, Any] = {"right": 100 * float(scores.mean())}
    if len(set(pictures)) < FEWEST:
        return found | {"note": f"too few for an interval: {len(set(pictures))}"}
    low, high = paired_tests.interval(scores, pictures)
    return found | {"right low": low, "right high": high}


def summed_up(tables: Sequence[Table]) -> list[Table]:
    """Each as papers print it, where it has such a form."""
    return [table.printed or table for table in tables]
