"""Pictures of a benchmark's questions as thumbnails that stand in the page itself, each distinct picture once."""

from __future__ import annotations

import ast
import base64
import binascii
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from redrel_vlmeval.errors import RedrelError
from redrel_vlmeval.host import one_line

SIDE = 320  # pixels of a thumbnail's longer edge
# The host takes a shorter value in the column image for the index of the row that holds the picture.
REFERENCE = 64


class PictureError(RedrelError, RuntimeError):
    """Pictures were asked for and cannot be had; the text says where they were looked for."""


def folders(results: Path, given: Path | None) -> list[Path]:
    """Where benchmarks' TSV files may lie, in order: the folder given alone, else as the host and ``redrel demo`` do.

    Raises:
        PictureError: the folder given does not exist.
    """
    if given is not None:
        if not given.is_dir():
            raise PictureError(f"--data-folder {str(given)!r}: no such folder; give the one that holds <benchmark>.tsv")
        return [given]
    named = os.environ.get("LMUData")
    return [*([Path(named)] if named else []), results / "LMUData", Path.home() / "LMUData"]


def find_tables(benchmarks: Iterable[str], places: Sequence[Path]) -> dict[str, Path]:
    """Benchmark -> its TSV, of those that have one.

    Raises:
        PictureError: none has one.
    """
    names = list(benchmarks)
    found = {}
    for name in names:
        path = next((place / f"{name}.tsv" for place in places if (place / f"{name}.tsv").is_file()), None)
        if path is not None:
            found[name] = path
    if names and not found:
        files, where = (", ".join(map(str, of)) for of in ([f"{name}.tsv" for name in names], places))
        raise PictureError(f"--pictures: found no {files} in {where}; name the folder with --data-folder")
    return found


def thumbnails(
    wanted: Sequence[tuple[str, str]], tables: dict[str, Path], most: int
) -> tuple[list[dict[str, Any]], dict[tuple[str, str], list[int]]]:
    """At most ``most`` distinct pictures, and which of them each (benchmark, index) shows, in the order wanted.

    A picture is {src, w, h}: a data address, and the original's size in pixels. A question without a picture has an
    empty list; one whose picture is beyond ``most`` is not named.

    Raises:
        PictureError: a table or a picture cannot be read.
    """
    pictures: list[dict[str, Any]] = []
    known: dict[bytes, int] = {}
    shown: dict[tuple[str, str], list[int]] = {}
    loaded = {name: _column(path, {i for b, i in wanted if b == name}) for name, path in tables.items()}
    for benchmark, index in wanted:
        if index not in (own := loaded.get(benchmark, {})):
            continue
        codes = own[index]
        keys = [hashlib.sha256(code.encode()).digest() for code in codes]
        if len(pictures) + len({key for key in keys if key not in known}) > most:
            continue
        for key, code in zip(keys, codes, strict=True):
            if key not in known:
                known[key] = len(pictures)
                pictures.append(_thumbnail(code, f"{tables[benchmark].name}, index {index}"))
        shown[benchmark, index] = [known[key] for key in keys]
    return pictures, shown


def _column(path: Path, wanted: set[str]) -> dict[str, list[str]]:
    """Index -> base64 of its pictures, of the wanted rows; files of gigabytes are read piece by piece."""
    values = _cells(path, wanted)
    links = {value for value in values.values() if len(value) <= REFERENCE} - {""}
    targets = _cells(path, links) if links else {}
    found = {}
    for index, value in values.items():
        value = targets.get(value, "") if value in links else value
        found[index] = _several(value)
    return found


def _cells(path: Path, wanted: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        names = pd.read_csv(path, sep="\t", nrows=0).columns
        if "index" not in names or "image" not in names:
            raise PictureError(f"{path.name} has no columns 'index' and 'image': no pictures to show from it")
        parts = pd.read_csv(path, sep="\t", usecols=["index", "image"], dtype=str, keep_default_na=False, chunksize=500)
        for part in parts:
            own = part[part["index"].isin(wanted)]
            found |= dict(zip(own["index"], own["image"], strict=True))
    except (OSError, ValueError) as error:
        raise PictureError(f"{str(path)!r} cannot be read: {one_line(error)}") from error
    return found


def _several(value: str) -> list[str]:
    """A cell holds one picture, or a list of them as Python prints it; an empty one holds none."""
    if not value.startswith("["):
        return [value] if value else []
    try:
        listed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return [value]
    return [str(item) for item in listed]


def _thumbnail(code: str, where: str) -> dict[str, Any]:
    """The picture, not larger than ``SIDE``, as WebP: without loss where that is smaller, as for drawings."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(code, validate=False))) as opened:
            width, height = opened.size
            picture = opened.convert("RGB")
    except (OSError, ValueError, binascii.Error, Image.DecompressionBombError) as error:
        raise PictureError(f"{where}: the column image holds no picture: {one_line(error)}") from error
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    files = [_saved(picture, lossless=True, quality=80), _saved(picture, quality=72)]
    data = base64.b64encode(min(files, key=len)).decode()
    return {"src": f"data:image/webp;base64,{data}", "w": width, "h": height}


def _saved(picture: Image.Image, **settings: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "WEBP", **settings)
    return stream.getvalue()
