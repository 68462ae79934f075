"""Which positions of prompt and answer belong to whom, read from the model's own expanded sequence, never constants.

Groups: ``bos``, the attention sink, which else hides in "system"; ``sys``, all text before the first image token
(``USER: `` with it); ``img``; ``user``, all other text of the prompt (`` ASSISTANT:`` with it); ``out``, the answer.
Eq. 5 of the paper leaves ``out`` out; with it the shares of a row sum to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redrel_vlmeval.errors import ExplainError

GROUPS = ("bos", "sys", "img", "user", "out")
ROWS = ("predict", "emit")


@dataclass(frozen=True)
class Spans:
    """The groups of one sequence of prompt and answer, s positions, n image tokens, t answer tokens.

    Attributes:
        group: int8 [s], index into :data:`GROUPS`.
        image: int [n], positions of the image tokens.
        rows: int [t], the position that predicts (or, asked for, emits) each answer token.
        predict: int [t], the position that predicts each answer token: ``o_t - 1``.
        prompt: length of the prompt.
    """

    group: np.ndarray
    image: np.ndarray
    rows: np.ndarray
    predict: np.ndarray
    prompt: int

    def sizes(self) -> dict[str, int]:
        """Positions in each group."""
        return {name: int((self.group == number).sum()) for number, name in enumerate(GROUPS)}


def spans(image: Sequence[bool] | np.ndarray, prompt: int, bos: bool, rows: str = "predict") -> Spans:
    """Groups and answer rows of a sequence whose first ``prompt`` positions are the prompt, the rest the answer.

    Args:
        image: bool [s], which positions are image tokens of the prompt; those the answer utters do not count.
        prompt: number of positions before the answer.
        bos: whether position 0 is a begin-of-sequence token.
        rows: ``predict``, the row before each answer token, or ``emit``, the answer token's own.

    Raises:
        ExplainError: no image token, no answer token, or an unknown kind of rows.
    """
    mask = np.asarray(image, dtype=bool)
    if rows not in ROWS:
        raise ExplainError(f"rows {rows!r}: choose one of {', '.join(ROWS)}")
    if not 0 < prompt < len(mask):
        raise ExplainError(f"a sequence of {len(mask)} tokens, {prompt} of them prompt, holds no answer to explain")
    inside = mask[:prompt]
    if not inside.any():
        raise ExplainError("the question has no picture (no image token in its prompt): there is nothing to map")
    group = np.full(len(mask), GROUPS.index("user"), np.int8)
    group[: int(inside.argmax())] = GROUPS.index("sys")
    group[:prompt][inside] = GROUPS.index("img")
    group[prompt:] = GROUPS.index("out")
    if bos and not inside[0]:
        group[0] = GROUPS.index("bos")
    emit = np.arange(prompt, len(mask))
    predict = emit - 1
    return Spans(group, np.flatnonzero(inside), predict if rows == "predict" else emit, predict, prompt)


def as_paper(shares: np.ndarray) -> np.ndarray:
    """Shares [..., g] in the paper's three groups (Fig. 2b): ``bos`` is ``sys``, ``out`` is none, they sum to 1 again.

    All g groups stay, those two at 0; NaN where the three have no share at all.
    """
    found = np.array(shares, copy=True)
    found[..., GROUPS.index("sys")] += found[..., GROUPS.index("bos")]
    found[..., [GROUPS.index("bos"), GROUPS.index("out")]] = 0
    whole = found.sum(-1, keepdims=True)
    return np.divide(found, whole, out=np.full_like(found, np.nan), where=whole > 0)


def check_greedy(best: np.ndarray, gap: np.ndarray, answer: Sequence[int], slack: float) -> None:
    """Refuse rows that do not predict the greedy answer they are said to predict: one position off shows here.

    Args:
        best: int [t], the token each row prefers. gap: float [t], by how much, in logits, over the answer's token.
        answer: the t tokens that the model gave greedily.
        slack: the gap that rounding may make.

    Raises:
        ExplainError: names the first row that prefers another token.
    """
    for number, (found, distance, token) in enumerate(zip(best.tolist(), gap.tolist(), answer, strict=True)):
        if found != token and distance > slack:
            raise ExplainError(
                f"answer token {number + 1}: its row prefers token {found}, not the token {token} that the model gave "
                f"(by {distance:.3g} logits): rows and answer do not belong together"
            )
