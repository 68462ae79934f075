"""``redrel demo`` goes on from its own answers only: the host reuses whatever lies in the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import sheet_files

from redrel_vlmeval.bases import TINY
from redrel_vlmeval.demo import show
from redrel_vlmeval.models.boxed import TINY_FOLDER
from redrel_vlmeval.models.checkpoint import weight_files
from redrel_vlmeval.models.tiny import benchmark
from redrel_vlmeval.sheets import terminal

DATA = "RedRelShapes_MINI"
SUBJECT = show.SUBJECTS[TINY]
MODELS = SUBJECT.plan(True)[DATA]


def leave(folder: Path, revision: str) -> None:
    """The record of one answered question."""
    path = folder / MODELS[1] / f"{MODELS[1]}_{DATA}_redrel.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"version": 1, "index": 3, "revision": revision}) + "\n")


def test_answers_of_other_weights_stop_the_demo(tmp_path: Path) -> None:
    leave(tmp_path, "sha256:0ld")
    with pytest.raises(show.DemoError, match="other weights .sha256:0ld; redrel_tiny is sha256:.*--work-dir"):
        show.check_weights(tmp_path, MODELS, DATA)


@pytest.mark.parametrize(
    ("total", "done", "said"),
    [
        (17500, 0, "17500 answers: about 8 minutes on two idle CPU cores"),
        (1680, 0, "1680 answers: about 1 minute on"),
        (1680, 1680, "1680 answers, 1680 of them there already: about 1 minute on"),
    ],
)
def test_it_says_how_long_it_takes(total: int, done: int, said: str) -> None:
    assert show.duration(total, done, SUBJECT.each, 2).startswith(said)


def test_the_end_says_what_to_open(tmp_path: Path, monkeypatch, capsys) -> None:
    """Everything but the runner, which leaves what it left before."""
    monkeypatch.setenv("LMUData", str(tmp_path))
    benchmark.write(DATA)
    monkeypatch.setattr(show, "follow", lambda *_: sheet_files.clear(tmp_path, benchmark=DATA))
    monkeypatch.setattr(show.hostrun, "command", lambda _: ["run.py"])
    monkeypatch.setattr(show.kept, "needed_cells_kept", lambda *_: pd.DataFrame())
    assert show.run(tmp_path, True, None) == 0
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith("1680 answers: about 1 minute") for line in said[:4])
    assert said[-2:] == [f"written: 4 files in {tmp_path}", f"open this: {tmp_path / 'page.html'}"]
    assert (tmp_path / "page.html").is_file() and (tmp_path / "accuracy_against_keep.png").is_file()


def test_the_second_table_fits_a_narrow_terminal() -> None:
    row = {"model": f"{TINY}_trunc_l12_k16_uniform", "L": 12, "K": 16, "rule": "uniform"}
    frame = pd.DataFrame([row | dict.fromkeys(("one-hop", "two-hop", "three-hop", "all", "score"), 12.5)])
    whole = show.needed_table(frame, None)
    assert terminal.wide(whole) > 80 and show.needed_table(frame, 200) == whole and TINY in whole
    narrow = show.needed_table(frame, 80)
    assert terminal.wide(narrow) <= 80 and "l12_k16_uniform" in narrow and "three-hop" in narrow


def test_its_own_answers_are_gone_on_from(tmp_path: Path) -> None:
    show.check_weights(tmp_path, MODELS, DATA)
    leave(tmp_path, weight_files(str(TINY_FOLDER), None)[1])
    show.check_weights(tmp_path, MODELS, DATA)
    assert show.answered(tmp_path, MODELS, DATA) == 1


def test_both_forms_are_asked_of_the_same_rules() -> None:
    for quick, count in ((True, 1680), (False, 17500)):
        choice, open_form = SUBJECT.plan(quick).items()
        assert open_form[0] == choice[0].replace("Shapes", "Shapes_VQA") and set(open_form[1]) <= set(choice[1])
        assert sum(len(names) * len(benchmark.make(data)) for data, names in (choice, open_form)) == count
