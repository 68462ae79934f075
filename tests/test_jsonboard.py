"""The JSON in the OpenVLM leaderboard's layout: what its viewers read is there, and nothing that is no JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import sheet_files

from redrel_vlmeval.results.reading import read
from redrel_vlmeval.sheets import writing

BASE = sheet_files.BASE
# Fields that the leaderboard's own table builder asks of every model.
ASKED = {"Method", "Parameters", "Language Model", "Vision Model", "OpenSource", "Verified"}


@pytest.fixture
def board(tmp_path: Path) -> dict:
    sheet_files.mixed(tmp_path)
    (tmp_path / BASE / f"{BASE}_POPE_score.csv").write_text(
        '"split","Overall","acc","precision","recall"\n"random","1","2","3","4"\n"Overall","80.5","81","90","70"\n'
    )
    sheet_files.host.predictions(tmp_path / BASE, BASE, "POPE", sheet_files.host.choices("A,B,A,B"))
    (tmp_path / BASE / f"{BASE}_OCRBench_score.json").write_text('{"Text Recognition": 200, "Final Score": 300}')
    sheet_files.host.predictions(tmp_path / BASE, BASE, "OCRBench", sheet_files.host.choices("A,B,A,B"))
    text = writing.write(read(tmp_path), tmp_path / "x.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_layout_that_viewers_read(board: dict) -> None:
    assert re.fullmatch(r"\d{12}", board["time"])
    for model, entry in board["results"].items():
        assert set(entry["META"]) >= ASKED and entry["META"]["Method"] == [model, ""]
        assert all(isinstance(entry[name], dict) for name in entry)
    base = board["results"][BASE]
    assert base["Shapes"] == {"Overall": 75, "one": 75}
    assert base["POPE"]["Overall"] == 80.5 and base["POPE"]["acc"] == 81
    assert base["OCRBench"]["Final Score"] == 300 and base["OCRBench"]["Overall"] == 30


def test_what_the_layout_has_no_place_for_stands_in_meta(board: dict) -> None:
    own = board["results"][f"{BASE}_trunc_l2_k16"]["META"]["redrel"]
    assert (own["base"], own["setting"], own["L"], own["K"], own["rule"]) == (BASE, "l2_k16", 2, 16, "attention")
    cell = own["cells"]["Shapes"]
    assert (cell["headline"], cell["status"], cell["delta"], cell["up"], cell["down"]) == ("Overall", "ok", 25, 1, 0)
    assert cell["efficiency"]["average_image_tokens"] == 40 and cell["efficiency"]["flops_ratio"] == 0.6
    assert cell["provenance"]["device"] == "cpu" and cell["provenance"]["weights"] == "w"


def test_a_cell_without_a_score_is_told_and_is_no_number(board: dict) -> None:
    entry = board["results"][f"{BASE}_trunc_l4_k16"]
    assert set(entry) == {"META"}
    cell = entry["META"]["redrel"]["cells"]["Shapes"]
    assert cell["status"] == "failed" and "layer" in cell["reason"] and cell["delta"] is None


def test_printed_numbers_stand_apart(tmp_path: Path) -> None:
    sheet_files.clear(tmp_path, "llava_v1.5_7b", "ScienceQA_TEST")
    board = json.loads(writing.write(read(tmp_path), tmp_path / "x.json").read_text(encoding="utf-8"))
    assert all(model.startswith("llava_v1.5_7b") for model in board["results"])
    assert board["results"]["llava_v1.5_7b"]["META"]["Language Model"] == "Vicuna-7B"
    printed = [row for row in board["published"] if row["setting"] == "l5_k128"]
    assert [(row["value"], row["source"][:27]) for row in printed] == [(66.48, "From Redundancy to Relevance"[:27])]
