"""Streams and words of the program as a whole: what it speaks, and how short it says an error."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_LONG = re.compile(r"\S{300,}")


def brief(error: Exception) -> str:
    """The text of an error, with no word longer than a path: an argument of thousands of characters is not repeated."""
    return _LONG.sub(lambda word: f"{word[0][:60]}... ({len(word[0])} characters)", str(error))


def speak_utf8() -> None:
    """Start again in Python's UTF-8 mode under a locale that lacks letters: file names of results are UTF-8."""
    if sys.getfilesystemencoding().lower() in ("utf-8", "utf8") or sys.flags.utf8_mode:
        return
    os.environ["PYTHONUTF8"] = "1"  # of the programs that this one starts
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def open_streams() -> None:
    """A service may run without stdout or stderr, or with one that lacks letters: neither stops the work."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open to the end)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def written_out() -> Iterator[None]:
    """Behind the context all that was said is written; nothing is left for Python, which would end with code 120.

    Raises:
        OSError: it could not be written, as to a full disk.
        SystemExit: whoever read it has stopped, as ``| head`` does; with code 1, as where that is seen earlier.
    """
    try:
        yield
    finally:
        told = isinstance(sys.exception(), Exception)  # an error of the command's own is what people read of
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError as error:
                _silence(stream)
                if isinstance(error, BrokenPipeError):
                    raise SystemExit(1) from None
                if not told:
                    raise


def _silence(stream: TextIO) -> None:
    """What a stream still holds goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
