"""What others wrote stays what it was in every file, and no terminal or locale keeps a file from being written."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import host_files as host
import openpyxl
import pandas as pd
import pytest
import report_box
import sheet_files
from typer.testing import CliRunner

from redrel_vlmeval.cli import app
from redrel_vlmeval.host import read_columns
from redrel_vlmeval.results import read
from redrel_vlmeval.sheets import write, write_csv
from redrel_vlmeval.sheets.page import assemble

VARIANT = f"{sheet_files.BASE}_trunc_l2_k8"
RUN = [sys.executable, "-m", "redrel_vlmeval"]


def flipped(folder: Path, **columns: object) -> Path:
    """A base and a variant that answer every one of twelve questions differently."""
    sheet_files.answered(folder, sheet_files.BASE, [1] * 12, **columns)
    sheet_files.answered(folder, VARIANT, [0] * 12, **columns)
    return folder


@pytest.mark.parametrize("text", ["one\r\ntwo", "one\rtwo", "one\x0btwo", "say _x000D_ or _x0041_", "\x1f_x005F_"])
def test_lines_and_signs_of_other_systems_survive_a_workbook(tmp_path: Path, text: str) -> None:
    flipped(tmp_path, question=[text] * 12, A=text)
    for path in tmp_path.glob("*/*.xlsx"):  # the host judges what pandas reads of its predictions
        if path.stem.endswith("_result"):
            pd.read_excel(path, engine="openpyxl").to_excel(path, index=False, engine="xlsxwriter")
    asked = read(tmp_path).answers(VARIANT, "X")
    assert set(asked["question"]) == {text} and all(text in options for options in asked["options"])
    write(read(tmp_path), f"{tmp_path}/all/")
    page = report_box.data_of(assemble.html(read(tmp_path)))
    with open(tmp_path / "all" / "flips.csv", newline="", encoding="utf-8") as stream:
        assert {row["question"] for row in csv.DictReader(stream)} == {"one\ntwo" if text == "one\rtwo" else text}
    assert text in page["changes"]["texts"]
    shown = pd.DataFrame(read_columns(tmp_path / "all" / "tables.xlsx"))  # the leaderboard
    assert VARIANT in set(shown["model"])


def test_a_workbook_tells_a_text_from_a_code(tmp_path: Path) -> None:
    asked = ["say _x0041_"] * 12
    flipped(tmp_path, question=asked)
    write(read(tmp_path), tmp_path / "x.xlsx")
    raw = openpyxl.load_workbook(tmp_path / "x.xlsx")["Flips"]
    names = [cell.value for cell in raw[1]]
    assert raw.cell(2, names.index("question") + 1).value == "say _x005F_x0041_"  # a spreadsheet shows it as written


FORMULAS = ["+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1+1"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_csv_holds_a_formula(tmp_path: Path, text: str) -> None:
    flipped(tmp_path, question=[text] * 12, category=["x" + text] * 12)
    CliRunner().invoke(app, ["sheet", str(tmp_path), "-o", f"{tmp_path}/all/"], catch_exceptions=False)
    for path in (tmp_path / "all").glob("*.csv"):
        with open(path, newline="", encoding="utf-8") as stream:
            rows = list(csv.reader(stream))
        assert not [
            field for row in rows for field in row if field.startswith(("=", "@", "\t", "\r", "＝", "+c", "-2+"))
        ]
    with open(tmp_path / "all" / "flips.csv", newline="", encoding="utf-8") as stream:
        asked = {row["question"] for row in csv.DictReader(stream)}
    assert asked == {"'" + text.replace("\r", "\n")}


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [-1.5, 2.0], "b": ["-3", "+4.5e-3"], "c": ["-", "x"], "=d": [None, "=1+1"]})
    path = write_csv(frame, tmp_path / "x.csv")
    assert path.read_text() == "a,b,c,'=d\n-1.5,-3,'-,\n2.0,+4.5e-3,x,'=1+1\n"


def own(**variables: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)} | variables


def run(*words: str, shell: str = "", cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """``redrel`` in a process of its own; ``shell`` is put behind it."""
    command = f'"$0" "$@" {shell}'
    return subprocess.run(
        ["bash", "-c", command, *RUN, *words], capture_output=True, text=True, encoding="utf-8",
        env=own(**variables), cwd=cwd, check=False, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_a_service_without_a_terminal_gets_its_files(tmp_path: Path, closed: str) -> None:
    sheet_files.clear(tmp_path)
    done = run("sheet", str(tmp_path), "-o", str(tmp_path / "x.xlsx"), shell=closed)
    assert (done.returncode, done.stderr) == (0, "")
    assert openpyxl.load_workbook(tmp_path / "x.xlsx").sheetnames[0] == "Leaderboard"


@pytest.mark.parametrize("buffering", ["", "1"])
@pytest.mark.parametrize("words", [["sheet", ".", "-o", "x.md"], ["rules"], ["--version"]], ids=" ".join)
def test_files_are_written_also_where_the_table_cannot_be_shown(tmp_path: Path, words: list, buffering: str) -> None:
    sheet_files.clear(tmp_path)
    done = run(*words, shell=">/dev/full", cwd=tmp_path, PYTHONUNBUFFERED=buffering)
    assert (done.returncode, done.stderr) == (2, "redrel: [Errno 28] No space left on device\n")
    assert words[0] != "sheet" or (tmp_path / "x.md").read_text("utf-8").startswith("## Leaderboard\n")


@pytest.mark.parametrize("buffering", ["", "1"])
@pytest.mark.parametrize("word", ["rules", "--version", "--help"])
def test_a_reader_that_stops_as_head_does_gets_no_words(tmp_path: Path, word: str, buffering: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as closed:
        environment = own(PYTHONUNBUFFERED=buffering)
        done = subprocess.run([*RUN, word], stdout=closed, stderr=subprocess.PIPE, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_commands_own_error_is_told_also_on_a_full_disk(tmp_path: Path) -> None:
    done = run("sheet", "nowhere", shell=">/dev/full", cwd=tmp_path)
    assert done.returncode == 2 and "nowhere" in done.stderr and "No space" not in done.stderr


@pytest.mark.parametrize("terminal", [{"LC_ALL": "C"}, {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"}])
def test_a_locale_without_letters_keeps_no_sheet_from_being_written(tmp_path: Path, terminal: dict) -> None:
    sheet_files.clear(tmp_path, benchmark="名前")
    host.status(tmp_path / sheet_files.BASE, sheet_files.BASE, 名前={"status": "done"})
    off = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run("sheet", str(tmp_path), "-o", str(tmp_path / "x.md"), **off, **terminal)
    assert (done.returncode, done.stderr) == (0, "")
    assert "名前" in (tmp_path / "x.md").read_text("utf-8")


@pytest.mark.parametrize("name", ["My Model (v2)", "Modell ö", "a_trunc_b_trunc_"])
@pytest.mark.parametrize("ending", ["x.xlsx", "x.md", "all/"])
def test_a_name_that_no_variant_could_have_costs_no_sheet(tmp_path: Path, name: str, ending: str) -> None:
    sheet_files.clear(tmp_path)
    sheet_files.answered(tmp_path, name, [1] * 40)
    done = CliRunner().invoke(app, ["sheet", str(tmp_path), "-o", f"{tmp_path}/{ending}"], catch_exceptions=False)
    assert done.exit_code == 0 and name in done.output
