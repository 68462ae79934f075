"""Lays tables out as a spreadsheet: openpyxl only, numbers stay numbers, no text becomes a formula."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from math import ceil
from textwrap import wrap
from typing import Any, NamedTuple

import pandas as pd
from openpyxl import Workbook
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE, Cell
from openpyxl.formatting.rule import ColorScaleRule
from openpyxl.styles import Alignment, Border, Font, PatternFill, Side
from openpyxl.styles.cell_style import StyleArray
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.page import PageMargins
from openpyxl.worksheet.properties import PageSetupProperties
from openpyxl.worksheet.worksheet import Worksheet

from redrel_vlmeval.results import p_text
from redrel_vlmeval.sheets.figures import DIVERGING
from redrel_vlmeval.sheets.tables import Column, Table, yes_no

HEAD = PatternFill("solid", fgColor="1F3864")
BAND = PatternFill("solid", fgColor="EDEDED")
STATE_FILLS = {"failed": "F8CBAD", "no rule": "E2EFDA", "partial": "FFE699", "running": "DDEBF7"}
RED, GREEN, GREY = "9C0006", "006100", "595959"
VERDICTS = {"worse": RED, "better": GREEN}
# Low, middle and high of a heat map: no darker than black numbers can be read on.
HEAT = DIVERGING[2], DIVERGING[4], DIVERGING[6]
# With more score columns than this, the verdict's sentence is folded; the colour of the delta tells it.
SENTENCES = 2
DETAILS = ("CI low", "CI high", "up", "down", "p")
WRAPPED = {"verdict": 50, "note": 50, "question": 60, "options": 30, "prediction": 30, "base_prediction": 30,
           "meaning": 110, "arguments": 50, "reason": 50, "best of": 30, "answer": 24, "backend": 32}  # fmt: skip
WIDEST = 44
ALIGNMENTS = {
    "top": Alignment(vertical="top"),
    # no indent: LibreOffice forgets that of a right-aligned cell beside one of another format
    "number": Alignment(vertical="top", horizontal="right"),
    "left": Alignment(vertical="top", horizontal="left", indent=1),
    "wrap": Alignment(wrap_text=True, vertical="top", horizontal="left", indent=1),
}
_BREAK = re.compile("\r\n?|\v")  # the line breaks of other systems
_ESCAPE = re.compile("_(?=x[0-9A-Fa-f]{4}_)")  # begins what spreadsheet programs read as a character's code
# Points of one line of text, and how many lines a row may show.
LINE, MOST_LINES = 15, 12
# Characters across a printed page: with more, text would be smaller than can be read.
PAGE = 330


def build(tables: Sequence[Table]) -> Workbook:
    """A sheet for each table and Notes, which says what each column of each sheet means; not yet saved."""
    book = Workbook()
    book.remove(book.worksheets[0])
    for table in tables:
        _fill(book.create_sheet(table.name), table)
    rows = [(table.name, "", line) for table in tables for line in (f"{table.caption}.", *table.remarks)]
    rows += [(table.name, name, text) for table in tables for name, text in table.notes.items()]
    order = [table.name for table in tables]
    rows.sort(key=lambda row: order.index(row[0]))
    notes = pd.DataFrame(rows, columns=["sheet", "column", "meaning"])
    _fill(book.create_sheet("Notes"), Table("Notes", notes, "what each sheet and column means"))
    return book


def _fill(sheet: Worksheet, table: Table) -> None:
    """Remarks of an empty table, or header, rows and marks; the header row stays in view, also in print."""
    columns = table.layout
    names = [column.name for column in columns]
    across = 1
    if table.frame.empty:
        _say(sheet, table)
    else:
        _head(sheet, names)
        lengths = _rows(sheet, table, columns)
        widths = _widths(sheet, columns, lengths)
        _outline(sheet, columns)
        _heights(sheet, table, columns, widths)
        sheet.freeze_panes = "B2" if names[0] == "model" else "A2"
        sheet.auto_filter.ref = f"A1:{get_column_letter(len(names))}{len(table.frame) + 1}"
        _heat(sheet, table, names)
        for number, line in enumerate(table.remarks):
            cell = _put(sheet.cell(len(table.frame) + 3 + number, 1), line)
            cell.font = _font(italic=True, color=GREY)
        sheet.print_title_rows, sheet.print_title_cols = "1:1", "A:A"
        across = ceil(sum(_shown(sheet, widths)) / PAGE)
    sheet.page_setup.orientation, sheet.page_setup.paperSize = "landscape", "9"
    sheet.page_setup.fitToWidth, sheet.page_setup.fitToHeight = across, 0
    sheet.sheet_properties.pageSetUpPr = PageSetupProperties(fitToPage=True)
    sheet.page_margins = PageMargins(left=0.4, right=0.4, top=0.5, bottom=0.75)
    # A footer without text yet is falsy.
    if sheet.oddFooter is not None and sheet.oddFooter.center is not None:
        sheet.oddFooter.center.text = "&A, page &P of &N"


def _say(sheet: Worksheet, table: Table) -> None:
    """What the table would hold and why it is empty: never a sheet that says nothing."""
    _put(sheet.cell(1, 1), f"{table.name}: {table.caption}").font = _font(bold=True)
    for number, line in enumerate(table.remarks or ("no rows",), start=2):
        _put(sheet.cell(number, 1), line)
    sheet.column_dimensions["A"].width = 110
    sheet.freeze_panes = "A2"


def _head(sheet: Worksheet, names: list[str]) -> None:
    for number, name in enumerate(names, start=1):
        cell = _put(sheet.cell(1, number), name)
        cell.font, cell.fill = _font(bold=True, color="FFFFFF"), HEAD


def _rows(sheet: Worksheet, table: Table, columns: Sequence[Column]) -> list[int]:
    """Writes the rows; returns the longest text of each column."""
    names = [column.name for column in columns]
    longest, numeric = [0] * len(names), [False] * len(names)
    painter = _Painter()
    for position, row in enumerate(table.frame.itertuples(index=False, name=None)):
        grey = position in table.grey
        for number, value in enumerate(row):
            cell = _put(sheet.cell(position + 2, number + 1), value)
            if cell.value is None and not grey:
                continue
            strong = (position, names[number]) in table.bold or (number == 0 and _is_base(names, row))
            if isinstance(cell.value, (int, float)):
                length, numeric[number] = 7, True
                colour = _colour(table, position, columns[number], "delta")
                look = _Look("number", _excel_format(columns[number].form, cell.value), colour, None, strong, grey)
            else:
                length = max(map(len, str(cell.value or "").split("\n")))
                # Text is set off from the number that ends at its left.
                wrapped = columns[number].title in WRAPPED and length > 12
                where = "top" if number == 0 else "wrap" if wrapped else "left"
                fill = str(cell.value) if cell.value in STATE_FILLS else None
                colour = RED if fill == "failed" else _colour(table, position, columns[number], "verdict")
                look = _Look(where, None, colour, fill, strong, grey)
            longest[number] = max(longest[number], length)
            painter.paint(cell, look)
    for number, right in enumerate(numeric, start=1):
        side: dict[str, Any] = {"horizontal": "right" if right else "left", "indent": int(number > 1 and not right)}
        sheet.cell(1, number).alignment = Alignment(wrap_text=True, vertical="center", **side)
    return longest


class _Look(NamedTuple):
    """What a cell looks like; ``colour`` is of its text, ``fill`` the name of a state."""

    where: str
    form: str | None
    colour: str | None
    fill: str | None
    strong: bool
    grey: bool


class _Painter:
    """Gives cells their look; openpyxl works out a style by comparing all of its parts, so each look is set up once."""

    def __init__(self) -> None:
        self._known: dict[_Look, StyleArray] = {}

    def paint(self, cell: Any, look: _Look) -> None:
        if look in self._known:
            cell._style = copy(self._known[look])
            return
        cell.alignment = ALIGNMENTS[look.where]
        if look.form is not None:
            cell.number_format = look.form
        if look.fill is not None:
            cell.fill = PatternFill("solid", fgColor=STATE_FILLS[look.fill])
        if look.grey:
            cell.font, cell.fill = _font(italic=True, color=GREY), BAND
        elif look.strong:
            cell.font = _font(bold=True)
        elif look.colour is not None or look.fill is not None:
            cell.font = _font(color=look.colour) if look.colour else _font()
        self._known[look] = copy(cell._style)


def _font(**look: Any) -> Font:
    """The font of every other cell, which openpyxl's bare Font is not."""
    return Font(name="Calibri", size=11, **look)


def _colour(table: Table, position: int, column: Column, statistic: str) -> str | None:
    """The colour of a delta or verdict whose test says better or worse."""
    outcome = table.outcome(position, column.of) if column.statistic == statistic else None
    return VERDICTS.get(outcome.words) if outcome else None


def _is_base(names: list[str], row: tuple) -> bool:
    return names[0] == "model" and "base" in names and row[0] == row[names.index("base")]


def _widths(sheet: Worksheet, columns: Sequence[Column], lengths: list[int]) -> list[int]:
    """As wide as the longest text, up to a limit; a header takes as many lines as it needs."""
    lines, widths = 1, []
    for number, (column, length) in enumerate(zip(columns, lengths, strict=True), start=1):
        word = max(map(len, column.name.split(" ")))
        most = WRAPPED.get(column.title, WIDEST)
        width = min(max(length + 2, min(word, 18) + 3), most)
        sheet.column_dimensions[get_column_letter(number)].width = width
        widths.append(width)
        lines = max(lines, _lines(column.name, width - 3))
    sheet.row_dimensions[1].height = LINE * min(lines, 6) + 3
    return widths


def _shown(sheet: Worksheet, widths: Sequence[int]) -> list[int]:
    """The widths of the columns that are not folded away, which are those that are printed."""
    return [w for n, w in enumerate(widths, 1) if not sheet.column_dimensions[get_column_letter(n)].hidden]


def _heights(sheet: Worksheet, table: Table, columns: Sequence[Column], widths: list[int]) -> None:
    """Rows whose text is wrapped are as high as its lines: not every program works that out when it opens a file."""
    for number, (column, width) in enumerate(zip(columns, widths, strict=True), start=1):
        if column.title not in WRAPPED or sheet.column_dimensions[get_column_letter(number)].hidden:
            continue
        for position, value in enumerate(table.frame[column.name]):
            # A column is as wide as that many digits; of text, with its spaces, a tenth more fits.
            if isinstance(value, str) and (lines := min(_lines(value, int(1.1 * (width - 1))), MOST_LINES)) > 1:
                row = sheet.row_dimensions[position + 2]
                row.height = max(row.height or 0, LINE * lines)


def _lines(text: str, width: int) -> int:
    """Lines that a text takes when it is broken between words."""
    width = max(width, 1)
    return sum(len(wrap(line, width)) if len(line) > width else 1 for line in text.split("\n"))


def _heat(sheet: Worksheet, table: Table, names: list[str]) -> None:
    """A colour scale of its own for each block, white at the base's score; a line above each block."""
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
        if begin:
            for number in range(1, len(names) + 1):
                sheet.cell(begin + 2, number).border = Border(top=Side(style="medium", color="1F3864"))


def _outline(sheet: Worksheet, columns: Sequence[Column]) -> None:
    """Details of each test are folded away, with many scores the sentence too; a plus sign unfolds them."""
    many = sum(column.statistic == "CI low" for column in columns) > SENTENCES
    for number, column in enumerate(columns, start=1):
        if column.statistic in DETAILS or (many and column.statistic == "verdict"):
            dimension = sheet.column_dimensions[get_column_letter(number)]
            dimension.outlineLevel, dimension.hidden = 1, True


def _excel_format(form: str, value: float) -> str:
    """A spreadsheet's format of Python's; a p-value has the digits that it has everywhere."""
    if form == "p":
        whole, dot, digits = p_text(value).partition(".")
        return f'"{whole}{dot}{digits}"' if whole.startswith("<") else f"{whole and 0}.{'0' * len(digits)}"
    if form in ("d", "g", ""):
        return {"d": "0", "g": "General", "": "General"}[form]
    plain = "0." + "0" * int(form[-2])
    return f"+{plain};-{plain};{plain}" if form.startswith("+") else plain


def _put(cell: Any, value: Any) -> Cell:
    """Sets a value; text that begins with '=' or reads '_x000D_' stays text, what a workbook cannot hold is dropped."""
    item = getattr(value, "item", None)
    value = item() if callable(item) else value
    value = yes_no(value)
    if value is None or value != value:
        return cell
    if isinstance(value, (int, float)) and value not in (float("inf"), float("-inf")):
        cell.value = value
    else:
        text = _BREAK.sub("\n", str(value)).encode(errors="replace").decode()
        text = _ESCAPE.sub("_x005F_", ILLEGAL_CHARACTERS_RE.sub("", text))
        cell.value = text[:32767]
        cell.data_type = "s"
    return cell
