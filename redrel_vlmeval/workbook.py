"""Lays a leaderboard out as a spreadsheet: openpyxl only, numbers stay numbers, no text becomes a formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from openpyxl import Workbook
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE, Cell
from openpyxl.styles import Alignment, Font, PatternFill
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.worksheet import Worksheet

from redrel_vlmeval import comparisons
from redrel_vlmeval.results import Results

HEAD = PatternFill("solid", fgColor="1F3864")
STATE_FILLS = {"failed": "F8CBAD", "partial": "FFE699", "running": "DDEBF7"}
RED = "9C0006"
VERDICTS = {"worse than the baseline": RED, "better than the baseline": "006100"}
BESIDE = tuple(f" {name}" for name in comparisons.MEANINGS)


def build(
    board: pd.DataFrame, results: Results, notes: Mapping[str, str], number_format: Callable[[str], str]
) -> Workbook:
    """Sheets Leaderboard, Scores, Efficiency (both tidy) and Notes, not yet saved."""
    book = Workbook()
    sheet = book.active
    if not isinstance(sheet, Worksheet):
        raise TypeError(f"openpyxl made {type(sheet).__name__} as its first sheet, expected a worksheet")
    sheet.title = "Leaderboard"
    formats = {column: _excel_format(number_format(column)) for column in board.columns}
    _fill(sheet, board, formats)
    _mark_best(sheet, board)
    sheet.freeze_panes = "B2"
    tidy = {"value": "0.00", "delta": "+0.00;-0.00;0.00", "prefill_flops": "0.00E+00", "flops_ratio": "0.000"}
    tidy |= {"kv_bytes": "#,##0", "kv_ratio": "0.000", "prefill_ms": "0.00", "decode_ms_per_token": "0.00"}
    tidy |= dict.fromkeys(("image_tokens", "kept", "average_image_tokens"), "0.0")
    _fill(book.create_sheet("Scores"), results.scores, tidy)
    _fill(book.create_sheet("Efficiency"), results.efficiency, tidy)
    rows = pd.DataFrame({"column": list(notes), "meaning": list(notes.values())})
    _fill(book.create_sheet("Notes"), rows, {}, widest=120)
    return book


def _excel_format(form: str) -> str:
    if form in ("d", "p"):
        return {"d": "0", "p": '[<0.001]"< .001";0.000'}[form]
    plain = "0." + "0" * int(form[-2])
    return f"+{plain};-{plain};{plain}" if form.startswith("+") else plain


def _fill(sheet: Worksheet, frame: pd.DataFrame, formats: Mapping[str, str], widest: int = 60) -> None:
    """Header, rows, widths, filter; the header row stays in view."""
    columns = [str(column) for column in frame.columns]
    for number, name in enumerate(columns, start=1):
        cell = _put(sheet.cell(1, number), name)
        cell.font, cell.fill = Font(bold=True, color="FFFFFF"), HEAD
        cell.alignment = Alignment(wrap_text=True, vertical="center")
    longest = [max(map(len, name.split(" "))) for name in columns]
    for line, row in enumerate(frame.itertuples(index=False, name=None), start=2):
        for number, (name, value) in enumerate(zip(columns, row, strict=True), start=1):
            cell = _put(sheet.cell(line, number), value)
            if isinstance(cell.value, (int, float)) and name in formats:
                cell.number_format = formats[name]
            elif cell.value in STATE_FILLS:
                cell.fill = PatternFill("solid", fgColor=STATE_FILLS[str(cell.value)])
                cell.font = Font(color=RED) if cell.value == "failed" else Font()
            elif name.endswith(" verdict") and (end := str(cell.value).rpartition(": ")[2]) in VERDICTS:
                cell.font = Font(color=VERDICTS[end])
            shown = 8 if isinstance(cell.value, float) else len(str(cell.value or ""))
            longest[number - 1] = max(longest[number - 1], shown)
    for number, length in enumerate(longest, start=1):
        most = 110 if columns[number - 1].endswith(" verdict") else widest
        sheet.column_dimensions[get_column_letter(number)].width = min(length + 3, most)
    sheet.freeze_panes = "A2"
    sheet.auto_filter.ref = f"A1:{get_column_letter(max(len(columns), 1))}{len(frame) + 1}"


def _put(cell: Any, value: Any) -> Cell:
    """Sets a value; text that begins with '=' stays text, and what a workbook cannot hold is dropped."""
    item = getattr(value, "item", None)
    value = item() if callable(item) else value
    if value is None or value != value:
        return cell
    if isinstance(value, (bool, int, float)):
        cell.value = value
    else:
        cell.value = ILLEGAL_CHARACTERS_RE.sub("", str(value))[:32767]
        cell.data_type = "s"
    return cell


def _mark_best(sheet: Worksheet, board: pd.DataFrame) -> None:
    """Bold: bases, and the best score of each score column (all of them on a tie)."""
    for line, (model, base) in enumerate(zip(board["model"], board["base"], strict=True), start=2):
        sheet.cell(line, 1).font = Font(bold=model == base)
    costs = list(board.columns).index("image tokens")
    for number, name in enumerate(board.columns[:costs], start=1):
        if number <= 6 or name.endswith(BESIDE):
            continue
        values = pd.to_numeric(board[name], errors="coerce")
        for line, value in enumerate(values, start=2):
            if len(values) > 1 and value == values.max():
                sheet.cell(line, number).font = Font(bold=True)
