"""Where any row of the prompt looks, not the answer's alone: a noun's, say, which may know more of the picture."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.ask import Asked
from redrel_vlmeval.explain.maps.passes import run
from redrel_vlmeval.explain.maps.taken import Wanted, image_places


def find(asked: Asked, row: str) -> list[int]:
    """Positions of the prompt that ``row`` names: words of the text behind the picture (where they first stand), or a
    position from 0.

    Raises:
        ExplainError: no such words, a position outside the prompt or of an image token, or no tokenizer for words.
    """
    image = set(asked.spans().image.tolist())
    if row.isascii() and row.isdecimal():
        place = int(row[:9])
        if place >= asked.prompt or place in image:
            what = "an image token" if place in image else f"outside the prompt, which has {asked.prompt} tokens"
            raise ExplainError(f"--row {row[:20]}: {what}; give words of the question or a text token's position")
        return [place]
    if asked.tokenizer is None:
        raise ExplainError("--row: this host model shows no tokenizer, so words cannot be found; give a position")
    first = max(image) + 1
    ids = asked.inputs["input_ids"][0, first:].tolist()
    pieces = ["".join(word.split()).lower() for word in asked.words(ids)]  # many a tokenizer shows no blanks
    wanted = "".join(row.split()).lower()
    text = "".join(pieces)
    ends = np.cumsum([0, *map(len, pieces)]).tolist()
    found = [match.start() for match in re.finditer(re.escape(wanted), text)] if wanted else []
    if not found:
        raise ExplainError(
            f"--row {row[:60]!r}: not in the text behind the picture, {' '.join(asked.words(ids))[:200]!r}"
        )
    # rather a place where tokens begin and end than one inside of a longer word
    start = next((place for place in found if {place, place + len(wanted)} <= set(ends)), found[0])
    return [first + n for n in range(len(ids)) if ends[n] < start + len(wanted) and ends[n + 1] > start]


def row_maps(asked: Asked, positions: Sequence[int], blocks: Sequence[int]) -> tuple[np.ndarray, list[str]]:
    """(float32 [l, n], status [l]): attention of these rows to the image tokens, mean over heads and rows; one pass."""
    values, status = [], []
    with run(asked, Wanted(rows=blocks, positions=positions), grad=False) as taken:
        for block in blocks:
            places, numbers = image_places(taken.image, taken.held[0][block])
            whole = torch.full((len(taken.image),), torch.nan)
            whole[numbers] = taken.rows[block][0][..., places.to(taken.rows[block].device)].mean((0, 1)).float().cpu()
            values.append(whole.numpy())
            status.append("ok" if len(places) else "pruned")
    return np.stack(values).astype(np.float32), status
