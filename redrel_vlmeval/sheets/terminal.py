"""The leaderboard for a terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from tabulate import tabulate

from redrel_vlmeval.names import MARK
from redrel_vlmeval.results import comparisons
from redrel_vlmeval.sheets.tables import KNOWN, STATES, Column, Table, cells

NAMED = 3  # models that one remark names, each on a line
INDENT = "\u2800"  # a blank that tabulate does not strip
LEFT = ("model", "base", "rule", "backend", "status", "method", "benchmark", "note")
INTERVAL = "95 % CI"
LEGEND = "verdict: paired test of each variant against its base; better or worse where p (Holm) < .05"


def to_text(table: Table, width: int | None = None) -> str:
    """The leaderboard for a terminal: no empty columns, and of the statistics those that decide.

    Below it what all rows share, and every note. On a terminal narrower than the table (``width`` in characters) names
    lose their base, and columns go, the costs first.
    """
    short, columns = shortened(table)
    shown, below = _without_shared(short.drop(columns=["note", "mean"], errors="ignore").dropna(axis=1, how="all"))
    names = [str(name) for name in shown]
    if any(columns[name].statistic == "p (Holm)" for name in names):
        below.append(LEGEND)

    def draw(frame: pd.DataFrame) -> str:
        return _drawn(frame, [columns[str(name)] for name in frame])

    text = draw(shown)
    if width is not None and wide(text) > width:
        bare = shown.assign(model=short_names(table.frame))
        costs = [name for name in names if columns[name].cost]
        said = [name for name in ("rule", "K", "L", "status") if name in shown]
        kinds = ("p (Holm)", INTERVAL, "verdict")
        beside = [name for kind in kinds for name in names[::-1] if columns[name].statistic == kind]
        spare = [*costs[::-1], *said, *beside]
        text, gone = fitted(lambda kept: draw(bare[kept]), names, spare, width)
        below += [f"{gone} more columns in the files: -o x.xlsx"] * bool(gone)
    below += _told_once(table)
    return "\n".join([text, *([""] if below else []), *below])


def plain(table: Table, width: int | None = None) -> str:
    """Any table for a terminal, its remarks below; on a narrow one costs and then the last columns go."""
    columns = {column.name: column for column in table.layout}
    names = [str(name) for name in table.frame if table.frame[name].notna().any()]

    def draw(kept: list[str]) -> str:
        return _drawn(table.frame[kept], [columns[name] for name in kept])

    costs = [name for name in names if columns[name].cost]
    spare = [*costs[::-1], *[name for name in names[2:][::-1] if name not in costs]]
    text, gone = fitted(draw, names, spare, width)
    return "\n".join([text, "", *table.remarks, *[f"{gone} more columns in the files"] * bool(gone)])


def _drawn(shown: pd.DataFrame, columns: Sequence[Column]) -> str:
    align = ["left" if one.name in LEFT or one.statistic == "verdict" else "right" for one in columns]
    headers = [one.title if one.title == INTERVAL else one.title.replace(" ", "\n") for one in columns]
    table = tabulate(cells(shown, columns, 60), headers=headers, disable_numparse=True, colalign=align)
    return table.replace(INDENT, " ")


def terminal_width() -> int | None:
    """Characters in a line of the terminal that is written to; None where the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wide(text: str) -> int:
    """Characters in the longest line."""
    return max(map(len, text.splitlines()), default=0)


def fitted(
    draw: Callable[[list[str]], str], names: Sequence[str], spare: Iterable[str], width: int | None
) -> tuple[str, int]:
    """A table drawn with as many of its columns as fit, ``spare`` ones left out in this order; and how many are."""
    kept = list(names)
    text = draw(kept)
    for name in spare:
        if width is None or wide(text) <= width:
            break
        kept.remove(name)
        text = draw(kept)
    return text, len(names) - len(kept)


def short_names(frame: pd.DataFrame) -> list[str]:
    """Models of a leaderboard; a variant below its base is its setting, indented."""
    models = set(frame["model"])
    names = []
    for model, base in zip(frame["model"], frame["base"], strict=True):
        setting = model.partition(MARK)[2]
        names.append(f"{INDENT * 2}{setting}" if setting and base in models else model)
    return names


def shortened(table: Table) -> tuple[pd.DataFrame, dict[str, Column]]:
    """Delta, p (Holm) and a verdict of two words at most; the interval too of a single score; files have all of it."""
    columns = {column.name: column for column in table.layout}
    scores = [column for column in table.layout if column.score]
    frame = table.frame
    for verdict in (one for one in table.layout if one.statistic == "verdict"):
        told = [table.outcome(position, verdict.of) for position in range(len(frame))]
        frame = frame.assign(**{verdict.name: pd.Series([said and said.words for said in told], frame.index, object)})
    at = {column.statistic: column for column in table.layout if column.of}
    if len(scores) == 1 and at:
        ends = (frame[at[name].name] for name in ("CI low", "CI high"))
        spans = [None if x != x else f"{x:+.1f}..{y:+.1f}" for x, y in zip(*ends, strict=True)]
        both = replace(at["CI low"], name=f"{scores[0].name} {INTERVAL}", statistic=INTERVAL)
        frame.insert(list(frame.columns).index(at["CI low"].name), both.name, spans)
        columns[both.name] = both
    long = [column.name for column in table.layout if column.statistic in ("CI low", "CI high", "up", "down", "p")]
    return frame.drop(columns=long), columns


def _without_shared(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Columns that say the same in each of several rows become lines below the table."""
    same = [name for name in ("backend", "base", "image tokens", "status") if name in frame and len(frame) > 1]
    same = [name for name in same if frame[name].nunique(dropna=name == "backend") == 1]
    return frame.drop(columns=same), [f"{name}: {KNOWN[name].text(frame[name].dropna().iloc[0])}" for name in same]


def _told_once(table: Table) -> list[str]:
    """Each remark with the models that it is about; of many only the first is named."""
    about: dict[str, list[str]] = {}
    for row in table.frame.to_dict("records"):
        for text in _remarks(row, table):
            about.setdefault(text, []).append(row["model"])
    found = []
    for text, models in about.items():
        few = models if len(models) <= NAMED else [f"{models[0]} and {len(models) - 1} more"]
        found += [f"{model}: {text}" for model in few]
    return found


def _remarks(row: dict[Any, Any], table: Table) -> list[str]:
    """The row's note, and why a score is not tested where the note does not say so."""
    outcomes = {column.name: table.outcomes.get((row["model"], column.name)) for column in table.layout if column.score}
    untold = [
        f"{score}: {comparisons.NO_TEST}: {said.why}"
        for score, said in outcomes.items()
        if said and said.why and said.why not in STATES and said.why not in row["note"]
    ]
    return [*([row["note"]] if row["note"] else []), *untold]
