"""MMDU turn by turn: the host's own evaluation of a small generated set, with a judge that marks what it is told."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import host_files as host
import numpy as np
import pandas as pd
import pytest
from checkpoints import import_host, needs_host
from openpyxl import load_workbook

from redrel_vlmeval.host import find_cells, turns
from redrel_vlmeval.host.tables import ResultsError
from redrel_vlmeval.results import by_turn, reading
from redrel_vlmeval.results.dialogues import LATER
from redrel_vlmeval.sheets import writing

BASE, CUT, TURNS, N = "redrel_tiny", "redrel_tiny_trunc_l2_k8", 3, 12
DIMS = ["Creativity", "Richness", "Visual Perception", "Logical Coherence", "Answer Accuracy",
        "Image Relationship Understanding", "Overall Score"]  # fmt: skip


class Judge:
    """Marks an answer with the number that stands in it; says nothing of one without."""

    def generate(self, prompt: str) -> str:
        mark = re.search(r"worth (\d+)", prompt)
        return f"Well: {dict.fromkeys(DIMS, int(mark[1]))}" if mark else "no mark"


def dialogues(marks: np.ndarray) -> pd.DataFrame:
    """The runner's table of answers that are worth ``marks`` [dialogues, turns], -1 for one without."""
    said = [["worth nothing" if mark < 0 else f"worth {mark}" for mark in row] for row in marks]
    asked = [[f"<ImageHere>Turn {turn}?" for turn in range(marks.shape[1])]] * len(marks)
    frame = pd.DataFrame(
        {"index": range(len(marks)), "question": list(map(str, asked)), "answer": list(map(str, asked))}
    )
    return frame.assign(prediction=list(map(str, said)), image_path=[f"{i}.png" for i in range(len(marks))])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base and variant: the later the turn, the more the variant loses; one mark is missing on each side."""
    import_host()
    from vlmeval.dataset import image_mt

    rng, out = np.random.default_rng(0), tmp_path_factory.mktemp("out")
    before = rng.integers(6, 10, (N, TURNS))
    after = before - np.array([0, 1, 3]) - rng.integers(0, 2, (N, TURNS)) * [0, 1, 1]
    before[3, 1] = after[5, 2] = -1
    dataset = image_mt.MMDUDataset.__new__(image_mt.MMDUDataset)
    build, image_mt.build_judge = image_mt.build_judge, lambda **_: Judge()
    try:
        for model, marks in ((BASE, before), (CUT, after)):
            path = host.predictions(out / model, model, "MMDU", dialogues(marks))
            dataset.evaluate(str(path), model="gpt-4o", nproc=1)
            host.records(out / model, model, "MMDU", range(N), **(host.TRUNCATED if model == CUT else {}))
            host.status(out / model, model, MMDU={"status": "done", "judge_model": "gpt-4o"})
    finally:
        image_mt.build_judge = build
    np.save(out / "marks.npy", np.stack([before, after]))
    return out


@needs_host
def test_the_host_s_files_as_they_are_give_every_turn(work: Path) -> None:
    before, after = np.load(work / "marks.npy")
    for cell in find_cells(work):
        found = turns(cell).pivot(index="index", columns="turn", values="score").loc[list(map(str, range(N)))]
        marks = before if cell.model == BASE else after
        np.testing.assert_allclose(found.to_numpy(), np.where(marks < 0, np.nan, marks / 10))


@needs_host
def test_the_sheet_says_how_the_loss_grows_with_the_turns(work: Path) -> None:
    before, after = (np.where(side < 0, np.nan, side) for side in np.load(work / "marks.npy"))
    read = reading.read(work)
    frame = by_turn(read).set_index(["model", "turn"])
    for turn in range(TURNS):
        row, loss = frame.loc[CUT, str(turn + 1)], (after - before)[:, turn]
        assert row["delta"] == pytest.approx(10 * np.nanmean(loss)) and row["n"] == np.isfinite(loss).sum()
        assert row["CI low"] <= row["delta"] <= row["CI high"]
        assert row["score"] - row["base score"] == pytest.approx(row["delta"])
        assert frame.loc[(BASE, str(turn + 1)), "score"] == pytest.approx(10 * np.nanmean(before[:, turn]))
    later = frame.loc[CUT, LATER]
    loss = after - before
    assert later["delta"] == pytest.approx(10 * np.mean(np.nanmean(loss[:, 1:], 1) - loss[:, 0])) and later["n"] == N
    assert later["CI high"] < 0, "later turns lose more"
    assert frame.loc[(BASE, "2"), "unjudged"] == 1 and frame.loc[(BASE, "1"), "unjudged"] == 0
    headline = read.scores[read.scores["headline"]].set_index("model")["value"]
    everything = np.nan_to_num(before).sum() / before.size * 10
    assert headline[BASE] == pytest.approx(everything), "the host counts a turn without a mark as 0"

    sheet = load_workbook(writing.write(read, work / "tables.xlsx"))["Turns"]
    assert [cell.value for cell in sheet[1]][:4] == ["model", "base", "benchmark", "turn"]
    assert sheet.max_row == 1 + TURNS + TURNS + 1
    assert "later - first" in writing.write(read, work / "t.md").read_text()


@pytest.mark.parametrize("bad", ["code", "other", "torn"])
def test_a_file_that_is_no_table_is_named_and_nothing_of_it_is_run(tmp_path: Path, bad: str) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    held = {"code": pickle.dumps({"0": Evil()}), "other": pickle.dumps([1]), "torn": pickle.dumps({"0": 1})[:-3]}
    host.predictions(tmp_path / BASE, BASE, "MMDU", dialogues(np.full((2, 2), 5)))
    (tmp_path / BASE / f"{BASE}_MMDU_gpt-4o.pkl").write_bytes(held[bad])
    (cell,) = find_cells(tmp_path)
    with pytest.raises(ResultsError, match=r"MMDU_gpt-4o\.pkl is no table of turns"):
        turns(cell)
    assert not (tmp_path / "ran").exists()
    (row,) = by_turn(reading.read(tmp_path)).to_dict("records")
    assert "is no table of turns" in row["note"]


def test_folders_without_dialogues_have_no_such_sheet(tmp_path: Path) -> None:
    host.scored(tmp_path / BASE, BASE, "X", 0.5)
    host.predictions(tmp_path / BASE, BASE, "MMDU", dialogues(np.full((2, 2), 5)))
    read = reading.read(tmp_path)
    assert by_turn(read).empty
    assert "Turns" not in load_workbook(writing.write(read, tmp_path / "x.xlsx")).sheetnames
