"""The flips of every variant as compact rows: texts once, numbers by place, kept tokens as bits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from redrel_vlmeval.host import answers
from redrel_vlmeval.results import DOWN, SAME, UP, Results, flips, letter, records
from redrel_vlmeval.sheets.page.places import Kept, kept_of

# Variants and benchmarks whose tables are read for the flips; of more, each base shows its first variants.
MOST_CELLS = 500
# A page holds this many flips, and characters of answers and questions; beyond, each cell shows its first, and long
# texts are cut. 2000 questions and 10 models fit.
MOST_FLIPS = 20_000
MOST_CHARACTERS = 1_500_000
CUTS = (4000, 2000, 1000, 500, 250, 120)
CHANGES = (UP, DOWN, SAME)
_OPTION = re.compile(r"^([A-Z])\. ", re.MULTILINE)


def collect(results: Results, order: Sequence[str]) -> list[dict[str, Any]]:
    """One entry per variant and benchmark that can be compared with its base: model, base, benchmark, frame of flips.

    ``order`` are the models as the leaderboard has them. Frames are cut to the first rows where a page could not hold
    them all; ``total`` counts what was there.
    """
    cells = {(cell.label, cell.benchmark): cell for cell in results.cells}
    place = {model: number for number, model in enumerate(order)}
    found: list[dict[str, Any]] = []
    families = _families(results)
    first = _share([len(models) for models in families.values()], MOST_CELLS)
    for (base, benchmark), models in families.items():
        theirs = answers(cells[base, benchmark])
        for model in sorted(models, key=place.__getitem__)[:first]:
            judged = results.judged.get((model, benchmark))
            frame = flips.changes(answers(cells[model, benchmark]), theirs, judged)
            if len(frame):
                entry = {"model": model, "base": base, "benchmark": benchmark}
                found.append(entry | {"frame": frame, "total": len(frame)})
    most = _share([entry["total"] for entry in found], MOST_FLIPS)
    return [entry | {"frame": entry["frame"].head(most)} for entry in found]


def unread(results: Results) -> int:
    """Of how many variants and benchmarks :func:`collect` does not look for flips."""
    sizes = [len(models) for models in _families(results).values()]
    first = _share(sizes, MOST_CELLS)
    return sum(size - min(size, first) for size in sizes)


def _families(results: Results) -> dict[tuple[str, str], list[str]]:
    """The variants of each base and benchmark that were run as it was: a headline with a delta, as in flips.flips."""
    rows = results.scores
    paired = rows.loc[rows["headline"] & rows["delta"].notna(), ["model", "base", "benchmark"]].drop_duplicates()
    families = paired.groupby(["base", "benchmark"], sort=True)["model"]
    return {(str(base), str(benchmark)): [str(model) for model in models] for (base, benchmark), models in families}


def _share(sizes: list[int], room: int) -> int:
    """The most of each, at least one, with which all of them have ``room``."""
    if sum(sizes) <= room:
        return max(sizes, default=0)
    low, high = 0, max(sizes)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(min(size, middle) for size in sizes) <= room else (low, middle - 1)
    return max(low, 1)


def payload(
    results: Results, found: list[dict[str, Any]], pictures: dict[tuple[str, str], list[int]]
) -> dict[str, Any]:
    """``texts``, ``questions`` and ``cells`` of the flips browser, and how many cells are ``unread``.

    A question is [benchmark, index, text, options, answer, category, picture numbers]; a flip is [question, change,
    hit, base's hit, answer, base's answer, kept tokens or null, letter, base's letter]; texts stand as numbers into
    ``texts``. ``pictures`` gives the page's pictures of (benchmark, index), where the benchmark was read.
    """
    cells = {(cell.label, cell.benchmark): cell for cell in results.cells}
    texts: dict[str, int] = {}
    questions: dict[tuple[str, str], list[Any]] = {}
    places: dict[tuple[str, str], int] = {}
    entries = []
    for entry in found:
        benchmark, rows = entry["benchmark"], []
        kept = records.records_of(cells[entry["model"], benchmark])
        for flip in entry["frame"].to_dict("records"):
            key = benchmark, flip["index"]
            shown = pictures.get(key)
            if key not in questions:
                places[key] = len(places)
                questions[key] = _question(benchmark, flip, texts, shown or [])
            own = kept_of(kept.get(flip["index"]), None if shown is None else len(shown))
            said = [_number(texts, flip[name]) for name in ("prediction", "base_prediction")]
            change = CHANGES.index(flip["change"])
            letters = [letter(spoken(flip[name]), flip["options"]) for name in ("prediction", "base_prediction")]
            rows.append([places[key], change, flip["hit"], flip["base_hit"], *said, _packed(own, texts), *letters])
        entries.append({name: entry[name] for name in ("model", "base", "benchmark", "total")} | {"flips": rows})
    shortened, cut = _shortened(texts)
    return {"texts": shortened, "cut": cut, "questions": list(questions.values()), "cells": entries,
            "unread": unread(results)}  # fmt: skip


def _question(benchmark: str, flip: dict[str, Any], texts: dict[str, int], shown: list[int]) -> list[Any]:
    options = options_of(flip["options"]) if isinstance(flip["options"], str) else []
    numbered = [[letter, _number(texts, text)] for letter, text in options]
    spoken = [_number(texts, flip[name]) for name in ("question", "answer", "category")]
    return [benchmark, flip["index"], spoken[0], numbered, *spoken[1:], shown]


def options_of(text: str) -> list[tuple[str, str]]:
    """('A', 'red'), ... of 'A. red\\nB. blue'; an option may hold line breaks itself."""
    starts = list(_OPTION.finditer(text))
    ends = [match.start() for match in starts[1:]] + [len(text)]
    return [(match[1], text[match.end() : end].rstrip("\n")) for match, end in zip(starts, ends, strict=True)]


def _number(texts: dict[str, int], value: Any) -> int | None:
    """The text's place in ``texts``, where it is put if it is new; None for an empty field."""
    if value is None or pd.isna(value):
        return None
    return texts.setdefault(str(value), len(texts))


def spoken(value: Any) -> str:
    """A field as text; an empty one is ''."""
    return "" if value is None or pd.isna(value) else str(value).strip()


def _packed(kept: Kept | None, texts: dict[str, int]) -> list[Any] | None:
    if kept is None:
        return None
    why = _number(texts, kept.why) if kept.why else None
    stages, views = [list(stage) for stage in kept.stages], [list(view) for view in kept.views]
    return [kept.tokens, kept.count, kept.side, kept.mask, why, stages, *([views] if views else [])]


def _shortened(texts: Iterable[str]) -> tuple[list[str], int]:
    """All texts, and the length to which long ones were cut so that a page holds them; 0 where none was."""
    whole = list(texts)
    for limit in (0, *CUTS):
        if sum(min(len(text), limit) if limit else len(text) for text in whole) <= MOST_CHARACTERS or limit == CUTS[-1]:
            break
    return [f"{text[:limit]} …" if limit and len(text) > limit else text for text in whole], limit


def most_flipped(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(benchmark, index) of every question with a flip, those that most variants answer differently first."""
    counts = Counter((entry["benchmark"], index) for entry in found for index in entry["frame"]["index"])
    return [key for key, _ in counts.most_common()]
