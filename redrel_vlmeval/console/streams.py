"""Streams and words of the program as a whole: what it speaks, and how short it says an error."""

from __future__ import annotations

import io
import os
import re
import sys

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
