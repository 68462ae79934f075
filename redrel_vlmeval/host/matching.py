"""Which option an answer names, as the host's exact matching reads it: ``can_infer`` without importing the host."""

from __future__ import annotations

from collections.abc import Mapping

# Signs that the host takes for blanks.
_BLANKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_FAILED = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.", "I can't process this file.",
    "I'm sorry, but without the image provided", "Cannot determine the answer",
)  # fmt: skip


NONE = "Z"  # the host's letter for an answer that says that there is none


def can_infer(answer: str, choices: Mapping[str, str]) -> str | None:
    """The letter of the one option that stands in ``answer`` as a word, among its last five; else by its text.

    The host's limits: a letter counts only if no other option's stands beside it; texts are looked for in answers of
    at most twice their length together, without regard to case, and only one may occur. None: none can be told;
    ``NONE``: the answer refuses.
    """
    if _FAILED not in answer and any(words in answer for words in _REFUSALS):
        return NONE
    words = answer.translate(_BLANKS).split()
    named = [] if _FAILED in answer else [letter for letter in choices if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - 5:
        return named[0]
    if not named and NONE in words and _FAILED not in answer:
        return NONE
    if len(answer) > 2 * sum(len(text) for text in choices.values()):
        return None
    spelt = [letter for letter, text in choices.items() if text.lower() in answer.lower()]
    return spelt[0] if len(spelt) == 1 else None
