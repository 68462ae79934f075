"""Flips are the questions that the paired test counts, and answers that moved without a change of score."""

from __future__ import annotations

from pathlib import Path

import host_files as host
import pytest
from hypothesis import given, settings, strategies as st

from redrel_vlmeval.host import can_infer
from redrel_vlmeval.results import comparisons
from redrel_vlmeval.results.flips import COLUMNS, flips, letter
from redrel_vlmeval.results.reading import read

BASE, VARIANT = host.BASE, host.VARIANT
ASKED = {"question": ["q0", "q1", "q2", "q3", "q4"], "A": "red", "B": "blue", "C": "green", "category": "one"}


def write(folder: Path, model: str, hits: list, answers: str, **columns: object) -> None:
    columns = ASKED | {"prediction": answers.split(",")} | columns
    host.answered(folder / model, model, "X", hits, **columns)


def test_each_question_that_changed_stands_with_both_answers(tmp_path: Path) -> None:
    write(tmp_path, BASE, [1, 1, 0, 0, 0], "A,A,B,B,C")
    write(tmp_path, VARIANT, [1, 0, 1, 0, 0], "A,B,A,C,C.")
    found = flips(read(tmp_path), VARIANT, "X")
    assert list(found.columns) == COLUMNS
    assert dict(zip(found["index"], found["change"], strict=True)) == {"1": "down", "2": "up", "3": "same score"}
    first = found.iloc[0]
    assert (first["prediction"], first["base_prediction"], first["answer"]) == ("B", "A", "A")
    assert (first["hit"], first["base_hit"], first["category"]) == (0, 1, "one")


def test_up_and_down_are_those_of_the_paired_test(tmp_path: Path) -> None:
    """Also where the questions stand in another order, and where only one split makes the headline."""
    asked = ASKED["question"][::-1]
    split = ["dev", "validation", "validation", "validation", "validation"]
    write(tmp_path, BASE, [1, 1, 0, 1, 0], "A,A,B,A,B", split=split)
    write(tmp_path, VARIANT, [1, 0, 1, 0, 0], "A,B,A,B,B", index=[4, 3, 2, 1, 0], split=split[::-1], question=asked)
    for model, dev in ((BASE, 1), (VARIANT, 0)):
        (tmp_path / model / f"{model}_X_acc.csv").write_text(f'"split","Overall"\n"dev","{dev}"\n"validation","0.5"\n')
    results = read(tmp_path)
    test = comparisons.compare(results)
    test = test.loc[results.scores["model"] == VARIANT].dropna(subset=["p"]).iloc[0]
    counts = flips(results, VARIANT, "X")["change"].value_counts()
    assert (counts["up"], counts["down"]) == (test["up"], test["down"]) == (2, 2)


def test_graded_scores_flip_by_any_change(tmp_path: Path) -> None:
    write(tmp_path, BASE, [0.3, 0.6, 1.0, 0.0, 0.1 + 0.2], "x,x,x,x,x")
    write(tmp_path, VARIANT, [0.6, 0.3, 1.0, 0.0, 0.3], "x,x,x,x,x")
    assert flips(read(tmp_path), VARIANT, "X")["change"].tolist() == ["up", "down"]


@pytest.mark.parametrize("kind", ["base itself", "other questions", "no base", "failed", "unknown"])
def test_what_cannot_be_compared_has_no_flips(tmp_path: Path, kind: str) -> None:
    if kind != "no base":
        write(tmp_path, BASE, [1] * 5, "A,A,A,A,A")
    write(tmp_path, VARIANT, [0] * 5, "B,B,B,B,B", index=[9, 8, 7, 6, 5] if kind == "other questions" else range(5))
    if kind == "failed":
        host.status(tmp_path / VARIANT, VARIANT, X={"status": "done", "error_message": "boom"})
    model = {"base itself": BASE, "unknown": "nobody"}.get(kind, VARIANT)
    found = flips(read(tmp_path), model, "X")
    assert found.empty and list(found.columns) == COLUMNS


def test_a_question_without_a_verdict_has_no_direction(tmp_path: Path) -> None:
    write(tmp_path, BASE, [1, 1, None, 1, 1], "A,A,A,A,A", value=1.0)
    write(tmp_path, VARIANT, [1, 0, 0, None, 1], "A,B,B,B,A", value=0.5)
    assert flips(read(tmp_path), VARIANT, "X")["index"].tolist() == ["1"]


OPTIONS = "A. red\nB. blue sky\nC. green"


@pytest.mark.parametrize(
    "text, named",
    [
        ("B", "B"),
        ("(C)", "C"),
        ("B. blue sky", "B"),
        ("blue sky.", "B"),
        ("It is not A. The answer is C.", "C"),
        ("D", None),
        ("A's", None),
        ("I think so", None),
        ("", None),
    ],
)
def test_letter_of_an_answer(text: str, named: str | None) -> None:
    assert letter(text, OPTIONS) == named
    assert letter(text, None) is None


MANY = "A. red\nB. blue\nC. green\nD. white\nE. pink\nF. grey\nG. black\nH. brown\nI. teal"


@pytest.mark.parametrize(
    "text, named",
    [
        ("I think it is B", "B"),
        ("ANSWER: B", "B"),
        ("Option B", "B"),
        ("\\boxed{B}", "B"),
        ("A blue square", None),
        ("A red square", "A"),
        ("A is correct", "A"),
        ("I is right", "I"),
        ("I", "I"),
        ("I believe so", None),
        ("**C**", "C"),
        ("It is teal.", "I"),
        ("red or blue", None),
        ("Between A and B the answer is B", "B"),
        ("Cannot determine the answer: B", None),
    ],
)
def test_wordy_answers_are_read_as_the_host_reads_them_but_for_words(text: str, named: str | None) -> None:
    assert letter(text, MANY) == named


@pytest.fixture(scope="module")
def hosts():
    return pytest.importorskip("vlmeval.utils.matching_util").can_infer


WORDS = st.sampled_from(
    [
        *"ABCDZ",
        "a",
        "I",
        "(B)",
        "C.",
        "red",
        "Blue",
        "the",
        "answer",
        "is:",
        "{D}",
        "#",
        "",
        "不",
        "Cannot determine the answer",
    ]
)


@settings(deadline=None)
@given(st.lists(WORDS, max_size=8), st.dictionaries(st.sampled_from("ABCDE"), st.sampled_from(["red", "blue", "x"])))
def test_the_matcher_is_the_hosts(hosts, words: list[str], choices: dict[str, str]) -> None:
    answer = " ".join(words)
    assert can_infer(answer, choices) == (hosts(answer, dict(choices)) or None)
