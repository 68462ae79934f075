"""A sweep in one process, and shared by two and four of torchrun, one of them killed: the same answers at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sweep_worker
from PIL import Image
from sweep_worker import BAD, TEXT, sweep

from redrel_vlmeval.errors import InvalidValue
from redrel_vlmeval.files import Busy, only_one
from redrel_vlmeval.host import pictures
from redrel_vlmeval.sweep.distributed import Group, group
from redrel_vlmeval.sweep.store import ANSWERS, Store, StoreError, Writer

HERE = Path(__file__).parent
LIMIT = 30


def answers(folder: Path) -> list[dict]:
    """The merged file's lines without the times of day."""
    found = [json.loads(line.partition(" ")[2]) for line in (folder / "sweep" / ANSWERS).read_text().split("\n")[:-1]]
    for entry in found:
        for answer in entry["answers"].values():
            assert answer.pop("time")
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    sweep(folder, LIMIT, "0,8")
    return folder


def test_every_question_has_every_setting_or_a_reason(whole):
    settings = ["", *(f"l{layer}_k{keep}" for layer in (1, 2, 3) for keep in (0, 8))]
    for position, entry in enumerate(answers(whole)):
        assert (entry["index"], entry["text_only"]) == (str(100 + position), position == TEXT)
        if position == BAD:
            assert (entry["answers"], entry["error"]) == ({}, "OSError: broken data stream")
            continue
        texts = {setting: answer["text"] for setting, answer in entry["answers"].items()}
        assert texts == {setting: f"{position} {setting}" for setting in settings} and entry["error"] is None
        records = [json.loads(answer["record"]) for answer in entry["answers"].values()]
        assert {tuple(record) for record in records} == {("n",)}  # no times of its own


def test_what_failed_is_reported_and_asked_again(tmp_path, capsys):
    first = sweep(tmp_path, 8, "0")
    assert first.failed == {"103": "OSError: broken data stream"}
    said = capsys.readouterr().out
    assert "8 questions x 3 variants and the base; 1 without a picture" in said and "failed for every variant" in said
    again = sweep(tmp_path, 8, "0")
    assert again.failed == first.failed and again.source.asked == []
    assert "28 answers to 8 questions are there" in (said := capsys.readouterr().out)
    assert "still to be asked: 1 questions, 4 answers" in said


def test_new_settings_are_asked_alone_and_old_ones_are_kept(tmp_path, capsys):
    sweep(tmp_path, 4, "0")
    wider = sweep(tmp_path, 6, "0,8")
    new, every = ("l1_k8", "l2_k8", "l3_k8"), ("", "l1_k0", "l1_k8", "l2_k0", "l2_k8", "l3_k0", "l3_k8")
    assert [(position, sorted(asked)) for position, asked in wider.source.asked] == [
        *((position, ["", *new]) for position in range(3)), (4, [*every]), (5, [*every]),
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert "12 answers to 4 questions are there and reused; new settings: l1_k8, l2_k8, l3_k8;" in said
    sweep(tmp_path, 6, "8")
    assert "kept, not asked for now: l1_k0, l2_k0, l3_k0" in capsys.readouterr().out
    assert len(Store(tmp_path / "sweep").read()["104"].answers) == 7


def test_a_changed_question_is_asked_again(tmp_path, capsys, monkeypatch):
    sweep(tmp_path, 3, "0")
    digests = ["question 0", "other 1", "other 2"]
    monkeypatch.setattr(sweep_worker.Made, "digest", lambda _self, position: digests[position])
    assert [position for position, _ in sweep(tmp_path, 3, "0").source.asked] == [1, 2]
    assert "2 questions have changed since" in capsys.readouterr().out


def test_answers_of_another_model_are_refused_by_name(tmp_path):
    sweep(tmp_path, 3, "0")
    with pytest.raises(StoreError, match="none of its answers can be reused: weights is v2, was w.*another --work-dir"):
        sweep(tmp_path, 4, "0", weights="v2")


def test_fewer_questions_than_before_are_refused(tmp_path):
    sweep(tmp_path, 3, "0")
    with pytest.raises(StoreError, match="its runs are over 3 questions; runs over 2"):
        sweep(tmp_path, 2, "0")


def test_two_in_one_folder_and_one_is_refused(tmp_path):
    (tmp_path / "sweep").mkdir()
    with only_one(tmp_path / "sweep"), pytest.raises(Busy):
        sweep(tmp_path, 3, "0")


@pytest.mark.parametrize("batch", [1, 5])
def test_a_full_disk_ends_the_sweep_and_a_restart_ends_it_well(tmp_path, monkeypatch, whole, batch):
    append, room = Writer.append, 12

    def full(self: Writer, entry) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            raise StoreError("no space left")
        append(self, entry)

    monkeypatch.setattr(Writer, "append", full)
    with pytest.raises(StoreError):
        sweep(tmp_path, LIMIT, "0,8", batch=batch)
    assert len(Store(tmp_path / "sweep").read()) == 12
    monkeypatch.setattr(Writer, "append", append)
    assert len(sweep(tmp_path, LIMIT, "0,8", batch=batch).source.asked) == LIMIT - 12
    assert answers(tmp_path) == answers(whole)


@pytest.mark.parametrize("number", pictures.OF_THE_DISK)
def test_a_fault_of_the_disk_is_no_broken_picture(tmp_path, monkeypatch, number):
    def fault(_self, _position):
        raise OSError(number, "the disk")

    monkeypatch.setattr(sweep_worker.Made, "message", fault)
    with pytest.raises(OSError, match="the disk"):
        sweep(tmp_path, 2, "0")


def test_a_picture_too_large_to_open_fails_its_question_alone(tmp_path, monkeypatch):
    message = sweep_worker.Made.message

    def bomb(self, position):
        if position == 1:
            raise Image.DecompressionBombError("exceeds limit")
        return message(self, position)

    monkeypatch.setattr(sweep_worker.Made, "message", bomb)
    assert sweep(tmp_path, 3, "0").failed == {"101": "DecompressionBombError: exceeds limit"}


def torchrun(folder: Path, count: int, *options: str, keeps: str = "0,8", **variables: str):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", *options]
    return subprocess.run(
        [*command, str(HERE / "sweep_worker.py"), str(folder), str(LIMIT), keeps],
        env=os.environ | {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"} | variables,
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip


def test_four_processes_one_of_them_killed_and_restarted(tmp_path, whole):
    done = torchrun(tmp_path, 4, "--max-restarts=1", "--monitor-interval=0.1", REDREL_TEST_KILL="2:3")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "killed").exists() and "answers to" in done.stdout  # said by rank 0 of the second start
    assert answers(tmp_path) == answers(whole)
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == [ANSWERS, "sweep.json"]


@pytest.mark.slow
def test_two_processes_killed_for_good_and_gone_on_by_one(tmp_path, whole):
    dead = torchrun(tmp_path, 2, REDREL_TEST_KILL="1:5")
    assert dead.returncode != 0
    left = Store(tmp_path / "sweep").read()
    assert 5 <= len(left) < LIMIT and len(Store(tmp_path / "sweep").files()) == 2
    alone = sweep(tmp_path, LIMIT, "0,8")
    known = {int(index) - 100 for index, entry in left.items() if entry.answers}
    assert {position for position, _ in alone.source.asked} == set(range(LIMIT)) - known - {BAD}
    assert answers(tmp_path) == answers(whole)


def test_a_lone_sweep_beside_one_of_several_is_refused(tmp_path):
    (tmp_path / "sweep").mkdir()
    with only_one(tmp_path / "sweep", 3), pytest.raises(Busy, match="several processes are writing here"):
        sweep(tmp_path, 3, "0")


def test_whoever_ends_last_merges_what_all_have_answered(tmp_path, whole):
    (tmp_path / "sweep").mkdir()
    with only_one(tmp_path / "sweep", 1):  # it still works
        first = sweep(tmp_path, LIMIT, "0,8", Group(0, 2))
        assert not first.entries and {position for position, _ in first.source.asked} == set(range(0, LIMIT, 2))
    last = sweep(tmp_path, LIMIT, "0,8", Group(1, 2))
    assert {position for position, _ in last.source.asked} == set(range(1, LIMIT, 2)) - {BAD}
    assert answers(tmp_path) == answers(whole)
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == [ANSWERS, "sweep.json"]


def test_the_last_answers_for_those_that_are_gone(tmp_path, whole):
    sweep(tmp_path, LIMIT, "0,8", Group(2, 3), batch=4)
    assert answers(tmp_path) == answers(whole)


@pytest.mark.parametrize("rank, size", [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "²"), ("0", "0")])
def test_a_place_that_is_none_is_refused(monkeypatch, rank, size):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(InvalidValue, match=f"RANK={rank}, WORLD_SIZE={size}"):
        group()
