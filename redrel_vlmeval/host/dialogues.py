"""What every turn of a dialogue is worth (MMDU): in a pickle alone, of which only tables are taken.

The file, ``<model>_<benchmark>_<judge>.pkl``, is a dict: index of a dialogue -> ``{"res": DataFrame, "log": text}``,
a row per turn with the judge's marks of 0 to 10, None where it gave none. A pickle can name any function to be called;
here it may name what makes a table of numbers and texts, and is refused at the first other name.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pandas as pd

from redrel_vlmeval.errors import one_line
from redrel_vlmeval.host.folders import DIALOGUES, Cell, newest
from redrel_vlmeval.host.tables import ResultsError

MARK, MOST = "Overall Score", 10
COLUMNS = ["index", "turn", "score"]
# By module, without the underscore that numpy 2 has put before its core.
_ALLOWED = {
    "pandas": {"DataFrame", "Index", "RangeIndex", "StringDtype"},
    "pandas.core.frame": {"DataFrame"},
    "pandas.core.internals.managers": {"BlockManager"},
    "pandas._libs.internals": {"_unpickle_block"},
    "pandas.core.indexes.base": {"_new_Index", "Index"},
    "pandas.core.indexes.range": {"RangeIndex"},
    "pandas.core.arrays.string_": {"StringDtype"},
    "pandas.core.arrays.string_arrow": {"ArrowStringArray"},
    "pandas.arrays": {"ArrowStringArray"},
    "pyarrow.lib": {"_restore_array", "type_for_alias", "py_buffer"},
    "numpy": {"ndarray", "dtype"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.numeric": {"_frombuffer"},
    "builtins": {"slice", "bytearray"},
}


class _Tables(pickle.Unpickler):
    """Makes tables, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module.replace("numpy._core", "numpy.core"), ()):
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a table; nothing of it was run")
        return super().find_class(module, name)


def turns(cell: Cell) -> pd.DataFrame | None:
    """``COLUMNS``: a row for each turn of each dialogue, turns from 1, scores 0 to 1 or nan; None without any.

    Raises:
        ResultsError: the file is no such table.
    """
    path = _judged(cell)
    if path is None:
        return None
    try:
        with path.open("rb") as stream:
            found = _Tables(stream).load()
        rows = [
            (str(index), number, _score(mark))
            for index, one in found.items()
            for number, mark in enumerate(one["res"][MARK] if MARK in one["res"] else [None] * len(one["res"]), start=1)
        ]
    except Exception as error:  # because a damaged pickle raises whatever its parts do
        raise ResultsError(f"{path.name} is no table of turns: {one_line(error)}") from error
    return pd.DataFrame(rows, columns=COLUMNS)


def _judged(cell: Cell) -> Path | None:
    """The judge's marks: of the judge that ``status.json`` names, else the newest; never the runner's own answers."""
    named = cell.of_judge(".pkl") if cell.benchmark.startswith(DIALOGUES) else {}
    return newest([path for name, path in named.items() if name not in ("PREV", "checkpoint")], "pkl")


def _score(mark: Any) -> float:
    """As the host reads a mark: whole, from 0 to 10; nan where it cannot."""
    try:
        return min(max(int(mark), 0), MOST) / MOST
    except (TypeError, ValueError):
        return float("nan")
