"""One pass over all answers -> scores by category, subject and grade, and every question whose verdict changed.

Each table of answers is read once and let go, so that memory holds one base and one variant at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import pandas as pd

from redrel_vlmeval import flips
from redrel_vlmeval.results import Results

GROUPS = ("category", "subject", "grade")
CATEGORIES = ["benchmark", "by", "group", "model", "base", "n", "score", "base score", "delta"]
FLIPS = ["model", "base", "benchmark", *flips.COLUMNS]


@lru_cache(maxsize=1)
def persample(results: Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(``CATEGORIES``, ``FLIPS``) of all models, in the order of the scores; kept for the last results."""
    scores: list[tuple] = []
    changed: list[pd.DataFrame] = []
    for model, base, benchmark, ours, theirs in _pairs(results):
        scores += _scores(model, base, benchmark, ours, theirs)
        if theirs is not None and model != base:
            rows = _moved(ours, theirs)
            changed += [rows.assign(model=model, base=base, benchmark=benchmark)] if len(rows) else []
    categories = pd.DataFrame(scores, columns=CATEGORIES).sort_values(["benchmark", "by", "group"], kind="stable")
    found = pd.concat(changed, ignore_index=True) if changed else pd.DataFrame(columns=FLIPS)
    return categories.reset_index(drop=True), found[FLIPS]


def _pairs(results: Results) -> Iterator[tuple[str, str, str, pd.DataFrame, pd.DataFrame | None]]:
    """(model, base, benchmark, answers, the base's answers or None where the two may not be compared)."""
    rows = results.scores[results.scores["headline"] & (results.scores["status"] == "ok")]
    like = rows[rows["delta"].notna()]
    comparable = set(zip(like["model"], like["benchmark"], strict=True))
    cells = rows[["model", "base", "benchmark"]].drop_duplicates()
    for key, family in cells.groupby(["base", "benchmark"], sort=False):
        base, benchmark = map(str, key)
        theirs = _answers(results, base, benchmark)
        for model in sorted(family["model"], key=lambda name: name != base):
            ours = theirs if model == base else _answers(results, model, benchmark)
            if ours is not None:
                with_base = model == base or (model, benchmark) in comparable
                yield model, base, benchmark, ours, theirs if with_base else None


def _answers(results: Results, model: str, benchmark: str) -> pd.DataFrame | None:
    """Judged answers, of the questions that the headline is over; None if one of them stands twice."""
    judged = results.judged.get((model, benchmark))
    if judged is None:
        return None
    frame = results.answers(model, benchmark)
    frame = frame[frame["index"].isin(set(judged["index"])) & frame["hit"].notna()]
    return None if frame.empty or frame["index"].duplicated().any() else frame


def _scores(model: str, base: str, benchmark: str, ours: pd.DataFrame, theirs: pd.DataFrame | None) -> list[tuple]:
    """Rows of ``CATEGORIES``; the delta only where the base was asked the very same questions of a group."""
    found = []
    for by in GROUPS:
        if by not in ours or ours[by].isna().all():
            continue
        means = _means(ours, by)
        base_means = _means(theirs, by) if theirs is not None and by in theirs else {}
        for group, (count, score) in means.items():
            of_base = base_means.get(group)
            same = of_base is not None and of_base[0] == count
            before = of_base[1] if same and of_base else None
            delta = score - before if before is not None and model != base else None
            found.append((benchmark, by, group, model, base, count, score, before, delta))
    return found


def _means(frame: pd.DataFrame, by: str) -> dict[str, tuple[int, float]]:
    hits = frame["hit"].astype(float).groupby(frame[by].astype(str).where(frame[by].notna()))
    return {str(group): (int(n), 100 * float(mean)) for group, n, mean in hits.agg(["size", "mean"]).itertuples()}


def _moved(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Flips whose score rose or fell; the letters of the others need not be looked at."""
    before = ours["index"].map(theirs.set_index("index")["hit"])
    return flips.changes(ours[(ours["hit"] - before).abs() > 1e-9], theirs)
