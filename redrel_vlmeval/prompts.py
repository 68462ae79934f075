"""The prompts of the paper's Table 2, and Qwen-VL's, by name: one benchmark line -> the user's text.

``stock`` is the host's own.

``Q`` is the question, ``C`` the context (a line's hint), ``M`` the options; QCM and CQM are orders of the three, with
the labels and line breaks of the ScienceQA authors' prompt. P1, P2 and P3 are the paper's words, letter by letter.
Columns such as ``lecture`` and ``solution`` never enter: only hint, question and options are read.

Where the paper is silent:

* QCM and CQM end in the request for a letter that the host's LLaVA class makes, in English for every language, as the
  labels are. P1 and P2 ask for reasoning and P3 for both, so they stand alone. The ``-A`` of the paper's names is the
  model's turn: no ``Answer:`` is written.
* A prompt before or after the question is a line of its own, without a full stop, as the paper quotes it.
* A hint that is missing or blank is ``N/A``, as for the ScienceQA authors. Other text is not touched.
* P1 is called two-stage; it is asked for in one turn here, and what the model says is its answer.

``qwen`` is the text that Qwen-VL's authors evaluate multiple choice with (``eval_mm/evaluate_multiple_choice.py``),
behind the picture; they rank `` A``, `` B``, ... by likelihood, which is ``_p-qwen_ppl`` here.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from redrel_vlmeval.errors import Unaskable, UnknownName

LETTER = "Answer with the option's letter from the given choices directly."
P1 = (
    "Given the context, questions, and options, please think step-by-step to answer the question, deconstruct the "
    "problem as completely as possible down to necessary sub-questions. Then, to help humans answer the original "
    "question, try to answer the sub-questions"
)
P2 = "Given the context, questions, and options, please think step-by-step to answer the question"
P3 = "Please think step-by-step and answer with the option's letter from the given choices directly"

_QCM = "Question: {question}\nContext: {context}\nOptions: {options}"
_CQM = "Context: {context}\nQuestion: {question}\nOptions: {options}"
TEMPLATES = {
    "qcm": f"{_QCM}\n{LETTER}",
    "cqm": f"{_CQM}\n{LETTER}",
    "p1-cqm": f"{P1}\n{_CQM}",
    "cqm-p1": f"{_CQM}\n{P1}",
    "cqm-p2": f"{_CQM}\n{P2}",
    "cqm-p3": f"{_CQM}\n{P3}",
    "qwen": f"{_CQM}\nAnswer:",
}
REASONING = frozenset(TEMPLATES) - {"qcm", "cqm", "qwen"}
# the answer's length that the host's own Qwen-VL has where it sets no limit for a benchmark
REASONING_TOKENS = 512


def present(value: Any) -> bool:
    """True for a cell that holds something: neither None nor NaN."""
    return value is not None and value == value


def options(line: Mapping[str, Any]) -> dict[str, Any]:
    """Letter -> option of a benchmark line, those that hold something."""
    return {letter: line[letter] for letter in string.ascii_uppercase if present(line.get(letter))}


def check_question(line: Mapping[str, Any], dataset: str | None) -> None:
    """Refuse a line without a question.

    Raises:
        Unaskable: names the line.
    """
    if not present(line.get("question")) or not str(line["question"]).strip():
        raise Unaskable(f"question {line.get('index')} of {dataset}: its question is empty", True)


def check_multiple_choice(line: Mapping[str, Any], dataset: str | None) -> None:
    """Refuse a line that cannot be asked as multiple choice.

    Raises:
        Unaskable: the question is empty, or there are no options; names the line.
    """
    check_question(line, dataset)
    if not options(line):
        where = f"question {line.get('index')} of {dataset}"
        raise Unaskable(f"{where}: multiple choice without options; its columns A, B, ... are missing or empty", True)


def question_text(prompt: str, line: Mapping[str, Any]) -> str:
    """The user's text for one multiple-choice line.

    Raises:
        KeyError: no prompt of that name is written here; ``stock`` is made by the base itself.
    """
    if prompt not in TEMPLATES:
        raise UnknownName(f"prompt {prompt!r} has no text here: choose one of {', '.join(TEMPLATES)}")
    hint = line.get("hint")
    form, between = ("{}. {}", "\n") if prompt == "qwen" else ("({}) {}", " ")
    return TEMPLATES[prompt].format(
        question=line["question"],
        context=hint if present(hint) and str(hint).strip() else "N/A",
        options=between.join(form.format(letter, option) for letter, option in options(line).items()),
    )


def answer_tokens(prompt: str) -> int:
    """New tokens that an answer has to be allowed at least; 0 where the base's own limit stands."""
    return REASONING_TOKENS if prompt in REASONING else 0
