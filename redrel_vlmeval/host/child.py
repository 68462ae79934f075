"""The host's runner in a process of its own, which ends with whoever started it, however that ends.

Between the two stands a guard, this file run as a script: it starts the command in a group of its own and reads from a
pipe whose other end only the starting process holds. The kernel closes that end with its owner, also when it is killed
outright; the guard then ends the whole group, what the command itself has started included::

    redrel demo ──pipe──> guard ──starts──> python -m vlmeval ──starts──> workers
         └ killed: the pipe ends └ ends these: ──────────┴──────────────────┘

That needs nothing which one system alone has. The guard imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

PATIENCE = 10.0  # seconds between the request to end and the end by force
ENDINGS = (signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when the thread that started it ends


@contextlib.contextmanager
def started(
    command: Sequence[str], output: IO[bytes], environment: Mapping[str, str], locks: Sequence[IO[bytes]] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Within the context the command runs, and writes to ``output``; with the context it ends, and all it has started.

    ``locks`` are files that this process has locked: they stay locked until the last process of the command is gone,
    so that whoever comes after a killed run waits for its runner.
    """
    guard = subprocess.Popen(
        [sys.executable, "-I", str(Path(__file__).absolute()), *command],
        stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        pass_fds=[file.fileno() for file in locks],
    )  # fmt: skip
    try:
        yield guard
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        guard.wait()


def take_along() -> None:
    """In a process that runs the host itself: what it has started ends with it on SIGTERM and SIGHUP.

    What its main thread forks is ended by the kernel also where the process is killed outright; Linux alone does that.
    """
    for number in ENDINGS:
        if signal.getsignal(number) == signal.SIG_DFL:  # as nohup and others have set it, it stays
            signal.signal(number, _end_all)
    if sys.platform == "linux":
        _end_with_main_thread()


def _end_all(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends at once
    for child in children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
    raise SystemExit(128 + number)


def _end_with_main_thread() -> None:
    """Linux: the kernel sends SIGTERM to a forked process once the *thread* that forked it has ended.

    So this is asked for by children of the main thread alone: others may outlive the thread that forked them.
    """
    prctl = _prctl()
    from_main = [False]

    def before() -> None:
        from_main[0] = threading.current_thread() is threading.main_thread()

    def inside() -> None:
        for number in ENDINGS:
            if signal.getsignal(number) is _end_all:
                signal.signal(number, signal.SIG_DFL)
        if from_main[0]:
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    os.register_at_fork(before=before, after_in_child=inside)


def _prctl() -> Callable[[int, int], int]:
    import ctypes

    return ctypes.CDLL(None).prctl


def children() -> set[int]:
    """Processes that this one has started and that are there; those of multiprocessing alone, where no /proc is."""
    import multiprocessing

    found = {child.pid for child in multiprocessing.active_children() if child.pid}
    for path in Path("/proc/self/task").glob("*/children"):
        found |= set(map(int, path.read_text().split()))
    return found


def _guard(command: list[str]) -> int:
    """Run the command; end it, and all that it has started, once standard input ends. The command's exit code."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, close_fds=False, preexec_fn=_apart)

    def watch() -> None:
        os.read(0, 1)
        _end_group(child.pid)

    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    _end_group(child.pid)  # what it has left behind
    return code if code >= 0 else 128 - code


def _apart() -> None:
    """In the command's process before it is the command: a group of its own, which ends with the guard, too."""
    os.setpgid(0, 0)
    if sys.platform == "linux":
        _prctl()(PR_SET_PDEATHSIG, signal.SIGTERM)


def _end_group(group: int) -> None:
    """Ask all processes of the group to end, and make them after a while; returns when nobody is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody; on macOS, nobody but the dead
        os.killpg(group, signal.SIGTERM)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            time.sleep(0.05)
            os.killpg(group, 0)
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    raise SystemExit(_guard(sys.argv[1:]))
