"""Lays tables out as a spreadsheet: openpyxl only, numbers stay numbers, no text becomes a formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from openpyxl import Workbook
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE, Cell
from openpyxl.formatting.rule import ColorScaleRule
from openpyxl.styles import Alignment, Border, Font, PatternFill, Side
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.worksheet import Worksheet

from redrel_vlmeval.tables.columns import number_format, statistic
from redrel_vlmeval.tables.table import Table

HEAD = PatternFill("solid", fgColor="1F3864")
BAND = PatternFill("solid", fgColor="EDEDED")
STATE_FILLS = {"failed": "F8CBAD", "partial": "FFE699", "running": "DDEBF7"}
RED, GREEN, GREY = "9C0006", "006100", "7F7F7F"
VERDICTS = {"worse than the baseline": RED, "better than the baseline": GREEN}
# Low, middle and high of a heat map: told apart by every kind of colour vision.
HEAT = ("D55E00", "FFFFFF", "0072B2")
DETAILS = ("CI low", "CI high", "up", "down", "p")
WRAPPED = {"verdict": 44, "note": 50, "question": 60, "options": 30, "prediction": 30, "base_prediction": 30,
           "meaning": 110, "arguments": 50, "reason": 50, "answer": 24, "backend": 24}  # fmt: skip
WIDEST = 44


def build(tables: Sequence[Table]) -> Workbook:
    """A sheet for each table and Notes, which says what each column of each sheet means; not yet saved."""
    book = Workbook()
    book.remove(book.worksheets[0])
    for table in tables:
        _fill(book.create_sheet(table.name), table)
    rows = [(table.name, "", line) for table in tables for line in (f"{table.caption}.", *table.remarks)]
    rows += [(table.name, name, text) for table in tables for name, text in table.notes.items()]
    order = {table.name: number for number, table in enumerate(tables)}
    notes = pd.DataFrame(sorted(rows, key=lambda row: order[row[0]]), columns=["sheet", "column", "meaning"])
    _fill(book.create_sheet("Notes"), Table("Notes", notes, "what each sheet and column means"))
    return book


def _fill(sheet: Worksheet, table: Table) -> None:
    """Remarks of an empty table, or header, rows and marks; the header row stays in view, also in print."""
    names = [str(column) for column in table.frame.columns]
    if table.frame.empty:
        _say(sheet, table)
    else:
        _head(sheet, names)
        lengths = _rows(sheet, table, names)
        _widths(sheet, names, lengths)
        sheet.freeze_panes = "B2" if names[0] == "model" else "A2"
        sheet.auto_filter.ref = f"A1:{get_column_letter(len(names))}{len(table.frame) + 1}"
        _heat(sheet, table, names)
        _outline(sheet, names)
        for number, line in enumerate(table.remarks):
            cell = _put(sheet.cell(len(table.frame) + 3 + number, 1), line)
            cell.font = Font(italic=True, color=GREY)
        sheet.print_title_rows = "1:1"
    sheet.page_setup.orientation, sheet.page_setup.paperSize = "landscape", "9"
    sheet.page_setup.fitToWidth, sheet.page_setup.fitToHeight = 1, 0
    sheet.sheet_properties.pageSetUpPr.fitToPage = True
    sheet.oddFooter.center.text = "&A, page &P of &N"


def _say(sheet: Worksheet, table: Table) -> None:
    """What the table would hold and why it is empty: never a sheet that says nothing."""
    _put(sheet.cell(1, 1), f"{table.name}: {table.caption}").font = Font(bold=True)
    for number, line in enumerate(table.remarks or ("no rows",), start=2):
        _put(sheet.cell(number, 1), line)
    sheet.column_dimensions["A"].width = 110
    sheet.freeze_panes = "A2"


def _head(sheet: Worksheet, names: list[str]) -> None:
    for number, name in enumerate(names, start=1):
        cell = _put(sheet.cell(1, number), name)
        cell.font, cell.fill = Font(bold=True, color="FFFFFF"), HEAD
        cell.alignment = Alignment(wrap_text=True, vertical="center")


def _rows(sheet: Worksheet, table: Table, names: list[str]) -> list[int]:
    """Writes the rows; returns the longest text of each column."""
    formats = [_excel_format(number_format(name)) for name in names]
    wrapped = [_kind(name) in WRAPPED for name in names]
    longest = [0] * len(names)
    bold, grey, wrap = Font(bold=True), Font(italic=True, color=GREY), Alignment(wrap_text=True, vertical="top")
    top = Alignment(vertical="top")
    for position, row in enumerate(table.frame.itertuples(index=False, name=None)):
        for number, value in enumerate(row):
            cell = _put(sheet.cell(position + 2, number + 1), value)
            if cell.value is None and position not in table.grey:
                continue
            if isinstance(cell.value, (int, float)) and not isinstance(cell.value, bool):
                cell.number_format = formats[number]
                length = 7
            else:
                length = max(map(len, str(cell.value or "").split("\n")))
                _mark_text(cell, names[number])
            longest[number] = max(longest[number], length)
            cell.alignment = wrap if wrapped[number] and length > 12 else top
            if (position, names[number]) in table.bold or (number == 0 and _is_base(names, row)):
                cell.font = bold
            if position in table.grey:
                cell.font, cell.fill = grey, BAND
    return longest


def _is_base(names: list[str], row: tuple) -> bool:
    return names[:2] == ["model", "base"] and row[0] == row[1]


def _mark_text(cell: Cell, name: str) -> None:
    if cell.value in STATE_FILLS:
        cell.fill = PatternFill("solid", fgColor=STATE_FILLS[str(cell.value)])
        cell.font = Font(color=RED) if cell.value == "failed" else Font()
    elif _kind(name) == "verdict" and (end := str(cell.value).rpartition(": ")[2]) in VERDICTS:
        cell.font = Font(color=VERDICTS[end])


def _kind(name: str) -> str:
    return statistic(name) or name


def _widths(sheet: Worksheet, names: list[str], lengths: list[int]) -> None:
    """As wide as the longest text; long words go on the next line; a header takes as many lines as it needs."""
    lines = 1
    for number, (name, length) in enumerate(zip(names, lengths, strict=True), start=1):
        word = max(map(len, name.split(" ")))
        most = WRAPPED.get(_kind(name), WIDEST)
        width = min(max(length + 2, min(word, 18) + 3), most)
        sheet.column_dimensions[get_column_letter(number)].width = width
        lines = max(lines, -(-(len(name) + 3) // int(width - 1)))
    sheet.row_dimensions[1].height = 15 * min(lines, 6) + 3


def _heat(sheet: Worksheet, table: Table, names: list[str]) -> None:
    """A colour scale of its own for each block, white at the untouched model's score; a line above each block."""
    if not table.heat_columns:
        return
    first = get_column_letter(names.index(table.heat_columns[0]) + 1)
    last = get_column_letter(names.index(table.heat_columns[-1]) + 1)
    low, middle, high = HEAT
    for begin, end, turn in table.heat:
        values = pd.concat([table.frame.iloc[begin : end + 1][name] for name in table.heat_columns]).dropna()
        spread = max((abs(float(value) - turn) for value in values), default=0.0) if turn is not None else 0.0
        if turn is not None and spread:
            rule = ColorScaleRule("num", turn - spread, low, "num", turn, middle, "num", turn + spread, high)
        else:
            rule = ColorScaleRule("min", None, low, "percentile", 50, middle, "max", None, high)
        sheet.conditional_formatting.add(f"{first}{begin + 2}:{last}{end + 2}", rule)
        for number in range(1, len(names) + 1):
            sheet.cell(begin + 2, number).border = Border(top=Side(style="medium", color="1F3864"))


def _outline(sheet: Worksheet, names: list[str]) -> None:
    """Details of each test can be folded away; with many benchmarks they are folded at first."""
    folded = sum(_kind(name) == "verdict" for name in names) > 3
    for number, name in enumerate(names, start=1):
        if statistic(name) in DETAILS:
            dimension = sheet.column_dimensions[get_column_letter(number)]
            dimension.outlineLevel, dimension.hidden = 1, folded


def _excel_format(form: str) -> str:
    if form in ("d", "p", "g"):
        return {"d": "0", "p": '[<0.001]"< .001";0.000', "g": "General"}[form]
    plain = "0." + "0" * int(form[-2])
    return f"+{plain};-{plain};{plain}" if form.startswith("+") else plain


def _put(cell: Any, value: Any) -> Cell:
    """Sets a value; text that begins with '=' stays text, and what a workbook cannot hold is dropped."""
    item = getattr(value, "item", None)
    value = item() if callable(item) else value
    if value is None or value != value:
        return cell
    if isinstance(value, (bool, int, float)) and value not in (float("inf"), float("-inf")):
        cell.value = value
    else:
        text = str(value).encode(errors="replace").decode()
        cell.value = ILLEGAL_CHARACTERS_RE.sub("", text)[:32767]
        cell.data_type = "s"
    return cell
