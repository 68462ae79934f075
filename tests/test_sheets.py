"""Writers of a sheet: what each ending gives, and that a failing write loses nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import host_files as host
import pandas as pd
import pytest
import report_box as box
import sheet_files
from typer.testing import CliRunner

from redrel_vlmeval import sheets
from redrel_vlmeval.cli import app
from redrel_vlmeval.files import LOCK, only_one
from redrel_vlmeval.results.reading import Results, ResultsError, read
from redrel_vlmeval.sheets import writing
from redrel_vlmeval.sheets.page import assemble
from redrel_vlmeval.sheets.tables.whole import every

BASE = sheet_files.BASE


def test_csv_keeps_full_precision(results: Results, tmp_path: Path) -> None:
    table = pd.read_csv(writing.write(results, tmp_path / "board.csv"), index_col="model")
    row = table.loc[f"{BASE}_trunc_l2_k16"]
    assert float(row["KV MB"]) == 0.25 and float(row["Shapes"]) == 100
    assert table.loc[f"{BASE}_trunc_l4_k16", "Shapes"] == "failed"


def test_markdown_keeps_its_columns_whatever_a_cell_holds(results: Results, tmp_path: Path) -> None:
    text = writing.write(results, tmp_path / "board.md").read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) > 7
    assert len({line.replace("\\|", "").count("|") for line in table[:7]}) == 1
    assert "<b>" not in text and "- **FLOPs ratio**: prefill FLOPs" in text
    assert text.index("## Leaderboard") < text.index("## Table 1") < text.index("## Grid")


@pytest.mark.parametrize("name", ["board.xlsx", "board.csv", "board.md", "board.tex", "board.json"])
def test_an_old_sheet_is_replaced_whole_and_nothing_else_is_left(results: Results, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "sheets"
    folder.mkdir()
    (folder / name).write_text("old")
    writing.write(results, folder / name)
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
    with pytest.raises(writing.SheetError, match="board.csv.*No space left"):
        writing.write(results, folder / "board.csv")
    assert [path.name for path in folder.iterdir()] == ["board.csv"] and (folder / "board.csv").read_text() == "old"


def test_places_that_cannot_be_written_are_named(results: Results, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.csv").mkdir()
    for target, message in (
        ("file/board.csv", "File exists; the folder '.*file' cannot be used"),
        ("file/deep/board.csv", "Not a directory"),
        ("folder.csv", "is a folder"),
        ("board.pdf", r"unknown ending '.pdf', choose one of .xlsx, .csv, .md, .tex, .json, or a folder"),
        ("board", "unknown ending ''"),
    ):
        with pytest.raises(writing.SheetError, match=message) as caught:
            writing.write(results, tmp_path / target)
        assert target in str(caught.value)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(results: Results, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with pytest.raises(writing.SheetError, match="Permission denied"):
        writing.write(results, folder / "board.csv")


def test_a_folder_gets_every_table_in_every_format(results: Results, tmp_path: Path) -> None:
    folder = writing.write(results, f"{tmp_path / 'a' / 'b'}/")
    tables = ["leaderboard", "table_1", "table_2", "grid", "categories", "efficiency", "blind", "blind_questions",
              "flips", "provenance", "scores"]  # fmt: skip
    files = {f"{table}.{kind}" for table in tables for kind in ("csv", "md", "tex")}
    files |= {"tables.xlsx", "tables.tex", "leaderboard.json", "published.csv"}
    assert {path.name for path in folder.iterdir()} == files
    assert writing.write(results, folder) == folder, "an existing folder needs no slash"
    for name in ("leaderboard", "grid", "provenance"):
        assert len(pd.read_csv(folder / f"{name}.csv")) > 1


def test_a_folder_that_cannot_be_made_is_named(results: Results, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(writing.SheetError, match="the folder .*file/all.* cannot be used"):
        writing.write(results, f"{tmp_path}/file/all/")
    assert (tmp_path / "file").read_text() == "kept"


def test_missing_folders_are_made(results: Results, tmp_path: Path) -> None:
    for name in ("new/deep/board.csv", "newer/all/"):
        writing.prepare(f"{tmp_path}/{name}")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
    assert writing.write(results, tmp_path / "newest/deep/board.csv").read_text().startswith("model,")


def test_a_place_that_cannot_be_written_is_told_before_the_table_is_printed(tmp_path: Path) -> None:
    sheet_files.clear(tmp_path / "out")
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "a.csv", f"{tmp_path}/file/"):
        done = CliRunner().invoke(app, ["sheet", str(tmp_path / "out"), "-o", str(place)])
        assert isinstance(done.exception, writing.SheetError) and done.output == ""


def test_while_a_sweep_writes_its_models_have_not_failed(tmp_path: Path) -> None:
    """What its scoring has laid ready looks like a failed run, and after a kill it is one."""
    sweep = tmp_path / "sweep" / f"{BASE}_X"
    sweep.mkdir(parents=True)
    with only_one(sweep), pytest.raises(ResultsError, match="a sweep is writing here and has no scores yet"):
        read(tmp_path)
    for tail in ("", "_trunc_l1_k8", "_trunc_l2_k8", "_trunc_l3_k8", "_trunc_l6_k8"):
        host.records(tmp_path / f"{BASE}{tail}", f"{BASE}{tail}", "X")
    sheet_files.answered(tmp_path, f"{BASE}_trunc_l4_k8", [1, 0])
    host.records(tmp_path / BASE, BASE, "Other")
    with only_one(sweep):
        found = read(tmp_path)
        said = sheets.to_text(sheets.measured(found))
        assert [model for model, benchmark, _ in found.failed] == [BASE] and found.failed[0][1] == "Other"
        states = found.scores.set_index(["model", "benchmark"])["status"]
        assert states[f"{BASE}_trunc_l3_k8", "X"] == "running" and states[f"{BASE}_trunc_l4_k8", "X"] == "ok"
        assert "and 3 more: a sweep is writing here" in said
        assert states[BASE, "X"] == "running" and len(read(tmp_path / f"{BASE}_trunc_l1_k8").failed) == 0
    (sweep / LOCK).touch()
    assert len(read(tmp_path).failed) == 6, "a lock file that was left over is no sweep"


def test_endings_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "redrel_vlmeval", "sheet", str(tmp_path / "missing"), "-o", str(tmp_path / "a.pdf")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "unknown ending '.pdf'" in done.stderr
    assert "missing" not in done.stderr


def test_text_that_is_no_unicode_is_written(tmp_path: Path) -> None:
    assert writing._write_text("torn \ud83d", tmp_path / "x.md").read_bytes() == b"torn ?"


def test_every_table_and_the_page_have_the_models_in_the_leaderboards_order(tmp_path: Path) -> None:
    """By number: as texts, K = 32 stands before K = 8."""
    order = [BASE, *(f"{BASE}_trunc_{setting}" for setting in ("l0_k0", "l2_k0", "l2_k8", "l2_k32", "l10_k8"))]
    for number, model in enumerate(order):
        sheet_files.answered(tmp_path, model, [1] * (10 - number) + [0] * number)
        host.records(tmp_path / model, model, "X", range(10))
    results = read(tmp_path)
    for table in every(results):
        if table.name in ("Leaderboard", "Efficiency", "Blind", "Provenance", "Scores"):
            assert list(table.frame["model"].unique()) == order, table.name
    frame = next(table.frame for table in every(results) if table.name == "Categories")
    assert all(group["model"].tolist() == order for _, group in frame.groupby(["by", "group"]))
    runs = box.data_of(assemble.html(results))["provenance"]
    assert [row[runs["columns"].index("model")] for row in runs["rows"]] == order


def test_a_host_has_its_own_name_in_tables_and_page(tmp_path: Path) -> None:
    sheet_files.answered(tmp_path, BASE, [1, 0])
    command = ["/env/site-packages/vlmeval/__main__.py", "--data", "X"]
    host.status(tmp_path / BASE, BASE, X={"status": "done"}, argv=command)
    results = read(tmp_path)
    assert results.provenance["host"].tolist() == ["ms"]
    (table,) = every(results, ("Provenance",))
    assert table.frame["host"].tolist() == ["ms-vlmeval"]
    runs = box.data_of(assemble.html(results))["provenance"]
    assert runs["rows"][0][runs["columns"].index("host")] == "ms-vlmeval"
