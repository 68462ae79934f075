"""Answers on disk outlive SIGKILL, torn lines, bit rot and a full disk, and end as the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from redrel_vlmeval.files import Busy, write_whole
from redrel_vlmeval.sweep.store import ANSWERS, Entry, Store, StoreError, Writer, pack, unpack

ROOT = Path(__file__).parent.parent


def entry(number: int, *settings: str, question: str = "q", error: str | None = None) -> Entry:
    answers = {setting: {"text": f"é {number} {setting}\n\u2028", "record": {"n": number}} for setting in settings}
    return Entry(str(number), question, False, answers, error)


def fill(folder: Path, entries: list[Entry], rank: int = 0) -> None:
    writer = Writer(folder, rank)
    for one in entries:
        writer.append(one)
    writer.close()


def test_what_was_written_is_read(tmp_path):
    entries = [entry(number, "", "l1_k0") for number in range(3)]
    fill(tmp_path, entries)
    assert list(Store(tmp_path).read().values()) == entries


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_costs_its_question_only(tmp_path, cut):
    fill(tmp_path, [entry(0, ""), entry(1, "")])
    path = tmp_path / "answers_rank0.jsonl"
    os.truncate(path, path.stat().st_size - cut)
    store = Store(tmp_path)
    assert list(store.read()) == ["0"] and store.damaged == 1
    store.repair()
    fill(tmp_path, [entry(1, "")])
    assert list(store.read().values()) == [entry(0, ""), entry(1, "")] and store.damaged == 0


def test_every_single_flipped_byte_is_seen():
    line = pack({"index": "7", "text": "A"})
    assert unpack(line) == {"index": "7", "text": "A"}
    for place in range(len(line) - 1):
        assert unpack(line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :]) is None, place


def test_a_damaged_line_is_counted_and_the_others_stand(tmp_path):
    fill(tmp_path, [entry(0, ""), entry(1, ""), entry(2, "")])
    path = tmp_path / "answers_rank0.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"index": "1"', b'"index": "9"'))
    store = Store(tmp_path)
    assert list(store.read()) == ["0", "2"] and store.damaged == 1


def test_settings_come_together_and_a_changed_question_starts_anew(tmp_path):
    fill(tmp_path, [entry(0, "", "l2_k8"), entry(0, "l1_k0")])
    fill(tmp_path, [entry(1, "", question="old"), entry(1, "", question="new")])
    found = Store(tmp_path).read()
    assert list(found["0"].answers) == ["", "l1_k0", "l2_k8"]
    assert found["1"].question == "new"


def test_a_failure_keeps_earlier_answers_and_a_later_answer_ends_it(tmp_path):
    fill(tmp_path, [entry(0, ""), entry(0, error="torn picture")])
    assert (Store(tmp_path).read()["0"].error, list(Store(tmp_path).read()["0"].answers)) == ("torn picture", [""])
    fill(tmp_path, [entry(0, "l1_k0")], rank=1)
    assert (Store(tmp_path).read()["0"].error, list(Store(tmp_path).read()["0"].answers)) == (None, ["", "l1_k0"])


def test_merged_files_do_not_depend_on_who_answered_when(tmp_path):
    histories = [
        [(0, [entry(0, "", "a")]), (0, [entry(1, "", "a")])],
        [(1, [entry(1, "")]), (0, [entry(0, "a")]), (2, [entry(0, ""), entry(1, "a")])],
    ]
    found = set()
    for number, history in enumerate(histories):
        folder = tmp_path / str(number)
        folder.mkdir()
        for rank, entries in history:
            fill(folder, entries, rank)
        Store(folder).merge(["0", "1"])
        assert [path.name for path in folder.iterdir()] == [ANSWERS]
        found.add((folder / ANSWERS).read_bytes())
    assert len(found) == 1


def test_merging_keeps_questions_that_are_not_asked_for_now(tmp_path):
    fill(tmp_path, [entry(5, ""), entry(0, "")])
    Store(tmp_path).merge(["0"])
    assert list(Store(tmp_path).read()) == ["0", "5"]


def test_a_second_writer_is_refused(tmp_path):
    writer = Writer(tmp_path)
    with pytest.raises(Busy, match="another run is writing"):
        Writer(tmp_path)
    writer.close()
    Writer(tmp_path).close()


LIMITED = """
import resource, sys
from pathlib import Path
from redrel_vlmeval.sweep.store import Entry, StoreError, Writer
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
writer = Writer(Path(sys.argv[1]))
try:
    for number in range(100):
        writer.append(Entry(str(number), "q", False, {"": {"text": "A" * 50}}))
except StoreError as error:
    print(error)
"""


@pytest.mark.parametrize("room", [1000, 1007, 1100])
def test_no_space_left_loses_the_question_in_flight_only(tmp_path, room):
    """A real short write: the system takes no byte beyond ``room`` from this process."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), str(room)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    store = Store(tmp_path)
    found = list(store.read())
    assert found == [str(number) for number in range(len(found))] and 2 < len(found) < 12 and store.damaged == 0
    assert f"question {len(found)} cannot be written" in done.stdout and "start the same command again" in done.stdout


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "sweep.json"
    write_whole(path, b"old", StoreError)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        write_whole(path, b"new", StoreError)
    assert path.read_bytes() == b"old" and [found.name for found in tmp_path.iterdir()] == ["sweep.json"]


def test_answers_without_what_was_asked_are_refused(tmp_path):
    fill(tmp_path, [entry(0, "")])
    with pytest.raises(StoreError, match="answers without sweep.json"):
        Store(tmp_path).head()


WORKER = """
import os, signal, sys, threading, time
from pathlib import Path
from redrel_vlmeval.sweep.store import Entry, Store, Writer
folder, last = Path(sys.argv[1]), int(sys.argv[2])
store = Store(folder)
store.repair()
known = store.read()
reached = threading.Event()
def die():
    reached.wait()
    time.sleep(0.0001 * (last % 7))
    os.kill(os.getpid(), signal.SIGKILL)
dying = threading.Thread(target=die)
if last < 400:
    dying.start()
writer = Writer(folder)
for number in range(400):
    if str(number) not in known:
        writer.append(Entry(str(number), "q", False, {"": {"text": "A" * (number % 7 * 40)}}))
        time.sleep(0.0002)
    if number == last:
        reached.set()
if last < 400:
    dying.join()
writer.close()
store.merge([str(number) for number in range(400)])
"""


def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path):
    """The kill comes from a second thread of the worker, so it falls anywhere in a write, and it always falls."""
    folders = [tmp_path / "killed", tmp_path / "whole"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for folder, moments in zip(folders, ((3, 80, 171, 260, 399), ()), strict=True):
        folder.mkdir()
        for last in (*moments, 400):
            worker = subprocess.run([sys.executable, "-c", WORKER, str(folder), str(last)], env=environment, timeout=60)
            assert worker.returncode == (0 if last == 400 else -signal.SIGKILL)
    killed, whole = ((folder / ANSWERS).read_bytes() for folder in folders)
    assert killed == whole and whole.count(b"\n") == 400
