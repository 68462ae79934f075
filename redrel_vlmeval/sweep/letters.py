"""Margins of the first token of an answer: of the untouched model's choice, and of each option letter."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import torch

LETTERS = string.ascii_uppercase
OPTION = re.compile(r"^\(?([A-Z])[.):]\s", re.MULTILINE)


def option_letters(message: Any) -> list[str]:
    """The letters A, B, ... that stand before options in a question's text, without a gap; fewer than two are none."""
    items = message if isinstance(message, list) else [message]
    texts = [str(item.get("value")) if isinstance(item, Mapping) else str(item) for item in items]
    found = set(OPTION.findall("\n".join(texts)))
    letters: list[str] = []
    while chr(ord("A") + len(letters)) in found:
        letters.append(chr(ord("A") + len(letters)))
    return letters if len(letters) > 1 else []


def letter_tokens(host: Any) -> dict[str, list[int]]:
    """Letter -> the tokens that read as it alone (with or without a space); empty where the host shows no tokenizer."""
    places = (host, getattr(host, "core", None), getattr(host, "processor", None))
    tokenizer = next((t for p in places if (t := getattr(p, "tokenizer", None)) is not None), None)
    if tokenizer is None:
        return {}
    found: dict[str, list[int]] = {}
    for letter in LETTERS:
        for before in ("", " ", "\n"):
            last = list(tokenizer.encode(before + letter))[-1:]
            if last and str(tokenizer.decode(last)).strip() == letter and last[0] not in found.get(letter, []):
                found.setdefault(letter, []).append(int(last[0]))
    return found


def letter_logits(logits: torch.Tensor, letters: Sequence[str], tokens: Mapping[str, list[int]]) -> dict[str, float]:
    """Each option letter's largest logit among the tokens that read as it; ``logits`` [vocabulary]."""
    return {letter: round(float(logits[tokens[letter]].max()), 4) for letter in letters if tokens.get(letter)}


def margin(logits: torch.Tensor, token: int) -> float:
    """How far the logit of ``token`` stands above the best other one's; negative where it does not."""
    others = logits.clone()
    others[token] = -torch.inf
    return round(float(logits[token] - others.max()), 4)
