"""What can be answered without the picture: the blind rate of ``l0_k0`` and each score on the other questions.

The paper's Fig. 7 calls these cases a lack of visual dependency. Lucky guesses count as right here too: of four
options, guessing gets a quarter, so the blind rate is an upper bound of what the text gives away.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from redrel_vlmeval.names import parse
from redrel_vlmeval.results.reading import Results

COLUMNS = ["base", "benchmark", "category", "n", "right", "blind_rate", "questions", "blind_model"]
PARTS = [
    "model", "base", "benchmark", "category", "n", "score", "blind_rate", "rest_n", "rest_score", "blind_model",
]  # fmt: skip
# Benchmarks that a line for a terminal names.
SHOWN = 3


@dataclass(frozen=True, eq=False)
class _Family:
    """A base and benchmark whose ``l0_k0`` run is comparable: verdicts (1 right, 0 wrong) and categories by index."""

    base: str
    benchmark: str
    model: str
    right: pd.Series
    category: pd.Series


def blind(results: Results) -> pd.DataFrame:
    """One row per base x benchmark x category (``''``: all) with ``COLUMNS``: n, questions right without any image.

    ``blind_rate`` is their share in points; ``questions`` is the tuple of their indices. A question counts as right
    with its full score. Empty frame where ``l0_k0`` was not run or cannot be compared with its base.
    """
    rows = []
    for family in _families(results):
        for name, inside in _parts(family.right, family.category):
            right = family.right[inside]
            indices = tuple(right.index[right > 0])
            rows.append((family.base, family.benchmark, name, len(right), len(indices),
                         100 * float(right.mean()), indices, family.model))  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def dependent(results: Results) -> pd.DataFrame:
    """One row per model x benchmark x category with ``PARTS``: score, and on the questions not right without an image.

    ``score`` and ``rest_score`` are mean scores per question in points, also where the headline is another quantity
    (F1, a sum). Models that were not run like their base, or not on the same questions, have no row.
    """
    comparable = _comparable(results)
    rows = []
    for family in _families(results):
        parts = list(_parts(family.right, family.category))
        for model in comparable.get((family.base, family.benchmark), ()):
            hits = _hits(results, model, family.benchmark)
            if hits is None or len(hits) != len(family.right) or not family.right.index.isin(hits.index).all():
                continue
            scores = hits.reindex(family.right.index).to_numpy()
            for name, inside in parts:
                own, right = scores[inside], family.right.to_numpy()[inside]
                rest = own[right == 0]
                rest_score = 100 * float(rest.mean()) if len(rest) else None
                rows.append((model, family.base, family.benchmark, name, len(own), 100 * float(own.mean()),
                             100 * float(right.mean()), len(rest), rest_score, family.model))  # fmt: skip
    return pd.DataFrame(rows, columns=PARTS).astype({"rest_score": float})


def lines(results: Results) -> list[str]:
    """One line per run without any image, for a terminal."""
    found = blind(results)
    found = found[found["category"] == ""]
    told = []
    for model, rows in found.groupby("blind_model", sort=False):
        rates = [f"{row.blind_rate:.1f} % of {row.benchmark} ({row.right} of {row.n})" for row in rows.itertuples()]
        rates[SHOWN:] = [f"{len(rates) - SHOWN} more in the sheet Blind"] if len(rates) > SHOWN else []
        told.append(f"right without any image, lucky guesses included: {', '.join(rates)} ({model})")
    return told


@lru_cache(maxsize=1)
def _families(results: Results) -> list[_Family]:
    """Bases with a run without any image whose questions all have a verdict; kept for the last results."""
    found = []
    for (base, benchmark), models in _comparable(results).items():
        for model in models:
            if not sees_nothing(model):
                continue
            hits = _hits(results, model, benchmark)
            if hits is None:
                continue
            groups = results.groups(model, benchmark)
            category = pd.Series("", index=hits.index)
            if "category" in groups:
                named = groups.loc[~groups.index.duplicated(), "category"].reindex(hits.index)
                category = named.where(named.notna(), "").astype(str)
            found.append(_Family(base, benchmark, model, (hits >= 1 - 1e-9).astype(int), category))
    return found


def sees_nothing(model: str) -> bool:
    """True for ``l0_k0`` under any prompt and decoding."""
    try:
        stages = parse(model).stages
    except KeyError:  # a replaced run, '<model> [<run>]', or a name that is none of ours
        return False
    return bool(stages) and stages[0].layer == 0 and not (stages[0].keep or stages[0].percent)


def _comparable(results: Results) -> dict[tuple[str, str], list[str]]:
    """Models by base and benchmark, the base first: those whose score has a delta, which only like runs have."""
    rows = results.scores
    rows = rows[rows["headline"] & (rows["status"] == "ok")]
    found: dict[tuple[str, str], list[str]] = {}
    for own in (True, False):
        some = rows[(rows["model"] == rows["base"]) if own else (rows["model"] != rows["base"]) & rows["delta"].notna()]
        for model, base, benchmark in some[["model", "base", "benchmark"]].drop_duplicates().itertuples(index=False):
            found.setdefault((base, benchmark), []).append(model)
    return found


def _hits(results: Results, model: str, benchmark: str) -> pd.Series | None:
    """Scores by index (text); None where one is missing or a question stands twice."""
    frame = results.judged.get((model, benchmark))
    if frame is None or frame.empty or frame["hit"].isna().any() or frame["index"].duplicated().any():
        return None
    return frame.set_index("index")["hit"]


def _parts(right: pd.Series, category: pd.Series) -> Iterator[tuple[str, np.ndarray]]:
    """(name, which questions): all of them under the name '', then each category where there are several."""
    yield "", np.ones(len(right), dtype=bool)
    named = category.to_numpy(dtype=object)
    names = sorted(set(named) - {""})
    if len(names) > 1:
        for name in names:
            yield name, named == name
