"""The workbook, opened again: numbers stay numbers, text stays text, marks stand where they belong."""

from __future__ import annotations

import re
import shutil
import subprocess
import zipfile
from math import ceil
from pathlib import Path

import host_files as host
import numpy as np
import openpyxl
import pandas as pd
import pytest
import sheet_files

from redrel_vlmeval.results import p_text
from redrel_vlmeval.results.reading import Results, read
from redrel_vlmeval.sheets import writing
from redrel_vlmeval.sheets.tables.table import Table
from redrel_vlmeval.sheets.workbook import PAGE, build

BASE = sheet_files.BASE


def test_xlsx_colours_verdicts_and_keeps_p_a_number(clear: Results, tmp_path: Path) -> None:
    sheet = openpyxl.load_workbook(writing.write(clear, tmp_path / "board.xlsx"))["Leaderboard"]
    at = {cell.value: cell.column for cell in sheet[1]}
    colours = [sheet.cell(line, at["X verdict"]).font.color for line in (3, 4, 5)]
    assert [colour.rgb[-6:] for colour in colours[:2]] == ["9C0006", "006100"]
    p = sheet.cell(3, at["X p"])
    assert 0 < p.value < 1e-4 and p.number_format == '"< .001"'
    for line in (3, 4, 5):  # a p-value has the digits that it has in every other place
        value, form = sheet.cell(line, at["X p"]).value, sheet.cell(line, at["X p"]).number_format
        shown = form.strip('"') if "<" in form else f"{value:.{len(form.partition('.')[2])}f}"[form[0] == "." :]
        assert shown == p_text(value)
    assert sheet.cell(3, at["X down"]).number_format == "0" and sheet.cell(3, at["X CI low"]).value < -50
    assert not any(sheet.cell(line, at["X p"]).font.bold for line in (3, 4, 5)), "bold is for the best score"
    assert [sheet.cell(line, at["X delta"]).font.color.rgb[-6:] for line in (3, 4)] == ["9C0006", "006100"]
    verdict = sheet.cell(3, at["X verdict"])
    assert verdict.alignment.wrap_text and sheet.row_dimensions[3].height > 15


def test_xlsx_opens_with_numbers_formats_marks_and_notes(results: Results, tmp_path: Path) -> None:
    book = openpyxl.load_workbook(writing.write(results, tmp_path / "board.xlsx"))
    tables = ["Leaderboard", "Table 1", "Table 2", "Grid", "Categories", "Efficiency", "Blind", "Blind questions"]
    assert book.sheetnames == [*tables, "Flips", "Provenance", "Scores", "Notes"]
    sheet = book["Leaderboard"]
    at = {cell.value: cell.column for cell in sheet[1]}
    line = {sheet.cell(row, 1).value: row for row in range(2, 7)}
    best, base = sheet.cell(line[f"{BASE}_trunc_l2_k16"], at["Shapes"]), sheet.cell(line[BASE], at["Shapes"])
    assert (best.value, best.font.bold, best.number_format) == (100, True, "0.0")
    assert (base.value, base.font.bold) == (75, False)
    assert sheet.cell(best.row, at["Shapes delta"]).number_format.startswith("+0.0;-0.0")
    failed = sheet.cell(line[f"{BASE}_trunc_l4_k16"], at["Shapes"])
    assert (failed.value, failed.font.color.rgb[-6:], failed.fill.fgColor.rgb[-6:]) == ("failed", "9C0006", "F8CBAD")
    assert sheet.freeze_panes == "B2" and sheet.auto_filter.ref.startswith("A1:")
    assert sheet.column_dimensions["A"].width > len(f"{BASE}_trunc_l2_k16_random")
    noted = {(row[0].value, row[1].value) for row in book["Notes"].iter_rows(min_row=2)}
    for name in book.sheetnames[:-1]:
        filled = book[name].auto_filter.ref is not None
        wanted = {cell.value for cell in book[name][1]} if filled else set()
        untold = {column for column in wanted if (name, column) not in noted}
        assert not untold, name
    assert book["Scores"].max_row == len(results.scores) + 1
    (column,) = [cell.column for cell in book["Scores"][1] if cell.value == "headline"]
    assert {book["Scores"].cell(row, column).value for row in range(2, book["Scores"].max_row + 1)} == {"yes", "no"}
    assert book["Efficiency"].max_row == len(results.efficiency) + 1


def test_text_of_a_result_never_becomes_a_formula(results: Results, tmp_path: Path) -> None:
    sheet = openpyxl.load_workbook(writing.write(results, tmp_path / "board.xlsx"))["Scores"]
    cells = [cell for row in sheet.iter_rows() for cell in row if str(cell.value).startswith("=")]
    assert [cell.value for cell in cells] == ["=1+1 | no <b>such</b> layer"], "without the control character"
    assert cells[0].data_type == "s"


def test_every_sheet_can_be_read_and_printed(results: Results, tmp_path: Path) -> None:
    book = openpyxl.load_workbook(writing.write(results, tmp_path / "board.xlsx"))
    for sheet in book:
        assert sheet.freeze_panes in ("A2", "B2"), sheet.title
        assert sheet.page_setup.orientation == "landscape"
        wide = [dimension.width for dimension in sheet.column_dimensions.values() if not dimension.hidden]
        assert sheet.page_setup.fitToWidth == (1 if sum(wide) <= PAGE else 2), sheet.title
        assert sheet.page_setup.fitToHeight == 0 and sheet.sheet_properties.pageSetUpPr.fitToPage, sheet.title
        assert any(cell.value for cell in sheet[1]), "a sheet that says nothing"
    with zipfile.ZipFile(tmp_path / "board.xlsx") as parts:
        sheets_xml = [parts.read(name).decode() for name in parts.namelist() if name.startswith("xl/worksheets/sheet")]
    assert len(sheets_xml) == len(book.sheetnames)
    assert all("<oddFooter>&amp;C&amp;A, page &amp;P of &amp;N</oddFooter>" in text for text in sheets_xml)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("soffice") is None, reason="no LibreOffice here: apt-get install libreoffice-calc")
def test_libreoffice_shows_and_prints_what_the_workbook_holds(clear: Results, tmp_path: Path) -> None:
    """Numbers read as on the page and the terminal; every sheet is on paper, the widest on no more than two pages."""
    book = writing.write(clear, tmp_path / "board.xlsx")
    as_shown = "csv:Text - txt - csv (StarCalc):44,34,76,1,,0,false,true,true,false,false,-1"
    for kind in (as_shown, "pdf"):
        profile = f"-env:UserInstallation={(tmp_path / 'profile').as_uri()}"
        command = ["soffice", "--headless", profile, "--convert-to", kind, "--outdir", str(tmp_path), str(book)]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    shown = pd.read_csv(tmp_path / "board-Leaderboard.csv", dtype=str, keep_default_na=False)
    held = pd.DataFrame(openpyxl.load_workbook(book)["Leaderboard"].values)
    held.columns = held.iloc[0]
    for line in range(3):
        values = held.iloc[line + 2]
        assert shown["X p"][line + 1] == p_text(values["X p"])
        delta = values["X delta"]
        assert shown["X delta"][line + 1] == (f"{delta:+.1f}" if delta else "0.0")
    pages = len(re.findall(rb"/Type ?/Page/", (tmp_path / "board.pdf").read_bytes()))
    sheets = openpyxl.load_workbook(book)
    assert len(sheets.sheetnames) <= pages <= sum(s.page_setup.fitToWidth * ceil(s.max_row / 20) for s in sheets)


def test_headers_do_not_touch_and_stand_over_their_numbers(results: Results, tmp_path: Path) -> None:
    sheet = openpyxl.load_workbook(writing.write(results, tmp_path / "board.xlsx"))["Leaderboard"]
    at = {cell.value: cell for cell in sheet[1]}
    for name in ("Shapes", "Shapes delta", "FLOPs ratio"):
        head, number = at[name], sheet.cell(2 if name != "Shapes delta" else 3, at[name].column)
        for cell in (head, number):
            assert (cell.alignment.horizontal, cell.alignment.indent) == ("right", 0), name
    texts = [cell for cell in sheet[1][1:] if cell.alignment.horizontal == "left"]
    assert texts and all(cell.alignment.indent == 1 for cell in texts), "set off from the number that ends at its left"


def test_a_row_is_as_high_as_its_lines() -> None:
    """Fifty digits wide: 53 characters a line; full lines leave no room to spare, and a long word is broken."""
    texts = ["x" * 53, "x" * 54, "word " * 9 + "word", " ".join(["seven77"] * 18), "a\nb"]
    frame = pd.DataFrame({"model": list("abcde"), "note": texts})
    sheet = build([Table("Leaderboard", frame, "rows")])["Leaderboard"]
    assert sheet.column_dimensions["B"].width == 50
    assert [sheet.row_dimensions[row].height for row in range(2, 7)] == [None, 30, None, 45, 30]


def test_empty_tables_say_why(tmp_path: Path) -> None:
    sheet_files.answered(tmp_path, "m", [1, 0])
    book = openpyxl.load_workbook(writing.write(read(tmp_path), tmp_path / "board.xlsx"))
    for name, words in (
        ("Table 2", "no model ran under another prompt"),
        ("Grid", "no single-stage variant"),
        ("Efficiency", "no efficiency records"),
        ("Blind", "no run without any image"),
        ("Flips", "no variant changed the verdict"),
    ):
        assert name in book[name]["A1"].value and words in book[name]["A2"].value
        assert book[name].auto_filter.ref is None


def test_the_heat_map_turns_at_the_base_and_covers_its_block_only(tmp_path: Path) -> None:
    sheet_files.clear(tmp_path, "one")
    sheet_files.clear(tmp_path, "two", "Y")
    sheet_files.answered(tmp_path, "one_trunc_l2_k8_random", [1] * 30 + [0] * 10)
    sheet = openpyxl.load_workbook(writing.write(read(tmp_path), tmp_path / "board.xlsx"))["Grid"]
    head = [cell.value for cell in sheet[1]]
    ranges = {str(found.sqref): found.rules[0].colorScale for found in sheet.conditional_formatting}
    column = openpyxl.utils.get_column_letter(head.index("K=8") + 1)
    assert set(ranges) == {f"{column}2:{column}5", f"{column}6:{column}8"}
    for scale in ranges.values():
        assert [bound.val for bound in scale.cfvo] == [12.5, 50, 87.5], "as far up as down, white at the base"
    rules = [sheet.cell(line, head.index("rule") + 1).value for line in range(2, 9)]
    assert rules == [*["attention"] * 3, "random", *["attention"] * 3]


def test_details_of_a_test_are_folded_not_lost(clear: Results, tmp_path: Path) -> None:
    sheet = openpyxl.load_workbook(writing.write(clear, tmp_path / "board.xlsx"))["Leaderboard"]
    at = {cell.value: openpyxl.utils.get_column_letter(cell.column) for cell in sheet[1]}
    folded = {name for name, letter in at.items() if sheet.column_dimensions[letter].hidden}
    assert "X CI low" in folded and {"X delta", "X verdict", "X p (Holm)"}.isdisjoint(folded)
    assert sheet[f"{at['X CI low']}3"].value < 0


def test_text_that_looks_like_a_formula_stays_text(tmp_path: Path) -> None:
    """Also in a header, and with characters that a workbook cannot hold."""
    bad = ['=HYPERLINK("http://x")', "=1+1", "+1", "@x", "-1", "\x07=2", "torn \ud83d"]
    numbers = [np.int64(3), float("inf"), None, 1, 2.5, True, 0]
    frame = pd.DataFrame({"=model": bad, "question": bad, "n": numbers}, dtype=object)
    marks = {"grey": frozenset({1}), "bold": frozenset({(0, "question")})}
    table = Table("Flips", frame, "=caption", remarks=("=remark",), **marks)
    build([table, Table("Empty", frame.iloc[:0], "=none", remarks=("=why",))]).save(tmp_path / "x.xlsx")
    book = openpyxl.load_workbook(tmp_path / "x.xlsx")
    cells = [cell for sheet in book for row in sheet.iter_rows() for cell in row if cell.value is not None]
    assert {cell.data_type for cell in cells} == {"s", "n"}
    assert [book["Flips"].cell(line, 1).value for line in range(2, 9)] == [*bad[:5], "=2", "torn ?"]
    assert [book["Flips"].cell(line, 3).value for line in range(2, 9)] == [3, "inf", None, 1, 2.5, "yes", 0]
    assert {"=model", "=remark", "=why", "=caption."} <= {cell.value for cell in cells}


def test_a_long_table_says_how_many_rows_are_left_out_and_where_they_are(
    clear: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("redrel_vlmeval.sheets.tables.details.MOST", 4)
    writing.write(clear, f"{tmp_path / 'all'}/")
    sheet = openpyxl.load_workbook(tmp_path / "all" / "tables.xlsx")["Flips"]
    words = "26 of 30 flips are left out here; '-o FOLDER/' writes all of them to flips.csv"
    assert [sheet.cell(line, 1).value for line in (6, 7)] == [None, words]
    assert len(pd.read_csv(tmp_path / "all" / "flips.csv")) == 30


def test_a_folder_without_any_score_is_a_workbook_all_the_same(tmp_path: Path) -> None:
    host.status(tmp_path / BASE, BASE, X={"status": "infer"}, Y={"status": "done", "error_message": "out of memory"})
    book = openpyxl.load_workbook(writing.write(read(tmp_path), tmp_path / "board.xlsx"))
    head, row = ([cell.value for cell in book["Leaderboard"][line]] for line in (1, 2))
    found = dict(zip(head, row, strict=True))
    assert (found["X"], found["Y"], found["status"]) == ("running", "failed", "failed")
    assert "out of memory" in found["note"] and "no single-stage variant" in book["Grid"]["A2"].value
