"""The leaderboard: one row per model, a column per score with its statistics, costs, state and notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pandas as pd

from redrel_vlmeval.names import Stage, parse
from redrel_vlmeval.results import NO_RULE, Results, choosing, comparisons
from redrel_vlmeval.rules import DEFAULT
from redrel_vlmeval.sheets.tables.columns import Column, beside, score
from redrel_vlmeval.sheets.tables.table import Outcome, Table

NOT_RUN = Outcome("not run")
# What of a cell's efficiency stands beside its scores.
COSTS = (
    "image_tokens", "kept", "average_image_tokens", "prefill_flops", "flops_ratio", "kv_bytes", "kv_ratio",
)  # fmt: skip
STATES = ("failed", "running", "partial", NO_RULE, "ok")


@dataclass(frozen=True)
class ScoreColumn:
    """A column of scores: its title, the benchmark and metric ('' where no cell has a score)."""

    title: str
    benchmark: str
    metric: str
    first: bool


def leaderboard(results: Results) -> pd.DataFrame:
    """The frame of :func:`measured`."""
    return measured(results).frame


@lru_cache(maxsize=1)
def measured(results: Results) -> Table:
    """One row per model, bases first; a benchmark that failed shows its state in place of a score.

    Score columns are in points; beside them the delta to the base and what a paired test says of it, see
    :mod:`redrel_vlmeval.results.comparisons`. What each column means: :mod:`columns`. Kept for the last
    results, so it is not to be changed in place.
    """
    models = results.scores.drop_duplicates("model")
    frame = with_stages(models)[["model", "base", "L", "K", "rule"]].set_index("model", drop=False)
    variants = bool((frame["base"] != frame["model"]).any())
    compared = comparisons.compare(results)
    parts: list[pd.DataFrame | pd.Series] = [frame]
    headlines = dict(list(results.scores[results.scores["headline"]].groupby("benchmark")))
    columns: list[Column] = []
    outcomes: dict[tuple[str, str], Outcome] = {}
    for column in score_columns(results):
        rows = headlines[column.benchmark]
        rows = rows[rows["metric"].isin([column.metric, ""])].join(compared).set_index("model")
        shown = rows["value"].astype(object).where(rows["status"] == "ok", rows["status"])
        parts.append(shown.reindex(frame.index).rename(column.title))
        columns.append(score(column.title))
        if variants:
            told = rows[list(comparisons.MEANINGS)].reindex(frame.index)
            missing = ~frame.index.isin(rows.index) & (frame["base"] != frame["model"])
            told.loc[missing, "verdict"] = f"{comparisons.NO_TEST}: {NOT_RUN.words}"
            statistics = beside(column.title)
            parts.append(told.set_axis([one.name for one in statistics], axis=1))
            columns += statistics
            outcomes |= {(model, column.title): NOT_RUN for model in frame.index[missing]}
            known = rows.loc[rows["outcome"].notna(), ["outcome", "why"]]
            outcomes |= {(str(model), column.title): Outcome(*said) for model, *said in known.itertuples(name=None)}
    frame = pd.concat(parts, axis=1)
    if averaged := averaged_columns(results):
        scores = frame[[column.title for column in averaged]].apply(pd.to_numeric, errors="coerce")
        frame["mean"] = scores.mean(axis=1, skipna=False)
    frame = frame.join(_costs(results.efficiency))
    cells = dict(list(results.scores.groupby("model", sort=False)))
    backends = results.efficiency.dropna(subset=["backend"]).groupby("model")["backend"]
    frame["backend"] = backends.agg(lambda names: " | ".join(sorted(set(names)))).reindex(frame.index)
    frame["status"] = [min(cells[model]["status"], key=STATES.index) for model in frame.index]
    frame["note"] = [_notes(cells[model]) for model in frame.index]
    order = [row["model"] for row in sorted(frame.to_dict("records"), key=place)]
    caption = "every model of the folder, each variant tested against its base"
    own = {column.name: column for column in columns}
    return Table("Leaderboard", frame.loc[order].reset_index(drop=True), caption, columns=own, outcomes=outcomes)


def stages(setting: str) -> dict[str, Any]:
    """L and K as tables show them: of a schedule all numbers in one text, of a share of the tokens its per cent."""
    try:
        found = parse(setting).stages
    except KeyError:  # a base, or only a prompt or a decoding
        return {"L": None, "K": None}
    pairs: dict[str, list[Any]] = {"L": [stage.layer for stage in found], "K": [_amount(stage) for stage in found]}
    return {name: own[0] if len(own) == 1 else ", ".join(map(str, own)) or None for name, own in pairs.items()}


def _amount(stage: Stage) -> int | str:
    if stage.percent is not None:
        return f"{stage.percent}%"
    return stage.amount if stage.keep is None else stage.keep


def with_stages(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame of results with L and K of :func:`stages` in place of its numbers."""
    shown = [stages(str(setting)) for setting in frame["setting"]]
    return frame.assign(**{name: pd.Series([row[name] for row in shown], frame.index, object) for name in ("L", "K")})


def score_columns(results: Results) -> list[ScoreColumn]:
    """One column per benchmark; those with several headlines (POPE F1, acc) get a column for each."""
    found = []
    headlines = results.scores[results.scores["headline"]]
    for benchmark, rows in sorted(headlines.groupby(headlines["benchmark"].astype(str)), key=lambda pair: pair[0]):
        metrics = [str(metric) for metric in rows["metric"].unique() if metric]
        for number, metric in enumerate(metrics or [""]):
            title = f"{benchmark} {metric}" if len(metrics) > 1 else str(benchmark)
            found.append(ScoreColumn(title or "(no benchmark)", str(benchmark), metric, number == 0))
    return found


def averaged_columns(results: Results) -> list[ScoreColumn]:
    """Columns that the mean is over: the first of each benchmark, if its scores are of 0 to 100; none below two."""
    rows = results.scores[results.scores["headline"] & (results.scores["status"] == "ok")]
    values = {key: group["value"] for key, group in rows.groupby(["benchmark", "metric"])}
    # A sum of MME's parts can lie below 100 too.
    summed = {key for key in values if str(key[1]).startswith("perception")}
    points = {key for key, group in values.items() if group.between(0, 100).all()} - summed
    found = [
        column for column in score_columns(results) if column.first and (column.benchmark, column.metric) in points
    ]
    return found if len(found) > 1 else []


def units(efficiency: pd.DataFrame) -> dict[str, tuple[str, float]]:
    """Title and divisor of the columns whose unit follows the size of the numbers."""
    flops = (1e12, "TFLOPs") if efficiency["prefill_flops"].astype(float).max() >= 1e12 else (1e9, "GFLOPs")
    return {
        "image_tokens": ("image tokens", 1), "kept": ("kept", 1), "average_image_tokens": ("average tokens", 1),
        "prefill_flops": (f"prefill {flops[1]}", flops[0]), "flops_ratio": ("FLOPs ratio", 1),
        "kv_bytes": ("KV MB", 1e6), "kv_bytes_measured": ("KV MB measured", 1e6),
        "kv_ratio": ("KV ratio", 1), "prefill_ms": ("prefill ms", 1), "prefill_ms_from": ("prefill ms from", 1),
        "prefill_ms_to": ("prefill ms to", 1), "decode_ms_per_token": ("decode ms/token", 1),
        "decode_ms_per_token_from": ("decode ms/token from", 1), "decode_ms_per_token_to": ("decode ms/token to", 1),
        "questions_per_second": ("questions/s", 1), "peak_bytes": ("peak MB over weights", 1e6),
    }  # fmt: skip


def _costs(efficiency: pd.DataFrame) -> pd.DataFrame:
    """Efficiency per model: means over its benchmarks, weighted by questions; units by size."""
    numbers = efficiency[list(COSTS)].astype(float)
    weights = numbers.notna().mul(efficiency["n"].astype(float), axis=0)
    frame = (numbers * weights).groupby(efficiency["model"]).sum() / weights.groupby(efficiency["model"]).sum()
    titles = units(frame)
    return pd.DataFrame({titles[name][0]: frame[name] / titles[name][1] for name in COSTS})


def _notes(rows: pd.DataFrame) -> str:
    """Each reason once, with its benchmark where the model has several."""
    alone = rows["benchmark"].nunique() == 1
    told: dict[str, None] = {}
    for benchmark, *texts in rows[["benchmark", "reason", "note"]].astype(str).itertuples(index=False, name=None):
        told |= dict.fromkeys(text if alone or not benchmark else f"{benchmark}: {text}" for text in texts if text)
    return "; ".join(told)


def place(row: Mapping[Any, Any]) -> tuple:
    """Sorts rows by base, the base itself first, then by rule, the default first and controls last, then by L and K."""
    numbers = [(0, value, "") if isinstance(value, int) else (1, 0, str(value)) for value in (row["L"], row["K"])]
    rule = (choosing.by_control(row["model"]), row["rule"] != DEFAULT, str(row["rule"]))
    return row["base"], row["model"] != row["base"], rule, numbers, row["model"]


def in_order(frame: pd.DataFrame, results: Results, before: Sequence[str] = ()) -> pd.DataFrame:
    """The frame by the columns ``before`` and then by model, in the leaderboard's order, L and K as there."""
    frame = with_stages(frame) if "L" in frame else frame
    order = {model: number for number, model in enumerate(leaderboard(results)["model"])}

    def key(column: pd.Series) -> pd.Series:
        return column.map(order) if column.name == "model" else column

    return frame.sort_values([*before, "model"], key=key, kind="stable").reset_index(drop=True)
