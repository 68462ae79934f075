"""The host's table with one verdict per question, as the hits that are paired and as the answers that people read."""

from __future__ import annotations

import pandas as pd

from redrel_vlmeval.outputs import Cell, ResultsError, read_table

COLUMNS = ["model", "benchmark", "index", "prediction", "answer", "hit", "category", "split"]
# The host's word for an answer that it did not get.
NO_ANSWER = "Failed to obtain answer"
VERDICTS = ("hit", "score", "eval_score")
# Columns by which hosts name a question's picture; the picture itself is not in their tables.
PICTURES = ("image_path", "image_id", "img_id", "image_name")


def verdicts(table: pd.DataFrame | None, split: str | None) -> pd.DataFrame | None:
    """index (text), hit (empty where nothing was judged) and picture (empty where it is not named) of ``split``."""
    if table is None or "index" not in table or not (column := _column(table)):
        return None
    if split is not None and "split" in table:
        table = table[table["split"].astype(str) == split]
    picture = next((name for name in PICTURES if name in table), None)
    frame = pd.DataFrame({"index": table["index"].astype(str), "hit": _numbers(table[column])})
    named = table[picture] if picture else None
    frame["picture"] = None if named is None else named.astype(object).where(named.notna(), None)
    return frame.reset_index(drop=True)


def remark(table: pd.DataFrame | None) -> str:
    """How many answers are empty, which the host judges like any other, or failed; an empty one it writes as 'nan'."""
    if table is None or "prediction" not in table:
        return ""
    given = table["prediction"].astype(str)
    empty = int((table["prediction"].isna() | (given == "nan")).sum())
    failed = int(given.str.contains(NO_ANSWER, regex=False).sum())
    said = [f"{empty} of {len(table)} answers are empty, scored as the host judged them"] * bool(empty)
    said += [f"{failed} of {len(table)} questions could not be asked and count as wrong"] * bool(failed)
    return "; ".join(said)


def answers(cell: Cell) -> pd.DataFrame | None:
    """One row per question with the raw answer; None where there is no table that can be read."""
    source = cell.per_sample or cell.predictions
    try:
        table = read_table(source) if source else None
        raw = read_table(cell.predictions) if cell.predictions else None
    except ResultsError:
        return None
    if table is None or "index" not in table or "prediction" not in table:
        return None
    column = _column(table)
    frame = table.reindex(columns=COLUMNS[2:]).assign(model=cell.model, benchmark=cell.benchmark)
    frame["hit"] = _numbers(table[column]) if column else float("nan")
    if raw is not None and "index" in raw and "prediction" in raw:
        # The judged table holds str(answer), where an empty answer has become the word 'nan'.
        given = dict(zip(raw["index"].astype(str), raw["prediction"], strict=True))
        frame["prediction"] = [given.get(str(i), p) for i, p in zip(frame["index"], frame["prediction"], strict=True)]
    return frame[COLUMNS]


def _column(table: pd.DataFrame) -> str | None:
    return next((name for name in VERDICTS if name in table), None)


def _numbers(column: pd.Series) -> pd.Series:
    return pd.to_numeric(column, errors="coerce").astype(float)
