"""The host's runner ends with whoever started it, however that ends; and until then its folder is taken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakehost import ROOT, make_host

from redrel_vlmeval import files
from redrel_vlmeval.files import Busy, only_one, write_whole
from redrel_vlmeval.host import child

# Writes on and on, with a process of its own that does the same and, asked to end, takes a second to.
RUNNER = """
import os, signal, subprocess, sys, time
place, deaf = sys.argv[1], sys.argv[-1] == "deaf"
if deaf:
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), os._exit(0)))
else:
    subprocess.Popen([sys.executable, __file__, place, "deaf"])
while True:
    with open(place, "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(0.02)
"""
# `redrel demo` itself, whose runner is the one above
DEMO = """
import sys
from pathlib import Path
from redrel_vlmeval.demo import show
show.hostrun.command = lambda _: [sys.executable, sys.argv[1], sys.argv[2]]
show.run(Path(sys.argv[3]), True, None)
"""
# what a sweep does while the host scores
SWEEP = """
import sys
from pathlib import Path
from redrel_vlmeval.files import only_one
from redrel_vlmeval.host import child
from redrel_vlmeval.sweep import handover
real = child.started
child.started = lambda command, *rest: real([sys.executable, *sys.argv[1:3]], *rest)
work = Path(sys.argv[3])
with only_one(work) as lock:
    handover._evaluate(handover.Target(work, "X", "exact_matching", work, [lock]), ["m"], "T1", None, lambda *_: None)
"""
# and what both are at heart
PLAIN = """
import os, sys
from pathlib import Path
from redrel_vlmeval.files import only_one
from redrel_vlmeval.host import child
work = Path(sys.argv[3])
with only_one(work) as lock, open(work / "log", "wb") as log:
    with child.started([sys.executable, *sys.argv[1:3]], log, dict(os.environ), [lock]) as process:
        process.wait()
"""
ENDINGS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL]


def soon(what: Callable[[], object], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.02)
    return False


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def writers(place: Path) -> set[int]:
    return set(map(int, place.read_text().split())) if place.exists() else set()


@pytest.fixture(autouse=True)
def not_under_nohup() -> Iterator[None]:
    """What is started hears SIGHUP, also where pytest was told to ignore it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "run.py"
    path.write_text(RUNNER)
    yield path
    for pid in writers(tmp_path / "written"):
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("parent, number", [
    *((PLAIN, number) for number in ENDINGS), (DEMO, signal.SIGTERM), (SWEEP, signal.SIGKILL),
], ids=["TERM", "HUP", "INT", "KILL", "demo", "sweep"])  # fmt: skip
def test_a_runner_ends_with_its_parent_and_holds_the_folder_until_then(
    script: Path, tmp_path: Path, parent: str, number: signal.Signals
) -> None:
    place, work = tmp_path / "written", tmp_path / "work"
    work.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LMUData": str(tmp_path)}
    command = [sys.executable, "-c", parent, str(script), str(place), str(work)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert soon(lambda: len(writers(place)) == 2)
    with pytest.raises(Busy), only_one(work):
        pass
    process.send_signal(number)
    if number is not signal.SIGINT:  # a parent that lives on waits for its runner itself
        process.wait(30)
        assert any(map(alive, writers(place)))  # the one that takes a second
        with pytest.raises(Busy), only_one(work):
            pass
    assert soon(lambda: not any(map(alive, writers(place))))
    process.wait(30)

    def free() -> bool:
        try:
            with only_one(work):
                return True
        except Busy:
            return False

    assert soon(free, 5)


def test_the_exit_code_is_the_commands_and_nothing_is_left(tmp_path: Path) -> None:
    left = tmp_path / "left"
    spawn = f"import subprocess; p = subprocess.Popen(['sleep', '60']); open({str(left)!r}, 'w').write(str(p.pid))"
    for code, wanted in {f"{spawn}; raise SystemExit(3)": 3, "import os; os.kill(os.getpid(), 9)": 137}.items():
        with (
            open(tmp_path / "log", "wb") as log,
            child.started([sys.executable, "-c", code], log, dict(os.environ)) as process,
        ):
            assert process.wait(30) == wanted
    assert soon(lambda: not alive(int(left.read_text())), 5)


def test_an_exception_ends_it(script: Path, tmp_path: Path) -> None:
    place = tmp_path / "written"
    with (
        pytest.raises(KeyboardInterrupt),
        open(tmp_path / "log", "wb") as log,
        child.started([sys.executable, str(script), str(place)], log, dict(os.environ)),
    ):
        assert soon(lambda: len(writers(place)) == 2)
        raise KeyboardInterrupt
    assert not any(map(alive, writers(place)))


HOST = """
import multiprocessing, os, subprocess, sys, time
def work():
    time.sleep(60)
if __name__ == "__main__":
    worker = multiprocessing.get_context("fork").Process(target=work)
    worker.start()
    other = subprocess.Popen(["sleep", "60"])
    print(worker.pid, other.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what this process forks is ended by the kernel of Linux")
@pytest.mark.parametrize("number", ENDINGS, ids=lambda number: number.name)
def test_what_a_runner_in_our_process_has_started_ends_with_it(tmp_path: Path, number: signal.Signals) -> None:
    make_host(tmp_path)
    (tmp_path / "vlmeval" / "__main__.py").write_text(HOST)
    (tmp_path / "vlmeval" / "dataset" / "image_mcq.py").write_text("class ImageMCQDataset: ...\n")
    (tmp_path / "vlmeval" / "dataset" / "image_vqa.py").write_text("class ImageVQADataset: ...\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "redrel_vlmeval", "run"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)  # type: ignore[call-overload]
    assert process.stdout is not None
    forked, started = map(int, process.stdout.readline().split())
    if number is signal.SIGINT:  # the terminal sends it to all
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    process.wait(30)
    try:
        assert soon(lambda: not alive(forked), 5)
        if number in child.ENDINGS:
            assert process.returncode == 128 + number and soon(lambda: not alive(started), 5)
    finally:
        if alive(started):
            os.kill(started, signal.SIGKILL)


PART = """
import os, signal, sys
from redrel_vlmeval.files import atomically
atomically(sys.argv[1], lambda stream: (stream.write(b"half a"), stream.flush(), os.kill(os.getpid(), signal.SIGKILL)))
"""


def test_what_a_killed_writer_leaves_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "fig6.png"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", PART, str(path)], env=environment).returncode == -signal.SIGKILL
        assert [found.name for found in tmp_path.iterdir()] == [".fig6.png.part"]
    write_whole(path, b"whole")
    assert path.read_bytes() == b"whole" and list(tmp_path.iterdir()) == [path]


MANY = """
import sys
from redrel_vlmeval.files import write_whole
for number in range(60):
    write_whole(sys.argv[1], sys.argv[2].encode() * (5000 + number))
"""


def test_several_writers_of_one_file_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "one"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    running = [subprocess.Popen([sys.executable, "-c", MANY, str(path), word], env=environment) for word in "abc"]
    while any(process.poll() is None for process in running):
        if path.exists():
            found = path.read_bytes()
            assert len(found) >= 5000 and len(set(found)) == 1
    assert [process.returncode for process in running] == [0, 0, 0] and list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_locks_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_args: object, **_more: object) -> bool:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(files, "lock_descriptor", none)
    assert write_whole(tmp_path / "x", b"y").read_bytes() == b"y" and len(list(tmp_path.iterdir())) == 1
