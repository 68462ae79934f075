"""Whether a variant and its base were run alike: same questions, judge and settings; if not, which of them differs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from redrel_vlmeval.host import Cell
from redrel_vlmeval.results import records

REFUSED = "no delta: "
# Said where a score stands without the verdicts that it came from.
UNJUDGED = "no table with a verdict per question"
# What of a cell's provenance has to agree before its settings do.
SOURCE = ("host", "host_version", "commit", "judge")
Key = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Side:
    """What has to agree in two cells before they are compared; None where it is not known."""

    n: float | None
    settings: Mapping[Any, Any] | None
    source: Mapping[Any, Any]
    questions: pd.DataFrame | None
    unfit: str = ""


def with_deltas(
    scores: pd.DataFrame,
    efficiency: pd.DataFrame,
    provenance: pd.DataFrame,
    cells: Iterable[Cell],
    judged: Mapping[Key, pd.DataFrame],
    unfit: Mapping[Key, str],
) -> pd.DataFrame:
    """Points to the base in the same folder; where the two were not run alike there is no delta but a note.

    ``unfit`` tells of scores that are not what their verdicts give.
    """
    rows = scores.to_dict("records")
    by_key = {(cell.label, cell.benchmark): cell for cell in cells}
    sides = _sides(rows, efficiency, provenance, judged, unfit)
    states = {(row["model"], row["benchmark"]): row["status"] for row in rows}
    known = {(row["model"], row["benchmark"], row["metric"]): row for row in rows}
    reasons: dict[tuple[Key, Key], str] = {}
    deltas, notes = [float("nan")] * len(rows), [""] * len(rows)
    for i, row in enumerate(rows):
        if row["base"] == row["model"] or row["status"] != "ok":
            continue
        here, there = (row["model"], row["benchmark"]), (row["base"], row["benchmark"])
        base, state = known.get((*there, row["metric"])), states.get(there)
        if base is None or base["status"] != "ok":
            missing = f"is {state}" if state else "is not in this folder"
            notes[i] = f"{REFUSED}base {row['base']!r} {missing if state != 'ok' else 'has no such metric'}"
            continue
        if (here, there) not in reasons:
            reasons[here, there] = difference(sides[here], sides[there])
        why, again = reasons[here, there], _older(by_key[there])
        notes[i] = "; ".join(filter(None, [why and REFUSED + why, again]))
        deltas[i] = float("nan") if why else row["value"] - base["value"]
    return scores.assign(delta=pd.Series(deltas, dtype=float, index=scores.index), note=notes)[list(scores.columns)]


def _sides(
    rows: list[dict],
    efficiency: pd.DataFrame,
    provenance: pd.DataFrame,
    judged: Mapping[Key, pd.DataFrame],
    unfit: Mapping[Key, str],
) -> dict[Key, Side]:
    frames = (efficiency, provenance)
    settings, sources = ({(row["model"], row["benchmark"]): row for row in f.to_dict("records")} for f in frames)
    sizes = {(row["model"], row["benchmark"]): row["n"] for row in rows if row["headline"]}
    return {
        key: Side(sizes[key], settings.get(key), sources[key], judged.get(key), unfit.get(key, "")) for key in sizes
    }


def _older(base: Cell) -> str:
    """Says that the base was scored more than once, and which of its runs the variants stand beside."""
    if not base.older:
        return ""
    return f"base {base.model!r} was run {len(base.older) + 1} times, compared with the newest run {base.run.name}"


def difference(ours: Side, theirs: Side) -> str:
    """Why a variant and its base (in this order) cannot be compared, naming field and values; empty when they can."""
    if ours.n is not None and theirs.n is not None and ours.n == ours.n and theirs.n == theirs.n and ours.n != theirs.n:
        return f"{ours.n:.0f} questions, base {theirs.n:.0f}"
    if ours.unfit or theirs.unfit:
        return ours.unfit or f"of the base, {theirs.unfit}"
    if why := _other_questions(ours.questions, theirs.questions):
        return why
    if (mine := ours.source["pictures"]) != (other := theirs.source["pictures"]):
        return f"the variant was asked with {mine}" if mine else f"the base was asked with {other}"
    # Without a table per question its name does not tell the judge; there is no test then, and that is said.
    unjudged = ours.questions is None or theirs.questions is None
    both = pd.notna(ours.source["judge"]) and pd.notna(theirs.source["judge"])
    names = SOURCE[:-1] if unjudged and not both else SOURCE
    if why := _differing(names, ours.source, theirs.source):
        return why
    if ours.settings is None and theirs.settings is None:
        return ""
    if ours.settings is None or theirs.settings is None:
        who = "the variant" if ours.settings is None else "the base"
        return f"{who} has no efficiency records, so what it ran on is not known"
    if why := _differing(records.SETTINGS, ours.settings, theirs.settings):
        return why
    return _versions(ours.settings["versions"], theirs.settings["versions"])


def _differing(names: Iterable[str], ours: Mapping[Any, Any], theirs: Mapping[Any, Any]) -> str:
    """The first field that differs, or that only one side tells of; what neither tells of is passed over."""
    for name in names:
        mine, other = (side[name] if pd.notna(side[name]) else None for side in (ours, theirs))
        if mine != other:
            known = (f"{mine or 'not known'}", f"{other or 'not known'}")
            return f"{name.replace('_', ' ')} differs ({known[0]}; base {known[1]})"
    return ""


def _other_questions(ours: pd.DataFrame | None, theirs: pd.DataFrame | None) -> str:
    """Whether an index is not the base's, or stands for another question, other options or another right answer."""
    if ours is None or theirs is None:
        return ""
    if all(np.array_equal(ours[name], theirs[name]) for name in ("asked", "index")):
        return ""  # nearly always, and much faster than what follows
    known = dict(zip(theirs["index"], theirs["asked"], strict=True))
    new = [index for index in ours["index"] if index not in known]
    if new:
        return f"{len(new)} of {len(ours)} questions were not asked of the base (index {min(new)!r})"
    other = [index for index, asked in zip(ours["index"], ours["asked"], strict=True) if known[index] != asked]
    if other:
        return f"{len(other)} of {len(ours)} questions read otherwise than the base's (index {min(other)!r})"
    return ""


def _versions(ours: object, theirs: object) -> str:
    """Names only the packages that differ; one that either side does not tell of is passed over."""
    mine, other = _packages(ours), _packages(theirs)
    names = [name for name in mine if name in other and mine[name] != other[name]]
    if not names:
        return ""
    here, there = (", ".join(" | ".join(sorted(side[name])) for name in names) for side in (mine, other))
    return f"versions differ ({here}; base {there})"


def _packages(versions: object) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for piece in re.split(r", | \| ", versions) if isinstance(versions, str) else ():
        found.setdefault(piece.split(" ")[0], set()).add(piece)
    return found
