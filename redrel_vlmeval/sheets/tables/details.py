"""The tables behind the scores: grid, categories, efficiency, blind rate, flips, provenance, all metrics."""

from __future__ import annotations

from itertools import groupby

import pandas as pd

from redrel_vlmeval.results import Results, blind, by_turn, grids
from redrel_vlmeval.sheets.tables import per_question
from redrel_vlmeval.sheets.tables.columns import Column
from redrel_vlmeval.sheets.tables.leaders import in_order, units
from redrel_vlmeval.sheets.tables.table import Table, capped, left_out

# Rows that a workbook shows of a long table, and of one with a row per model and benchmark: openpyxl writes some
# 30 000 fields a second.
MOST, CELLS = 3000, 5000
BENCH = "use redrel bench"  # where a run's own times cannot tell two models apart
HOSTS = {"ms": "ms-vlmeval", "upstream": "VLMEvalKit"}


def grid(results: Results) -> Table:
    """Score by L and K; the rules of one base, benchmark and metric share their colours, which turn at the base."""
    found = grids(results)
    columns = [f"K={keep}" for keep in sorted({keep for grid in found for keep in grid.keeps})]
    rows: list[dict[str, object]] = []
    heat: list[tuple[int, int, float | None]] = []
    for _, family in groupby(found, key=lambda grid: (grid.base, grid.benchmark, grid.metric)):
        first, turn = len(rows), None
        for grid in family:
            turn = grid.baseline
            for layer, values in zip(grid.layers, grid.values.to_numpy(), strict=True):
                line: dict[str, object] = {"base": grid.base, "benchmark": grid.benchmark, "metric": grid.metric}
                line |= {"rule": grid.rule, "base score": turn, "L": layer}
                rows.append(line | {f"K={keep}": value for keep, value in zip(grid.keeps, values, strict=True)})
        heat.append((first, len(rows) - 1, turn))
    frame = pd.DataFrame(rows, columns=["base", "benchmark", "metric", "rule", "base score", "L", *columns])
    remarks = () if rows else ("no rows: no single-stage variant with a whole K (l<L>_k<K>) has a score here",)
    what = "score in points with so many image tokens kept after block L; empty: not run"
    own = {name: Column(name, what) for name in columns}
    own["base score"] = Column("base score", "score of the base; the colours of the heat map turn there")
    return Table("Grid", frame, "score by layer L and image tokens kept K, a heat map for each model and benchmark",
                 remarks, own, heat=tuple(heat), heat_columns=tuple(columns))  # fmt: skip


def categories(results: Results) -> Table:
    """Score per category, subject and grade, with the number of questions in each."""
    caption = "mean score per question of each group"
    why_none = "no rows: no judged question has a category, subject or grade"
    return capped("Categories", per_question.categories(results), MOST, caption, "rows", why_none)


def efficiency(results: Results) -> Table:
    """What each model and benchmark cost, per question, by the efficiency records beside the predictions."""
    rows = in_order(results.efficiency, results)
    named = units(rows)
    kept = ["model", "base", "setting", "benchmark", "n"]
    frame = rows[kept].copy()
    for name, (title, divisor) in named.items():
        if name in rows:
            values = pd.to_numeric(rows[name], errors="coerce")
            frame[title] = values / divisor
        if name == "average_image_tokens" and "tokens_per_block" in rows:
            frame["tokens per block"] = rows["tokens_per_block"]
    frame["batch"] = rows["batch"]
    frame["prefill over base"] = _over_base(rows)
    frame["mode"] = rows["mode"].replace("untouched", "not truncated")
    for name in ("device", "dtype", "kernel"):
        frame[name] = rows[name]
    return capped("Efficiency", frame.reset_index(drop=True), CELLS, "cost per question; memory and time as measured",
                  "cells", "no rows: no efficiency records (<model>_<data>_redrel.jsonl) in this folder")  # fmt: skip


def _over_base(rows: pd.DataFrame) -> pd.Series:
    """Median prefill by that of the base where the times can tell, else what can; None of bases and where one lacks."""
    alike = ["benchmark", "device", "dtype", "kernel", "batch"]
    bases = {tuple(row[["model", *alike]].astype(str)): row for _, row in rows.iterrows()}

    def told(row: pd.Series) -> object:
        base = bases.get(tuple(row[["base", *alike]].astype(str)))
        if base is None or row["model"] == row["base"] or pd.isna(row["prefill_ms"]) or pd.isna(base["prefill_ms"]):
            return None
        spread = base["prefill_ms_to"] - base["prefill_ms_from"]
        if spread >= abs(row["prefill_ms"] - base["prefill_ms"]):
            return BENCH
        return row["prefill_ms"] / base["prefill_ms"]

    return pd.Series([told(row) for _, row in rows.iterrows()], rows.index, object)


def blind_rate(results: Results) -> Table:
    """Each score beside its image-dependent part, where l0_k0 was run (the paper's Fig. 7)."""
    frame = in_order(blind.dependent(results), results, ["base", "benchmark"])
    frame = frame.rename(columns={name: name.replace("_", " ") for name in frame.columns})
    return capped("Blind", frame, MOST, "scores, and those on the questions that need the image", "rows",
                  _not_blind(results) if frame.empty else "", tuple(blind.lines(results)))  # fmt: skip


def _not_blind(results: Results) -> str:
    """Why there is no blind rate: not run, or not comparable."""
    rows = results.scores[results.scores["setting"].astype(str).str.startswith("l0_k0")]
    if rows.empty:
        return "no rows: no run without any image in this folder (<base>_trunc_l0_k0)"
    row = rows.iloc[0]
    why = "; ".join(filter(None, [str(row["reason"] or ""), str(row["note"] or "")])) or "no verdict per question"
    return f"no rows: {row['model']} on {row['benchmark']} is {row['status']} and cannot be used: {why}"


def blind_questions(results: Results) -> Table:
    """Which questions are answered right without any image."""
    frames = []
    columns = ["base", "benchmark", "index", "category", "question", "options", "answer", "prediction", "picture"]
    for row in blind.blind(results).to_dict("records"):
        if row["category"]:
            continue
        told = results.answers(row["blind_model"], row["benchmark"])
        told = told[told["index"].astype(str).isin(set(row["questions"]))]
        frames.append(told.assign(base=row["base"], benchmark=row["benchmark"]).reindex(columns=columns))
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)
    return capped("Blind questions", frame, MOST, "questions answered right with no image token (the paper's Fig. 7)",
                  "questions", "no rows: see the table Blind")  # fmt: skip


def turns(results: Results) -> Table | None:
    """How a dialogue's score changes from turn to turn, of every model; None where no dialogue was judged."""
    frame = in_order(by_turn(results), results, ["benchmark"])
    if frame.empty:
        return None
    what = "95 % interval of the delta, dialogues drawn again; empty for fewer than ten of them"
    columns = {
        "turn": Column("turn", "of the dialogue, from 1; 'later - first': mean of all later turns less the first"),
        "n": Column("n", "dialogues whose turn has a mark, of a variant: on both sides", "d"),
        "unjudged": Column("unjudged", "dialogues whose turn has no mark; they are left out", "d"),
        "score": Column("score", "the judge's mark (MMDU's Overall Score), in points of 100"),
        "base score": Column("base score", "the same of the base, on the same dialogues"),
        "delta": Column("delta", "points to the base; 'later - first': how much more later turns lose than the first"),
        "CI low": Column("CI low", what),
        "CI high": Column("CI high", what),
    }
    return Table("Turns", frame, "dialogues turn by turn, and whether later turns lose more", columns=columns)


def flips(results: Results) -> Table:
    """Every question whose verdict a variant changed, with both answers."""
    frame, count = per_question.flips(results, MOST)
    caption = "questions whose verdict changed against the base"
    if not count:
        return Table("Flips", frame, caption, ("no rows: no variant changed the verdict on a question of its base",))
    if count == len(frame):
        return Table("Flips", frame, caption)
    remarks = (left_out("Flips", len(frame), count, "flips"),)
    return Table("Flips", frame, caption, remarks, full=lambda: per_question.flips(results)[0])


def provenance(results: Results) -> Table:
    """Where each number comes from."""
    caption = "the run behind each model and benchmark; empty: not told by the run"
    return capped("Provenance", runs(results), CELLS, caption, "cells", "no rows")


def runs(results: Results) -> pd.DataFrame:
    """Where each cell comes from, in the leaderboard's order, hosts by their own names."""
    frame = in_order(results.provenance, results)
    return frame.assign(host=frame["host"].replace(HOSTS))


def scores(results: Results) -> Table:
    """Every metric of the hosts' score files."""
    return capped(
        "Scores",
        in_order(results.scores, results),
        MOST,
        "every metric of the host's score files",
        "metrics",
        "no rows",
    )
