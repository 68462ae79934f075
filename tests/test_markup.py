"""Markdown and LaTeX: whatever a cell holds, the table stays a table; a TeX that is installed compiles it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import sheet_files

from redrel_vlmeval.results.reading import Results, read
from redrel_vlmeval.sheets import markup, writing
from redrel_vlmeval.sheets.tables.table import Table
from redrel_vlmeval.sheets.tables.whole import every

NASTY = "\\input{x} 50% & a_b #1 $x^2$ ~ {[|]} <b>\"q\"</b> 中文 é `c` *s*\nline --- 'y'"


@pytest.fixture
def results(tmp_path: Path) -> Results:
    sheet_files.mixed(tmp_path)
    sheet_files.clear(tmp_path, "llava_v1.5_7b", "ScienceQA_TEST")
    return read(tmp_path)


@pytest.fixture
def table() -> Table:
    frame = pd.DataFrame({"model": ["a_b", NASTY, "c"], "score": [50.04, 2.0, None], NASTY: [NASTY] * 3})
    return Table("Table 1", frame, NASTY, remarks=(NASTY,), grey=frozenset({1}), bold=frozenset({(0, "score")}))


def balanced(text: str) -> bool:
    depth = 0
    for sign in re.sub(r"\\[{}\\]", "", text):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth < 0:
            return False
    return depth == 0


def test_latex_has_one_cell_per_column_and_nothing_to_act_on(table: Table) -> None:
    text = markup.latex(table)
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
    assert len(body) == 3 and all(line.endswith(r" \\") for line in body)
    assert all(len(re.findall(r"(?<!\\)&", line)) == 2 for line in body)
    assert body[0].startswith(r"a\_b & \textbf{50.0} & ")
    assert body[1].startswith(r"\textcolor[HTML]{595959}{") and r"\textcolor[HTML]{595959}{2.0}" in body[1]
    assert balanced(text) and text.count(r"\begin") == text.count(r"\end")
    assert r"\textbackslash{}input\{x\}" in text and "[U+4E2D]" in text and "é" in text


@pytest.mark.parametrize("sign", list("\\{}&%$#_^~"))
def test_no_sign_that_latex_acts_on_is_left_bare(sign: str) -> None:
    escaped = markup.tex(f"a{sign}b")
    assert escaped.startswith("a\\") and escaped.endswith("b") and balanced(escaped)


def test_a_long_table_goes_on_on_the_next_page_and_says_where_the_rest_is() -> None:
    frame = pd.DataFrame({"model": [f"m{i}" for i in range(markup.MOST + 7)]})
    text = markup.latex(Table("Flips", frame, "changes"))
    assert text.count(r"\begin{table}") == markup.MOST / markup.PAGE and "Flips: changes, continued." in text
    assert f"m{markup.MOST - 1} " in text and f"m{markup.MOST} " not in text
    assert "7 more rows: '-o FOLDER/' writes all of them to flips.csv" in text.replace(r"\textquotesingle{}", "'")


def test_latex_tells_the_verdict_in_two_words_and_cuts_no_text_off(tmp_path: Path) -> None:
    sheet_files.clear(tmp_path)
    sheet_files.answered(tmp_path, "redrel_tiny_trunc_l6_k8", [1] * 20)
    results = read(tmp_path)
    (board,) = every(results, ("Leaderboard",))
    text = markup.latex(board)
    assert "..." not in text and "the base" not in text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    rows = [line.split(" & ") for line in text.splitlines() if line.startswith(r"redrel\_tiny")]
    at = list(board.frame.columns).index("X verdict")
    assert [row[at] for row in rows[:4]] == ["base", "worse", "better", "not separable"]
    why = board.frame.set_index("model").loc["redrel_tiny_trunc_l6_k8", "X verdict"]
    assert why.startswith("no test: ") and markup.tex(why) in text
    long = pd.DataFrame({"model": ["m"] * 50, "note": ["word " * 100 + "end"] * 50})
    pages = markup.latex(Table("Leaderboard", long, "long")).split(r"\end{table}")[:-1]
    assert sum(page.count("word end") for page in pages) == 50 and "p{95mm}" in pages[0]
    assert max(page.count("word end") for page in pages) * 503 / markup.LINE <= markup.PAGE


def test_an_empty_table_says_why() -> None:
    table = Table("Table 2", pd.DataFrame(columns=["model"]), "prompts", remarks=("no rows: nothing ran",))
    for text in (markup.latex(table), markup.markdown([table])):
        assert "no rows: nothing ran" in text and "tabular" not in text and "|" not in text


def test_markdown_marks_the_best_and_printed_rows(table: Table) -> None:
    text = markup.markdown([table])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 5 and len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1
    assert "**50.0**" in rows[2] and "*2.0*" in rows[3] and "**2.0**" not in rows[3]
    assert "<b>" not in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX here")
@pytest.mark.parametrize("nasty", [False, True])
def test_latex_compiles(results: Results, table: Table, tmp_path: Path, nasty: bool) -> None:
    path = tmp_path / "board.tex"
    if nasty:
        path.write_text(markup.document([table, Table("Empty", table.frame.iloc[:0], NASTY, remarks=(NASTY,))]))
    else:
        writing.write(results, path)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-draftmode", path.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]


def test_the_document_holds_the_summary_and_is_closed(results: Results, tmp_path: Path) -> None:
    text = writing.write(results, tmp_path / "board.tex").read_text(encoding="utf-8")
    assert text.startswith(r"\documentclass") and text.endswith("\\end{document}\n") and balanced(text)
    names = re.findall(r"^% (.+)$", text, re.MULTILINE)
    assert names == ["Leaderboard", "Table 1", "Table 2", "Grid", "Efficiency", "Blind"]
    assert r"66.48" in text or r"66.5" in text, "the paper's number, in grey"
