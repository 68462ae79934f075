"""A file appears whole or not at all: written beside its place and renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO


class WriteError(RuntimeError):
    """A file that cannot be written; the text names it and says what would work."""


def atomically(path: str | Path, save: Callable[[IO[bytes]], object], error: type[WriteError] = WriteError) -> Path:
    """``save(stream)`` into ``path``: a reader, or a crash, never meets half a file; returns the path.

    Raises:
        WriteError (or the ``error`` given): a folder, or a place that cannot be written; what was there is untouched.
    """
    path = Path(path)
    if path.is_dir():
        raise error(f"{str(path)!r} is a folder: give the name of a file in it")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as stream:
            save(stream)
        os.replace(part, path)
    except OSError as problem:
        reason = problem.strerror or type(problem).__name__
        raise error(f"cannot write {str(path)!r}: {reason}; its folder must exist and be writable") from problem
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return path


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
    (folder / ".writable").unlink()
