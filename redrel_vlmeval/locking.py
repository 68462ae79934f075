"""One writer at a time: an advisory lock that ends with the process, however it ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


class Busy(RuntimeError):
    """Another process is writing where this one wants to; names the place and what to do."""


def lock(file: IO[bytes], what: str) -> None:
    """Lock an open file until it is closed; where the system has no such locks (Windows), do nothing.

    Raises:
        Busy: another process holds it; ``file`` is closed.
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise Busy(f"{what}: another run is writing here; wait for it or choose another folder") from None


LOCK = ".redrel.lock"


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Within the context no other process can enter the same folder.

    Raises:
        Busy: another process is in it.
    """
    path = folder / LOCK
    with open(path, "ab") as file:
        lock(file, str(folder))
        yield
        path.unlink(missing_ok=True)


def is_held(folder: Path) -> bool:
    """Whether a process is in :func:`only_one` of this folder; a lock file that a killed one left does not count."""
    try:
        import fcntl

        with open(folder / LOCK, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False


@contextlib.contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Within the context no other process holds the lock file ``path``; waited for, and gone afterwards.

    Raises:
        OSError: the file cannot be made.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        yield
        return
    while True:
        with open(path, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Who held it before has removed it: a third process may hold a new file of this name by now.
            if not _is_at(file, path):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether ``path`` still leads to this open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
