"""Folders of thousands of tables are read in bearable time: each file once, and no more of them than a sheet shows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import sheet_files

from redrel_vlmeval.host import tables
from redrel_vlmeval.results.reading import Results, read
from redrel_vlmeval.sheets import writing
from redrel_vlmeval.sheets.page import assemble
from redrel_vlmeval.sheets.tables import details, per_question
from redrel_vlmeval.sheets.tables.whole import every

TAILS = ("", "_trunc_l1_k8", "_trunc_l2_k8", "_trunc_l4_k8_random")
MODELS = [f"{base}{tail}" for base in ("m", "n") for tail in TAILS]
BENCHMARKS = ("A", "B", "C")
JUDGED = {f"{model}_{name}_exact_matching_result.xlsx" for model in MODELS for name in BENCHMARKS}
PREDICTED = {f"{model}_{name}.xlsx" for model in MODELS for name in BENCHMARKS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("outputs")
    for number, model in enumerate(MODELS):
        for name in BENCHMARKS:
            sheet_files.answered(out, model, [1] * (12 - number) + [0] * number, name)
    return out


class Opened:
    """How often each file was parsed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parsed = Counter[str]()
        parse, opened = tables.CalamineWorkbook.from_path, self

        class Workbook:
            @staticmethod
            def from_path(path: str) -> object:
                opened.parsed[Path(path).name] += 1
                return parse(path)

        monkeypatch.setattr(tables, "CalamineWorkbook", Workbook)


@pytest.fixture()
def results(folder: Path) -> Results:
    return read(folder)


def test_reading_parses_each_table_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(monkeypatch)
    results = read(folder)
    assert opened.parsed == dict.fromkeys(JUDGED | PREDICTED, 1)
    assert len(results.provenance) == len(MODELS) * len(BENCHMARKS)


def test_categories_read_the_bases_only(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(monkeypatch)
    frame = per_question.categories(results)
    assert opened.parsed == {f"{base}_{name}_exact_matching_result.xlsx": 1 for base in "mn" for name in BENCHMARKS}
    assert len(frame) == 2 * len(MODELS) * len(BENCHMARKS), "two categories of every cell"


def test_flips_read_no_more_variants_than_the_sheet_shows(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(details, "MOST", 4)
    opened = Opened(monkeypatch)
    table = details.flips(results)
    own = {name for name in opened.parsed if "_trunc_" in name}
    assert len(table.frame) == 4 and len(own) < len(JUDGED | PREDICTED) / 4
    total = sum(results.scores["headline"] & results.scores["delta"].notna())
    assert total == 18 and len(table.measured) == 3 * 2 * (1 + 2 + 3), "a csv has them all"


def test_every_cell_is_in_the_workbook_and_on_the_page(folder: Path, results: Results, tmp_path: Path) -> None:
    shown = {table.name: table.frame for table in every(results)}
    board = shown["Leaderboard"]
    assert set(board["model"]) == set(MODELS) and board[list(BENCHMARKS)].notna().to_numpy().all()
    for name in ("Provenance", "Scores"):
        assert len(shown[name][["model", "benchmark"]].drop_duplicates()) == len(MODELS) * len(BENCHMARKS)
    assert writing.write(results, tmp_path / "x.xlsx").stat().st_size
    assert all(model in assemble.html(results) for model in MODELS)
