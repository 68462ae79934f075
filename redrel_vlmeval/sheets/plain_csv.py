"""Data frames as csv files: whole, UTF-8, and with no field that a spreadsheet program would take for a formula."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from redrel_vlmeval.files import WriteError, write_whole

# What makes a field a formula: these at its start, also after the blanks that programs strip, and their wide forms.
_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]")
_OLD_BREAK = re.compile(r"\r(?!\n)")  # which csv readers take for the end of a row, and pandas does not quote
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)


def write_csv(
    frame: pd.DataFrame, path: str | Path, float_format: str | None = None, error: type[WriteError] = WriteError
) -> Path:
    """Writes the frame without its index; numbers in full precision, or in ``float_format``.

    Raises:
        WriteError (or the ``error`` given): a place that cannot be written.
    """
    safe = frame.map(inert, na_action="ignore").rename(columns=lambda name: inert(str(name)))
    text = safe.to_csv(index=False, lineterminator="\n", float_format=float_format)
    # A lone surrogate, as a torn answer may hold, has no UTF-8.
    return write_whole(path, text.encode(errors="replace"), error)


def inert(value: object) -> object:
    """Text that would be run gets an apostrophe in front, the sign for text; numbers, and texts of one, stay."""
    if not isinstance(value, str):
        return value
    value = _OLD_BREAK.sub("\n", value)
    return f"'{value}" if _FORMULA.match(value) and not _NUMBER.fullmatch(value) else value
