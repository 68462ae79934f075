"""The tables behind the scores: grid, categories, efficiency, blind rate, flips, provenance, all metrics."""

from __future__ import annotations

from itertools import groupby

import pandas as pd

from redrel_vlmeval import blind
from redrel_vlmeval.boards.leaders import units
from redrel_vlmeval.boards.persample import persample
from redrel_vlmeval.boards.table import Table, capped
from redrel_vlmeval.grids import grids
from redrel_vlmeval.results import Results

# What a workbook shows of a long table: openpyxl writes about 50 000 cells a second.
MOST = 5000


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
                line |= {"rule": grid.rule, "baseline": turn, "L": layer}
                rows.append(line | {f"K={keep}": value for keep, value in zip(grid.keeps, values, strict=True)})
        heat.append((first, len(rows) - 1, turn))
    frame = pd.DataFrame(rows, columns=["base", "benchmark", "metric", "rule", "baseline", "L", *columns])
    remarks = () if rows else ("no rows: no single-stage variant with a whole K (l<L>_k<K>) has a score here",)
    meaning = "score in points with so many image tokens kept after block L; empty: not run"
    return Table("Grid", frame, "score by layer L and image tokens kept K, a heat map for each model and benchmark",
                 remarks, heat=tuple(heat), heat_columns=tuple(columns),
                 meanings=dict.fromkeys(columns, meaning))  # fmt: skip


def categories(results: Results) -> Table:
    """Score per category, subject and grade, with the number of questions in each."""
    frame = persample(results)[0]
    remarks = () if len(frame) else ("no rows: no judged question of this folder has a category, subject or grade",)
    return capped("Categories", frame, MOST, "mean score per question of each category, subject and grade",
                  "rows", remarks=remarks)  # fmt: skip


def efficiency(results: Results) -> Table:
    """What each model and benchmark cost, per question, by the efficiency records beside the predictions."""
    rows = results.efficiency
    named = units(rows)
    kept = ["model", "base", "setting", "benchmark", "n"]
    frame = rows[kept].copy()
    for name, (title, divisor) in named.items():
        if name in rows:
            values = pd.to_numeric(rows[name], errors="coerce")
            frame[title] = values / divisor
        if name == "average_image_tokens" and "tokens_per_block" in rows:
            frame["tokens per block"] = rows["tokens_per_block"]
    for name in ("mode", "device", "dtype", "kernel"):
        frame[name] = rows[name]
    remarks = () if len(frame) else ("no rows: no efficiency records (<model>_<data>_redrel.jsonl) in this folder",)
    return capped("Efficiency", frame.reset_index(drop=True), MOST, "cost per question; memory and time as measured",
                  "rows", remarks=remarks)  # fmt: skip


def blind_rate(results: Results) -> Table:
    """Each score beside its image-dependent part, where l0_k0 was run (the paper's Fig. 7)."""
    frame = blind.dependent(results)
    frame = frame.rename(columns={name: name.replace("_", " ") for name in frame.columns})
    remarks = tuple(blind.lines(results)) if len(frame) else (_not_blind(results),)
    return capped("Blind", frame, MOST, "scores, and those on the questions that need the image",
                  "rows", remarks=remarks)  # fmt: skip


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
    remarks = () if len(frame) else ("no rows: see the table Blind",)
    return capped("Blind questions", frame, MOST, "questions answered right with no image token (the paper's Fig. 7)",
                  "questions", remarks=remarks)  # fmt: skip


def flips(results: Results) -> Table:
    """Every question whose verdict a variant changed, with both answers."""
    frame = persample(results)[1]
    remarks = () if len(frame) else ("no rows: no variant changed the verdict on a question of its base",)
    return capped("Flips", frame, MOST, "questions whose verdict changed against the base", "flips", remarks=remarks)


def provenance(results: Results) -> Table:
    """Where each number comes from."""
    return capped("Provenance", results.provenance.reset_index(drop=True), MOST,
                  "the run behind each model and benchmark; empty: not told by the run", "cells")  # fmt: skip


def scores(results: Results) -> Table:
    """Every metric of the hosts' score files."""
    return capped("Scores", results.scores, MOST, "every metric of the host's score files", "metrics")
