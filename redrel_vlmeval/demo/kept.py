"""How often a rule keeps the cells that a question of our benchmarks depends on, beside what the variant scores."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from redrel_vlmeval import models
from redrel_vlmeval.results import Results, records
from redrel_vlmeval.sheets import write_csv


def needed_cells_kept(found: Results, data: str) -> pd.DataFrame:
    """One row per variant that dropped tokens: share of questions (%) all of whose cells outlived the last stage.

    Columns: model, L, K, rule, one per category with cells, ``all`` of them, and ``score`` (accuracy on the same
    questions).
    """
    table = models.table(data)
    indices = [str(index) for index in table["index"]]
    cells = dict(zip(indices, map(_numbers, table["cells"]), strict=True))
    category = dict(zip(indices, table["category"], strict=True))
    hits = found.questions[found.questions["benchmark"] == data]
    rows = []
    for cell in found.cells:
        if cell.benchmark != data:
            continue
        shares = _shares(records.records_of(cell), cells, category)
        if shares.empty:
            continue
        own = hits[(hits["model"] == cell.model) & hits["category"].isin(shares.index)]
        identity = found.scores[found.scores["model"] == cell.model].iloc[0][["L", "K", "rule"]].to_dict()
        score = 100 * own["hit"].astype(float).mean()
        rows.append({"model": cell.model, **identity, **(100 * shares).to_dict(), "score": score})
    frame = pd.DataFrame(rows)
    return frame if frame.empty else frame.sort_values(["L", "K", "rule"]).reset_index(drop=True)


def _numbers(cells: str) -> set[int]:
    return {int(cell) for cell in cells.split(",") if cell}


def _shares(lines: dict[str, dict[str, object]], cells: dict[str, set[int]], category: dict[str, str]) -> pd.Series:
    """Category -> share of questions with all needed cells kept; empty if nothing was ever dropped."""
    rows = []
    for index, record in lines.items():
        kept = record.get("kept")
        if isinstance(kept, dict) and kept and cells.get(index):
            last = kept[max(kept, key=int)]
            rows.append((category[index], cells[index] <= set(last)))
    frame = pd.DataFrame(rows, columns=["category", "kept"])
    if frame.empty:
        return pd.Series(dtype=float)
    by = frame.groupby("category")["kept"].mean()
    order = [name for name in ("one-hop", "two-hop", "three-hop") if name in by]
    return pd.concat([by[order], pd.Series({"all": frame["kept"].mean()})])


def write(frame: pd.DataFrame, path: Path) -> Path:
    """The table as csv."""
    return write_csv(frame.round(2), path)
