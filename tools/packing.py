"""Several questions about one picture in one row, as both trainings ask them: they share the picture's tokens.

row:  | <s> USER: picture | question answer | question answer | padding |
      |<---- prefix ----->|    sees the prefix and itself     | itself  |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass(frozen=True)
class Packed:
    """Rows of questions; ``ids``, ``labels``, ``positions`` [b, s], ``mask`` bool [b, s, s].

    ``labels`` has the answers' tokens, and -100 wherever nothing is to be learnt. ``starts`` says where in its row each
    question begins.
    """

    ids: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    starts: list[list[int]] = field(default_factory=list)

    def tensors(self) -> dict[str, torch.Tensor]:
        """input_ids, labels, position_ids [b, s]; mask [b, 1, s, s], the same for all heads."""
        found = {"input_ids": self.ids, "labels": self.labels, "position_ids": self.positions}
        return {name: torch.from_numpy(value) for name, value in {**found, "mask": self.mask[:, None]}.items()}


def pack(
    prefix: Sequence[int],
    rows: Sequence[Sequence[tuple[Sequence[int], int]]],
    padding: int,
    seen: Sequence[Sequence[int]] | None = None,
    multiple: int = 1,
) -> Packed:
    """Rows that begin with ``prefix``.

    Args:
        prefix: token ids up to the end of the picture.
        rows: for each picture its questions: token ids with the answer, and how many of them are the prompt.
        padding: the token id behind the last question.
        seen: for each question how many tokens of the prefix it sees; the whole prefix if not given.
        multiple: rows are as long as a multiple of this.
    """
    start = len(prefix)
    length = start + max(sum(len(tokens) for tokens, _ in row) for row in rows)
    length = -(-length // multiple) * multiple
    ids = np.full((len(rows), length), padding, np.int64)
    mask = np.tile(np.eye(length, dtype=bool), (len(rows), 1, 1))
    mask[:, :start, :start] = np.tril(np.ones((start, start), bool))
    packed = Packed(ids, np.full_like(ids, -100), np.tile(np.arange(length), (len(rows), 1)), mask)
    ids[:, :start] = prefix
    for number, row in enumerate(rows):
        at, starts = start, []
        for part, (tokens, prompt) in enumerate(row):
            size, before = len(tokens), start if seen is None else seen[number][part]
            end = at + size
            ids[number, at:end] = tokens
            packed.labels[number, at + prompt : end] = tokens[prompt:]
            mask[number, at:end, at:end] = np.tril(np.ones((size, size), bool))
            mask[number, at:end, :before] = True
            packed.positions[number, at:end] = before + np.arange(size)
            starts.append(at)
            at = end
        packed.starts.append(starts)
    return packed
