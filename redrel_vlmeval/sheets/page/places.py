"""Where the kept image tokens of a question lie in its picture, or why they are no places in it.

Told from what the efficiency records say ran, never from a look at the numbers: 2304 tokens may be one picture of 48 x
48, or four of 24 x 24.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np

from redrel_vlmeval import bases

# The backend of our LLaVA-1.5 class, which centres each picture on a square and feeds rows of patches (llava_input).
SQUARE = "transformers LlavaForConditionalGeneration"
QWEN = "its own QWen"


@dataclass(frozen=True)
class Kept:
    """What is left of a prompt's ``tokens`` image tokens after the last stage; ``stages`` are layer -> count.

    ``side`` is the edge of the token grid over the padded square, 0 where that is not how they lie; then ``views`` say
    it, those of the record; empty where the tokens are no places in a picture. ``why`` says why, or what else to know.
    ``mask`` has a bit per token, highest first, in base64.
    """

    tokens: int
    count: int
    side: int = 0
    why: str = ""
    mask: str = ""
    stages: tuple[tuple[int, int], ...] = ()
    views: tuple[tuple[Any, ...], ...] = ()  # fields of :class:`redrel_vlmeval.models.View`, box edges one by one


def kept_of(record: Mapping[str, Any] | None, pictures: int | None) -> Kept | None:
    """The kept tokens of one record; None without a record, or one of a model whose decoder is not known.

    Args:
        record: an efficiency record of a variant.
        pictures: pictures in the question's row of the benchmark, None where the benchmark was not read.
    """
    if not record or not isinstance(record.get("image_tokens"), int):
        return None
    tokens = record["image_tokens"]
    if not tokens:
        return Kept(0, 0, why="The prompt has no image tokens.")
    stages = record.get("kept")
    if not isinstance(stages, dict) or not stages:
        return Kept(tokens, tokens, why="Nothing was dropped: the prompt has no more image tokens than K.")
    order = sorted(stages, key=int)
    last = [int(place) for place in stages[order[-1]]]
    counts = tuple((int(layer), len(stages[layer])) for layer in order)
    views: tuple[tuple[Any, ...], ...] = ()
    side, why = _grid(record, tokens, pictures)
    if why and isinstance(record.get("views"), list):
        views, why = tuple(map(tuple, record["views"])), ""
    if why or any(not 0 <= place < tokens for place in last):
        return Kept(tokens, len(last), 0, why or "The record numbers tokens that the prompt does not have.", "", counts)
    if record.get("mode") == "official":
        why = "Ranked again at every step, as published; shown is the ranking of the prompt."
    return Kept(tokens, len(last), side, why, _bits(last, tokens), counts, views)


def _grid(record: Mapping[str, Any], tokens: int, pictures: int | None) -> tuple[int, str]:
    backend, weights = str(record.get("backend")), str(record.get("weights"))
    if backend.startswith(QWEN):
        return 0, "Qwen-VL's image tokens are the 256 queries of its resampler: each sees the whole picture."
    base = bases.row(str(record.get("base")))
    # the host's own class lays its tokens out the same way, where its package is installed
    host = base is not None and base.reformatted and backend != SQUARE
    known = base if host else bases.by_weights(weights)
    if backend != SQUARE and not host:
        if isinstance(record.get("unplaced"), str):
            return 0, f"{record['unplaced'][:1].upper()}{record['unplaced'][1:]}."
        return 0, f"How {backend} lays its image tokens over a picture is not known here."
    one = None if known is None else known.tokens
    if pictures is not None and pictures > 1 or one is not None and tokens > one:
        return 0, "The prompt has several pictures, whose tokens are ranked together."
    if one is None and pictures is None:
        return 0, "The record does not tell how many pictures the prompt had: with --pictures the benchmark does."
    side = isqrt(tokens)
    if side * side != tokens or one is not None and tokens != one:
        return 0, f"{tokens} image tokens are no square grid over one picture."
    return side, ""


def _bits(places: list[int], tokens: int) -> str:
    flags = np.zeros(tokens, dtype=bool)
    flags[places] = True
    return base64.b64encode(np.packbits(flags).tobytes()).decode()
