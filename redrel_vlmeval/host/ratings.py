"""How the host's score files come from its tables of verdicts: the same sums again, to see whether the two fit.

Each rating takes the table, the verdicts of its rows (0..1) and gives the metric in points; None where the table has
not what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from redrel_vlmeval.host.tables import Columns

Rating = Callable[[Columns, np.ndarray], float | None]
_REASONING = ("code_reasoning", "commonsense_reasoning", "numerical_calculation", "text_translation")
_PERCEPTION = (
    "OCR", "artwork", "celebrity", "color", "count", "existence", "landmark", "position", "posters", "scene",
)  # fmt: skip


def mean(table: Columns, hits: np.ndarray) -> float | None:
    return 100 * float(hits.mean()) if len(hits) else None


def mean_of_split(split: str) -> Rating:
    """Of the questions of one split, or of all where the table names none."""

    def rating(table: Columns, hits: np.ndarray) -> float | None:
        inside = [str(value) == split for value in table["split"]] if "split" in table else slice(None)
        return mean(table, hits[inside])

    return rating


def accuracy(table: Columns, hits: np.ndarray) -> float | None:
    """POPE counts a question once for each of the categories, ``adversarial,popular``, that it is in."""
    return 100 * float(np.average(hits, weights=_categories(table))) if len(hits) else None


def f1(table: Columns, hits: np.ndarray) -> float | None:
    """POPE's headline: of 'Yes', the questions counted as by :func:`accuracy`."""
    if not {"answer", "extracted"} <= table.keys():
        return None
    times = _categories(table)
    right, said = (np.array([value == "Yes" for value in table[name]]) for name in ("answer", "extracted"))
    both, either = times[right & said].sum(), times[right].sum() + times[said].sum()
    return 200 * float(both) / float(either) if either else 0.0


def all_right(place: int) -> Rating:
    """HallusionBench: groups of questions with every one right; ``place`` tells what of the index names a group."""

    def rating(table: Columns, hits: np.ndarray) -> float | None:
        if "l2-category" not in table:
            return None
        parts = [str(index).split("_") for index in table["index"]]
        if any(len(part) <= max(3, place) for part in parts):
            return None
        return _whole((kind, part[3], part[place]) for kind, part in zip(table["l2-category"], parts, strict=True))(
            hits
        )

    return rating


def mme(table: Columns, hits: np.ndarray) -> float | None:
    """Of each category the share that is right and that of pictures with both questions right, added up."""
    if not {"category", "image_path"} <= table.keys():
        return None
    total = 0.0
    for name in _PERCEPTION + _REASONING:
        inside = np.array([value == name for value in table["category"]])
        if inside.any():
            pictures = [path for path, own in zip(table["image_path"], inside, strict=True) if own]
            total += 100 * float(hits[inside].mean()) + _whole(pictures)(hits[inside])
    return total


def tenth(table: Columns, hits: np.ndarray) -> float | None:
    """OCRBench's thousand questions, counted."""
    return float(hits.sum()) / 10


def _whole(keys: Iterable[object]) -> Callable[[np.ndarray], float]:
    """The share of groups, told apart by ``keys``, in which nothing is wrong."""
    names = list(keys)

    def share(hits: np.ndarray) -> float:
        right: dict[object, bool] = {}
        for name, hit in zip(names, hits, strict=True):
            right[name] = right.get(name, True) and bool(hit)
        return 100 * sum(right.values()) / len(right) if right else 0.0

    return share


def _categories(table: Columns) -> np.ndarray:
    """In how many categories each question is."""
    index = table["index"]
    return np.array([str(value).count(",") + 1 for value in table.get("category", [""] * len(index))])


def ratios(table: Columns, hits: np.ndarray, metric: str) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """A metric as ``100 * sum over parts of (sum of over / sum of under)``: (over, under) of every question, per part.

    A metric of this form can be drawn again with other weights of the questions. Means, POPE's F1 and MME's perception
    are; None where the table has not what it needs. A picture's share is told by its first question.
    """
    if metric == "F1":
        if not {"answer", "extracted"} <= table.keys():
            return None
        times = _categories(table).astype(float)
        right, said = (np.array([value == "Yes" for value in table[name]]) for name in ("answer", "extracted"))
        return [(2 * times * (right & said), times * right + times * said)]
    if metric == "perception":
        if not {"category", "image_path"} <= table.keys():
            return None
        categories = np.array(table["category"], dtype=object)
        parts = []
        for name in _PERCEPTION:
            inside = categories == name
            if inside.any():
                parts += [(hits * inside, inside.astype(float)), _whole_pictures(table["image_path"], hits, inside)]
        return parts
    return [(hits, np.ones(len(hits)))]


def _whole_pictures(paths: Iterable[object], hits: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each picture's first question: whether all of the picture's are right, and 1; 0 and 0 of others."""
    rows: dict[object, list[int]] = {}
    for number, path in enumerate(paths):
        if inside[number]:
            rows.setdefault(path, []).append(number)
    over, under = np.zeros(len(hits)), np.zeros(len(hits))
    for own in rows.values():
        over[own[0]], under[own[0]] = float(hits[own].min() >= 1), 1.0
    return over, under
