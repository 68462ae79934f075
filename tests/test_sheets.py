"""Leaderboard and writers on small output folders; written files are opened again."""

from __future__ import annotations

import os
from pathlib import Path

import host_files as host
import openpyxl
import pandas as pd
import pytest

from redrel_vlmeval import sheets
from redrel_vlmeval.results import Results, read
from redrel_vlmeval.statistics import newcombe

BASE = "redrel_tiny"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A base and four variants over two benchmarks; one cell failed, one is unfinished, one ran on another device."""
    out = tmp_path_factory.mktemp("outputs")
    cut = host.TRUNCATED
    done = ((BASE, 0.75, {}), (f"{BASE}_trunc_l10_k8", 0.5, cut), (f"{BASE}_trunc_l2_k16", 1, cut))
    for name, value, changes in done:
        for benchmark in ("Shapes", "Words"):
            host.scored(out / name, name, benchmark, value)
            host.records(out / name, name, benchmark, **changes)
    far = f"{BASE}_trunc_l2_k16_random"
    host.scored(out / far, far, "Shapes", 0.5)
    host.records(out / far, far, "Shapes", **(host.TRUNCATED | {"device": "cuda"}))
    host.status(out / far, far, Shapes={"status": "done"}, Words={"status": "infer"})
    bad = f"{BASE}_trunc_l4_k16"
    reason = "=1+1 | no\n<b>such</b>\x07 layer"
    host.status(out / bad, bad, Shapes={"status": "done", "error_message": reason}, Words={"status": "done"})
    return read(out)


@pytest.fixture
def board(results: Results) -> pd.DataFrame:
    return sheets.leaderboard(results)


def test_base_comes_first_then_variants_by_number(board: pd.DataFrame) -> None:
    tails = [name.removeprefix(BASE) for name in board["model"]]
    assert tails == ["", "_trunc_l2_k16", "_trunc_l4_k16", "_trunc_l10_k8", "_trunc_l2_k16_random"]


def test_scores_deltas_and_costs(board: pd.DataFrame) -> None:
    row = board.set_index("model").loc[f"{BASE}_trunc_l2_k16"]
    assert (row["Shapes"], row["Shapes delta"], row["L"], row["K"], row["rule"]) == (100, 25, 2, 16, "attention")
    assert (row["kept"], row["image tokens"], row["average tokens"]) == (16, 64, 40)
    assert row["prefill GFLOPs"] == pytest.approx(1.2) and row["FLOPs ratio"] == pytest.approx(0.6)
    assert row["KV KiB"] == pytest.approx(250_000 / 1024) and row["KV ratio"] == pytest.approx(0.625)
    assert (row["prefill ms"], row["decode ms/token"], row["status"], row["note"]) == (6, 2, "ok", "")


def test_states_stand_where_scores_would(board: pd.DataFrame) -> None:
    rows = board.set_index("model")
    bad, far = rows.loc[f"{BASE}_trunc_l4_k16"], rows.loc[f"{BASE}_trunc_l2_k16_random"]
    assert (bad["Shapes"], bad["Words"], bad["status"]) == ("failed", "failed", "failed")
    assert (far["Shapes"], far["Words"], far["status"]) == (50, "running", "running")
    assert pd.isna(far["Shapes delta"]) and "device differs (cuda; base cpu)" in far["note"]


def test_each_prompt_is_a_group_with_its_own_base(tmp_path: Path) -> None:
    tails = ["", "_trunc_l2_k16", "_beam3", "_p-cqm", "_trunc_l2_k16_p-cqm"]
    for tail in reversed(tails):
        host.scored(tmp_path / f"{BASE}{tail}", f"{BASE}{tail}", "X", 0.5)
    board = sheets.leaderboard(read(tmp_path))
    assert board["model"].tolist() == [f"{BASE}{tail}" for tail in tails]
    assert board["base"].tolist() == [f"{BASE}{tail}" for tail in ("", "", "_beam3", "_p-cqm", "_p-cqm")]
    assert board["X delta"].fillna(-1).tolist() == [-1, 0, -1, -1, 0]


def test_units_follow_the_size(tmp_path: Path) -> None:
    host.scored(tmp_path / "m", "m", "X", 0.5)
    host.records(tmp_path / "m", "m", "X", prefill_flops=8.4e12, kv_bytes=330e6)
    row = sheets.leaderboard(read(tmp_path)).iloc[0]
    assert row["prefill TFLOPs"] == pytest.approx(8.4) and row["KV MB"] == pytest.approx(330)


def test_a_benchmark_with_two_headlines_has_two_columns(tmp_path: Path) -> None:
    host.predictions(tmp_path / "m", "m", "POPE", host.choices("A,B,A,B"))
    text = '"split","Overall","acc","precision","recall"\n"random","1","2","3","4"\n"Overall","80.5","81","90","70"\n'
    (tmp_path / "m" / "m_POPE_score.csv").write_text(text)
    row = sheets.leaderboard(read(tmp_path)).iloc[0]
    assert (row["POPE F1"], row["POPE acc"]) == (80.5, 81)


def test_costs_of_several_benchmarks_are_weighted_by_questions(tmp_path: Path) -> None:
    for name, count, milliseconds in (("X", 30, 10.0), ("Y", 10, 50.0)):
        host.scored(tmp_path / "m", "m", name, 0.5)
        host.records(tmp_path / "m", "m", name, indices=range(count), prefill_ms=milliseconds)
    assert sheets.leaderboard(read(tmp_path)).iloc[0]["prefill ms"] == 20


def test_no_records_at_all_still_gives_a_table(tmp_path: Path) -> None:
    host.scored(tmp_path / "m", "m", "X", 0.5)
    text = sheets.to_text(sheets.leaderboard(read(tmp_path)))
    assert "50.0" in text and "nan" not in text.lower() and "prefill" not in text


def test_every_column_has_a_meaning(board: pd.DataFrame) -> None:
    meanings = sheets.notes(board)
    assert list(meanings) == list(board.columns)
    assert "1e9" in meanings["prefill GFLOPs"] and "1024" in meanings["KV KiB"]
    assert all("host's own evaluation" in meanings[name] for name in ("Shapes", "Words"))
    for column, words in (
        ("CI low", "Newcombe"),
        ("p", "McNemar"),
        ("p (Holm)", "corrected"),
        ("up", "base gets wrong"),
    ):
        assert words in meanings[f"Words {column}"]


def test_text_is_a_table_with_the_notes_below(board: pd.DataFrame) -> None:
    lines = sheets.to_text(board).splitlines()
    rule = next(number for number, line in enumerate(lines) if line.startswith("---"))
    table = lines[rule + 1 : rule + 6]
    assert [line.split()[0] for line in table] == list(board["model"]), "a line break in a cell would tear the table"
    assert "+25.0" in table[1] and "nan" not in "".join(table).lower()
    assert lines[rule + 6 : rule + 8] == ["", "backend: transformers"]
    assert any(line.startswith(f"{BASE}_trunc_l4_k16: ") and "such" in line for line in lines[rule + 8 :])


def test_statistics_stand_beside_every_score(board: pd.DataFrame) -> None:
    names = list(board.columns)
    at = names.index("Shapes delta")
    beside = ["delta", "CI low", "CI high", "up", "down", "p", "p (Holm)", "verdict"]
    assert names[at - 1 : at + 8] == ["Shapes", *(f"Shapes {name}" for name in beside)]
    row = board.set_index("model").loc[f"{BASE}_trunc_l2_k16"]
    assert (row["Shapes up"], row["Shapes down"], row["Shapes p (Holm)"]) == (1, 0, 1)
    assert row["Shapes verdict"].endswith("(Holm 1.00 over 2), 1 up / 0 down: not separable from the baseline")
    verdicts = board["Shapes verdict"].tolist()
    assert verdicts[0] == "baseline" and verdicts[2] == "no test: failed" and verdicts[4].endswith("(cuda; base cpu)")


@pytest.fixture
def clear(tmp_path: Path) -> Results:
    """Forty questions: one variant loses most of what the base gets right, one wins as much, one changes nothing."""
    for tail, hits in (
        ("", [20, 20]),
        ("_trunc_l1_k8", [5, 35]),
        ("_trunc_l2_k8", [35, 5]),
        ("_trunc_l4_k8", [20, 20]),
    ):
        host.answered(tmp_path / f"{BASE}{tail}", f"{BASE}{tail}", "X", [1] * hits[0] + [0] * hits[1])
    return read(tmp_path)


def test_text_shows_delta_interval_p_and_two_words(clear: Results) -> None:
    lines = sheets.to_text(sheets.leaderboard(clear)).splitlines()
    rows = {line.split()[0]: line.split()[5:] for line in lines if line.startswith(f"{BASE}_")}
    low, high = (100 * end for end in newcombe(5, 0, 15, 20))
    assert rows[f"{BASE}_trunc_l1_k8"] == ["-37.5", f"{low:.1f}..{high:.1f}", "<", ".001", "worse"]
    low, high = (100 * end for end in newcombe(20, 15, 0, 5))
    assert rows[f"{BASE}_trunc_l2_k8"] == ["+37.5", f"+{low:.1f}..+{high:.1f}", "<", ".001", "better"]
    assert rows[f"{BASE}_trunc_l4_k8"][0] == "+0.0" and rows[f"{BASE}_trunc_l4_k8"][2:] == ["1.00", "not", "separable"]
    assert f"base: {BASE}" in lines and "status: ok" in lines, "what all rows share is told once"
    assert lines[-1].startswith("verdict: paired test")


def test_xlsx_colours_verdicts_and_keeps_p_a_number(clear: Results, tmp_path: Path) -> None:
    sheet = openpyxl.load_workbook(sheets.write(clear, tmp_path / "board.xlsx"))["Leaderboard"]
    at = {cell.value: cell.column for cell in sheet[1]}
    colours = [sheet.cell(line, at["X verdict"]).font.color for line in (3, 4, 5)]
    assert [colour.rgb[-6:] for colour in colours[:2]] == ["9C0006", "006100"]
    p = sheet.cell(3, at["X p"])
    assert 0 < p.value < 1e-4 and p.number_format == '[<0.001]"< .001";0.000'
    assert sheet.cell(3, at["X down"]).number_format == "0" and sheet.cell(3, at["X CI low"]).value < -50
    assert not any(sheet.cell(line, at["X p"]).font.bold for line in (3, 4, 5)), "bold is for the best score"
    width = sheet.column_dimensions[openpyxl.utils.get_column_letter(at["X verdict"])].width
    assert width > len(sheet.cell(3, at["X verdict"]).value)


def test_xlsx_opens_with_numbers_formats_marks_and_notes(results: Results, tmp_path: Path) -> None:
    book = openpyxl.load_workbook(sheets.write(results, tmp_path / "board.xlsx"))
    assert book.sheetnames == ["Leaderboard", "Scores", "Efficiency", "Notes"]
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
    assert {row[0].value for row in book["Notes"].iter_rows(min_row=2)} == set(at)
    assert book["Scores"].max_row == len(results.scores) + 1
    assert book["Efficiency"].max_row == len(results.efficiency) + 1


def test_text_of_a_result_never_becomes_a_formula(results: Results, tmp_path: Path) -> None:
    sheet = openpyxl.load_workbook(sheets.write(results, tmp_path / "board.xlsx"))["Scores"]
    cells = [cell for row in sheet.iter_rows() for cell in row if str(cell.value).startswith("=")]
    assert [cell.value for cell in cells] == ["=1+1 | no <b>such</b> layer"], "without the control character"
    assert cells[0].data_type == "s"


def test_csv_keeps_full_precision(results: Results, tmp_path: Path) -> None:
    table = pd.read_csv(sheets.write(results, tmp_path / "board.csv"), index_col="model")
    row = table.loc[f"{BASE}_trunc_l2_k16"]
    assert float(row["KV KiB"]) == 250_000 / 1024 and float(row["Shapes"]) == 100
    assert table.loc[f"{BASE}_trunc_l4_k16", "Shapes"] == "failed"


def test_markdown_keeps_its_columns_whatever_a_cell_holds(results: Results, tmp_path: Path) -> None:
    text = sheets.write(results, tmp_path / "board.md").read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 7
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert "<b>" not in text and "- **FLOPs ratio**: prefill FLOPs" in text


@pytest.mark.parametrize("name", ["board.xlsx", "board.csv", "board.md"])
def test_an_old_sheet_is_replaced_whole_and_nothing_else_is_left(results: Results, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "sheets"
    folder.mkdir()
    (folder / name).write_text("old")
    sheets.write(results, folder / name)
    assert [path.name for path in folder.iterdir()] == [name]
    assert (folder / name).read_bytes()[:3] != b"old"


def test_a_failing_write_leaves_the_old_sheet(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sheets"
    folder.mkdir()
    (folder / "board.csv").write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(sheets.SheetError, match="board.csv.*No space left"):
        sheets.write(results, folder / "board.csv")
    assert [path.name for path in folder.iterdir()] == ["board.csv"] and (folder / "board.csv").read_text() == "old"


def test_places_that_cannot_be_written_are_named(results: Results, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.csv").mkdir()
    for target, message in (
        ("missing/board.csv", "No such file or directory"),
        ("file/board.csv", "Not a directory"),
        ("folder.csv", "is a folder"),
        ("board.pdf", r"unknown ending '.pdf', choose one of .xlsx, .csv, .md"),
        ("board", "unknown ending ''"),
    ):
        with pytest.raises(sheets.SheetError, match=message) as caught:
            sheets.write(results, tmp_path / target)
        assert target in str(caught.value)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(results: Results, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with pytest.raises(sheets.SheetError, match="Permission denied"):
        sheets.write(results, folder / "board.csv")
