"""The verdicts beside a score are those that it came from: the right judge's, of these answers, adding up to it."""

from __future__ import annotations

import os
from pathlib import Path

import host_files as host
import openpyxl
import pandas as pd
import pytest

from redrel_vlmeval.results import comparisons
from redrel_vlmeval.results.flips import flips
from redrel_vlmeval.results.reading import read

BASE, VARIANT = host.BASE, host.VARIANT
OLD, NEW = [1, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0, 0]


def judged_again(folder: Path, model: str, hits: list[int], name: str, judge: str) -> None:
    """Another judge in the same flat folder: its own table, and the score file of the first one written over."""
    table = pd.read_excel(folder / f"{model}_X_exact_matching_result.xlsx", engine="openpyxl").assign(hit=hits)
    host.predictions(folder, model, f"X_{name}_result", table)
    (folder / f"{model}_X_acc.csv").write_text(f'"split","Overall"\n"none","{sum(hits) / len(hits)}"\n')
    if judge:
        host.status(folder, model, X={"status": "done", "judge_model": judge})


def headline(folder: Path, model: str = VARIANT) -> pd.Series:
    found = read(folder)
    rows = found.scores[found.scores["headline"]].join(comparisons.compare(found)[["verdict", "down"]])
    return rows.set_index("model").loc[model]


@pytest.mark.parametrize(
    ("name", "judge"),
    [("openai", "chatgpt-0125"), ("gpt4", "gpt-4-0125"), ("gpt4o-mini", "gpt-4o-mini"), ("gpt4omini", "gpt-4o-mini"),
     ("gpt41", "gpt-4.1"), ("qwen-72b", "qwen-72b"), ("openai", "")],
)  # fmt: skip
def test_a_folder_judged_twice_has_all_from_the_last_judge(tmp_path: Path, name: str, judge: str) -> None:
    """Without status.json, as older hosts leave it, the newest table is taken."""
    for model, first, second in ((BASE, OLD, [1, 1, 1, 1, 1, 1, 1, 0]), (VARIANT, [1] * 8, NEW)):
        host.answered(tmp_path / model, model, "X", first, prediction="B", question=[f"q{i}" for i in range(8)])
        old = tmp_path / model / f"{model}_X_exact_matching_result.xlsx"
        os.utime(old, (1, 1))
        judged_again(tmp_path / model, model, second, name, judge)
    row = headline(tmp_path)
    assert (row["value"], row["delta"], row["reason"], row["down"]) == (12.5, -75.0, "", 6)
    found = read(tmp_path)
    assert flips(found, VARIANT, "X")["change"].tolist() == ["down"] * 6
    assert set(found.provenance["judge"]) == {judge or name}
    assert found.answers(VARIANT, "X")["hit"].tolist() == NEW


def test_another_judges_table_is_none_of_the_score(tmp_path: Path) -> None:
    for model in (BASE, VARIANT):
        host.answered(tmp_path / model, model, "X", OLD)
        host.status(tmp_path / model, model, X={"status": "done", "judge_model": "chatgpt-0125"})
    row = headline(tmp_path)
    assert row["reason"] == (
        "no table with a verdict per question by chatgpt-0125, only by exact_matching: no interval, no test"
    )
    assert row["verdict"] == f"no test: no table with a verdict per question ({VARIANT})"


def test_the_verifiers_table_is_that_of_its_score(tmp_path: Path) -> None:
    for model, hits in ((BASE, OLD), (VARIANT, NEW)):
        host.answered(tmp_path / model, model, "X", [1] * 8, prediction="B")
        table = pd.read_excel(tmp_path / model / f"{model}_X.xlsx", engine="openpyxl").assign(verifier_match=hits)
        host.predictions(tmp_path / model, model, "X_detailed_results", table)
        entry = {"status": "done", "judge_model": "exact_matching"}
        host.status(tmp_path / model, model, X=entry, argv=["run.py", "--use-verifier"])
        text = f"Category,Total,Hit,Accuracy\nOverall,8,0,{100 * sum(hits) / 8}\n"
        (tmp_path / model / f"{model}_X_acc.csv").write_text(text)
    assert (headline(tmp_path)["down"], set(read(tmp_path).provenance["judge"])) == (3, {"verifier"})


def test_tables_of_a_longer_benchmarks_name_are_not_taken(tmp_path: Path) -> None:
    host.answered(tmp_path / "m", "m", "X", OLD)
    host.answered(tmp_path / "m", "m", "X_more", NEW)
    (tmp_path / "m" / "m_X_exact_matching_result.xlsx").unlink()
    assert ("m", "X") not in read(tmp_path).judged and ("m", "X_more") in read(tmp_path).judged


def in_front(path: Path, edit) -> None:
    book = openpyxl.load_workbook(path)
    sheet = book.copy_worksheet(book["Sheet1"]) if edit == "copy" else book.create_sheet("mine")
    sheet["A1"] = sheet["A1"].value or "notes"
    book.move_sheet(sheet, -1)
    book.save(path)


def test_a_sheet_put_in_front_of_the_hosts_is_passed_over_and_a_second_table_refused(tmp_path: Path) -> None:
    host.pair(tmp_path)
    path = tmp_path / VARIANT / f"{VARIANT}_X_exact_matching_result.xlsx"
    before = headline(tmp_path)
    in_front(path, "notes")
    assert headline(tmp_path).equals(before) and before["down"] == 1
    in_front(path, "copy")
    ((model, _, reason),) = read(tmp_path).failed
    assert model == VARIANT and f"{path.name} holds several tables (Sheet1 Copy, Sheet1), the host writes one" in reason


@pytest.mark.parametrize("changed", [BASE, VARIANT])
def test_a_score_that_its_table_does_not_give_is_said_and_not_tested(tmp_path: Path, changed: str) -> None:
    host.pair(tmp_path)
    (tmp_path / changed / f"{changed}_X_acc.csv").write_text('"split","Overall"\n"none","0.25"\n')
    row, gives = headline(tmp_path), 75.0 if changed == BASE else 50.0
    said = f"Overall is 25.0, its table of verdicts gives {gives}"
    assert headline(tmp_path, changed)["reason"] == said
    assert pd.isna(row["delta"]) and said in row["note"] and row["verdict"].startswith("no test: ")
    assert (changed, "X") not in read(tmp_path).judged and flips(read(tmp_path), VARIANT, "X").empty


def test_answers_newer_than_their_verdicts_are_said_and_not_tested(tmp_path: Path) -> None:
    """The host judges yes/no questions once and keeps the table, also when the answers are new."""
    host.pair(tmp_path)
    path = tmp_path / VARIANT / f"{VARIANT}_X.xlsx"
    table = pd.read_excel(path, engine="openpyxl")
    host.predictions(tmp_path / VARIANT, VARIANT, "X", table.assign(prediction=["A", "B", "A", "B"]))
    row = headline(tmp_path)
    assert row["reason"] == "2 of 4 answers are not those that were judged" and pd.isna(row["delta"])
    for same in (["A", "Answer: A", "B", "B"], ["A", "A", "B ", "B"]):
        host.predictions(tmp_path / VARIANT, VARIANT, "X", table.assign(prediction=same))
        assert headline(tmp_path)["reason"] == ""


YES_NO = {"answer": ["Yes", "No", "Yes", "No"], "extracted": ["Yes", "Yes", "No", "No"]}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("split,Overall,acc,precision,recall\nOverall,50,50,50,50\n", ""),
        ("split,Overall,acc,precision,recall\nOverall,60,50,50,50\n", "F1 is 60.0, its table of verdicts gives 50.0"),
        ("split,Overall,acc,precision,recall\nOverall,50,75,50,50\n", "acc is 75.0, its table of verdicts gives 50.0"),
        ("perception,reasoning,OCR\n50,0,50\n", ""),
        ("perception,reasoning,OCR\n90,0,90\n", "perception + reasoning is 90.0, its table of verdicts gives 50.0"),
    ],
)
def test_scores_that_are_no_means_are_added_up_again_too(tmp_path: Path, text: str, wrong: str) -> None:
    frame = pd.DataFrame({"index": range(4), "question": "q", "prediction": "x"} | YES_NO)
    frame = frame.assign(category="OCR", image_path=["a", "a", "b", "b"])
    host.predictions(tmp_path / "m", "m", "X", frame.drop(columns="extracted"))
    host.predictions(tmp_path / "m", "m", "X_auxmatch", frame.assign(score=[True, False, False, True]))
    (tmp_path / "m" / "m_X_score.csv").write_text(text)
    assert set(read(tmp_path).scores["reason"]) == {wrong}


def test_of_two_score_files_that_of_the_format_in_use_counts_else_the_newest(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    host.answered(folder, "m", "X", OLD)
    (folder / "m_X_acc.csv").rename(folder / "m_X_acc.xlsx")
    pd.DataFrame({"split": ["none"], "Overall": [3 / 8]}).to_excel(folder / "m_X_acc.xlsx", index=False)
    (folder / "m_X_acc.csv").write_text('"split","Overall"\n"none","0.9"\n')
    os.utime(folder / "m_X_acc.csv", (1, 1))
    assert host.headlines(read(tmp_path).scores) == {("X", "Overall"): 37.5}
    host.status(folder, "m", X={"status": "done"}, eval_format="csv")
    assert host.headlines(read(tmp_path).scores) == {("X", "Overall"): 90.0}


def test_a_missing_table_is_said_of_base_and_variant(tmp_path: Path) -> None:
    host.pair(tmp_path)
    (tmp_path / BASE / f"{BASE}_X_exact_matching_result.xlsx").unlink()
    assert headline(tmp_path, BASE)["reason"] == "no table with a verdict per question: no interval, no test"
    assert headline(tmp_path)["verdict"] == f"no test: no table with a verdict per question ({BASE})"


@pytest.mark.parametrize(
    ("benchmark", "matches", "value"),
    [("DocVQA_VAL", ["[0.0, 0.9]", "[0.2]", "[0.6]", "[np.float64(1.0)]"], 45.0),
     ("ChartQA_TEST", ["[1.0]", "[0.0, 1.0]", "[0.0]", "[0.0]"], 50.0),
     ("TextVQA_VAL", ["[1.0, 0.0]", "[0.0]", "[0.0]", "[0.0]"], 12.5)],
)  # fmt: skip
def test_verdicts_of_open_questions_are_those_that_the_host_adds_up(
    tmp_path: Path, benchmark: str, matches: list[str], value: float
) -> None:
    """DocVQA's ``eval_score`` is a mean distance: a wrong answer has 1."""
    means = [sum(eval(text.replace("np.float64", ""))) / (text.count(",") + 1) for text in matches]
    frame = pd.DataFrame({"index": range(4), "question": "q", "answer": "x", "prediction": "y"})
    host.predictions(tmp_path / "m", "m", benchmark, frame)
    host.predictions(tmp_path / "m", "m", f"{benchmark}_results", frame.assign(eval_match=matches, eval_score=means))
    (tmp_path / "m" / f"m_{benchmark}_acc.csv").write_text(f"Overall\n{value}\n")
    (row,) = read(tmp_path).scores.to_dict("records")
    assert (row["value"], row["reason"]) == (value, "")
    assert 100 * read(tmp_path).judged["m", benchmark]["hit"].mean() == pytest.approx(value)
