"""Dialogues turn by turn: what each model's answers are worth, and whether truncation costs later turns more.

That "reduction degrades in dialogue" is a claim about a difference of differences: of the loss in later turns and of
that in the first, on the same dialogues::

    loss[dialogue, turn] = variant - base             mean over dialogues with a mark on both sides: delta
    mean over turns 2.. of loss - loss[., 1]          mean over dialogues that have both: 'later - first'
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from redrel_vlmeval import host
from redrel_vlmeval.results import flips, paired_tests
from redrel_vlmeval.results.reading import Results, ResultsError

COLUMNS = ["model", "base", "benchmark", "turn", "n", "unjudged", "score", "base score", "delta", "CI low", "CI high",
           "note"]  # fmt: skip
LATER = "later - first"


def by_turn(results: Results) -> pd.DataFrame:
    """One row per model, benchmark and turn with ``COLUMNS``, and one of ``LATER``; scores and deltas in points.

    A variant that was not run like its base, or on other dialogues, has its scores alone, and a file that cannot be
    read a row with the reason. Empty where no dialogue was judged.
    """
    rows: list[dict[str, Any]] = []
    marks: dict[tuple[str, str], pd.DataFrame] = {}
    for cell in results.cells:
        try:
            found = host.turns(cell)
        except ResultsError as error:
            rows.append({"model": cell.label, "base": cell.label, "benchmark": cell.benchmark, "note": str(error)})
            continue
        if found is not None and len(found):
            marks[cell.label, cell.benchmark] = found.pivot(index="index", columns="turn", values="score")
    for (model, benchmark), own in marks.items():
        base = flips.comparable_base(results, model, benchmark)
        theirs = marks.get((base, benchmark)) if base and base != model else None
        note = None
        if theirs is not None and not own.index.equals(theirs.index):
            theirs, note = None, "has answered other dialogues than its base"
        same = {"model": model, "base": base or model, "benchmark": benchmark, "note": note}
        rows += [same | one for one in (_alone(own) if theirs is None else _paired(own, theirs))]
    return pd.DataFrame(rows, columns=COLUMNS)


def _alone(marks: pd.DataFrame) -> list[dict[str, Any]]:
    """A row per turn of [dialogues, turns] scores."""
    asked = _asked(marks)
    return [
        {"turn": str(turn), "n": int(one.notna().sum()), "unjudged": int(asked[turn] - one.notna().sum())}
        | {"score": _points(one)}
        for turn, one in marks.items()
    ]


def _asked(marks: pd.DataFrame) -> dict[Any, int]:
    """How many dialogues have so many turns: a later turn with a mark shows that those before it were asked."""
    last = marks.notna().to_numpy() * np.arange(1, marks.shape[1] + 1)
    lengths = last.max(axis=1, initial=0)
    return {turn: int((lengths >= place).sum()) for place, turn in enumerate(marks.columns, start=1)}


def _paired(ours: pd.DataFrame, theirs: pd.DataFrame) -> list[dict[str, Any]]:
    """A row per turn over the dialogues with a mark on both sides, then that of later turns against the first."""
    theirs = theirs.reindex(columns=ours.columns)
    loss, rows = ours - theirs, []
    for row in _alone(ours):
        turn = next(name for name in ours if str(name) == row["turn"])
        both = loss[turn].notna()
        row |= {"n": int(both.sum()), "score": _points(ours[turn][both]), "base score": _points(theirs[turn][both])}
        rows.append(row | _change(loss[turn]))
    if loss.shape[1] > 1:
        more = loss.iloc[:, 1:].mean(axis=1) - loss.iloc[:, 0]
        rows.append({"turn": LATER, "n": int(more.notna().sum())} | _change(more))
    return rows


def _change(loss: pd.Series) -> dict[str, float]:
    """The mean of a change per dialogue, and its interval with ten dialogues or more."""
    known = loss.dropna().to_numpy()
    low, high = paired_tests.bootstrap(known, np.ones(len(known)))
    return {"delta": _points(loss), "CI low": 100 * low, "CI high": 100 * high}


def _points(scores: pd.Series) -> float:
    return 100 * float(scores.mean())
