"""One writer at a time: an advisory lock that ends with the process, however it ends."""

from __future__ import annotations

import contextlib
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


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Within the context no other process can enter the same folder.

    Raises:
        Busy: another process is in it.
    """
    path = folder / ".redrel.lock"
    with open(path, "ab") as file:
        lock(file, str(folder))
        yield
        path.unlink(missing_ok=True)
