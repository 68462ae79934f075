"""The prompts of Table 2 and Qwen-VL's, word for word; what a line may hold; how the host reads their answers."""

from __future__ import annotations

import math
import re
import string
from pathlib import Path

import host_files
import numpy as np
import pandas as pd
import pytest
from checkpoints import needs_host
from hypothesis import given, strategies as st

from redrel_vlmeval import names, prompts

# The paper's words, written out once more so that no typing error can hide on both sides.
P1 = (
    "Given the context, questions, and options, please think step-by-step to answer the question, deconstruct the "
    "problem as completely as possible down to necessary sub-questions. Then, to help humans answer the original "
    "question, try to answer the sub-questions"
)
LINE = {
    "index": 7, "question": "Which one floats?", "hint": "Wood is lighter than water.", "A": "a stone", "B": "a log",
    "answer": "B", "lecture": "LECTURE", "solution": "SOLUTION", "image": "IMAGE", "category": "CATEGORY",
}  # fmt: skip
TEXTS = {
    "qcm": (
        "Question: Which one floats?\nContext: Wood is lighter than water.\nOptions: (A) a stone (B) a log\n"
        "Answer with the option's letter from the given choices directly."
    ),
    "cqm": (
        "Context: Wood is lighter than water.\nQuestion: Which one floats?\nOptions: (A) a stone (B) a log\n"
        "Answer with the option's letter from the given choices directly."
    ),
    "p1-cqm": (
        f"{P1}\n"
        "Context: Wood is lighter than water.\nQuestion: Which one floats?\nOptions: (A) a stone (B) a log"
    ),
    "cqm-p1": (
        "Context: Wood is lighter than water.\nQuestion: Which one floats?\nOptions: (A) a stone (B) a log\n"
        f"{P1}"
    ),
    "cqm-p2": (
        "Context: Wood is lighter than water.\nQuestion: Which one floats?\nOptions: (A) a stone (B) a log\n"
        "Given the context, questions, and options, please think step-by-step to answer the question"
    ),
    "cqm-p3": (
        "Context: Wood is lighter than water.\nQuestion: Which one floats?\nOptions: (A) a stone (B) a log\n"
        "Please think step-by-step and answer with the option's letter from the given choices directly"
    ),
    # eval_mm/evaluate_multiple_choice.py of Qwen-VL's authors, behind the picture
    "qwen": (
        "Context: Wood is lighter than water.\nQuestion: Which one floats?\nOptions: A. a stone\nB. a log\nAnswer:"
    ),
}  # fmt: skip


@pytest.mark.parametrize("prompt", TEXTS)
@pytest.mark.parametrize("kind", [dict, pd.Series])
def test_every_prompt_word_for_word(prompt, kind):
    assert prompts.question_text(prompt, kind(LINE)) == TEXTS[prompt]


def test_every_name_of_the_grammar_has_a_text_and_only_those():
    assert {"stock", *prompts.TEMPLATES} == set(names.PROMPTS) == {"stock", *TEXTS}
    for wrong in ("stock", "cot", ""):
        with pytest.raises(KeyError, match=r"choose one of qcm, cqm, p1-cqm, cqm-p1, cqm-p2, cqm-p3"):
            prompts.question_text(wrong, LINE)


def test_prompts_that_ask_for_reasoning_leave_room_for_it():
    room = {prompt: prompts.answer_tokens(prompt) for prompt in names.PROMPTS}
    assert room == {"stock": 0, "qcm": 0, "cqm": 0, "p1-cqm": 512, "cqm-p1": 512, "cqm-p2": 512, "cqm-p3": 512,
                    "qwen": 0}  # fmt: skip


missing = st.sampled_from([None, math.nan, np.nan, np.float32("nan")])
# whatever a table's cell can hold, braces of format strings among it
cells = st.one_of(missing, st.text("ab {}%\n$図\\", max_size=12), st.integers(), st.floats(allow_nan=False))


@given(
    st.sampled_from(sorted(TEXTS)), cells, st.dictionaries(st.sampled_from([*string.ascii_uppercase]), cells),
    st.text(max_size=12),
)  # fmt: skip
def test_any_line_is_asked_with_what_it_holds(prompt, hint, choices, question):
    line = {"question": question, "hint": hint, "lecture": "LECTURE", "solution": "SOLUTION"} | choices
    held = {letter: value for letter, value in sorted(choices.items()) if not pd.isna(value)}
    text = prompts.question_text(prompt, line)
    context = "N/A" if pd.isna(hint) or not str(hint).strip() else hint
    expected = TEXTS[prompt].replace("(A) a stone (B) a log", "\0M").replace("A. a stone\nB. a log", "\0M")
    expected = expected.replace("Which one floats?", "\0Q")
    expected = expected.replace("Wood is lighter than water.", f"{context}").replace("\0Q", question)
    lines = "\n".join(f"{letter}. {value}" for letter, value in held.items())
    row = " ".join(f"({letter}) {value}" for letter, value in held.items())
    assert text == expected.replace("\0M", lines if prompt == "qwen" else row)
    assert "LECTURE" not in text and "SOLUTION" not in text
    assert prompts.options(line) == held


def test_a_line_without_a_hint_column_has_no_context():
    line = {name: value for name, value in LINE.items() if name != "hint"}
    assert "\nContext: N/A\n" in prompts.question_text("qcm", line)
    assert prompts.question_text("cqm", line | {"hint": "N/A"}) == prompts.question_text("cqm", line)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"question": " "}, "question 7 of D: its question is empty"),
        ({"question": math.nan}, "question 7 of D: its question is empty"),
        ({"A": math.nan, "B": None}, "question 7 of D: multiple choice without options"),
    ],
)
def test_a_line_that_is_no_multiple_choice_is_named(wrong, words):
    prompts.check_multiple_choice(LINE, "D")
    with pytest.raises(ValueError, match=re.escape(words)):
        prompts.check_multiple_choice(LINE | wrong, "D")


# what the host makes of a reasoned answer

REASONED = [
    "First, which floats? Wood does.\nSo the answer is (A).",
    "Step 1: compare them.\n\nTherefore: B",
    "A.",
    "I cannot tell: it may be A, and it may be B.",
]


@needs_host
def test_reasoned_answers_become_letters_and_stay_as_they_are_in_the_sheet(tmp_path, monkeypatch):
    import checkpoints

    checkpoints.import_host()
    from redrel_vlmeval.results.reading import read

    (tmp_path / "lmu").mkdir()
    monkeypatch.setenv("LMUData", str(tmp_path / "lmu"))
    model, out = "m_p-cqm-p2", tmp_path / "out"
    table = host_files.choices("-,-,-,-").assign(prediction=REASONED)
    host_files.evaluate(out / model, model, host_files.custom_benchmark(tmp_path / "lmu", "Floats"), table)
    asked = read(out).questions
    assert asked["hit"].tolist() == [1, 1, 1, 0]
    assert asked["prediction"].tolist() == REASONED
    assert Path(read(out).scores.iloc[0]["path"]).parts[0] == model
