"""Picture files as a prompt can name them, and the one error for those that are no pictures."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from redrel_vlmeval.errors import Unaskable

LONGEST = 254  # bytes of a path between Qwen-VL's <img> and </img>: 256 places, of which its code reads all but two


def is_local(picture: Any) -> bool:
    """True for a path; data and web addresses, which the host fetches, are none."""
    return not str(picture).startswith("data:") and "://" not in str(picture)


def pictures_of(message: Any) -> list[str]:
    """The pictures that the items of a host's message name, in order."""
    return [str(item["value"]) for item in message if isinstance(item, dict) and item.get("type") == "image"]


def is_missing(picture: Any) -> bool:
    """True for a path without a file."""
    if not is_local(picture):
        return False
    try:
        return not Path(str(picture)).is_file()
    except OSError:  # a name longer than any file's
        return True


@contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """A picture's file, open; what goes wrong with it inside the context is the one error for it.

    Raises:
        ValueError: the file is missing or no picture.
    """
    try:
        with Image.open(path) as picture:
            yield picture
    except FileNotFoundError as error:
        raise Unaskable(f"picture {path!r}: no such file") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise Unaskable(f"picture {path!r}: cannot be read as an image ({error})") from error


def check_readable(path: str) -> None:
    """Open and decode one picture.

    Raises:
        ValueError: the file is missing or no picture.
    """
    with opened(path) as picture:
        picture.convert("RGB")


def is_plain(path: str) -> bool:
    """True where a path survives a tokenizer that knows tags (``<img>``, ``<|endoftext|>``) and composes accents."""
    address = path.startswith(("http://", "https://"))
    return path.isascii() and path.isprintable() and not set("<>|") & set(path) and len(path) <= LONGEST and not address


class PictureNames:
    """Gives every picture a path that :func:`is_plain`: its own, or that of a link in a private folder.

    The folder goes with this object, at the latest when the process ends.
    """

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._links: dict[tuple[str, int, int], str] = {}

    def name(self, path: str) -> str:
        """The path to write into a prompt for the picture at ``path``.

        Raises:
            ValueError: no such file, or the folder for temporary files has itself no plain path.
        """
        if not os.path.isfile(path):
            raise Unaskable(f"picture {path!r}: no such file")
        if is_plain(path):
            return path
        state = os.stat(path)
        key = (os.path.abspath(path), state.st_mtime_ns, state.st_size)  # a copy must follow its file's changes
        if key not in self._links:
            self._links[key] = self._link(key[0])
        return self._links[key]

    def _link(self, target: str) -> str:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="redrel-", ignore_cleanup_errors=True)
        link = os.path.join(self._folder.name, str(len(self._links)))
        if not is_plain(link):
            raise Unaskable(
                f"picture {target!r}: Qwen-VL cannot take this path, nor a link to it in {self._folder.name!r}; "
                "set TMPDIR to a short path of plain letters"
            )
        try:
            os.symlink(target, link)
        except (OSError, NotImplementedError):  # a file system, or a user, without links
            shutil.copyfile(target, link)
        return link
