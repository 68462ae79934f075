"""``redrel sheet``: one results folder -> every table as xlsx, csv, markdown, LaTeX and JSON; no half file, ever."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from redrel_vlmeval.files import WriteError, atomically, make_parent
from redrel_vlmeval.results import Results
from redrel_vlmeval.sheets import markup, openvlm
from redrel_vlmeval.sheets.plain_csv import write_csv
from redrel_vlmeval.sheets.tables import SUMMARY, Table, every, leaderboard, printed, summed_up

ENDINGS = (".xlsx", ".csv", ".md", ".tex", ".json")


class SheetError(WriteError):
    """A sheet that cannot be written; the text names the file and what would work."""


def check(path: str | Path) -> None:
    """Whether :func:`write` knows what to write there; to be asked before anything is read.

    Raises:
        SheetError: an ending that is none of ``ENDINGS`` and no folder.
    """
    if not _is_folder(path) and Path(path).suffix.lower() not in ENDINGS:
        choices = f"choose one of {', '.join(ENDINGS)}, or a folder, 'name/', for every table in every format"
        raise SheetError(f"{str(path)!r}: unknown ending {Path(path).suffix!r}, {choices}")


def prepare(path: str | Path) -> None:
    """Make the folders that :func:`write` needs, so that what cannot be written fails before anything is printed.

    Raises:
        SheetError: as :func:`check`, or a place that cannot be written.
    """
    check(path)
    # In a folder that is still to be made, any file of it stands for all.
    make_parent(Path(path) / "tables.xlsx" if _is_folder(path) else Path(path), SheetError)


def _is_folder(path: str | Path) -> bool:
    """An existing folder, or a path that ends like one; ``Path`` drops the last slash, text keeps it."""
    ending = str(path).endswith(("/", os.sep))
    return ending or (Path(path).is_dir() and Path(path).suffix.lower() not in ENDINGS)


def write(results: Results, path: str | Path) -> Path:
    """Writes what the ending says: .xlsx every table; .csv the leaderboard; .md and .tex the tables that sum up; .json.

    A folder (``name/``) gets all of it, and each table as a csv with every measured row, markdown and LaTeX.

    Raises:
        SheetError: another ending, or a place that cannot be written; what was there before is untouched.
    """
    prepare(path)
    if _is_folder(path):
        return _write_folder(results, Path(path))
    path, kind = Path(path), Path(path).suffix.lower()
    if kind == ".xlsx":
        return _write_xlsx(every(results), path)
    if kind == ".csv":
        return write_csv(leaderboard(results), path, error=SheetError)
    if kind == ".json":
        return _write_text(openvlm.openvlm(results), path)
    return write_tables(every(results, SUMMARY), path)


def write_tables(tables: Sequence[Table], path: Path) -> Path:
    """These tables alone as .xlsx, .md or .tex, or the first of them as .csv.

    Raises:
        SheetError: a place that cannot be written.
    """
    if path.suffix == ".xlsx":
        return _write_xlsx(list(tables), path)
    if path.suffix == ".csv":
        return write_csv(tables[0].measured, path, error=SheetError)
    shown = summed_up(tables)
    return _write_text(markup.markdown(shown) if path.suffix.lower() == ".md" else markup.document(shown), path)


def _write_folder(results: Results, folder: Path) -> Path:
    tables = every(results)
    _write_xlsx(tables, folder / "tables.xlsx")
    _write_text(openvlm.openvlm(results), folder / "leaderboard.json")
    summary = summed_up([table for table in tables if table.name in SUMMARY])
    _write_text(markup.document(summary), folder / "tables.tex")
    for table in tables:
        write_csv(table.measured, folder / f"{table.file}.csv", error=SheetError)
        (shown,) = summed_up([table])
        _write_text(markup.markdown([shown]), folder / f"{table.file}.md")
        _write_text(markup.latex(shown), folder / f"{table.file}.tex")
    write_csv(printed(results), folder / "published.csv", error=SheetError)
    return folder


def _write_text(text: str, path: Path) -> Path:
    # A lone surrogate, as a torn answer may hold, has no UTF-8.
    return atomically(path, lambda stream: stream.write(text.encode(errors="replace")), SheetError)


def _write_xlsx(tables: list[Table], path: Path) -> Path:
    from redrel_vlmeval.sheets.workbook import build

    return atomically(path, build(tables).save, SheetError)
