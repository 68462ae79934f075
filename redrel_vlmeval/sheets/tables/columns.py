"""What a column is: its meaning with unit or formula, the format of its numbers, and what it says of which score.

A table carries it from where a column is computed to every writer; nobody reads it back from a name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from redrel_vlmeval.results import comparisons, p_text

FLOPS = (
    "one multiply-add counts as one, decoder blocks only: per block of n tokens, width d, FFN width m, g of h key heads"
    " 2 n d^2 (1 + g/h) + 2 n^2 d + 3 n d m"
)
SCORE = "score in points, by the host's own evaluation, or the state of a cell that has none; grey: printed by others"
_NOTES = {
    "model": "name given to the runner; grey: a model as its source calls it",
    "base": "the untruncated model that a variant is compared with: same prompt, same decoding",
    "setting": "what is truncated (l<L>_k<K>: all tokens up to block L, K image tokens after it), prompt and decoding",
    "L": "decoder blocks that see every token; ranking happens at the end of block L. Several stages: several numbers",
    "K": "image tokens kept after block L; with % a share of the prompt's image tokens",
    "rule": "what picks the kept tokens: a rule that 'redrel rules' lists, and the query rows it ranks by if these "
    "are others than the last",
    "backend": "the class that ran the model; base and variant are compared only when it is the same",
    "image tokens": "image tokens of the prompt, mean over questions",
    "kept": "image tokens left after the last stage, mean over questions",
    "average tokens": "image tokens entering a decoder block, mean over blocks and questions",
    "tokens per block": "all tokens entering blocks 1..N, mean over questions: '134 x 2, 78 x 6' is 134 in two, "
    "then 78 in six",
    "FLOPs ratio": "prefill FLOPs / those of the base on the same prompts; below 1 is cheaper",
    "KV ratio": "KV cache bytes / those of the base on the same prompts",
    "prefill GFLOPs": f"operations of the prefill in 1e9, mean over questions; {FLOPS}",
    "prefill TFLOPs": f"operations of the prefill in 1e12, mean over questions; {FLOPS}",
    "KV MB": "bytes of the KV cache when the answer ends, in 1e6, mean over questions; analytic: 2 x tokens x key "
    "heads x head width x bytes of a number, summed over blocks",
    "KV MB measured": "the same, read from the cache's own tensors after the answer, in 1e6",
    "prefill ms": "wall time of the prefill, median over questions; of a batch each prompt's share, by its tokens",
    "prefill ms from": "where the middle half of the questions begins", "prefill ms to": "where it ends",
    "decode ms/token": "wall time of one decoding step, median over questions; of a batch a token's share",
    "decode ms/token from": "where the middle half of the questions begins", "decode ms/token to": "where it ends",
    "batch": "questions that were answered at once",
    "prefill over base": "median prefill ms by the base's, where both ran alike (device, numbers, kernel, batch) and "
    "the base's middle half is narrower than their difference; a machine that does other things too can tell no more",
    "questions/s": "questions over the sum of their wall times, vision tower and decoding included",
    "peak MB over weights": "highest memory of the accelerator during a question less that of the weights, in 1e6",
    "mode": "not truncated; dropped: tokens really leave; masked: the published code's way",
    "status": "worst state of the row's cells: ok, no rule (its numbers as they stand: sheet Scores), "
    "partial (answers, no score), running (begun, not ended), failed",
    "note": "why a cell has no score, why a score has no delta, and what to know of the run or the printed number",
    "mean": "plain mean over the benchmarks with scores of 0 to 100, each by its first headline; only with all of them",
    "source": "where a printed number stands; empty for what was measured here",
    "disputed": "yes: another source contradicts this printed number",
    "language model": "the language model behind the pictures, where it is known",
    "resolution": "side of the picture given to the vision tower, in pixels, where it is known",
    "best of": "the variant, controls aside, with the highest score there, of so many: chosen after the fact, which is "
    "why the p beside it is corrected for all variants of the base",
    "prompt": "order of question (Q), context (C), options (M) and chain-of-thought request (P1..P3) before the answer",
    "decoding": "greedy search, beam search with n beams, or the options ranked by likelihood (nothing is generated)",
    "pictures": "whether the host showed pictures that are not those of the benchmark's table; empty: none known",
    "truncation": "the variant's stages and rule; empty: nothing is truncated",
    "benchmark": "the host's name of the data",
    "metric": "the host's name of the score",
    "value": "the score, in points unless the host says otherwise",
    "headline": "yes: it is the benchmark's number",
    "n": "questions",
    "by": "the column of the data that groups the questions",
    "group": "category, subject or grade",
    "score": "mean score per question, in points",
    "base score": "the same questions, the base",
    "delta": comparisons.MEANINGS["delta"],
    "blind rate": "share of these questions that are right with no image token at all (l0_k0), in points; "
    "lucky guesses included",
    "rest n": "questions that need the image: not right without it",
    "rest score": "image-dependent part: mean score on those, in points",
    "blind model": "the run without any image",
    "category": "the data's own category; empty: all questions",
    "change": "up: became right, or scored higher; down: became wrong, or scored lower",
    "prediction": "raw answer of the variant", "base_prediction": "raw answer of the base",
    "hit": "score of the answer, 0 to 1", "base_hit": "score of the base's answer, 0 to 1",
    "index": "the host's index of the question", "question": "as the data has it", "options": "the choices",
    "answer": "the right answer", "picture": "name of the picture, where the data has one",
    "host": "VLMEvalKit: its checkout; ms-vlmeval: the package of that name", "commit": "of the host's checkout",
    "judge": "who compared the answers", "judge_ran": "yes or no, and why, where the judged table shows it",
    "host_version": "as the run told it", "weights": "name or folder of the checkpoint", "revision": "of the weights",
    "torch": "version", "transformers": "version", "redrel_vlmeval": "version", "date": "when the run began",
    "device": "where the decoder ran", "dtype": "of its weights", "kernel": "its attention",
    "reason": "why a cell has no score, or how its headline was chosen",
    "arguments": "of the runner; keys and tokens left out", "run": "folder of the run", "path": "below the folder read",
}  # fmt: skip


_FORMS = {
    **dict.fromkeys(("L", "K", "n", "rest n", "resolution"), "d"),
    **dict.fromkeys(("FLOPs ratio", "KV ratio"), ".3f"),
    **dict.fromkeys(("prefill GFLOPs", "prefill TFLOPs", "questions/s", "prefill over base"), ".2f"),
    **{f"{name}{end}": ".2f" for name in ("prefill ms", "decode ms/token") for end in ("", " from", " to")},
    **dict.fromkeys(("KV MB", "KV MB measured"), ".2f"),
    **dict.fromkeys(("hit", "base_hit"), "g"), "delta": "+.1f",
}  # fmt: skip
_COSTS = (
    "image tokens", "kept", "average tokens", "prefill GFLOPs", "prefill TFLOPs", "FLOPs ratio", "KV MB", "KV ratio",
)  # fmt: skip
_STATISTICS = {"delta": "+.1f", "CI low": "+.1f", "CI high": "+.1f", "up": "d", "down": "d", "p": "p", "p (Holm)": "p"}


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: in the frame, and the header of files. meaning: with unit or formula; '' where it says it itself.
        form: Python's format of its numbers, 'd' of whole ones, 'p' of a p-value.
        of, statistic: it stands beside the score of that name and holds this of it (``comparisons.MEANINGS``).
        score: it is compared, and its best is marked. cost: it says what a run costs.
    """

    name: str
    meaning: str = ""
    form: str = ".1f"
    of: str = ""
    statistic: str = ""
    score: bool = False
    cost: bool = False

    @property
    def title(self) -> str:
        """The header where there is little room: a statistic stands right of its score, whose name it leaves out."""
        return self.statistic or self.name

    def text(self, value: Any, width: int | None = None) -> str:
        """A cell as one line, numbers in the column's format, nothing for an empty one; cut to ``width`` characters."""
        if value is None or value != value:
            return ""
        value = yes_no(value)
        if isinstance(value, (int, float)):
            if self.form == "p":
                return p_text(value)
            return format(int(value) if self.form == "d" else value, self.form)
        words = " ".join(str(value).split())
        return words if width is None or len(words) <= width else words[: width - 3] + "..."


KNOWN = {name: Column(name, meaning, _FORMS.get(name, ".1f"), cost=name in _COSTS) for name, meaning in _NOTES.items()}


def score(title: str) -> Column:
    """The column of a benchmark's scores."""
    return Column(title, SCORE, score=True)


def beside(title: str) -> list[Column]:
    """The columns of a score's statistics, in the order in which they stand right of it."""
    return [
        Column(f"{title} {name}", meaning, _STATISTICS.get(name, ""), title, name)
        for name, meaning in comparisons.MEANINGS.items()
    ]


def yes_no(value: Any) -> Any:
    """A truth value in words, any other value as it is."""
    return {True: "yes", False: "no"}[bool(value)] if isinstance(value, (bool, np.bool_)) else value


def cells(frame: pd.DataFrame, columns: Sequence[Column], width: int | None = None) -> list[list[str]]:
    """All of a frame as text."""
    rows = frame.itertuples(index=False, name=None)
    return [[column.text(value, width) for column, value in zip(columns, row, strict=True)] for row in rows]
