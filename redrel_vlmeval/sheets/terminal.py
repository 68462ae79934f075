"""The leaderboard for a terminal."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd
from tabulate import tabulate

from redrel_vlmeval.names import MARK
from redrel_vlmeval.results import comparisons
from redrel_vlmeval.sheets.tables import NOT_RUN, STATES, columns, statistic, two_words

NAMED = 3  # models that one remark names, each on a line
INDENT = "\u2800"  # a blank that tabulate does not strip
_COST = re.compile(r"image tokens|kept|average tokens|(prefill|KV|decode) .*|FLOPs ratio")
INTERVAL = "95 % CI"
LEGEND = "verdict: paired test of each variant against its base; better or worse where p (Holm) < .05"


def to_text(frame: pd.DataFrame, width: int | None = None) -> str:
    """The leaderboard for a terminal: no empty columns, and of the statistics those that decide.

    Below it what all rows share, and every note. On a terminal narrower than the table (``width`` in characters) names
    lose their base, and columns go, the costs first.
    """
    short = shortened(frame).drop(columns=["note", "mean"], errors="ignore")
    shown, below = _without_shared(short.dropna(axis=1, how="all"))
    if any(statistic(name) == "p (Holm)" for name in shown.columns):
        below.append(LEGEND)
    table = _drawn(shown)
    if width is not None and wide(table) > width:
        bare = shown.assign(model=short_names(frame))
        costs = [name for name in shown.columns if _COST.fullmatch(name)]
        said = [name for name in ("rule", "K", "L", "status") if name in shown]
        beside = [
            n for kind in ("p (Holm)", INTERVAL, "verdict") for n in shown.columns[::-1] if n.endswith(f" {kind}")
        ]
        spare = [*costs[::-1], *said, *beside]
        table, gone = fitted(lambda names: _drawn(bare[names]), list(shown.columns), spare, width)
        below += [f"{gone} more columns in the files: -o x.xlsx"] * bool(gone)
    below += _told_once(frame)
    return "\n".join([table, *([""] if below else []), *below])


def _drawn(shown: pd.DataFrame) -> str:
    left = ("model", "base", "rule", "backend", "status")
    align = ["left" if name in left or statistic(name) == "verdict" else "right" for name in shown.columns]
    # A statistic stands right of its benchmark, whose name would only widen the table.
    headers = [INTERVAL if name.endswith(INTERVAL) else statistic(name) or name for name in shown.columns]
    headers = [name if name == INTERVAL else name.replace(" ", "\n") for name in headers]
    table = tabulate(columns.cells(shown, 60), headers=headers, disable_numparse=True, colalign=align)
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


def shortened(frame: pd.DataFrame) -> pd.DataFrame:
    """Delta, p (Holm) and a verdict of two words at most; the interval too of a single score; files have all of it."""
    scores = [str(name).removesuffix(" verdict") for name in frame.columns if statistic(str(name)) == "verdict"]
    short = frame.assign(**{f"{name} verdict": frame[f"{name} verdict"].map(two_words) for name in scores})
    if len(scores) == 1:
        low, high = (frame[f"{scores[0]} {end}"] for end in ("CI low", "CI high"))
        spans = [None if x != x else f"{x:+.1f}..{y:+.1f}" for x, y in zip(low, high, strict=True)]
        short.insert(list(frame.columns).index(f"{scores[0]} CI low"), f"{scores[0]} {INTERVAL}", spans)
    long = [name for name in frame.columns if statistic(str(name)) in ("CI low", "CI high", "up", "down", "p")]
    return short.drop(columns=long)


def _without_shared(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Columns that say the same in each of several rows become lines below the table."""
    same = [name for name in ("backend", "base", "image tokens", "status") if name in frame and len(frame) > 1]
    same = [name for name in same if frame[name].nunique(dropna=name == "backend") == 1]
    return frame.drop(columns=same), [f"{name}: {columns.text(name, frame[name].dropna().iloc[0])}" for name in same]


def _told_once(frame: pd.DataFrame) -> list[str]:
    """Each remark with the models that it is about; of many only the first is named."""
    about: dict[str, list[str]] = {}
    for row in frame.to_dict("records"):
        for text in _remarks(row):
            about.setdefault(text, []).append(row["model"])
    found = []
    for text, models in about.items():
        few = models if len(models) <= NAMED else [f"{models[0]} and {len(models) - 1} more"]
        found += [f"{model}: {text}" for model in few]
    return found


def _remarks(row: dict[Any, Any]) -> list[str]:
    """The row's note, and why a score is not tested where the note does not say so."""
    verdicts = [(name, text) for name, text in row.items() if statistic(str(name)) == "verdict"]
    untold = [
        f"{str(name).removesuffix(' verdict')}: {text}"
        for name, text in verdicts
        if str(text).startswith(f"{comparisons.NO_TEST}: ") and text != NOT_RUN
        and (why := text.removeprefix(f"{comparisons.NO_TEST}: ")) not in (*STATES, row["note"])
        and why not in row["note"]
    ]  # fmt: skip
    return [*([row["note"]] if row["note"] else []), *untold]
