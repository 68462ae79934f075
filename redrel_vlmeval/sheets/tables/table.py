"""One table: its frame, and what a reader has to see of it besides the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd

from redrel_vlmeval.sheets.tables.columns import KNOWN, Column


class Outcome(NamedTuple):
    """What a test says of a score, in two words at most, and why there is none."""

    words: str
    why: str = ""


@dataclass(frozen=True, eq=False)
class Table:
    """A frame with its title, lines to be read with it (``remarks``), rows that others printed (``grey``, positions).

    ``columns`` are those that this table alone has, by name; :data:`KNOWN` has the others. ``outcomes`` of its scores
    are by model and score. The best of a score is ``bold`` (row position, column). ``heat`` are spans of rows (first,
    last position), each a heat map of the ``heat_columns``, and the value where it turns. ``full`` makes the frame with
    the rows that are left out here. ``printed``: the same as papers print it, for formats that people read.
    """

    name: str
    frame: pd.DataFrame
    caption: str
    remarks: tuple[str, ...] = ()
    columns: Mapping[str, Column] = field(default_factory=dict)
    outcomes: Mapping[tuple[str, str], Outcome] = field(default_factory=dict)
    grey: frozenset[int] = frozenset()
    bold: frozenset[tuple[int, str]] = frozenset()
    heat: tuple[tuple[int, int, float | None], ...] = ()
    heat_columns: tuple[str, ...] = ()
    full: Callable[[], pd.DataFrame] | None = None
    printed: Table | None = None

    @property
    def layout(self) -> list[Column]:
        """The frame's columns, in its order."""
        names = map(str, self.frame.columns)
        return [self.columns.get(name) or KNOWN.get(name) or Column(name) for name in names]

    @property
    def notes(self) -> dict[str, str]:
        """What each column means."""
        return {column.name: column.meaning for column in self.layout if column.meaning}

    def outcome(self, position: int, score: str) -> Outcome | None:
        """What the test of a row's score says; None where it has none, as printed rows."""
        if position in self.grey or "model" not in self.frame:
            return None
        return self.outcomes.get((str(self.frame["model"].iloc[position]), score))

    @property
    def file(self) -> str:
        """The name as a file's: ``table_1``."""
        return file_name(self.name)

    @property
    def measured(self) -> pd.DataFrame:
        """All rows measured here: what a csv holds, so that no mean over a column takes in printed numbers."""
        frame = self.frame if self.full is None else self.full()
        return frame[[position not in self.grey for position in range(len(frame))]] if self.grey else frame


def capped(
    name: str, frame: pd.DataFrame, most: int, caption: str, what: str, why_none: str, remarks: tuple[str, ...] = ()
) -> Table:
    """A table of at most ``most`` rows, which says how many ``what`` it leaves out and where they are, or why none."""
    if frame.empty:
        return Table(name, frame, caption, (why_none,))
    if len(frame) <= most:
        return Table(name, frame, caption, remarks)
    told = (*remarks, left_out(name, most, len(frame), what))
    return Table(name, frame.iloc[:most], caption, told, full=lambda: frame)


def left_out(name: str, most: int, count: int, what: str) -> str:
    """The line below a table that shows ``most`` of ``count``."""
    rest = f"{count - most} of {count} {what} are left out here"
    return f"{rest}; '-o FOLDER/' writes all of them to {file_name(name)}.csv"


def file_name(name: str) -> str:
    """The name of a table as a file's: ``table_1``."""
    return name.lower().replace(" ", "_")


def best(frame: pd.DataFrame, scores: Iterable[str], grey: frozenset[int]) -> frozenset[tuple[int, str]]:
    """The highest measured score of each column (all of them on a tie), where several rows have one."""
    marks = []
    for name in scores:
        values = pd.to_numeric(frame[name], errors="coerce")
        mine = {position: value for position, value in enumerate(values) if position not in grey and value == value}
        top = max(mine.values(), default=None)
        marks += [(position, name) for position, value in mine.items() if len(mine) > 1 and value == top]
    return frozenset(marks)
