"""What a call of ``generate`` says of the answer that came of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from redrel_vlmeval.models import draws, ends, setting_of

PROCESSORS = (
    "min_new_tokens", "min_length", "suppress_tokens", "bad_words_ids", "no_repeat_ngram_size", "forced_bos_token_id",
    "logits_processor", "stop_words_ids", "sequence_bias", "begin_suppress_tokens", "exponential_decay_length_penalty",
)  # fmt: skip


def said_by(ids: list[int], given: Mapping[str, Any]) -> list[int]:
    """What ``generate`` returned, without the prompt in front of it; one of embeddings returns the answer alone."""
    asked = given.get("input_ids", given.get("inputs"))
    prompt = asked[0].tolist() if isinstance(asked, torch.Tensor) else []
    return ids[len(prompt) :] if ids[: len(prompt)] == prompt else ids


def is_greedy(given: Mapping[str, Any], model: nn.Module) -> bool:
    """Whether every step took the most likely token, as far as the call's settings say."""
    setting = partial(setting_of, given, model)
    if draws(setting) or (setting("num_beams") or 1) > 1:
        return False
    if (setting("repetition_penalty") or 1.0) != 1.0:
        return False
    return not any(setting(name) for name in PROCESSORS if name != "stop_words_ids")


def without_end(said: list[int], given: Mapping[str, Any], model: nn.Module) -> list[int]:
    """The answer without the tokens that end it: end of sequence, padding, stop words."""
    last = ends(model, given) | {setting_of(given, model, "pad_token_id")}
    last |= {words[0] for words in given.get("stop_words_ids") or () if len(words) == 1}
    while said and said[-1] in last:
        said = said[:-1]
    return said
