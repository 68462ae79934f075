"""Before and after a truncation in numbers: whether the answer flips, how much of a map lies on the kept tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from redrel_vlmeval.errors import ExplainError
from redrel_vlmeval.explain.store import Stored

COLUMNS = (
    "index",
    "model",
    "compared",
    "reply",
    "compared_reply",
    "flip",
    "method",
    "layer",
    "kept",
    "before",
    "after",
)


@dataclass(frozen=True)
class Change:
    """One question under two models; both maps are of the first one's answer.

    Attributes:
        replies: what each model says. kept: numbers of the image tokens that the second kept last; None if all.
        shares: method -> (layers, before, after): the share of each layer's map that lies on the kept tokens.
    """

    index: str
    models: tuple[str, str]
    replies: tuple[str, str]
    kept: list[int] | None
    shares: dict[str, tuple[list[int], np.ndarray, np.ndarray]]

    @property
    def flip(self) -> bool:
        """Whether the two models answer differently."""
        return self.replies[0].strip() != self.replies[1].strip()

    def rows(self) -> list[dict[str, Any]]:
        """One row for each method and layer."""
        head = [self.index, *self.models, *self.replies, self.flip]
        found = []
        for method, (layers, before, after) in self.shares.items():
            for layer, one, two in zip(layers, before.tolist(), after.tolist(), strict=True):
                kept = None if self.kept is None else len(self.kept)
                found.append(dict(zip(COLUMNS, [*head, method, layer, kept, one, two], strict=True)))
        return found


def change(first: Stored, second: Stored) -> Change:
    """Compare an explanation with that of the same answer under another model.

    Raises:
        ExplainError: the two explain different answers.
    """
    if not same_answer(first, second):
        raise ExplainError(
            "two explanations to compare must be of one answer: make the second with the first's --answer"
        )
    stages = second.manifest.get("kept") or {}
    kept = sorted(stages[max(stages, key=int)]) if stages else None
    shares = {}
    for name, entry in first.manifest["maps"].items():
        where, _, method = name.partition("/")
        if kept is None or where != "decoder" or name not in second.manifest["maps"]:
            continue
        both = [_share(stored.maps(where, method), kept) for stored in (first, second)]
        shares[method] = ([int(layer) for layer in entry["layers"]], both[0], both[1])
    names = tuple(str(stored.manifest.get("model")) for stored in (first, second))
    replies = tuple(str(stored.manifest.get("reply")) for stored in (first, second))
    return Change(str(first.manifest.get("index") or ""), names, replies, kept, shares)  # type: ignore[arg-type]


def same_answer(first: Stored, second: Stored) -> bool:
    """Whether two explanations are of one answer to one question."""
    said = [
        (stored.manifest.get("question"), [token["id"] for token in stored.manifest["answer"]])
        for stored in (first, second)
    ]
    return said[0] == said[1]


def _share(values: np.ndarray, kept: list[int]) -> np.ndarray:
    """[l] share of each layer's sum over answer tokens and image tokens that lies on ``kept``; NaN without a sum."""
    total = np.nansum(values, axis=(0, 2))
    own = np.nansum(values[..., kept], axis=(0, 2))
    return np.divide(own, total, out=np.full(len(total), np.nan), where=total > 0)


def notes(one: Change, method: str) -> list[dict[int, str]] | None:
    """For each of the two, layer -> the share on the kept tokens in words, for a figure; None if none is dropped."""
    if method not in one.shares:
        return None
    layers, *both = one.shares[method]
    return [
        {layer: "" if np.isnan(share) else f"{share:.0%}" for layer, share in zip(layers, shares.tolist(), strict=True)}
        for shares in both
    ]


def to_text(one: Change) -> str:
    """What a person reads after ``--compare``."""
    before, after = (reply.strip() or "(nothing)" for reply in one.replies)
    head = f"answer: {before!r} before, {after!r} after: " + ("it flips" if one.flip else "the same")
    if one.kept is None:
        return f"{head}\n{one.models[1]} drops no image token of this question"
    rows = [
        [method, layer, share, new]
        for method, (layers, old, now) in one.shares.items()
        for layer, share, new in zip(layers, 100 * old, 100 * now, strict=True)
    ]
    title = (
        f"share (%) of each map on the {len(one.kept)} image tokens that {one.models[1]} keeps; behind the cut, where "
        "it holds no other, 100:"
    )
    return f"{head}\n{title}\n{tabulate(rows, headers=['method', 'block', 'before', 'after'], floatfmt='.1f')}"


def frame(changes: list[Change]) -> pd.DataFrame:
    """All rows of several questions."""
    return pd.DataFrame([row for one in changes for row in one.rows()], columns=list(COLUMNS))


def summary(changes: list[Change]) -> str:
    """A benchmark's flips, and the mean shares over its questions."""
    flips = sum(one.flip for one in changes)
    table = frame(changes)
    head = f"{flips} of {len(changes)} answers flip"
    if table.empty:
        return head
    means = table.groupby(["method", "layer"], sort=False)[["before", "after"]].mean() * 100
    rows = [[*key, *values] for key, values in zip(means.index, means.to_numpy(), strict=True)]
    title = "share (%) of a map on the tokens that are kept, mean over questions; behind the cut 100:"
    return f"{head}\n{title}\n{tabulate(rows, headers=['method', 'block', 'before', 'after'], floatfmt='.1f')}"
