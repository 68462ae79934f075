"""Pictures that are asked about next, opened and prepared by threads while the model works.

```
host asks 1   message 2 is built, expect(its pictures)   the model answers 1
threads                                                  pictures of 2: open, decode, shrink
host asks 2   message 3 is built, expect(..)             take(): ready; the model answers 2
```

No answer depends on it. What a thread cannot make, or made of a file that has changed since, the model's class makes by
itself at the question's own turn, where it meets the error too.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile

logger = logging.getLogger("redrel_vlmeval")
THREADS = min(4, os.cpu_count() or 1)
MOST, BYTES = 64, 2**29  # of pictures that are waited with
MOMENT = 50_000_000  # nanoseconds, more than a file system's clock takes from one reading to the next
FORMATS = ("JPEG", "PNG", "WEBP")  # of one frame, these are the same read now or later


@dataclass(eq=False)
class _Expected:
    path: str
    seen: Any  # of the file, before it was read, see :func:`_seen`
    made: Future[Any] = field(default_factory=Future)


class Ahead:
    """What ``make`` gives for the pictures that are expected.

    Args:
        make: a path -> something that depends on the file alone; None, or an error, where it is better made later.
        once: it is given away once, because whoever takes it may change it.
        threads: that make it; none: nothing is made ahead.
    """

    def __init__(self, make: Callable[[str], Any], once: bool = False, threads: int = THREADS) -> None:
        self._make, self._once, self._threads = make, once, threads
        self._begin()

    def _begin(self) -> None:
        self._process, self._free = os.getpid(), threading.Semaphore(self._threads)
        self._expected: list[_Expected] = []

    def expect(self, pictures: Iterable[str]) -> None:
        """Make these, the first first; of those expected before, what is not among them is dropped.

        Args:
            pictures: as messages name them; what is no file of this computer is left out.
        """
        if self._process != os.getpid():  # a fork takes no threads along
            self._begin()
        if not self._threads:
            return
        Image.init()  # in one thread: Pillow may take a format for unknown that another thread is just importing
        before, self._expected = self._expected, []
        paths = [picture.removeprefix("file://") for picture in pictures]
        for path in islice(paths if self._once else dict.fromkeys(paths), MOST):
            if (seen := _seen(path)) is None:
                continue
            there = (one for one in before if one.path == path and not one.made.cancelled() and _still(path, one.seen))
            one = next(there, None)
            if one is not None:
                before.remove(one)
            else:
                one = _Expected(path, seen)
                threading.Thread(target=self._work, args=(one,), daemon=True).start()  # ends with the process
            self._expected.append(one)
        for one in before:
            one.made.cancel()

    def _work(self, one: _Expected) -> None:
        with self._free:
            if not one.made.set_running_or_notify_cancel():
                return
            made = None
            try:
                if sum(map(_bytes, self._expected)) < BYTES:
                    made = self._make(one.path)
            except Exception as error:
                logger.debug("left to its own turn: %s", error)
            finally:
                one.made.set_result(made)

    def take(self, path: str) -> Any:
        """What was made of the file as it is now, if need be when that is done; None where nothing was."""
        one = self._find(path)
        if one is None:
            return None
        if self._once:
            self._expected.remove(one)
        if one.made.cancel() or not _still(path, one.seen):  # not begun: it is made sooner by whoever asks
            return None
        return one.made.result()

    def _find(self, path: str) -> _Expected | None:
        if self._process != os.getpid():
            return None
        return next((one for one in self._expected if one.path == path), None)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Around the code of a model's class that reads pictures."""
        yield


class Opened(Ahead):
    """For any class: within :meth:`serving` what ``PIL.Image.open`` gives it for an expected file is decoded already.

    It is what ``Image.open`` gives: as long as the class has not had it decoded, it can still be drafted, verified or
    closed. Other threads, streams, formats and pictures with several frames are served as ever.
    """

    def __init__(self) -> None:
        super().__init__(_decoded, once=True)

    @contextmanager
    def serving(self) -> Iterator[None]:
        own, thread = Image.open, threading.get_ident()

        def opened(fp: Any, *args: Any, **kwargs: Any) -> ImageFile.ImageFile:
            picture = own(fp, *args, **kwargs)
            plain = isinstance(fp, (str, os.PathLike)) and not (args or kwargs)
            if plain and threading.get_ident() == thread and self._find(path := os.fspath(fp)) is not None:
                _promise(picture, partial(self.take, path))
            return picture

        Image.open = opened
        try:
            yield
        finally:
            Image.open = own


def ahead_of(model: Any) -> Ahead:
    """Who makes pictures ready for a model of the host: its class, where all that it makes of one is known."""
    return getattr(getattr(model, "core", None), "ahead", None) or Opened()


def unchanged(pictures: Iterable[str]) -> Callable[[], bool]:
    """What tells later whether the files that these pictures name are those of now."""
    before = {path: _seen(path) for path in (picture.removeprefix("file://") for picture in pictures)}
    return lambda: all(_still(path, seen) for path, seen in before.items())


def _state(path: str) -> tuple[Any, ...] | None:
    """What tells whether a file is still what it was, and read alike; None where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, ImageFile.LOAD_TRUNCATED_IMAGES


def _seen(path: str) -> tuple[Any, bytes | None] | None:
    """A file's state, and its content where it was written a moment ago: its clock may not tell it is written again."""
    state = _state(path)
    return None if state is None else (state, _content(path) if time.time_ns() - state[2] < MOMENT else None)


def _still(path: str, seen: tuple[Any, bytes | None] | None) -> bool:
    """Whether a file is what was ``seen``."""
    state, content = seen or (None, None)
    return _state(path) == state and (content is None or content == _content(path))


def _content(path: str) -> bytes:
    try:
        return hashlib.sha1(Path(path).read_bytes(), usedforsecurity=False).digest()
    except OSError:
        return b""


def _bytes(one: _Expected) -> int:
    made = one.made.result() if one.made.done() and not one.made.cancelled() else None
    return _weight(made) if isinstance(made, Image.Image) else getattr(made, "nbytes", 0)


def _weight(picture: Image.Image) -> int:
    """Bytes that a picture has decoded, at most."""
    return 4 * picture.width * picture.height


def _decoded(path: str) -> ImageFile.ImageFile | None:
    with Image.open(path) as picture:
        if picture.format not in FORMATS or getattr(picture, "is_animated", False) or _weight(picture) > BYTES // 4:
            return None
        picture.load()
        return picture


def _promise(picture: ImageFile.ImageFile, take: Callable[[], ImageFile.ImageFile | None]) -> None:
    """When ``picture`` is decoded, and nothing about it was changed before, it becomes what ``take`` gives."""
    opened: Any = picture
    before = _about(picture)

    def load(*args: Any, **kwargs: Any) -> Any:
        del opened.load
        if _about(opened) == before and not (args or kwargs) and (decoded := take()) is not None:
            opened.fp.close()
            vars(opened).update(vars(decoded) | {"_exif": opened._exif})  # what was read of it belongs to its reader
        return opened.load(*args, **kwargs)

    opened.load = load


def _about(picture: ImageFile.ImageFile) -> tuple[Any, ...]:
    held = {name: value for name, value in vars(picture).items() if name != "_exif"}
    return held, dict(picture.info), list(picture.tile)
