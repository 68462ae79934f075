"""The host's table with one verdict per question, as the hits that are paired and as the answers that people read."""

from __future__ import annotations

import ast
import re
import string
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from redrel_vlmeval.host.folders import Cell
from redrel_vlmeval.host.scores import Metric, as_number
from redrel_vlmeval.host.tables import Columns, ResultsError, read_columns, read_json

ANSWERS = [
    "index", "question", "options", "prediction", "answer", "hit", "category", "subject", "grade", "split", "picture",
]  # fmt: skip
COLUMNS = ["model", "benchmark", *ANSWERS]
# Columns that put questions together.
GROUPS = ("category", "subject", "grade")
VERDICTS = ("hit", "score", "eval_score", "verifier_match")
# The host's word for an answer that it did not get.
NO_ANSWER = "Failed to obtain answer"
# Columns by which hosts name a question's picture; the picture itself is not in their tables.
PICTURES = ("image_path", "image_id", "img_id", "image_name")
# ScienceQA's own words for its subjects, and the abbreviations under which its results are published.
SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
# Answers that pandas, and so the host, reads as empty.
_EMPTY = {
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL",
    "NaN", "None", "n/a", "nan", "null",
}  # fmt: skip
# Excel's way to write a control character, which the host's reader leaves as it stands.
_ESCAPE = re.compile("_x00[01][0-9A-Fa-f]_")
_FORMULAS = "Handwritten Mathematical Expression Recognition"


def table_of(cell: Cell) -> dict[str, list[Any]] | None:
    """The judged table, or the predictions where there is none; None without either.

    OCRBench is judged without a table: its rule is applied again, and counts where the host's own sum comes out.

    Raises:
        ResultsError: the table cannot be read.
    """
    if cell.given is not None:
        return dict(cell.given.table) if cell.given.table is not None else None
    source = cell.per_sample or cell.predictions
    if source is None:
        return None
    table = read_columns(source)
    if cell.benchmark.startswith("OCRBench") and {"prediction", "answer", "category"} <= table.keys():
        if _column(table) is None:
            lines = zip(table["prediction"], table["answer"], table["category"], strict=True)
            hits = [_ocrbench(*line) for line in lines]
            score = read_json(cell.metric) if cell.metric and cell.metric.suffix == ".json" else None
            if isinstance(score, dict) and score.get("Final Score") == sum(hits):
                table["hit"] = hits
    elif {"eval_score", "eval_match"} <= table.keys():
        table["eval_score"] = [_of_matches(cell.benchmark, *pair) for pair in
                               zip(table["eval_score"], table["eval_match"], strict=True)]  # fmt: skip
    return table


def _of_matches(benchmark: str, score: Any, matches: object) -> Any:
    """What a question counts in the host's sum: ``eval_score`` is always the mean over the right answers.

    DocVQA and InfoVQA match by edit distance, where 0 is best and one half and more counts as wrong.
    """
    if not benchmark.startswith(("DocVQA", "InfoVQA", "ChartQA", "OCRVQA")):
        return score
    try:
        values = [float(value) for value in ast.literal_eval(str(matches).replace("np.float64", ""))]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    if not benchmark.startswith(("DocVQA", "InfoVQA")):
        return max(values, default=None)
    near = 1 - min(values, default=1.0)
    return near if near >= 0.5 else 0.0


def misfit(metrics: Iterable[Metric], table: Columns | None) -> str:
    """Why the score is not that of the table of verdicts, empty where it is; the host rounds to two digits.

    A table may be older than the score or another judge's, and either may have been edited.
    """
    column = _column(table) if table is not None else None
    if table is None or column is None or "index" not in table:
        return ""
    hits = _hits(table[column])
    if np.isnan(hits).any() or not len(hits) or hits.min() < 0 or hits.max() > 1:
        return ""  # no verdicts to add up, which whoever pairs them says
    for metric in metrics:
        given = metric.rating(table, hits) if metric.rating else None
        if given is not None and not abs(given - metric.value) < 0.011:
            return f"{metric.name} is {metric.value:.1f}, its table of verdicts gives {given:.1f}"
    return ""


def rejudged(table: Columns | None, given: Columns) -> str:
    """How many answers are not those that were judged: the host does not judge again what it has judged before."""
    if table is None or not all({"index", "prediction"} <= one.keys() for one in (table, given)):
        return ""
    now = dict(zip(map(str, given["index"]), given["prediction"], strict=True))
    if len(now) < len(given["index"]):
        return ""  # a question that stands twice, which whoever pairs them says
    judged = zip(map(str, table["index"]), table["prediction"], strict=True)
    other = sum(index in now and not _same_answer(said, now[index]) for index, said in judged)
    return f"{other} of {len(table['index'])} answers are not those that were judged" if other else ""


def _same_answer(judged: object, given: object) -> bool:
    """Benchmarks may judge a part of an answer; an empty one has become the word 'nan', and 7.0 is 7 in a sheet."""
    if judged == given:
        return True
    if judged is None or judged == "nan":
        return given is None or given in _EMPTY
    part, whole = (" ".join(_ESCAPE.sub(" ", str(value)).split()) for value in (judged, given))
    if re.search(rf"(?<!\w){re.escape(part)}(?!\w)", whole):
        return True
    return as_number(part) == as_number(whole) is not None


def verdicts(table: Columns | None, split: str | None) -> pd.DataFrame | None:
    """index (text), hit (empty where nothing was judged), picture (None where it is not named) and asked, of ``split``.

    ``asked`` is a number that tells question, options and right answer from others within this process.
    """
    if table is None or "index" not in table or not (column := _column(table)):
        return None
    # The same index stands in the tables of all models: it is kept once.
    index = [sys.intern(str(index)) for index in table["index"]]
    texts = [table[name] for name in ("question", *_letters(table), "answer") if name in table]
    asked = np.fromiter(map(hash, zip(*texts, strict=True)), dtype=np.int64) if texts else 0
    picture = np.array(_picture(table), dtype=object)
    # Texts as plain objects: pandas' own strings compare and look up many times slower.
    own = pd.Series(index, dtype=object)
    frame = pd.DataFrame({"index": own, "hit": _hits(table[column]), "picture": picture, "asked": asked})
    if split is not None and "split" in table:
        frame = frame[[str(value) == split for value in table["split"]]].reset_index(drop=True)
    return frame


def predictions(cell: Cell) -> Columns:
    """The table that the judged one was made from; empty where there is only one.

    Raises:
        ResultsError: it cannot be read.
    """
    return read_columns(cell.predictions) if cell.predictions and cell.per_sample else {}


def remark(table: Columns | None, given: Columns) -> str:
    """How many answers are empty, which the host judges like any other, and how many questions could not be asked.

    The judged table holds the word 'nan' for an empty answer; ``given`` are the predictions beside it.
    """
    if table is None:
        return ""
    shown = table.get("prediction", [])
    judged = sum(value is None or value == "nan" for value in shown)
    empty = max(judged, sum(value is None for value in given.get("prediction", ())))
    failed = sum(NO_ANSWER in str(value) for value in shown)
    said = [f"{empty} of {len(shown)} answers are empty, scored as the host judged them"] * bool(empty)
    said += [f"{failed} of {len(shown)} questions could not be asked and count as wrong"] * bool(failed)
    return "; ".join(said)


def answers(cell: Cell) -> pd.DataFrame:
    """``ANSWERS``: one row per question in the order of the host's table; no rows where no table can be read.

    ``options`` is text, one line each, None without choices; ``hit`` is the score from 0 to 1 where the host grades.
    """
    try:
        table = table_of(cell) or {}
        raw = read_columns(cell.predictions) if cell.predictions and cell.per_sample else table
    except ResultsError:
        table = {}
    if "index" not in table or "prediction" not in table:
        return pd.DataFrame(columns=ANSWERS)
    table |= _as_given(raw, table)
    nothing = [None] * len(table["index"])
    found = {name: table.get(name, nothing) for name in ANSWERS}
    found["index"] = [str(index) for index in table["index"]]
    found["options"], found["picture"] = _options(table), _picture(table)
    found["subject"] = [SUBJECTS.get(str(word), word) for word in found["subject"]]
    frame = pd.DataFrame(found, columns=ANSWERS, dtype=object)
    column = _column(table)
    return frame.assign(hit=_hits(table[column]) if column else float("nan"))


def _as_given(raw: Columns, judged: Columns) -> dict[str, list[Any]]:
    """The judged table's texts as the table of predictions holds them.

    The host reads that table before it judges, by a way that turns an empty answer into 'nan' and the ``\\r`` of a
    Windows line break into '_x000D_'.
    """
    if "index" not in raw or raw is judged:
        return {}
    place = {str(index): number for number, index in enumerate(raw["index"])}
    where = [place.get(str(index)) for index in judged["index"]]
    names = [name for name in ("question", "prediction", *_letters(judged)) if name in raw and name in judged]
    return {
        name: [old if at is None else raw[name][at] for at, old in zip(where, judged[name], strict=True)]
        for name in names
    }


def groups(cell: Cell) -> pd.DataFrame:
    """``GROUPS`` of each question, by index, where the table has them: all that is read of it."""
    try:
        table = table_of(cell) or {}
    except ResultsError:
        table = {}
    found = {by: list(table[by]) for by in GROUPS if by in table and "index" in table}
    if "subject" in found:
        found["subject"] = [SUBJECTS.get(str(word), word) for word in found["subject"]]
    return pd.DataFrame(found, dtype=object, index=[str(index) for index in table.get("index", [])])


def _ocrbench(prediction: object, answer: object, category: object) -> int:
    """Whether one of the right answers stands in the prediction, blanks and case aside, as the host counts it."""

    def plain(text: str) -> str:
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if category == _FORMULAS else text.lower()

    try:
        right = ast.literal_eval(str(answer))
    except (ValueError, SyntaxError):
        right = [answer]
    said = "nan" if prediction is None else str(prediction)
    return int(any(plain(str(one)) in plain(said) for one in right))


def _letters(table: Columns) -> list[str]:
    return [letter for letter in string.ascii_uppercase if letter in table]


def _options(table: Columns) -> list[str | None]:
    """``A. x`` and ``B. y`` on lines of their own; a question without choices has None."""
    letters = _letters(table)
    if not letters:
        return [None] * len(table["index"])
    rows = zip(*(table[letter] for letter in letters), strict=True)
    lines = [[f"{a}. {text}" for a, text in zip(letters, row, strict=True) if text is not None] for row in rows]
    return ["\n".join(row) or None for row in lines]


def _picture(table: Columns) -> list[Any]:
    return next((table[name] for name in PICTURES if name in table), [None] * len(table["index"]))


def _column(table: Columns) -> str | None:
    return next((name for name in VERDICTS if name in table), None)


def _hits(column: list[Any]) -> np.ndarray:
    try:
        return np.array(column, dtype=float)
    except (TypeError, ValueError):
        return pd.to_numeric(pd.Series(column, dtype=object), errors="coerce").to_numpy(dtype=float)
