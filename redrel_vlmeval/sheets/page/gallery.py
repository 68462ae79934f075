"""Questions answered right without the picture (the paper's Fig. 7), for the page: what was asked and said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from redrel_vlmeval.results import Results, blind, letter
from redrel_vlmeval.sheets.page.changes import options_of, spoken

MOST = 24  # questions of one run that a page shows
LONGEST = 600  # characters of a text


def collect(results: Results) -> list[dict[str, Any]]:
    """One entry per run without any image: base, model, benchmark, n, right, ``rate`` (points), ``frame`` of answers.

    The frame holds the first ``MOST`` questions that are right, those of the categories with the highest rate first:
    where guessing alone gets a quarter, a category that gets much more can be answered from the text.
    """
    found = []
    rates = blind.blind(results)
    for row in rates[rates["category"] == ""].to_dict("records"):
        told = results.answers(row["blind_model"], row["benchmark"])
        told = told[told["index"].isin(set(row["questions"]))]
        own = rates[(rates["blind_model"] == row["blind_model"]) & (rates["benchmark"] == row["benchmark"])]
        rate = told["category"].map(spoken).map(dict(zip(own["category"], own["blind_rate"], strict=True)))
        told = told.assign(rate=rate.fillna(0.0)).sort_values("rate", ascending=False, kind="stable")
        entry = {"base": row["base"], "model": row["blind_model"], "benchmark": row["benchmark"], "n": row["n"]}
        found.append(entry | {"right": row["right"], "rate": row["blind_rate"], "frame": told.head(MOST)})
    return found


def wanted(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(benchmark, index) of every question shown, once."""
    return list(dict.fromkeys((entry["benchmark"], index) for entry in found for index in entry["frame"]["index"]))


def payload(found: list[dict[str, Any]], pictures: Mapping[tuple[str, str], list[int]]) -> list[dict[str, Any]]:
    """The same with ``questions`` for the page's script in place of the frame.

    A question has index, category, text, options ([letter, text]), the right answer, what was said, the letter that it
    is read as, and the numbers of its pictures, null where the page does not hold them.
    """
    names = ("base", "model", "benchmark", "n", "right", "rate")
    return [
        {name: entry[name] for name in names}
        | {"questions": [_question(entry["benchmark"], row, pictures) for row in entry["frame"].to_dict("records")]}
        for entry in found
    ]


def _question(benchmark: str, row: dict[str, Any], pictures: Mapping[tuple[str, str], list[int]]) -> dict[str, Any]:
    options = options_of(row["options"]) if isinstance(row["options"], str) else []
    return {
        "index": row["index"],
        "category": _shown(row["category"]),
        "text": _shown(row["question"]),
        "options": [[name, _shown(text)] for name, text in options],
        "answer": _shown(row["answer"]),
        "said": _shown(row["prediction"]),
        "letter": letter(spoken(row["prediction"]), row["options"]),
        "pictures": pictures.get((benchmark, row["index"])),
    }


def _shown(value: Any) -> str | None:
    """As text, cut to what a card holds; None for an empty field."""
    if value is None or pd.isna(value):
        return None
    text = str(value)
    return f"{text[:LONGEST]} …" if len(text) > LONGEST else text
