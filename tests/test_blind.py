"""Blind rate: questions right without any image, and each score on the others, by hand-made verdicts."""

from __future__ import annotations

from pathlib import Path

import host_files as host
import pandas as pd
import pytest
import sheet_files

from redrel_vlmeval.results import blind
from redrel_vlmeval.results.reading import Results, read
from redrel_vlmeval.sheets import writing
from redrel_vlmeval.sheets.tables import details

BASE = "m"


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Eight questions, odd and even by turns; without an image 0, 1 and 5 are right."""
    sheet_files.answered(tmp_path, BASE, [1, 1, 1, 1, 1, 1, 0, 0])
    sheet_files.answered(tmp_path, f"{BASE}_trunc_l0_k0", [1, 1, 0, 0, 0, 1, 0, 0])
    sheet_files.answered(tmp_path, f"{BASE}_trunc_l2_k8", [1, 0, 1, 0, 0, 1, 0, 1])
    return read(tmp_path)


def test_blind_rate_by_category_and_which_questions(results: Results) -> None:
    frame = blind.blind(results)
    assert list(frame.columns) == blind.COLUMNS
    rows = frame.set_index("category")
    assert list(rows.index) == ["", "even", "odd"]
    assert rows["n"].tolist() == [8, 4, 4] and rows["right"].tolist() == [3, 1, 2]
    assert rows["blind_rate"].tolist() == [37.5, 25, 50]
    assert rows["questions"].tolist() == [("0", "1", "5"), ("0",), ("1", "5")]


def test_scores_beside_their_image_dependent_part(results: Results) -> None:
    frame = blind.dependent(results)
    rows = frame[frame["category"] == ""].set_index("model")
    assert rows.loc[BASE, ["score", "rest_n", "rest_score"]].tolist() == [75, 5, 60]
    assert rows.loc[f"{BASE}_trunc_l2_k8", ["score", "rest_n", "rest_score"]].tolist() == [50, 5, 40]
    assert rows.loc[f"{BASE}_trunc_l0_k0", ["score", "blind_rate", "rest_score"]].tolist() == [37.5, 37.5, 0]
    odd = frame[frame["category"] == "odd"].set_index("model")
    assert odd.loc[BASE, ["n", "score", "rest_n", "rest_score"]].tolist() == [4, 75, 2, 50]


def test_the_questions_themselves_are_listed(results: Results) -> None:
    table = details.blind_questions(results)
    assert table.frame["index"].tolist() == ["0", "1", "5"]
    assert table.frame["question"].tolist() == ["Which is 0?", "Which is 1?", "Which is 5?"]


def test_one_line_for_a_terminal(results: Results) -> None:
    words = "right without any image, lucky guesses included: 37.5 % of X (3 of 8) (m_trunc_l0_k0)"
    assert blind.lines(results) == [words]


def test_a_run_on_other_questions_gives_no_blind_rate(tmp_path: Path) -> None:
    sheet_files.answered(tmp_path, BASE, [1, 1, 0, 0])
    sheet_files.answered(tmp_path, f"{BASE}_trunc_l0_k0", [1, 0])
    results = read(tmp_path)
    assert blind.blind(results).empty and blind.dependent(results).empty and blind.lines(results) == []
    assert "m_trunc_l0_k0 on X" in details.blind_rate(results).remarks[0]
    assert "2 questions, base 4" in details.blind_rate(results).remarks[0]


def test_another_device_gives_no_blind_rate(tmp_path: Path) -> None:
    for tail, device in (("", "cpu"), ("_trunc_l0_k0", "cuda")):
        sheet_files.answered(tmp_path, f"{BASE}{tail}", [1, 0])
        host.records(tmp_path / f"{BASE}{tail}", f"{BASE}{tail}", "X", device=device)
    assert blind.blind(read(tmp_path)).empty


def test_all_right_without_an_image_leaves_no_rest(tmp_path: Path) -> None:
    for tail in ("", "_trunc_l0_k0"):
        sheet_files.answered(tmp_path, f"{BASE}{tail}", [1, 1, 1, 1])
    row = blind.dependent(read(tmp_path)).iloc[0]
    assert (row["blind_rate"], row["rest_n"]) == (100, 0) and pd.isna(row["rest_score"])


def test_prompts_have_blind_rates_of_their_own(tmp_path: Path) -> None:
    for name, hits in ((f"{BASE}_p-cqm", [1, 1]), (f"{BASE}_trunc_l0_k0_p-cqm", [1, 0]), (BASE, [1, 1])):
        sheet_files.answered(tmp_path, name, hits)
    found = blind.dependent(read(tmp_path))
    assert set(found["model"]) == {f"{BASE}_p-cqm", f"{BASE}_trunc_l0_k0_p-cqm"}, "another prompt is another question"


def test_the_sheet_has_it(results: Results, tmp_path: Path) -> None:
    frame = pd.read_excel(writing.write(results, tmp_path / "x.xlsx"), sheet_name="Blind", keep_default_na=False)
    first = frame.iloc[0]
    assert (first["model"], first["score"], first["blind rate"], first["rest score"]) == (BASE, 75, 37.5, 60)
