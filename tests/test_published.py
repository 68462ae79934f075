"""Printed numbers: every row has a source and a number, and none of them enters a mean, a test or the best."""

from __future__ import annotations

import csv
from pathlib import Path

import openpyxl
import pandas as pd
import pytest
import sheet_files

from redrel_vlmeval.bases import BASES
from redrel_vlmeval.results import published
from redrel_vlmeval.results.reading import Results, read
from redrel_vlmeval.sheets import writing
from redrel_vlmeval.sheets.tables import paper

SEVEN = "llava_v1.5_7b"


def test_every_row_has_a_source_a_number_and_stands_once() -> None:
    frame = published.published()
    assert list(frame.columns) == published.COLUMNS and len(frame) > 800
    assert frame["source"].str.strip().all() and frame["model"].str.strip().all()
    assert frame["value"].dtype == float and frame["value"].between(1, 2800).all()
    assert not frame.duplicated(["model", "method", "setting", "benchmark", "metric", "source"]).any()
    percent = frame[frame["benchmark"] != "MME"]
    assert percent["value"].max() < 100


def test_the_papers_own_numbers() -> None:
    """Table 1, Table 2 and section 4.2 of the paper."""
    frame = published.published()
    one = frame[frame["source"].str.startswith("From Redundancy to Relevance Table 1")]
    found = dict(zip(zip(one["model"], one["setting"], strict=True), one["value"], strict=True))
    assert found["LLaVA-1.5-7B", ""] == 65.00 and found["LLaVA-1.5-7B", "l5_k128"] == 66.48
    assert found["LLaVA-1.5-13B", ""] == 71.60 and found["LLaVA-1.5-13B", "best"] == 72.85
    two = frame[frame["method"] == "prompt"].set_index("setting")["value"]
    assert two.to_dict() == {
        "qcm greedy": 46.06, "p1-cqm greedy": 59.49, "cqm-p1 greedy": 57.36, "cqm-p2 greedy": 64.65,
        "cqm-p3 greedy": 63.36, "cqm beam 5": 58.54, "cqm beam 4": 59.64, "cqm beam 3": 60.98, "cqm beam 2": 63.16,
        "cqm greedy": 65.00,
    }  # fmt: skip


def test_disputed_are_those_that_another_source_contradicts() -> None:
    frame = published.published()
    rows = frame[~frame["method"].isin(["baseline", "attention truncation", "prompt"])]
    rows = rows[~rows["note"].str.contains("another evaluation")]
    tokens = rows["setting"].str.extract(r"^([\d.]+%?)")[0].fillna(rows["setting"])
    flagged = set()
    for key, same in rows.groupby(["model", "method", tokens, "benchmark", "metric"]):
        apart = same["value"].max() - same["value"].min() > (20 if key[3] == "MME" else 1)
        if apart and same["source"].nunique() > 1:
            assert same["disputed"].all(), key
            flagged |= set(same.index)
    alone = frame[frame["disputed"] & ~frame.index.isin(flagged)]
    assert set(alone["source"]) <= {"SparseVLM paper", "PIO-FVLM table"}, "contradicted by what stands in their notes"
    assert len(flagged) > 100


def test_rows_of_the_field_s_models_and_methods_are_there() -> None:
    frame = published.published()
    for model in ("LLaVA-1.5-7B", "LLaVA-NeXT-7B", "Qwen2.5-VL-7B", "Qwen3-VL-8B", "InternVL3-8B"):
        own = frame[(frame["model"] == model) & ~frame["source"].str.startswith(published.PAPER)]
        assert {"baseline", "DivPrune", "CDPruner"} <= set(own["method"]), model
    budgets = frame[(frame["model"] == "LLaVA-NeXT-7B") & (frame["method"] == "VisionZip")]["setting"]
    assert set(budgets) == {"640 tokens", "320 tokens", "160 tokens"}
    sparse = frame[(frame["model"] == "LLaVA-1.5-7B") & (frame["method"] == "SparseVLM")]
    entering = sparse[sparse["setting"].str.startswith("64 ")]["note"]
    assert len(entering) > 10 and entering.str.contains("82.2 enter a block").all(), "its 64 are 82"


def test_only_the_paper_s_own_rows_and_those_of_models_that_ran_are_shown() -> None:
    models = published.on({"ScienceQA_TEST"}, ["Qwen2.5-VL-7B-Instruct"])
    others = models[models["model"] != "Qwen2.5-VL-7B"]
    assert len(others) > 10 and others["source"].str.startswith(published.PAPER).all()
    assert set(models.loc[models["model"] == "Qwen2.5-VL-7B", "method"]) >= {"baseline", "FastV", "CDPruner"}
    assert published.facts("MiniGPT-4-v1-13B").title == "MiniGPT-4 (Vicuna-13B)"


def test_models_are_known_under_the_names_of_the_runner() -> None:
    others, bases = {model.title for model in published.OTHERS}, {base.title for base in BASES.values()}
    known = {*published.published()["model"]}
    assert others <= known <= others | bases
    assert published.facts("qwen_chat").title == "Qwen-VL-Chat" and published.facts("other").names == ()


@pytest.mark.parametrize(
    "column, value, message",
    [
        ("value", "n/a", "line 3: value 'n/a' is not a number"),
        ("source", " ", "line 3: no source"),
        ("disputed", "maybe", "line 3: disputed is 'maybe'"),
        ("metric", "BLEU", "line 3: metric 'BLEU', choose one of accuracy"),
        ("value", None, "line 3: stands twice"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, column: str, value: str | None, message: str) -> None:
    rows = published.FILE.read_text(encoding="utf-8").splitlines()[:2]
    first = dict(zip(published.COLUMNS, next(csv.reader([rows[1]])), strict=True))
    second = first | ({column: value} if value is not None else {})
    pd.DataFrame([first, second]).to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(published.PublishedError, match=message):
        published.load(tmp_path / "bad.csv")


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("model,value\nx,1\n")
    with pytest.raises(published.PublishedError, match="columns model, value; expected model, method"):
        published.load(tmp_path / "bad.csv")


@pytest.fixture
def both(tmp_path: Path) -> Results:
    """The paper's model on its benchmark, and one that nobody printed anything about."""
    sheet_files.clear(tmp_path, SEVEN, "ScienceQA_TEST")
    sheet_files.clear(tmp_path, "other", "ScienceQA_TEST")
    sheet_files.answered(tmp_path, SEVEN, [1] * 3 + [0], "Shapes")
    return read(tmp_path)


def test_printed_rows_stand_below_the_measured_ones_of_the_same_weights(both: Results) -> None:
    table = paper.board(both)
    models = table.frame["model"].tolist()
    last = max(i for i, name in enumerate(models) if name.startswith(SEVEN))
    assert models[last + 1] == "LLaVA-1.5-7B" and last + 1 in table.grey
    assert models[-1] not in (SEVEN, "other") and len(models) - 1 in table.grey
    grey = table.frame.iloc[sorted(table.grey)]
    assert grey["source"].notna().all() and grey["ScienceQA_TEST"].notna().all()
    assert set(grey.loc[grey["model"] == "LLaVA-1.5-7B", "base"]) == {SEVEN}
    measured = table.frame.drop(index=sorted(table.grey))
    assert measured["source"].isna().all()
    disputed = set(grey.loc[grey["disputed"].notna(), "setting"])
    assert {"FastV 192 tokens on average", "PyramidDrop 64 tokens on average"} < disputed
    assert not any(setting.startswith("attention truncation") for setting in disputed)


def test_printed_rows_are_in_no_mean_no_test_and_never_the_best(both: Results) -> None:
    table = paper.board(both)
    assert {table.frame.loc[row, "ScienceQA_TEST"] for row, name in table.bold if name == "ScienceQA_TEST"} == {87.5}
    assert not {row for row, _ in table.bold} & table.grey
    grey = table.frame.iloc[sorted(table.grey)]
    assert grey["mean"].isna().all() and grey["ScienceQA_TEST delta"].isna().all()
    assert grey["ScienceQA_TEST p"].isna().all() and grey["ScienceQA_TEST verdict"].isna().all()
    assert table.frame.loc[table.frame["model"] == SEVEN, "mean"].tolist() == [(50 + 75) / 2]


def test_another_benchmark_has_no_printed_rows(tmp_path: Path) -> None:
    sheet_files.clear(tmp_path, SEVEN, "Shapes")
    table = paper.board(read(tmp_path))
    assert not table.grey and "source" not in table.frame


def test_machine_readable_files_hold_measured_rows_only(both: Results, tmp_path: Path) -> None:
    folder = writing.write(both, f"{tmp_path / 'all'}/")
    for name in ("leaderboard", "table_1"):
        models = set(pd.read_csv(folder / f"{name}.csv")["model"])
        assert all(model.startswith((SEVEN, "other")) for model in models)
    beside = pd.read_csv(folder / "published.csv")
    assert set(beside["benchmark"]) == {"ScienceQA_TEST"} and beside["source"].notna().all()


def test_grey_rows_look_grey(both: Results, tmp_path: Path) -> None:
    sheet = openpyxl.load_workbook(writing.write(both, tmp_path / "x.xlsx"))["Table 1"]
    at = {cell.value: cell.column for cell in sheet[1]}
    fills = {}
    for line in range(2, sheet.max_row + 1):
        printed = sheet.cell(line, at["source"]).value is not None
        score = sheet.cell(line, at["ScienceQA_TEST"])
        if score.value is not None:
            fills.setdefault(printed, set()).add((score.fill.fgColor.rgb[-6:], bool(score.font.italic)))
    assert fills == {True: {("EDEDED", True)}, False: {("000000", False)}}
