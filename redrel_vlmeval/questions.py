"""The host's table with one verdict per question, as the hits that are paired and as the answers that people read."""

from __future__ import annotations

import string

import pandas as pd

from redrel_vlmeval.outputs import Cell, ResultsError, read_table

ANSWERS = [
    "index", "question", "options", "prediction", "answer", "hit", "category", "subject", "grade", "split", "picture",
]  # fmt: skip
COLUMNS = ["model", "benchmark", *ANSWERS]
VERDICTS = ("hit", "score", "eval_score")
# Columns by which hosts name a question's picture; the picture itself is not in their tables.
PICTURES = ("image_path", "image_id", "img_id", "image_name")
# ScienceQA's own words for its subjects, and the abbreviations under which its results are published.
SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}


def verdicts(table: pd.DataFrame | None, split: str | None) -> pd.DataFrame | None:
    """index (text), hit (empty where nothing was judged) and picture (empty where it is not named) of ``split``."""
    if table is None or "index" not in table or not (column := _column(table)):
        return None
    if split is not None and "split" in table:
        table = table[table["split"].astype(str) == split]
    frame = pd.DataFrame({"index": table["index"].astype(str), "hit": _numbers(table[column])})
    frame["picture"] = _picture(table)
    return frame.reset_index(drop=True)


def remark(table: pd.DataFrame | None) -> str:
    """How many answers are empty, which the host judges like any other; the host writes an empty one as 'nan'."""
    if table is None or "prediction" not in table:
        return ""
    empty = int((table["prediction"].isna() | (table["prediction"].astype(str) == "nan")).sum())
    return f"{empty} of {len(table)} answers are empty, scored as the host judged them" if empty else ""


def answers(cell: Cell) -> pd.DataFrame:
    """``ANSWERS``: one row per question in the order of the host's table; no rows where no table can be read.

    ``options`` is text, one line each, None without choices; ``hit`` is the score from 0 to 1 where the host grades.
    """
    source = cell.per_sample or cell.predictions
    try:
        table = read_table(source) if source else None
        raw = read_table(cell.predictions) if cell.predictions else None
    except ResultsError:
        table = None
    if table is None or "index" not in table or "prediction" not in table:
        return pd.DataFrame(columns=ANSWERS)
    column = _column(table)
    frame = table.reindex(columns=ANSWERS).astype(object)
    frame = frame.where(frame.notna(), None).assign(index=table["index"].astype(str))
    frame["hit"] = _numbers(table[column]) if column else float("nan")
    frame["options"], frame["picture"] = _options(table), _picture(table)
    frame["subject"] = [SUBJECTS.get(str(word), word) for word in frame["subject"]]
    if raw is not None and "index" in raw and "prediction" in raw:
        # The judged table holds str(answer), where an empty answer has become the word 'nan'.
        given = dict(zip(raw["index"].astype(str), raw["prediction"], strict=True))
        frame["prediction"] = [given.get(i, p) for i, p in zip(frame["index"], frame["prediction"], strict=True)]
    return frame[ANSWERS].reset_index(drop=True)


def _options(table: pd.DataFrame) -> pd.Series:
    """``A. x`` and ``B. y`` on lines of their own; a question without choices has None."""
    letters = [letter for letter in string.ascii_uppercase if letter in table]
    rows = zip(*(table[letter] for letter in letters), strict=True)
    lines = [[f"{a}. {text}" for a, text in zip(letters, row, strict=True) if pd.notna(text)] for row in rows]
    return pd.Series(["\n".join(row) or None for row in lines] if letters else None, index=table.index, dtype=object)


def _picture(table: pd.DataFrame) -> pd.Series:
    named = next((table[name] for name in PICTURES if name in table), None)
    if named is None:
        return pd.Series([None] * len(table), index=table.index, dtype=object)
    return named.astype(object).where(named.notna(), None)


def _column(table: pd.DataFrame) -> str | None:
    return next((name for name in VERDICTS if name in table), None)


def _numbers(column: pd.Series) -> pd.Series:
    return pd.to_numeric(column, errors="coerce").astype(float)
