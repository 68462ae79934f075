"""Single files of a host in, columns out: xlsx, tsv, csv and json as they were written; a damaged file is an error.

``NA`` and ``None`` stay words, only empty fields are missing. Calamine reads an xlsx over twenty times faster than
openpyxl and lets other threads run meanwhile, which is what makes a folder of thousands of tables readable.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import numpy as np
import pandas as pd
from python_calamine import CalamineError, CalamineWorkbook

from redrel_vlmeval.errors import RedrelError, one_line

Columns = Mapping[str, list[Any]]
_UNREADABLE = (
    OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, ParseError, CalamineError
)  # fmt: skip


# Columns that tell a host's table: of questions, or of scores.
_HEADS = {"index", "split", "Overall", "perception", "Category"}


class ResultsError(RedrelError, RuntimeError):
    """A folder or file of results that cannot be used; the text names it and says what was expected."""


def read_columns(path: Path) -> dict[str, list[Any]]:
    """A host's table as lists by column name, equally long; an empty field is None.

    Raises:
        ResultsError: the file cannot be read as what its ending says.
    """
    try:
        if path.suffix == ".xlsx":
            return _xlsx(path)
        frame = _frame(path)
    except _UNREADABLE as error:
        raise ResultsError(f"{path.name} cannot be read: {one_line(error)}") from error
    return {str(name): [None if value != value else value for value in frame[name].tolist()] for name in frame}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The same as a dict for each row.

    Raises:
        ResultsError: the file cannot be read as what its ending says.
    """
    table = read_columns(path)
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def _frame(path: Path) -> pd.DataFrame:
    if path.suffix in (".csv", ".tsv"):
        sep = "\t" if path.suffix == ".tsv" else ","
        return pd.read_csv(path, sep=sep, keep_default_na=False, na_values=[""])
    return pd.DataFrame(read_json(path))


def _xlsx(path: Path) -> dict[str, list[Any]]:
    book = CalamineWorkbook.from_path(str(path))
    sheets = {name: book.get_sheet_by_name(name).to_python() for name in book.sheet_names}
    # Whoever looks at a file in Excel may leave sheets of his own in it, also in front of the host's only one.
    own = [name for name, rows in sheets.items() if rows and not _HEADS.isdisjoint(map(str, rows[0]))]
    if len(own) > 1:
        raise ResultsError(
            f"{path.name} holds several tables ({', '.join(own)}), the host writes one: remove the others"
        )
    rows = sheets[own[0]] if own else next(iter(sheets.values()), [])
    if not rows:
        return {}
    table: dict[str, list[Any]] = {}
    for name, *column in zip(*rows, strict=True):
        if name != "":
            table.setdefault(str(name), _plain(column))  # of two columns with one name the first counts, as in pandas
    return table


def _plain(column: list[Any]) -> list[Any]:
    """Sheets hold no whole numbers, only 7.0 where the host wrote 7; an empty field is the empty text."""
    kinds = set(map(type, column))
    if kinds == {float}:
        numbers = np.array(column)
        # Beyond 2 ** 53 a float has no next whole number.
        if (np.abs(numbers) < 2**53).all() and (numbers == np.trunc(numbers)).all():
            return numbers.astype(np.int64).tolist()
    if float in kinds:
        column = [int(value) if type(value) is float and value.is_integer() else value for value in column]
    if str in kinds and "" in column:
        column = [None if value == "" else value for value in column]
    return column


def read_json(path: Path) -> Any:
    """The JSON value in a file.

    Raises:
        ResultsError: no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path.name} cannot be read: {one_line(error)}") from error
