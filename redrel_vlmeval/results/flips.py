"""Questions that a variant answers differently than its base: the score rose or fell, or only the answer moved."""

from __future__ import annotations

import re

import pandas as pd

from redrel_vlmeval.host import NONE, can_infer
from redrel_vlmeval.results.reading import Results

COLUMNS = [
    "index", "change", "prediction", "base_prediction", "answer", "hit", "base_hit", "question", "options", "category",
    "picture",
]  # fmt: skip
UP, DOWN, SAME = "up", "down", "same score"
# 'A' and 'I' as words of a sentence; before a verb or 'and' they are letters.
_WORD = re.compile(r"\b([AI])(?= (?!(?:is|was|and|or|because|since|as|are|seems|would|looks|fits|matches)\b)[a-z])")
# The letter after the word answer, where several stand in the text ("It is not A. The answer is C.").
_ANSWER = re.compile(r"\b(?:[Aa]nswer|ANSWER)\W+(?:is\W+)?(?:[Oo]ption\W+)?([A-Z])(?![\w'])")
_OPTION = re.compile(r"^([A-Z])\. (.*)$", re.MULTILINE)


def flips(results: Results, model: str, benchmark: str, theirs: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per question of ``model`` whose verdict or answer differs from its base's, with ``COLUMNS``.

    ``change`` is 'up' or 'down' where the score rose or fell, and 'same score' where only the answer moved (to another
    letter; without options, to another text). The questions are those that the headline is over, judged on both
    sides, so that 'up' and 'down' are counted as :mod:`comparisons` does. Empty for a base, and where
    the two were not run alike: ``results.scores`` says why.

    Args:
        theirs: the base's ``results.answers``, by a caller that goes through many variants of one base.
    """
    base = comparable_base(results, model, benchmark)
    if base is None:
        return pd.DataFrame(columns=COLUMNS)
    theirs = results.answers(base, benchmark) if theirs is None else theirs
    return changes(results.answers(model, benchmark), theirs, results.judged.get((model, benchmark)))


def changes(ours: pd.DataFrame, theirs: pd.DataFrame, judged: pd.DataFrame | None = None) -> pd.DataFrame:
    """The same of two tables of answers, of the questions in ``judged`` where it is given."""
    ours, theirs = ours.set_index("index"), theirs.set_index("index")
    if judged is not None:
        ours = ours[ours.index.isin(set(judged["index"]))]
    if ours.index.has_duplicates or theirs.index.has_duplicates:
        return pd.DataFrame(columns=COLUMNS)
    rows = ours.join(theirs[["prediction", "hit"]].add_prefix("base_"), how="left")
    rows = rows[rows["hit"].notna() & rows["base_hit"].notna()]
    step = (rows["hit"] - rows["base_hit"]).to_numpy(dtype=float)
    told = zip(rows["prediction"], rows["base_prediction"], rows["options"], strict=True)
    rows["change"] = [UP if by > 1e-9 else DOWN if by < -1e-9 else SAME if _moved(*said) else None
                      for by, said in zip(step, told, strict=True)]  # fmt: skip
    return rows[rows["change"].notna()].reset_index()[COLUMNS]


def comparable_base(results: Results, model: str, benchmark: str) -> str | None:
    """The base, if a headline of ``model`` has a delta to it: the mark of two that were run alike."""
    rows = results.scores
    rows = rows[(rows["model"] == model) & (rows["benchmark"] == benchmark) & rows["headline"] & rows["delta"].notna()]
    return str(rows["base"].iloc[0]) if len(rows) else None


def _moved(prediction: object, base_prediction: object, options: object) -> bool:
    """Another letter; where neither side names one, another text: reasoning put differently is no other answer."""
    here, there = _text(prediction), _text(base_prediction)
    if here == there:
        return False
    first, second = (letter(text, options) for text in (here, there))
    return first != second if first or second else _plain(here) != _plain(there)


def _text(value: object) -> str:
    """An answer with its spaces evened out; an empty one is ''."""
    return " ".join(str(value).split()) if value is not None and value == value else ""


def _plain(text: str) -> str:
    return text.casefold().rstrip(".")


def letter(answer: str, options: object) -> str | None:
    """The option (of ``'A. red\nB. blue'``) that an answer names, as the host reads it, or after the word 'answer'.

    'I think' and 'A square' name no option: where leaving such a word out gives another one, none is told.
    """
    choices = dict(_OPTION.findall(options)) if isinstance(options, str) else {}
    if not choices:
        return None
    bare = _WORD.sub(lambda match: match[0] if match[1] not in choices else " ", answer)
    plain, read = can_infer(answer, choices), can_infer(bare, choices)
    if NONE in (plain, read) or plain and plain != read and bare != answer:
        return None
    said = [match[1] for match in _ANSWER.finditer(bare) if match[1] in choices]
    return read or (said[-1] if said else None)
