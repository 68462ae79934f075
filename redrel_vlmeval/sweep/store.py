"""Answers of a sweep on disk, one checksummed line per question: a kill or a full disk costs the question in flight.

A folder holds ``sweep.json`` (what was asked of what), ``answers.jsonl`` and, while a sweep runs, one
``answers_rank<R>.jsonl`` per process. A line is ``<crc32 of the rest> <json>``. Later lines add to earlier ones.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redrel_vlmeval.files import WriteError, is_locked, lock, write_whole

ANSWERS = "answers.jsonl"
HEAD = "sweep.json"
_RANK = re.compile(r"answers_rank\d+\.jsonl")


class StoreError(WriteError):
    """A sweep's folder that cannot be read, written or gone on with; says what is in the way and what to do."""


@dataclass
class Entry:
    """What is known of one question: ``answers`` by setting (text, time, record as JSON text), or why it failed."""

    index: str
    question: str
    text_only: bool = False
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: str | None = None

    def line(self) -> bytes:
        return pack(vars(self))


def pack(value: Mapping[str, Any]) -> bytes:
    """One line with its checksum."""
    text = json.dumps(value, ensure_ascii=False, default=_plain).encode("utf-8", "surrogatepass")
    return f"{zlib.crc32(text):08x} ".encode() + text + b"\n"


def compact(value: Mapping[str, Any]) -> str:
    """JSON without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain)


def unpack(line: bytes) -> dict[str, Any] | None:
    """The value of a line, None where it is torn or damaged."""
    checksum, space, text = line.rstrip(b"\n").partition(b" ")
    if not space or not line.endswith(b"\n") or checksum != f"{zlib.crc32(text):08x}".encode():
        return None
    value = json.loads(text.decode("utf-8", "surrogatepass"))
    return value if isinstance(value, dict) else None


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


class Store:
    """The answers in one folder; readers and writers of several processes, each writer with a file of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged = 0

    def files(self) -> list[Path]:
        """The merged file first, so that what ranks have added since counts."""
        ranks = sorted(path for path in self.folder.glob("answers_rank*.jsonl") if _RANK.fullmatch(path.name))
        return [path for path in [self.folder / ANSWERS, *ranks] if path.is_file()]

    def read(self) -> dict[str, Entry]:
        """Entries by index; damaged lines are counted in ``damaged`` and their questions are asked again.

        Raises:
            StoreError: a file cannot be read.
        """
        found: dict[str, Entry] = {}
        self.damaged = 0
        for path in self.files():
            try:
                lines = path.read_bytes().splitlines(keepends=True)
            except OSError as error:
                raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
            for line in lines:
                value = unpack(line)
                if value is None:
                    self.damaged += 1
                    continue
                _add(found, Entry(**value))
        return found

    def repair(self) -> None:
        """Cut what a killed process left of a line, so that the next begins on its own; not a living one's."""
        for path in self.files():
            if is_locked(path):
                continue
            data = path.read_bytes()
            if data and not data.endswith(b"\n"):
                os.truncate(path, data.rfind(b"\n") + 1)

    def merge(self, order: Iterable[str]) -> None:
        """All answers in one file, in the benchmark's order; the processes' own files go once it is whole."""
        entries = self.read()
        first = [index for index in order if index in entries]
        asked = set(first)
        rest = [index for index in entries if index not in asked]
        write_whole(self.folder / ANSWERS, b"".join(entries[index].line() for index in [*first, *rest]), StoreError)
        for path in self.files():
            if path.name != ANSWERS:
                path.unlink()

    def head(self) -> dict[str, Any] | None:
        """What ``sweep.json`` says; None in a new folder.

        Raises:
            StoreError: it is there and cannot be read, or there are answers without it.
        """
        path = self.folder / HEAD
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            if self.files():
                raise StoreError(f"{self.folder}: answers without {HEAD}, so what was asked is not known") from None
            return None
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: cannot be read: {error}") from error

    def write_head(self, head: Mapping[str, Any]) -> None:
        write_whole(self.folder / HEAD, json.dumps(head, indent=2).encode() + b"\n", StoreError)


def _add(found: dict[str, Entry], new: Entry) -> None:
    """Answers to the same question come together; the latest try says whether it failed. A changed one starts anew."""
    old = found.get(new.index)
    if old is not None and old.question == new.question:
        new.answers = dict(sorted((old.answers | new.answers).items()))
    found[new.index] = new


class Writer:
    """Appends entries to one process's file, each whole or not at all.

    Raises:
        Busy: another process writes to it.
        StoreError: the file cannot be written.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.path = folder / f"answers_rank{rank}.jsonl"
        try:
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (held open and locked for the sweep)
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written ({error.strerror})") from error
        lock(self._file, str(self.path))

    def append(self, entry: Entry) -> None:
        """Write one entry; what went before stays whole whatever happens.

        Raises:
            StoreError: no space left, or another fault of the disk; all earlier answers are kept.
        """
        size = os.fstat(self._file.fileno()).st_size
        line = memoryview(entry.line())
        try:
            while line:
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), size)
            raise StoreError(
                f"{self.path}: question {entry.index} cannot be written ({error.strerror}); all answers before it are "
                "kept. Make room and start the same command again"
            ) from error

    def close(self) -> None:
        self._file.close()
