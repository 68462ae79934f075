"""Whether the pictures that a model is shown are those of the benchmark's table.

The host decodes a table's pictures once, into ``LMUData/images/<benchmark>/<index>.png``, and from then on shows
whatever lies under that name: also the picture of an earlier table, or of another benchmark that shares the folder.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from redrel_vlmeval.errors import InvalidValue, RedrelError, Unaskable

# What a file or a text that is no picture raises in the host, Pillow and base64; no fault of a model is among them.
UNREADABLE = (
    OSError, ValueError, KeyError, SyntaxError, EOFError, AssertionError, Image.DecompressionBombError,
)  # fmt: skip
# Errors of the disk, which are no fault of one picture.
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES)
# (path, size, time of change, hash of the table's text) -> whether they agree: a run asks many models about a picture.
_seen: dict[tuple[str, int, int, bytes], bool] = {}


def shown(message: Any) -> Iterator[str]:
    """Paths of the pictures of a host's message; of all its turns, where it has several."""
    for part in message if isinstance(message, (list, tuple)) else ():
        if isinstance(part, dict) and part.get("type") == "image":
            yield str(part["value"])
        elif isinstance(part, dict):
            yield from shown(part.get("content"))


def of_the_disk(error: BaseException) -> bool:
    """Whether the disk failed, and no picture."""
    return isinstance(error, OSError) and error.errno in OF_THE_DISK


def without_addresses(error: BaseException) -> str:
    """What an error says, on one line; Pillow names streams by addresses, which differ each time it fails alike."""
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(str(error).split()))


@contextmanager
def decoded(line: Any, dataset: Any = None) -> Iterator[None]:
    """Within the context, in which the host writes a line's pictures into files, one that is none is this line's fault.

    Raises:
        Unaskable: names the line, and what the host says.
    """
    try:
        yield
    except RedrelError:
        raise
    except (*UNREADABLE, TypeError) as error:  # an empty cell, or no cell at all
        if of_the_disk(error):
            raise
        reason = without_addresses(error)[:200]
        where = f"question {line.get('index')}{f' of {dataset}' if dataset else ''}"
        raise Unaskable(f"{where}: its picture cannot be decoded ({type(error).__name__}: {reason})", True) from error


def stale(line: Any, paths: Sequence[str]) -> list[Path]:
    """Those of a line's decoded pictures at ``paths`` that are not the ones in the line.

    Args:
        line: of the host's table; its ``image`` is base64, one text or a list of them.
        paths: files, in the same order. Where they are not as many (pages of a PDF, pictures put together), or the
            line names files alone, there is nothing to compare.
    """
    own = line.get("image")
    own = [own] if isinstance(own, str) else own
    if not isinstance(own, list) or len(own) != len(paths):
        return []
    pairs = zip(map(Path, paths), own, strict=True)
    return [path for path, encoded in pairs if path.is_file() and not _holds(path, str(encoded))]


def renew(dataset: Any, line: Any) -> None:
    """Have the host decode a line's pictures anew where the files it keeps hold others.

    Raises:
        InvalidValue: such a file lies outside the host's own folder, so it is not ours to delete.
        Unaskable: the host cannot decode a picture.
    """
    with decoded(line):
        old = stale(line, list(dataset.dump_image(line)))
    root = Path(getattr(dataset, "img_root", os.devnull)).absolute()
    for path in old:
        if not path.absolute().is_relative_to(root):
            raise InvalidValue(f"{path} does not hold the picture that the table has for {line['index']}: delete it")
        path.unlink(missing_ok=True)
    if old:
        dataset.dump_image(line)


def _holds(path: Path, encoded: str) -> bool:
    """Whether the file holds this picture; False where one of the two is none."""
    found = path.stat()
    key = str(path), found.st_size, found.st_mtime_ns, hashlib.sha1(encoded.encode(), usedforsecurity=False).digest()
    if key not in _seen:
        try:
            _seen[key] = _pixels(_decoded(encoded, path.suffix.lower())) == _pixels(Image.open(path))
        except UNREADABLE:
            _seen[key] = False
    return _seen[key]


def _decoded(encoded: str, suffix: str) -> Image.Image:
    """The picture as the host would read it back; a format that loses something is written and read once."""
    picture: Image.Image = importlib.import_module("vlmeval.smp").decode_base64_to_image(encoded)
    if suffix == ".png":
        return picture
    stream = io.BytesIO()
    picture.save(stream, Image.registered_extensions()[suffix])
    return Image.open(stream)


def _pixels(picture: Image.Image) -> tuple[tuple[int, int], bytes]:
    with picture:
        return picture.size, picture.convert("RGB").tobytes()
