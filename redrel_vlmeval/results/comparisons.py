"""Every headline score of a variant tested against its base, or the reason why it is not: never an empty field.

Tests are of the questions' verdicts. A headline that is no mean of them (F1, MME's sum) is not tested under its name.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from redrel_vlmeval.host import shares_pictures
from redrel_vlmeval.results import paired_tests, pairing

if TYPE_CHECKING:
    from redrel_vlmeval.results.reading import Results

# What stands beside a score, and what it means in the column notes.
MEANINGS = {
    "delta": "points above (+) or below (-) the base; empty for a base and where they cannot be compared",
    "CI low": "lower end of the 95 % confidence interval of the delta, of this variant alone: Newcombe's "
    "square-and-add method for paired proportions; where questions share pictures or scores are graded, a bootstrap "
    "over pictures",
    "CI high": "upper end of the same interval",
    "up": "questions that the base gets wrong and the variant right; with graded scores, those whose score rises",
    "down": "questions that the base gets right and the variant wrong; with graded scores, those whose score falls",
    "p": "chance of so uneven a split into up and down, or a more uneven one, if neither were likelier: exact McNemar "
    "test, two-sided; where questions share pictures or scores are graded, a sign-flip test by picture",
    "p (Holm)": "p corrected for all tested variants of the same base on the same benchmark (Holm's step-down method)",
    "verdict": "the comparison in words; better or worse where p (Holm) is below .05. 'Not separable' does not mean "
    "equal: the interval says how large a difference there may be",
}
# ``outcome``: better, worse, not separable, base or no test, and then ``why`` there is none.
COLUMNS = [*list(MEANINGS)[1:], "outcome", "why"]
NO_TEST = "no test"


@lru_cache(maxsize=1)
def compare(results: Results) -> pd.DataFrame:
    """``COLUMNS`` for each headline row of ``results.scores``, under that row's index; with names, the frame
    ``results.comparisons``.

    p is corrected over the variants of one base on one metric of one benchmark. Kept for the last results, so it is
    not to be changed in place.
    """
    rows = results.scores[results.scores["headline"]]
    bases = set(rows.loc[rows["base"] != rows["model"], "base"])
    lines: dict[Hashable, dict[str, object]] = {}
    for _, family in rows.groupby(["base", "benchmark", "metric"], sort=False):
        members = family.to_dict("index")
        found = {i: _outcome(results, rows, row) for i, row in members.items()}
        tested = {i: outcome for i, outcome in found.items() if isinstance(outcome, paired_tests.Comparison)}
        corrected = dict(zip(tested, paired_tests.holm([test.p for test in tested.values()]), strict=True))
        for i, outcome in found.items():
            row = members[i]
            if isinstance(outcome, paired_tests.Comparison):
                lines[i] = _line(results, row, outcome, corrected[i], len(tested))
            elif row["model"] == row["base"]:
                is_base = row["model"] in bases and row["status"] == "ok"
                said = "base" if is_base else None
                lines[i] = {"verdict": said, "outcome": said, "why": ""}
            else:
                lines[i] = {"verdict": f"{NO_TEST}: {outcome}", "outcome": NO_TEST, "why": outcome}
    return pd.DataFrame.from_dict(lines, orient="index", columns=COLUMNS).reindex(rows.index)


def _line(
    results: Results, row: Mapping[Hashable, Any], test: paired_tests.Comparison, corrected: float, variants: int
) -> dict[str, object]:
    words = paired_tests.sentence(test, corrected, variants)
    if test.pictures is None and shares_pictures(str(row["benchmark"])):
        words = words.replace(" down:", " down, pictures shared by questions not known:")
    line = {"up": test.up, "down": test.down, "p": test.p, "p (Holm)": corrected, "verdict": words, "why": ""}
    line |= {"outcome": paired_tests.outcome(test, corrected)}
    if is_mean(results, row):
        return line | {"CI low": test.low, "CI high": test.high}
    # The difference is of another quantity than the delta beside it, so its interval stands in the words only.
    return line | {"verdict": f"mean score per question, not {row['metric']}: {words}"}


def _outcome(results: Results, rows: pd.DataFrame, row: Mapping[Hashable, Any]) -> paired_tests.Comparison | str:
    """The comparison of a row with its base, or why there is none."""
    if row["model"] == row["base"]:
        return ""
    if row["status"] != "ok":
        return str(row["status"])
    if pd.isna(row["delta"]):
        return str(row["note"]).removeprefix(pairing.REFUSED)
    ours, theirs = (results.judged.get((row[name], row["benchmark"])) for name in ("model", "base"))
    for frame, name in ((ours, row["model"]), (theirs, row["base"])):
        if problem := _unusable(frame):
            return f"{problem} ({name})"
    if not is_mean(results, row):
        same = rows[(rows["model"] == row["model"]) & (rows["benchmark"] == row["benchmark"])]
        other = [str(found["metric"]) for found in same.to_dict("records") if is_mean(results, found)]
        if other:
            return f"{row['metric']} is no mean over questions; {other[0]} is, and is tested"
    return _paired(ours, theirs)


def _paired(ours: Any, theirs: Any) -> paired_tests.Comparison:
    same = np.array_equal(ours["index"], theirs["index"])
    base = theirs if same else theirs.set_index("index").loc[ours["index"]]
    pictures = ours["picture"]
    # A question whose picture is not named stands for itself.
    named = [(True, p) if p is not None else (False, i) for i, p in enumerate(pictures)]
    return paired_tests.compare(base["hit"].to_numpy(), ours["hit"].to_numpy(), named)


def _unusable(frame: pd.DataFrame | None) -> str:
    if frame is None or frame.empty:
        return pairing.UNJUDGED
    hits = frame["hit"].to_numpy()
    if missing := int(np.isnan(hits).sum()):
        return f"{missing} of {len(frame)} questions have no verdict"
    if repeated := len(frame) - len(set(frame["index"])):
        return f"{repeated} questions stand twice in the table per question"
    if hits.min() < 0 or hits.max() > 1:
        return "scores per question are not between 0 and 1"
    return ""


def is_mean(results: Results, row: Mapping[Any, Any]) -> bool:
    """Whether the headline is the mean over the questions' verdicts; hosts round to two digits."""
    frame = results.judged.get((row["model"], row["benchmark"]))
    return frame is not None and abs(100 * float(frame["hit"].mean()) - float(row["value"])) < 0.011
