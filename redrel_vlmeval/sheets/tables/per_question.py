"""Scores by category, subject and grade, and every question whose verdict changed, from verdicts that are read already.

A variant's questions are its base's, so tables of answers are read for bases only, and for variants where their own
words are shown. Memory holds one base and one variant at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from redrel_vlmeval.results import Results, flips as flipped
from redrel_vlmeval.sheets.tables.leaders import in_order

CATEGORIES = ["benchmark", "by", "group", "model", "base", "n", "score", "base score", "delta"]
FLIPS = ["model", "base", "benchmark", *flipped.COLUMNS]


def categories(results: Results) -> pd.DataFrame:
    """``CATEGORIES``: one row per model x benchmark x group; the delta only to a base that was run alike."""
    rows: list[tuple] = []
    for base, benchmark, models, like in _families(results):
        groups, theirs = None, verdicts(results, base, benchmark)
        for model in models:
            hits = verdicts(results, model, benchmark)
            if hits is None:
                continue
            if theirs is None or (model != base and model not in like):
                rows += _scores(model, base, benchmark, hits, None, _groups(results.groups(model, benchmark)))
                continue
            groups = _groups(results.groups(base, benchmark)) if groups is None else groups
            rows += _scores(model, base, benchmark, hits, theirs, groups)
    frame = pd.DataFrame(rows, columns=CATEGORIES)
    return in_order(frame, results, ["benchmark", "by", "group"])


def flips(results: Results, most: int | None = None) -> tuple[pd.DataFrame, int]:
    """(``FLIPS`` of the first ``most`` questions whose score rose or fell, or of all; how many there are in all)."""
    found: list[pd.DataFrame] = []
    have = total = 0
    for base, benchmark, models, like in _families(results):
        theirs, before = None, verdicts(results, base, benchmark)
        for model in models:
            after = verdicts(results, model, benchmark)
            if model == base or model not in like or before is None or after is None:
                continue
            moved = after.index[np.abs(after.to_numpy() - _at(before, after.index)) > 1e-9]
            total += len(moved)
            if len(moved) and (most is None or have < most):
                theirs = results.answers(base, benchmark) if theirs is None else theirs
                ours = results.answers(model, benchmark)
                rows = flipped.changes(ours[ours["index"].isin(set(moved))], theirs)
                found.append(rows.assign(model=model, base=base, benchmark=benchmark))
                have += len(rows)
    frame = pd.concat(found, ignore_index=True)[FLIPS] if found else pd.DataFrame(columns=FLIPS)
    return frame if most is None else frame.iloc[:most], total


def verdicts(results: Results, model: str, benchmark: str) -> pd.Series | None:
    """Scores by index of the judged questions that the headline is over; None without any, or if one stands twice."""
    frame = results.judged.get((model, benchmark))
    if frame is None:
        return None
    hits, index = frame["hit"].to_numpy(dtype=float), frame["index"].to_numpy(dtype=object)
    known = ~np.isnan(hits)
    hits, index = hits[known], index[known]
    if not len(index) or len(set(index)) < len(index):
        return None
    return pd.Series(hits, index=pd.Index(index, dtype=object))


def _families(results: Results) -> Iterator[tuple[str, str, list[str], set[str]]]:
    """(base, benchmark, models with a score, the base first, and those that have a delta: they were run alike)."""
    rows = in_order(results.scores[results.scores["headline"] & (results.scores["status"] == "ok")], results)
    for key, family in rows.groupby(["base", "benchmark"], sort=False):
        base, benchmark = map(str, key)
        yield base, benchmark, list(family["model"].unique()), set(family.loc[family["delta"].notna(), "model"])


@dataclass(frozen=True, eq=False)
class _Grouping:
    """The questions that have a group, by index, and the place of each one's group in ``names``."""

    index: pd.Index
    names: np.ndarray
    places: np.ndarray


def _groups(frame: pd.DataFrame) -> dict[str, _Grouping]:
    """For each way of grouping the group of each question; ``frame`` has a column for each, by index."""
    once, found = frame[~frame.index.duplicated()], {}
    for by in map(str, frame.columns):
        if len(known := once[by].dropna()):
            names, places = np.unique(known.to_numpy(dtype=str), return_inverse=True)
            found[by] = _Grouping(pd.Index(known.index, dtype=object), names, places)
    return found


def _scores(
    model: str, base: str, benchmark: str, hits: pd.Series, theirs: pd.Series | None, groups: dict[str, _Grouping]
) -> list[tuple]:
    found = []
    for by, grouping in groups.items():
        own = _means(hits, grouping)
        before = _means(theirs, grouping) if theirs is not None else {}
        for group, (count, score) in own.items():
            # The base may have been asked more; a group compares only with the very same number of questions.
            old = before[group][1] if group in before and before[group][0] == count else None
            delta = score - old if old is not None and model != base else None
            found.append((benchmark, by, group, model, base, count, score, old, delta))
    return found


def _means(hits: pd.Series, grouping: _Grouping) -> dict[str, tuple[int, float]]:
    """(n, mean score in points) of each group."""
    values = _at(hits, grouping.index)
    asked = ~np.isnan(values)
    places, most = grouping.places[asked], len(grouping.names)
    counts, sums = np.bincount(places, minlength=most), np.bincount(places, weights=values[asked], minlength=most)
    return {str(g): (int(n), 100 * float(s) / n) for g, n, s in zip(grouping.names, counts, sums, strict=True) if n}


def _at(hits: pd.Series, index: pd.Index) -> np.ndarray:
    """Scores of the questions in ``index``, nan where there is none; nearly always they are the very same ones."""
    same = np.array_equal(hits.index.to_numpy(), index.to_numpy())
    return (hits if same else hits.reindex(index)).to_numpy()
