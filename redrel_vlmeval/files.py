"""Files that appear whole or not at all, and one writer at a time: the package's only writer and only lock."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from filelock import lock_descriptor

from redrel_vlmeval.errors import RedrelError

LOCK = ".redrel.lock"


class WriteError(RedrelError, OSError):
    """A file that cannot be written; the text names it and says what would work."""


class Busy(RedrelError, RuntimeError):
    """Another process is writing where this one wants to; names the place and what to do."""


# -- names: UTF-8 on the disk, as the hosts write them, whatever the locale says ------------------------------------


def told(name: str | Path) -> str:
    """The characters of a name that came from the disk; a locale without them gives stand-ins instead."""
    text = str(name)
    return text if text.isascii() else os.fsencode(text).decode("utf-8", "surrogateescape")


def on_disk(name: str) -> str:
    """The other way: a name as paths spell it in this locale."""
    return name if name.isascii() else os.fsdecode(name.encode("utf-8", "surrogateescape"))


# -- whole files ------------------------------------------------------------------------------------------------------


def atomically(path: str | Path, save: Callable[[IO[bytes]], object], error: type[WriteError] = WriteError) -> Path:
    """``save(stream)`` into ``path``: a reader, or a crash, never meets half a file; returns the path.

    Raises:
        WriteError (or the ``error`` given): a folder, or a place that cannot be written; what was there is untouched.
    """
    path = Path(path)
    if path.is_dir():
        raise error(f"{str(path)!r} is a folder: give the name of a file in it")
    try:
        with _part_of(path) as (part, stream):
            save(stream)
            stream.flush()
            os.fsync(stream.fileno())  # because a rename can reach the disk before what was written
            os.replace(part, path)
    except OSError as problem:
        reason = problem.strerror or type(problem).__name__
        raise error(f"cannot write {str(path)!r}: {reason}; its folder must exist and be writable") from problem
    return path


@contextlib.contextmanager
def _part_of(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """Name and stream of an empty file beside ``path``, this process's alone; gone after an exception.

    A killed process leaves its own behind: whoever writes to ``path`` next takes it over, because it has the same name.
    """
    part = path.with_name(f".{path.name}.part")
    while True:
        with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as stream:
            try:
                lock_descriptor(stream.fileno())
            except OSError:  # a file system without locks: a name that no other process has
                part = path.with_name(f".{path.name}.{os.getpid()}.part")
                os.replace(path.with_name(f".{path.name}.part"), part)
            if not _is_at(stream, part):  # whoever wrote here before has put it in its place
                continue
            stream.truncate(0)
            try:
                yield part, stream
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            return


def write_whole(path: str | Path, data: bytes, error: type[WriteError] = WriteError) -> Path:
    """:func:`atomically` for what is in memory already."""
    return atomically(path, lambda stream: stream.write(data), error)


def make_parent(path: Path, error: type[WriteError] = WriteError) -> None:
    """Make the folder in which a file is to be written, and try it.

    Raises:
        WriteError (or the ``error`` given): it cannot be made or written to.
    """
    try:
        make_and_try(path.parent)
    except OSError as problem:
        reason = problem.strerror or type(problem).__name__
        raise error(
            f"cannot write {str(path)!r}: {reason}; the folder {str(path.parent)!r} cannot be used"
        ) from problem


def usable(folder: Path, option: str) -> None:
    """:func:`make_and_try` for a folder that the user named by ``option``.

    Raises:
        PermissionError: names both.
    """
    try:
        make_and_try(folder)
    except OSError as error:
        raise PermissionError(f"{option} {folder}: cannot be written to ({error.strerror})") from error


def make_and_try(folder: Path) -> None:
    """Make a folder and write into it, so that what cannot be written fails before anything runs.

    Raises:
        OSError: it cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".writable").touch()
    (folder / ".writable").unlink(missing_ok=True)  # several processes may try at once


# -- locks: advisory, and gone with the process, however it ends -----------------------------------------------------


def lock(file: IO[bytes], what: str) -> None:
    """Lock an open file until it is closed.

    Raises:
        Busy: another process holds it; ``file`` is closed.
    """
    if _locked(file, 0.03):
        return
    file.close()
    raise Busy(f"{what}: another run is writing here; wait for it or choose another folder")


def _locked(file: IO[bytes], pause: float) -> bool:
    """Whether the lock was free and is ours now; tried four times, because whoever asks for it has it for a moment."""
    for number in range(4):
        if number:
            time.sleep(pause)
        if lock_descriptor(file.fileno(), blocking=False):
            return True
    return False


@contextlib.contextmanager
def only_one(folder: Path, part: int = 0) -> Iterator[IO[bytes]]:
    """Within the context no other process can enter the same folder, or the same ``part`` of its work.

    Yields:
        The locked file: a child process that is given it holds the lock as well, and goes on doing so without us.

    Raises:
        Busy: another process is in it.
    """
    path = _lock_of(folder, part)
    while True:
        with open(path, "ab") as file:
            lock(file, str(folder))
            if not _is_at(file, path):  # who held it has removed it in between
                continue
            yield file
            path.unlink(missing_ok=True)
            return


def _lock_of(folder: Path, part: int) -> Path:
    return folder / (LOCK if part == 0 else f".redrel{part}.lock")


def is_held(folder: Path, beside: int | None = None) -> bool:
    """Whether a process is in :func:`only_one` of this folder, of any part but ``beside``.

    A lock file that a killed process left does not count.
    """
    own = None if beside is None else _lock_of(folder, beside)
    return any(is_locked(path) for path in folder.glob(".redrel*.lock") if path != own)


_asking = threading.Lock()


def is_locked(path: Path) -> bool:
    """Whether another process holds this file's lock; False where there is no such file."""
    try:
        # in turn, because threads that ask for the same lock would find one another
        with _asking, open(path, "rb") as file:
            return not _locked(file, 0.002)
    except OSError:
        return False


@contextlib.contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Within the context no other process holds the lock file ``path``; waited for, and gone afterwards.

    Raises:
        OSError: the file cannot be made.
    """
    while True:
        with open(path, "ab") as file:
            lock_descriptor(file.fileno())
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
