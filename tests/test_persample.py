"""Scores by category, subject and grade with their n, and the questions whose verdict changed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import sheet_files

from redrel_vlmeval.results import comparisons
from redrel_vlmeval.results.reading import Results, read
from redrel_vlmeval.sheets.tables import details
from redrel_vlmeval.sheets.tables.per_question import CATEGORIES, FLIPS, categories, flips

SUBJECTS = {"subject": ["natural science"] * 2 + ["social science"] * 2, "grade": ["grade1", "grade2"] * 2}


def test_each_group_has_its_n_score_and_delta(tmp_path: Path) -> None:
    sheet_files.answered(tmp_path, "m", [1, 1, 1, 0], **SUBJECTS)
    sheet_files.answered(tmp_path, "m_trunc_l2_k8", [1, 0, 1, 1], **SUBJECTS)
    frame = categories(read(tmp_path))
    assert list(frame.columns) == CATEGORIES
    rows = frame.set_index(["model", "by", "group"])
    assert set(frame["by"]) == {"category", "subject", "grade"}
    cut = "m_trunc_l2_k8"
    assert rows.loc[("m", "category", "even"), ["n", "score"]].tolist() == [2, 100]
    assert rows.loc[(cut, "grade", "grade2"), ["n", "score", "base score", "delta"]].tolist() == [2, 50, 50, 0]
    assert rows.loc[(cut, "subject", "NAT"), ["n", "score", "base score", "delta"]].tolist() == [2, 50, 100, -50]
    assert pd.isna(rows.loc[("m", "subject", "NAT"), "delta"]), "a base has no delta"


def test_no_delta_where_the_two_were_not_run_alike(tmp_path: Path) -> None:
    sheet_files.answered(tmp_path, "m", [1, 1, 1, 0])
    sheet_files.answered(tmp_path, "m_trunc_l2_k8", [1, 0])
    results = read(tmp_path)
    frame, changed = categories(results), flips(results)[0]
    assert frame.loc[frame["model"] == "m_trunc_l2_k8", ["base score", "delta"]].isna().all(axis=None)
    assert changed.empty


def test_flips_are_those_that_the_test_counts(clear: Results) -> None:
    frame, count = flips(clear)
    assert count == 30
    assert list(frame.columns) == FLIPS
    tested = comparisons.compare(clear).join(clear.scores[["model"]]).set_index("model")
    counted = frame.groupby(["model", "change"]).size().to_dict()
    assert counted == {("redrel_tiny_trunc_l1_k8", "down"): 15, ("redrel_tiny_trunc_l2_k8", "up"): 15}
    assert tested.loc["redrel_tiny_trunc_l1_k8", "down"] == 15
    first = frame.iloc[0]
    assert (first["prediction"], first["base_prediction"], first["question"]) == ("B", "A", "Which is 5?")


def test_categories_without_any_say_so(tmp_path: Path) -> None:
    sheet_files.answered(tmp_path, "m", [1, 0], category=None)
    table = details.categories(read(tmp_path))
    assert table.frame.empty and "no judged question" in table.remarks[0]


def test_flips_are_counted_beyond_what_is_shown(clear: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    """And tables of answers are read only for what is shown."""
    asked = []
    read_answers = Results.answers
    monkeypatch.setattr(Results, "answers", lambda self, *key: asked.append(key[0]) or read_answers(self, *key))
    frame, count = flips(clear, 4)
    assert len(frame) == 4 and count == 30
    assert asked == ["redrel_tiny", "redrel_tiny_trunc_l1_k8"]
